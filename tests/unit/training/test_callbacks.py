"""What is measured beside the steps: how often, and whose time counts, by a clock that is known."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from genret.errors import InputError
from genret.training import callbacks
from genret.training.callbacks import DivergenceCallback, Meter, Progress, ProgressCallback, Validation, is_due

STEP, MEASURING = 2.0, 50.0
TOKENS = 100


class Training:
    """Steps of two seconds and a hundred tokens, and a validation of fifty seconds; each step is logged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: TrainerState, times: int) -> None:
        self.now, self.tokens, self.measured = 1000.0, 0, list[int]()
        monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: self.now))
        self.state = state
        meter = Meter(lambda: self.tokens, 1, 1.0, 1.0, lambda: 0)
        self._callbacks = [Validation(self._measure, times, meter), ProgressCallback(Progress(), meter)]

    def _measure(self) -> float:
        self.now += MEASURING
        self.measured.append(self.state.global_step)
        return 1.0

    def run(self, until: int) -> None:
        self._call("on_train_begin")
        while self.state.global_step < until:
            self.now, self.tokens = self.now + STEP, self.tokens + TOKENS
            self.state.global_step += 1
            self._call("on_step_end")
            self.state.log_history.append({"step": self.state.global_step, "epoch": 0.0, "loss": 1.0})
            self._call("on_log", logs={"loss": 1.0})

    def _call(self, name: str, **more: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, name)(None, self.state, TrainerControl(), **more)

    def logged(self, name: str, of: str = "loss") -> list[float]:
        return [entry[name] for entry in self.state.log_history if of in entry]


@pytest.mark.parametrize(("steps", "times"), [(15, 10), (19, 10), (39, 10), (258, 10), (10, 10), (4, 4), (1, 1)])
def test_measured_at_the_start_and_ten_times_evenly(monkeypatch, steps: int, times: int) -> None:
    training = Training(monkeypatch, TrainerState(max_steps=steps), 10)
    training.run(steps)
    assert len(training.measured) == 1 + times
    assert (training.measured[0], training.measured[-1]) == (0, steps)
    gaps = {later - step for step, later in zip(training.measured, training.measured[1:], strict=False)}
    assert max(gaps) - min(gaps) <= 1


def test_what_is_done_once_is_done_last() -> None:
    assert [step for step in range(1, 8) if is_due(step, 7, 1)] == [7]


def test_time_of_measuring_is_not_time_of_training(monkeypatch) -> None:
    training = Training(monkeypatch, TrainerState(max_steps=4), 2)
    training.run(4)
    assert training.measured == [0, 2, 4]
    assert training.logged("tokens_a_second") == [TOKENS / STEP] * 4
    assert training.logged("mfu") == [TOKENS / STEP] * 4


def test_work_that_the_device_has_left_is_waited_for_before_a_pause(monkeypatch) -> None:
    clock = SimpleNamespace(now=0.0)

    def finish() -> None:
        clock.now += 3.0

    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    meter = Meter(lambda: 60, 1, 1.0, 1.0, lambda: 0, finish)
    meter._last = (0, 0.0)
    with meter.paused():
        clock.now += 100.0
    assert meter.read()["tokens_a_second"] == 20.0


def test_a_resumed_training_goes_on_with_its_time(monkeypatch) -> None:
    straight = Training(monkeypatch, TrainerState(max_steps=6), 3)
    straight.run(6)
    seconds, measured = [2.0, 54.0, 56.0, 108.0, 110.0, 162.0], [0.0, 4.0, 58.0, 112.0]
    assert straight.logged("seconds") == seconds
    assert straight.logged("seconds", "validation_loss") == measured
    half = Training(monkeypatch, TrainerState(max_steps=6), 3)
    half.run(3)
    resumed = Training(monkeypatch, half.state, 3)
    resumed.run(6)
    assert resumed.logged("seconds") == seconds
    assert resumed.logged("seconds", "validation_loss") == measured


@pytest.mark.parametrize("name", ["loss", "train_loss"])
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_an_error_also_where_only_the_last_steps_had_it(tmp_path, name, loss) -> None:
    callback, arguments = DivergenceCallback("rpo"), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    state = TrainerState(global_step=7, max_steps=9, log_history=[{"loss": 1.0, "learning_rate": 0.25}])
    callback.on_log(arguments, state, TrainerControl(), logs={name: 0.5})
    callback.on_log(arguments, state, TrainerControl(), logs={"other": loss})
    with pytest.raises(
        InputError, match=rf"^rpo: .* found {loss} by step 7 of 9, at the learning rate 0\.25; lower rpo"
    ):
        callback.on_log(arguments, state, TrainerControl(), logs={name: loss})
