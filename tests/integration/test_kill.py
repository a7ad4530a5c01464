"""kill -9 of the whole process group in each stage; the same command then finishes with the same tables."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from genret.config import load_config
from genret.pipeline import planned
from genret.runs import RunStore

# What a clock wrote: it differs between any two runs.
CLOCKS = {"training_log": ["seconds"], "latencies": ["seconds", "milliseconds_a_query"]}


def command(settings: list[str], folder: Path) -> list[str]:
    flags = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "genret", "run", "scratch-semantic", "--run", str(folder), *flags]


def kill_in(stage: str, settings: list[str], folder: Path, log: Path) -> None:
    """Start the run in a process group of its own, and kill that when the stage has begun."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command(settings, folder), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        deadline = time.monotonic() + 240
        while not re.search(rf"^\s*{stage}\s+started", log.read_text(), flags=re.MULTILINE):
            assert process.poll() is None, f"ended before {stage} began:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"{stage} never began:\n{log.read_text()}"
            time.sleep(0.02)
        if stage in ("sft", "rpo", "dense"):
            _wait_for_checkpoint(folder, stage, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for_checkpoint(folder: Path, stage: str, process: subprocess.Popen) -> None:
    """Kill training only once it has something to resume from, or has finished meanwhile."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(folder.glob(f"scratch/{stage}-*/train/checkpoint_*")):
            return
        time.sleep(0.02)


def tables(store: RunStore) -> dict[tuple[str, str], pa.Table]:
    found = {}
    for stage, record in store.current().items():
        for name in record.tables:
            found[stage, name] = store.read_table(record, name).drop_columns(CLOCKS.get(name, []))
    return found


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_tables_of_an_undisturbed_run(
    tiny_settings: list[str], tmp_path: Path
) -> None:
    undisturbed = tmp_path / "undisturbed"
    subprocess.run(command(tiny_settings, undisturbed), check=True, timeout=600, capture_output=True)
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
    "synthesis.preference_queries=0",
    "sft.epochs=0.05",
    "negatives.adjust_share=true",
    "dense.model.vocabulary_size=500",
    "dense.model.dimensions=32",
    "dense.batch_size=16",
    "dense.checkpoints=4",
    "dense.epochs=4",
]


@pytest.mark.slow
def test_killed_while_the_dense_retriever_is_made_it_ends_with_the_same_tables(
    tiny_settings: list[str], tmp_path: Path
) -> None:
    settings = [*tiny_settings, *DENSE]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    subprocess.run(command(settings, undisturbed), check=True, timeout=600, capture_output=True)
    for stage in ("negatives", "dense", "embedding"):
        kill_in(stage, settings, disturbed, tmp_path / f"{stage}.log")
    subprocess.run(command(settings, disturbed), check=True, timeout=600, capture_output=True)
    expected, found = tables(RunStore(undisturbed)), tables(RunStore(disturbed))
    assert expected.keys() == found.keys()
    for key, table in expected.items():
        assert found[key].equals(table), f"{key} differs"
    measures = RunStore(disturbed).read_table(RunStore(disturbed).current()["evaluation"], "measures").to_pylist()
    values = {row["retriever"]: row["value"] for row in measures if row["measure"] == "HIT@10"}
    assert values["dense"] > 0.9, values
