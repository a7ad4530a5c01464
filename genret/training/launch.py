"""Training stages on Ray Train: workers, checkpoints in the run's storage, restarts."""

import json
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from genret import tables
from genret.cluster import NO_GPU, die_with_node, read_board, start_board
from genret.config import ComputeConfig, DenseConfig, NegativesConfig, PretrainedModel, RpoConfig, SftConfig
from genret.errors import InputError
from genret.runs import RunStore, StageRecord
from genret.training.base import load_for_training
from genret.training.callbacks import Progress
from genret.training.machine import choose_attention, choose_device
from genret.training.memory import check_memory
from genret.training.rpo import train_rpo
from genret.training.setup import Setup, check_packages
from genret.training.sft import train_sft
from genret.training.trainer import choose_dtype, demand_of

if TYPE_CHECKING:
    from genret.training.dense import TrainedEncoder
    from genret.training.encoder import EncoderPlace

# On CPUs a step frees and asks for the same hundreds of megabytes: glibc keeps them instead of giving them back
# to the kernel, which would clear every page anew (a tenth of a step's time). Other C libraries ignore this.
_MEMORY_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}
_ATTEMPT = "train"
_BUNDLE = "bundle"
_LOG = "training_log.parquet"
_WORKERS = "workers.txt"


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


def train(
    task: TrainingTask,
    compute: ComputeConfig,
    scratch: str,
    deliver: Callable[[Path], None],
    on_progress: Callable[[int, int, Mapping[str, float]], None],
) -> pa.Table:
    """Run a training stage on Ray Train, going on from its last checkpoint where there is one.

    Args:
        task: What to train, on what.
        compute: Workers and their resources.
        scratch: Folder in the run's storage for checkpoints. The same folder given again resumes.
        deliver: Called with the local folder of the finished bundle.
        on_progress: Called now and then with step, steps and the logged values.

    Returns:
        The `training_log` table.

    Raises:
        InputError: Raised by a worker: at once, as trying again would not help.
        TrainingFailedError: Any other error there, or more workers died than `max_failures` allows.
    """
    _drop_broken_snapshot(scratch)
    board = start_board()
    trainer = TorchTrainer(
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
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            worker_runtime_env={"env_vars": _MEMORY_SETTINGS | ({} if compute.gpus_a_training_worker else NO_GPU)},
        ),
    )
    try:
        result = _fit(trainer, board, on_progress)
    finally:
        ray.kill(board)
    with result.checkpoint.as_directory() as folder:
        deliver(Path(folder) / _BUNDLE)
        return tables.check_table("training_log", pq.read_table(Path(folder) / _LOG))


def _worker_count(compute: ComputeConfig) -> int | tuple[int, int]:
    least = compute.min_training_workers
    return (least, compute.training_workers) if least else compute.training_workers


def _drop_broken_snapshot(scratch: str) -> None:
    """Start anew where Ray Train's list of checkpoints is cut short.

    Ray Train writes that file in place: a process killed at that moment leaves one that every later attempt would
    stumble over.
    """
    filesystem, root = fs.FileSystem.from_uri(scratch) if "://" in scratch else (fs.LocalFileSystem(), scratch)
    snapshot = f"{root}/{_ATTEMPT}/checkpoint_manager_snapshot.json"
    if filesystem.get_file_info(snapshot).type != fs.FileType.File:
        return
    with filesystem.open_input_stream(snapshot) as stream:
        content = stream.read()
    try:
        json.loads(content)
    except ValueError:
        filesystem.delete_dir(f"{root}/{_ATTEMPT}")


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
    die_with_node()
    try:
        _work(config)
    except InputError as error:
        # Ray Train would start again, as after any error; the driver reads this and gives up.
        ray.get(config["board"].refuse.remote(str(error)))
        raise


def _work(config: dict[str, Any]) -> None:
    task: TrainingTask = config["task"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    setup = replace(task.setup, workers=context.get_world_size())
    check_packages(setup)
    torch.set_num_threads(task.threads)
    with ExitStack() as stack:
        checkpoint = ray.train.get_checkpoint()
        resume_from = Path(stack.enter_context(checkpoint.as_directory())) if checkpoint else None
        if resume_from is not None and (resume_from / _BUNDLE).is_dir():
            return  # finished before; the driver was stopped before it took the result
        if resume_from is not None:
            _check_workers(resume_from, setup)
        output = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="genret-train-")))
        progress = Progress(
            on_log=lambda step, steps, values: rank or config["board"].write.remote(step, steps, dict(values)),
            on_checkpoint=lambda folder: _report(_sealed(folder, setup) if rank == 0 or setup.zero_stage else None),
        )
        bundle, log = _train(task, setup, output / "checkpoints", resume_from, progress)
        final = output / "final"
        if rank == 0:
            bundle.save(final / _BUNDLE)
            pq.write_table(tables.table_from_rows("training_log", log), final / _LOG)
        _report(final if rank == 0 else None)


def _sealed(folder: Path, setup: Setup) -> Path:
    """A checkpoint with a note of how many workers it is of; with ZeRO each worker's folder holds its own part."""
    (folder / _WORKERS).write_text(str(setup.workers), encoding="utf-8")
    return folder


def _check_workers(checkpoint: Path, setup: Setup) -> None:
    found = int((checkpoint / _WORKERS).read_text(encoding="utf-8"))
    if setup.zero_stage and found != setup.workers:
        raise InputError(
            f"compute.training_workers: expected {found}, as the last checkpoint holds the parts of so many ZeRO "
            f"workers, found {setup.workers}; go on with as many, or without ZeRO, or anew in another run folder"
        )


def _train(
    task: TrainingTask, setup: Setup, output: Path, resume_from: Path | None, progress: Progress
) -> tuple[Any, Any]:
    if task.stage == "dense":
        return _train_dense(task, setup, output, resume_from, progress)
    assert task.model is not None, "the generative stages start from a bundle"
    store = RunStore(task.run_url)
    pretrained = PretrainedModel(**task.pretrained) if task.pretrained is not None else None
    record, name = task.model
    section = SftConfig(**task.section) if task.stage == "sft" else RpoConfig(**task.section)
    folder = store.local_folder(record, name)
    _check_memory(section, setup, folder, pretrained)
    bundle = load_for_training(
        folder,
        pretrained,
        task.stage,
        dtype=choose_dtype(section, setup),
        attention=choose_attention(section.precision),
    )
    assert bundle.model is not None, "what is loaded for training has a model"
    if not setup.zero_stage:  # DeepSpeed places its parts itself
        bundle.model.to(choose_device())
    examples = store.read_table(*task.examples)
    arguments: dict[str, Any] = {
        "seed": task.seed,
        "setup": setup,
        "resume_from": resume_from,
        "progress": progress,
    }
    if isinstance(section, SftConfig):
        return bundle, train_sft(section, bundle, examples, output, **arguments)
    return bundle, train_rpo(section, bundle, examples, output, **arguments)


def _check_memory(
    section: SftConfig | RpoConfig, setup: Setup, folder: Path, pretrained: PretrainedModel | None
) -> None:
    """Refuse what cannot fit before any weights are loaded."""
    context = ray.train.get_context()
    total = psutil.virtual_memory().total // context.get_local_world_size()
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_properties(choose_device()).total_memory if on_gpu else total
    demand, architecture = demand_of(section, setup, folder, pretrained)
    check_memory(architecture, demand, device, total)


def _train_dense(
    task: TrainingTask, setup: Setup, output: Path, resume_from: Path | None, progress: Progress
) -> tuple["TrainedEncoder", Any]:
    # sentence-transformers takes seconds to import, which the other stages do without.
    from genret.training.dense import TrainedEncoder, train_dense

    assert task.dense is not None, "the stage dense has inputs of its own"
    store = RunStore(task.run_url)
    encoder = task.dense.encoder.open(task.dense.records, training=True)
    log, share = train_dense(
        DenseConfig(**task.section),
        NegativesConfig(**task.dense.negatives),
        encoder,
        store.read_table(*task.examples),
        store.read_table(*task.dense.passages),
        output,
        seed=task.seed,
        setup=setup,
        resume_from=resume_from,
        progress=progress,
    )
    return TrainedEncoder(encoder, share), log


def _report(folder: Path | None) -> None:
    """Hand a checkpoint to Ray Train; every worker must call this as often as the others."""
    ray.train.report({}, checkpoint=Checkpoint.from_directory(folder) if folder is not None else None)
