"""What a training worker does: from a stage's inputs to checkpoints and the trained retriever."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
import torch
from ray.train import Checkpoint

from genret import tables
from genret.allocator import keep_freed_memory
from genret.config import DenseConfig, NegativesConfig, PretrainedModel, RpoConfig, SftConfig
from genret.errors import InputError
from genret.runs import RunStore, StageRecord
from genret.threads import use_threads
from genret.training.base import load_for_training
from genret.training.callbacks import Progress
from genret.training.launch import BUNDLE, LOG, VALIDATION_LOG, TrainingTask
from genret.training.machine import choose_attention, choose_device
from genret.training.memory import check_memory
from genret.training.rpo import train_rpo
from genret.training.setup import Setup, check_packages
from genret.training.sft import UnseenQueries, train_sft
from genret.training.trainer import choose_dtype, demand_of
from genret.training.workplace import workplace

if TYPE_CHECKING:
    from genret.training.dense import TrainedEncoder

_WORKERS = "workers.txt"
_ROWS_A_PART = 100_000


def work(config: dict[str, Any]) -> None:
    """Train as one of the workers of a stage, and hand checkpoints and the result to Ray Train.

    Args:
        config: `task` (`genret.training.launch.TrainingTask`) and `board`, a handle to the `ProgressBoard`.

    Raises:
        InputError: What was asked for cannot be trained here.
    """
    task: TrainingTask = config["task"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    setup = replace(task.setup, workers=context.get_world_size())
    check_packages(setup)
    use_threads(task.threads)
    keep_freed_memory()
    with ExitStack() as stack:
        checkpoint = ray.train.get_checkpoint()
        resume_from = Path(stack.enter_context(checkpoint.as_directory())) if checkpoint else None
        if resume_from is not None and (resume_from / BUNDLE).is_dir():
            return  # finished before; the driver was stopped before it took the result
        if resume_from is not None:
            _check_workers(resume_from, setup)
        output = stack.enter_context(workplace())
        progress = Progress(
            on_log=lambda step, steps, values: rank or config["board"].write.remote(step, steps, dict(values)),
            on_checkpoint=lambda folder: _hand_over(folder, setup, rank, _report),
        )
        unseen = None
        if task.unseen is not None:
            count = task.section["validation_queries"]
            unseen = UnseenQueries(evenly_spaced(RunStore(task.run_url), *task.unseen, count))
        bundle, log = _train(task, setup, output / "checkpoints", resume_from, progress, unseen)
        final = output / "final"
        if rank == 0:
            bundle.save(final / BUNDLE)
            pq.write_table(tables.table_from_rows("training_log", log), final / LOG)
            if unseen is not None and unseen.rows:
                pq.write_table(tables.table_from_rows("validation_log", unseen.rows), final / VALIDATION_LOG)
        _report(final if rank == 0 else None)


def evenly_spaced(store: RunStore, record: StageRecord, name: str, count: int) -> pa.Table:
    """At most so many rows of a table, spread evenly over it, of which a part at a time is held."""
    total, start = record.tables[name]["rows"], 0
    places = [place * total // count for place in range(count)] if count < total else list(range(total))
    parts = [tables.SCHEMAS[name].empty_table()]
    for part in store.read_parts(record, name, _ROWS_A_PART):
        inside = [place - start for place in places if start <= place < start + part.num_rows]
        parts.append(part.take(pa.array(inside, pa.int64())))
        start += part.num_rows
    return pa.concat_tables(parts)


def _hand_over(folder: Path, setup: Setup, rank: int, report: Callable[[Path | None], None]) -> None:
    """Report a checkpoint, and delete it here: what is reported is in the run's storage.

    Transformers deletes older ones by itself, but only where the first worker writes.
    """
    report(_sealed(folder, setup) if rank == 0 or setup.zero_stage else None)
    shutil.rmtree(folder, ignore_errors=True)


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
    task: TrainingTask,
    setup: Setup,
    output: Path,
    resume_from: Path | None,
    progress: Progress,
    unseen: UnseenQueries | None,
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
        return bundle, train_sft(section, bundle, examples, output, **arguments, unseen=unseen)
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
