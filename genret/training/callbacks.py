"""What happens beside the optimiser's steps: the log, and checkpoints to resume from."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LogRow = dict[str, Any]


@dataclass
class Progress:
    """Where a training stage reports to.

    Attributes:
        on_log: Called with the step, the number of steps, and the logged values.
        on_checkpoint: Called with the folder of every checkpoint when it is complete.
    """

    on_log: Callable[[int, int, Mapping[str, float]], None] = lambda step, steps, values: None
    on_checkpoint: Callable[[Path], None] = lambda folder: None


class ProgressCallback(TrainerCallback):
    """Hands the trainer's log and checkpoints to a `Progress`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._begin = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._begin = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save no checkpoint at the last step: resumed from there, the trainer would do one step more."""
        if state.global_step >= state.max_steps:
            control.should_save = False
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the time with the logged values, and pass them on."""
        if logs and "loss" in logs:
            seconds = round(time.perf_counter() - self._begin, 3)
            state.log_history[-1]["seconds"] = seconds
            self._progress.on_log(state.global_step, state.max_steps, logs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report the checkpoint just written."""
        self._progress.on_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def training_log(stage: str, state: TrainerState) -> list[LogRow]:
    """Rows of the `training_log` table from a trainer's history, also that of a resumed one."""
    return [
        {
            "stage": stage,
            "step": entry["step"],
            "epoch": float(entry["epoch"]),
            "loss": float(entry["loss"]),
            "learning_rate": float(entry.get("learning_rate", 0.0)),
            "seconds": float(entry.get("seconds", 0.0)),
        }
        for entry in state.log_history
        if "loss" in entry
    ]
