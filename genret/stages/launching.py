"""How a stage trains: the machine it uses, and its way to Ray Train and back."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genret.runs import StageWriter
from genret.stages.context import Context, of_stage, write_tables

if TYPE_CHECKING:
    from genret.training.launch import TrainingTask
    from genret.training.setup import Setup


def launch(
    context: Context, writer: StageWriter, task: "TrainingTask", deliver: Callable[[Path], None]
) -> dict[str, Any]:
    """Train on Ray Train, and keep the log."""
    from genret.training.launch import train

    def on_progress(step: int, steps: int, values: Mapping[str, float]) -> None:
        context.reporter.progress(writer.stage, step, steps, "steps", f"loss {values.get('loss', float('nan')):.3f}")

    logs = train(task, context.config.compute, context.store.scratch(writer.stage, context.mark), deliver, on_progress)
    write_tables(writer, {name: of_stage(log, writer.stage) for name, log in logs.items()})
    log = logs["training_log"]
    return {"steps": log.column("step").to_pylist()[-1] if log.num_rows else 0}


def training_setup(context: Context, stage: str) -> "Setup":
    """How the machine is used by a stage that trains."""
    from genret.training.setup import Setup

    compute = context.config.compute
    return Setup(
        workers=compute.training_workers,
        zero_stage=compute.zero_stage,
        offload=compute.offload,
        gradient_checkpointing=compute.gradient_checkpointing,
        report_to=compute.report_to,
        report_folder=context.store.address(f"tensorboard/{stage}") if "tensorboard" in compute.report_to else "",
        run_name=f"{context.config.name}-{stage}",
    )


@contextmanager
def torch_threads(count: float) -> Iterator[None]:
    """A number of torch threads: sums in another order give other bits, and a driver in a job has one thread."""
    import torch

    from genret.threads import use_threads

    before = torch.get_num_threads()
    use_threads(int(count))
    try:
        yield
    finally:
        torch.set_num_threads(before)
