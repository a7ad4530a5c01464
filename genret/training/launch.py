"""Training stages on Ray Train: workers, checkpoints in the run's storage, restarts."""

import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import HEALTH_CHECK_INTERVAL_S_ENV_VAR

from genret import tables
from genret.cluster import NO_GPU, die_with_node, has_dashboard, read_board, start_board
from genret.config import ComputeConfig
from genret.errors import InputError
from genret.runs import StageRecord
from genret.storage import Storage
from genret.training.setup import Setup

if TYPE_CHECKING:
    from genret.training.encoder import EncoderPlace

# How often the controller takes what the workers report, who wait for that at each checkpoint. Ray's own is 2 s.
_POLL_SECONDS = "0.5"
_ATTEMPT = "train"
BUNDLE = "bundle"
"""What was trained, in the folder of a finished attempt."""
LOG, VALIDATION_LOG = "training_log.parquet", "validation_log.parquet"
"""Its logs there."""


@dataclass(frozen=True)
class DenseInputs:
    """What dense training starts from.

    Attributes:
        negatives: The `negatives` section, as a dictionary.
        encoder: The encoder as it is before training.
        records: The run's current stages, that of the encoder among them.
        passages: Record and table name of the passages.
    """

    negatives: Mapping[str, Any]
    encoder: "EncoderPlace"
    records: Mapping[str, StageRecord]
    passages: tuple[StageRecord, str]


@dataclass(frozen=True)
class TrainingTask:
    """What every training worker is told.

    Attributes:
        stage: `sft`, `rpo` or `dense`.
        section: The stage's section of the configuration, as a dictionary.
        pretrained: The `sft.model` section where a pretrained model is fine-tuned, else None.
        run_url: The run store.
        model: Record and artifact name of the bundle to start from; None for `dense`.
        examples: Record and table name of the training rows.
        seed: Seed of the data order.
        setup: How the workers use the machine; how many they are they see themselves.
        threads: CPU threads of each worker.
        dense: What the stage `dense` needs beside these; else None.
        unseen: Record and table name of queries that are not trained on, to measure the loss on; None for none.
    """

    stage: Literal["sft", "rpo", "dense"]
    section: Mapping[str, Any]
    pretrained: Mapping[str, Any] | None
    run_url: str
    model: tuple[StageRecord, str] | None
    examples: tuple[StageRecord, str]
    seed: int
    setup: Setup
    threads: int
    dense: DenseInputs | None = None
    unseen: tuple[StageRecord, str] | None = None


def train(
    task: TrainingTask,
    compute: ComputeConfig,
    scratch: str,
    deliver: Callable[[Path], None],
    on_progress: Callable[[int, int, Mapping[str, float]], None],
) -> dict[str, pa.Table]:
    """Run a training stage on Ray Train, going on from its last checkpoint where there is one.

    Args:
        task: What to train, on what.
        compute: Workers and their resources.
        scratch: Folder in the run's storage for checkpoints. The same folder given again resumes.
        deliver: Called with the local folder of the finished bundle.
        on_progress: Called now and then with step, steps and the logged values.

    Returns:
        The tables `training_log` and, where queries were measured, `validation_log`.

    Raises:
        InputError: Raised by a worker: at once, as trying again would not help. Or the storage cannot be read.
        TrainingFailedError: Any other error there, or more workers died than `max_failures` allows.
    """
    storage = Storage(scratch)
    _drop_broken_snapshot(storage)
    # Of a URL alone, Ray would know the protocols of pyarrow only.
    filesystem, folder = storage.arrow("")
    board = start_board()
    os.environ.setdefault(HEALTH_CHECK_INTERVAL_S_ENV_VAR, _POLL_SECONDS)
    trainer = (TorchTrainer if has_dashboard() else _LocalTrainer)(
        _worker,
        train_loop_config={"task": task, "board": board},
        scaling_config=ScalingConfig(
            num_workers=_worker_count(compute),
            use_gpu=compute.gpus_a_training_worker > 0,
            resources_per_worker={
                "CPU": compute.cpus_a_training_worker,
                **({"GPU": compute.gpus_a_training_worker} if compute.gpus_a_training_worker else {}),
            },
        ),
        run_config=RunConfig(
            name=_ATTEMPT,
            storage_path=folder,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            worker_runtime_env={"env_vars": {} if compute.gpus_a_training_worker else NO_GPU},
        ),
    )
    try:
        result = _fit(trainer, board, on_progress)
    finally:
        ray.kill(board)
    with result.checkpoint.as_directory() as found:
        deliver(Path(found) / BUNDLE)
        logs = {"training_log": LOG, "validation_log": VALIDATION_LOG}
        return {
            name: tables.check_table(name, pq.read_table(Path(found) / file))
            for name, file in logs.items()
            if (Path(found) / file).is_file()
        }


class _LocalTrainer(TorchTrainer):
    """For a Ray without a dashboard, which is this process's own and ends with it.

    Leaves out the actor that frees the room of workers whose controller died: it asks the dashboard for the controller,
    and without one every stage waits twelve seconds for it at its end.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def _worker_count(compute: ComputeConfig) -> int | tuple[int, int]:
    least = compute.min_training_workers
    return (least, compute.training_workers) if least else compute.training_workers


def _drop_broken_snapshot(storage: Storage) -> None:
    """Start anew where Ray Train's list of checkpoints is cut short.

    Ray Train writes that file in place: a process killed at that moment leaves one that every later attempt would
    stumble over.
    """
    content = storage.read(f"{_ATTEMPT}/checkpoint_manager_snapshot.json")
    if content is None:
        return
    try:
        json.loads(content)
    except ValueError:
        storage.delete(_ATTEMPT)


def _fit(trainer: TorchTrainer, board: Any, on_progress: Callable[[int, int, Mapping[str, float]], None]) -> Any:
    """The trainer's result; meanwhile reports what the workers write on the board.

    The trainer runs in a thread of its own: in the main one it would take over Ctrl-C for the rest of the
    process, and end it as if all had gone well.
    """
    outcome: Future[Any] = Future()
    threading.Thread(target=_settle, args=(outcome, trainer.fit), daemon=True).start()
    while not wait([outcome], timeout=1.0).done:
        state = read_board(board)
        if state is not None and state[1]:
            on_progress(*state)
    read_board(board)
    return outcome.result()


def _settle(outcome: Future[Any], call: Callable[[], Any]) -> None:
    try:
        outcome.set_result(call())
    except BaseException as error:
        outcome.set_exception(error)


def _worker(config: dict[str, Any]) -> None:
    """What runs in each training worker."""
    # Ray Train's controller imports this module too, and can do without the libraries that train.
    from genret.training.worker import work

    die_with_node()
    try:
        work(config)
    except InputError as error:
        # Ray Train would start again, as after any error; the driver reads this and gives up.
        ray.get(config["board"].refuse.remote(str(error)))
        raise
