"""kill -9 of the whole process group in each stage; the same command then finishes with the same tables."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from genret.config import load_config
from genret.pipeline import planned
from genret.runs import RunStore

# What a clock wrote: it differs between any two runs.
CLOCKS = {
    "training_log": ["seconds", "tokens_a_second", "mfu", "memory_gib"],
    "validation_log": ["seconds"],
    "latencies": ["seconds", "milliseconds_a_query"],
}


# What a stage that goes on where it was killed keeps in its scratch folder. Of a training that is Ray Train's list of
# checkpoints: a checkpoint's folder is there before all of its files are.
KEPT = dict.fromkeys(("sft", "rpo", "dense"), "train/checkpoint_manager_snapshot.json") | {"embedding": "block-*.npz"}

GENRET = ("-m", "genret")
# A block a passage: otherwise the whole corpus is one, and no kill could leave some of the blocks behind.
GENRET_WITH_SMALL_BLOCKS = (
    "-c",
    "from genret.retrieval import dense; dense.BLOCK = 1; from genret.cli import main; main()",
)


def command(settings: list[str], folder: Path, program: Sequence[str] = GENRET) -> list[str]:
    flags = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, *program, "run", "scratch-semantic", "--run", str(folder), *flags]


def kill_in(stage: str, settings: list[str], folder: Path, log: Path, program: Sequence[str] = GENRET) -> None:
    """Start the run in a process group of its own, and kill that when the stage has begun, or has kept something."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command(settings, folder, program), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        deadline = time.monotonic() + 240
        while True:
            ended = process.poll() is not None  # before the log is read: it is whole then
            if re.search(rf"^\s*{stage}\s+started", log.read_text(), flags=re.MULTILINE):
                break
            assert not ended, f"ended before {stage} began:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"{stage} never began:\n{log.read_text()}"
            time.sleep(0.02)
        if stage in KEPT:
            _wait_until_kept(folder, stage, process)
        with suppress(ProcessLookupError):  # it has finished meanwhile
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_kept(folder: Path, stage: str, process: subprocess.Popen) -> None:
    """Kill a stage only once it has something to resume from."""
    deadline = time.monotonic() + 240
    while not any(folder.glob(f"scratch/{stage}-*/{KEPT[stage]}")):
        assert process.poll() is None, f"the run ended, and {stage} was not seen to keep anything"
        assert time.monotonic() < deadline, f"{stage} kept nothing in time"
        time.sleep(0.005)


def tables(store: RunStore) -> dict[tuple[str, str], pa.Table]:
    found = {}
    for stage, record in store.current().items():
        for name in record.tables:
            found[stage, name] = store.read_table(record, name).drop_columns(CLOCKS.get(name, []))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_every_stage_it_ends_with_the_tables_of_an_undisturbed_run(
    tiny_settings: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    disturbed = tmp_path / "disturbed"
    for stage in planned(load_config("scratch-semantic", tiny_settings)):
        kill_in(stage.name, tiny_settings, disturbed, tmp_path / f"{stage.name}.log")
    subprocess.run(command(tiny_settings, disturbed), check=True, timeout=600, capture_output=True)
    expected, found = tables(RunStore(undisturbed)), tables(RunStore(disturbed))
    assert expected.keys() == found.keys()
    for key, table in expected.items():
        assert found[key].equals(table), f"{key} differs"


DENSE = [
    "retrieval.retrievers=[bm25, dense, fusion]",
    "retrieval.fusion.parts=[bm25, dense]",
    "negatives.adjust_share=true",
    "dense.model={type: scratch, vocabulary_size: 500, dimensions: 32}",
    "dense.batch_size=16",
    "dense.checkpoints=4",
    "dense.epochs=4",
]


@pytest.mark.chaos
def test_killed_while_the_dense_retriever_is_made_it_ends_with_the_same_tables(
    tiny_settings: list[str], tmp_path: Path
) -> None:
    settings = [*tiny_settings, *DENSE]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    program = GENRET_WITH_SMALL_BLOCKS
    subprocess.run(command(settings, undisturbed, program), check=True, timeout=600, capture_output=True)
    for stage in ("negatives", "dense", "embedding"):
        kill_in(stage, settings, disturbed, tmp_path / f"{stage}.log", program)
    subprocess.run(command(settings, disturbed, program), check=True, timeout=600, capture_output=True)
    kept = [RunStore(folder).current()["embedding"].details["blocks_kept"] for folder in (undisturbed, disturbed)]
    assert kept[0] == 0 < kept[1], kept
    expected, found = tables(RunStore(undisturbed)), tables(RunStore(disturbed))
    assert expected.keys() == found.keys()
    for key, table in expected.items():
        assert found[key].equals(table), f"{key} differs"
    measures = RunStore(disturbed).read_table(RunStore(disturbed).current()["evaluation"], "measures").to_pylist()
    values = {row["retriever"]: row["value"] for row in measures if row["measure"] == "HIT@10"}
    assert values["dense"] > 0.9, values


def training_worker(process: subprocess.Popen) -> int | None:
    """The Ray Train worker of a run, by its title, among the processes of the run's session."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            title = (folder / "cmdline").read_bytes()
            session = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[3])
        except (OSError, IndexError):
            continue
        if b"RayTrainWorker" in title and session == process.pid:
            return int(folder.name)
    return None


def kill_worker_in(stage: str, settings: list[str], folder: Path) -> None:
    """Run to the end, and kill the stage's worker once it has something to resume from."""
    with (folder.parent / f"worker-{stage}.log").open("w") as output:
        process = subprocess.Popen(
            command(settings, folder), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        _wait_until_kept(folder, stage, process)
        worker = training_worker(process)
        assert worker is not None, "the stage trains"
        os.kill(worker, signal.SIGKILL)
        assert process.wait(timeout=400) == 0, "the run goes on by itself"


def kill_driver_in(stage: str, settings: list[str], folder: Path) -> None:
    """Kill the driver alone, once the stage has something to resume from: the workers have to notice."""
    with (folder.parent / f"driver-{stage}.log").open("w") as output:
        process = subprocess.Popen(
            command(settings, folder), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        _wait_until_kept(folder, stage, process)
        process.kill()
        process.wait()


def weights(folder: Path) -> dict[str, bytes]:
    """The weights of both training stages, as they lie on the disk."""
    store = RunStore(folder)
    return {
        stage: (store.local_folder(store.current()[stage], stage) / "model.safetensors").read_bytes()
        for stage in ("sft", "rpo")
    }


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker in /proc")
def test_a_killed_worker_or_driver_changes_no_weight(tiny_settings: list[str], tmp_path: Path) -> None:
    # Long enough to be killed in the middle, with checkpoints all along.
    longer = ["sft.epochs=12", "rpo.epochs=12", "rpo.checkpoints=6", "retrieval.retrievers=[sft, rpo]"]
    settings = [*tiny_settings, *longer]
    undisturbed = tmp_path / "undisturbed"
    subprocess.run(command(settings, undisturbed), check=True, timeout=600, capture_output=True)
    expected = weights(undisturbed)
    for stage in ("sft", "rpo"):
        disturbed = tmp_path / f"worker-{stage}"
        kill_worker_in(stage, settings, disturbed)
        assert weights(disturbed) == expected, f"a worker killed in {stage}"
    disturbed = tmp_path / "driver"
    for stage in ("sft", "rpo"):
        kill_driver_in(stage, settings, disturbed)
    subprocess.run(command(settings, disturbed), check=True, timeout=600, capture_output=True)
    assert weights(disturbed) == expected, "a driver killed in both stages"
