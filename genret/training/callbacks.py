"""What happens beside the optimiser's steps: the log, and checkpoints to resume from."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from genret.errors import InputError

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


class Meter:
    """What was read since the last look, how fast, and what share of the machine's rate that is.

    Args:
        tokens_read: Tokens that this worker has read so far.
        workers: Number of workers; they are taken to read as many.
        flops: FLOPs a token.
        rate: FLOPs a second that each worker's device can do.
        memory: Most bytes that this process has had on its device.
        finish: Waits for what the device was given to do.
    """

    def __init__(
        self,
        tokens_read: Callable[[], int],
        workers: int,
        flops: float,
        rate: float,
        memory: Callable[[], int],
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        self._tokens_read = tokens_read
        self._workers = workers
        self._flops = flops
        self._rate = rate
        self._memory = memory
        self._finish = finish
        self._last = (0, time.perf_counter())

    def start(self) -> None:
        """Count from here."""
        self._last = (self._tokens_read(), time.perf_counter())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile is no training: its time does not count."""
        self._finish()  # what training has left to do does count
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._last = (self._last[0], self._last[1] + time.perf_counter() - begin)

    def read(self) -> dict[str, float]:
        """Values of the last columns of the `training_log` table, since the last call."""
        now = (self._tokens_read(), time.perf_counter())
        tokens, seconds = now[0] - self._last[0], max(now[1] - self._last[1], 1e-9)
        self._last = now
        return {
            "tokens": tokens * self._workers,
            "tokens_a_second": tokens * self._workers / seconds,
            "mfu": tokens * self._flops / seconds / self._rate,
            "memory_gib": self._memory() / 2**30,
        }


class ProgressCallback(TrainerCallback):
    """Hands the trainer's log and checkpoints to a `Progress`."""

    def __init__(self, progress: Progress, meter: Meter | None = None) -> None:
        self._progress = progress
        self._meter = meter
        self._begin = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, or go on from where it stood."""
        self._begin = time.perf_counter() - seconds_before(state)
        if self._meter is not None:
            self._meter.start()

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
            if self._meter is not None:
                state.log_history[-1] |= self._meter.read()
            self._progress.on_log(state.global_step, state.max_steps, logs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report the checkpoint just written."""
        self._progress.on_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class DivergenceCallback(TrainerCallback):
    """Ends a training whose loss is no number any more, before a checkpoint of it is kept.

    Args:
        stage: The stage that trains, which is the name of its section too.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the loss since the last log, or, at the end, at that of all steps, of which the last are in no log.

        Raises:
            InputError: It is no finite number.
        """
        loss = next((logs[name] for name in ("loss", "train_loss") if name in logs), 0.0) if logs else 0.0
        if not math.isfinite(loss):
            rates = (entry["learning_rate"] for entry in reversed(state.log_history) if "learning_rate" in entry)
            raise InputError(
                f"{self._stage}: expected a loss that is a finite number, found {loss} by step {state.global_step} of "
                f"{state.max_steps}, at the learning rate {next(rates, args.learning_rate):g}; lower "
                f"{self._stage}.learning_rate, and see that all weights of the model to start from are finite"
            )


def seconds_before(state: TrainerState) -> float:
    """The time of a training that is resumed, by the last entry of its history; 0 for a new one."""
    return next((float(entry["seconds"]) for entry in reversed(state.log_history) if "seconds" in entry), 0.0)


def is_due(step: int, steps: int, times: int) -> bool:
    """Whether to do something after a step that is done so many times, evenly over the steps and after the last.

    Args:
        step: From 1.
        steps: All; where there are fewer than `times`, each is due.
        times: How often.
    """
    return step * times // steps > (step - 1) * times // steps


class Validation(TrainerCallback):
    """Measures a model that is being trained, evenly over the training, before its first step and after its last.

    What was measured is in the trainer's history, and so in every checkpoint.

    Args:
        measure: The loss of the model as it is. Called by all workers at the same steps.
        times: How often, beside the first one.
        meter: Does not count the time that measuring takes.
    """

    def __init__(self, measure: Callable[[], float], times: int, meter: Meter) -> None:
        self._measure = measure
        self._times = times
        self._meter = meter
        self._begin = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure where training starts, unless it goes on; the clock starts behind that, as that of the log does."""
        self._begin = time.perf_counter()
        if state.global_step == 0:
            self._note(state)
        self._begin = time.perf_counter() - seconds_before(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, if it is time."""
        if is_due(state.global_step, state.max_steps, self._times):
            self._note(state)

    def _note(self, state: TrainerState) -> None:
        seconds = time.perf_counter() - self._begin
        with self._meter.paused():
            loss = self._measure()
        state.log_history.append({"step": state.global_step, "validation_loss": loss, "seconds": seconds})


def validation_log(stage: str, state: TrainerState) -> list[LogRow]:
    """Rows of the `validation_log` table from a trainer's history, also that of a resumed one."""
    return [
        {"stage": stage, "step": entry["step"], "loss": entry["validation_loss"], "seconds": entry["seconds"]}
        for entry in state.log_history
        if "validation_loss" in entry
    ]


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
            "tokens": int(entry.get("tokens", 0)),
            "tokens_a_second": float(entry.get("tokens_a_second", 0.0)),
            "mfu": float(entry.get("mfu", 0.0)),
            "memory_gib": float(entry.get("memory_gib", 0.0)),
        }
        for entry in state.log_history
        if "loss" in entry
    ]
