"""Training on several Ray Train workers, plain and with ZeRO, ends where a single worker ends."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import torch
from ray.train import TrainingFailedError
from safetensors.torch import load_file
from service import command_of
from silent import Silent

from genret.cluster import connected
from genret.config import ComputeConfig, RpoConfig, SftConfig, load_config
from genret.pipeline import run
from genret.runs import RunStore
from genret.training.launch import TrainingTask, train
from genret.training.setup import Setup

# Sums in another order: AdamW's first steps turn the last bit of a gradient near zero into a change of this size.
TOLERANCE = 2e-5
SECTIONS: dict[str, SftConfig | RpoConfig] = {
    "sft": SftConfig(epochs=0.35, batch_size=96, micro_batch_size=32, learning_rate=1e-3, checkpoints=2, max_tokens=48),
    "rpo": RpoConfig(epochs=1, batch_size=20, micro_batch_size=8, learning_rate=1e-4, checkpoints=2),
}


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with connected(ComputeConfig(training_workers=3, cpus_a_training_worker=1)):
        yield


@pytest.fixture(scope="module")
def start(tiny_settings: list[str], tmp_path_factory: pytest.TempPathFactory, ray: None) -> tuple[RunStore, dict]:
    """A run with a base model, examples and pairs, whose last steps do not share out evenly."""
    store = RunStore(tmp_path_factory.mktemp("start") / "run")
    config = load_config("scratch-semantic", [*tiny_settings, "sft.model.layers=2", "sft.epochs=0.1"])
    return store, run(config, store, Silent(), "mining")


@pytest.fixture(scope="module")
def fit(start: tuple[RunStore, dict], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple]:
    store, records = start

    def train_once(
        section: SftConfig | RpoConfig, workers: int, *, scratch: Path | None = None, **machine
    ) -> tuple[dict[str, torch.Tensor], pa.Table, pa.Table | None]:
        compute = ComputeConfig(training_workers=workers, cpus_a_training_worker=1, max_failures=0, **machine)
        is_sft = isinstance(section, SftConfig)
        task = TrainingTask(
            stage="sft" if is_sft else "rpo",
            section=section.model_dump(),
            pretrained=None,
            run_url=str(store.url),
            model=(records["base"], "base") if is_sft else (records["sft"], "sft"),
            examples=(records["examples"], "sft_examples") if is_sft else (records["mining"], "preference_pairs"),
            seed=5,
            setup=Setup(**machine),
            threads=1,
            unseen=(records["synthesis"], "preference_queries") if is_sft else None,
        )
        folder = tmp_path_factory.mktemp("fit")

        def deliver(bundle: Path) -> None:
            shutil.copytree(bundle, folder / "bundle")

        logs = train(task, compute, str(scratch or folder / "scratch"), deliver, lambda *_: None)
        return load_file(folder / "bundle" / "model.safetensors"), logs["training_log"], logs.get("validation_log")

    return train_once


@pytest.fixture(scope="module", params=list(SECTIONS))
def section(request: pytest.FixtureRequest) -> SftConfig | RpoConfig:
    return SECTIONS[request.param]


@pytest.fixture(scope="module")
def single(fit: Callable[..., tuple], section) -> tuple[dict[str, torch.Tensor], pa.Table, pa.Table | None]:
    return fit(section, 1)


def assert_same(found: tuple, expected: tuple) -> None:
    weights, *logs = found
    for log, other in zip(logs, expected[1:], strict=True):
        assert (log is None) == (other is None)
        if log is not None:
            assert log.column("step").equals(other.column("step"))
            assert log.column("loss").to_pylist() == pytest.approx(other.column("loss").to_pylist(), abs=1e-5)
    assert weights.keys() == expected[0].keys()
    for name, weight in weights.items():
        assert (weight - expected[0][name]).abs().max() < TOLERANCE, name


@pytest.mark.chaos
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_train_as_one_does(fit, section, single, workers) -> None:
    assert len(single[1]) > 2, "several steps are compared"
    assert_same(fit(section, workers), single)


@pytest.mark.chaos
@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize(("stage", "offload"), [(2, "none"), (3, "none"), (3, "optimizer")])
def test_zero_trains_as_one_worker_does(fit, section, single, stage, offload) -> None:
    assert_same(fit(section, 2, zero_stage=stage, offload=offload), single)


def kill_a_worker(scratch: Path) -> None:
    """Kill a training worker of this process's Ray as soon as there is a checkpoint to go on from."""
    deadline = time.monotonic() + 240
    # Ray Train's list of checkpoints: a checkpoint's folder is there before all of its files are.
    while not (scratch / "train" / "checkpoint_manager_snapshot.json").exists():
        assert time.monotonic() < deadline, "no checkpoint was kept in time"
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in command_of(process):
            process.kill()
            return
    raise AssertionError("no worker was left to be killed")


def kept_seconds(scratch: Path) -> list[list[float]]:
    """The seconds of the logged steps before each checkpoint: no training that begins anew takes just as long."""
    histories = [
        json.loads(path.read_text(encoding="utf-8"))["log_history"]
        for path in scratch.glob("train/checkpoint_*/trainer_state.json")
    ]
    return [[entry["seconds"] for entry in history if "loss" in entry] for history in histories]


@pytest.mark.chaos
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_training_goes_on_with_other_workers(fit, tmp_path: Path, before: int, after: int) -> None:
    section = SECTIONS["sft"].model_copy(update={"epochs": 20.0, "checkpoints": 5})
    expected = fit(section, 1)
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill_a_worker, tmp_path)
        with pytest.raises(TrainingFailedError):
            fit(section, before, scratch=tmp_path)
        killed.result()
    kept = kept_seconds(tmp_path)
    found = fit(section, after, scratch=tmp_path)
    seconds = found[1].column("seconds").to_pylist()
    assert any(seconds[: len(history)] == history for history in kept if history), "it went on from a checkpoint"
    assert_same(found, expected)
