"""Wall-clock times of several sides of a comparison, taken in turn."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

Name = TypeVar("Name")


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        repeats: Measured runs of each side, at most.
        budget_seconds: Once the measured runs of one side have taken so long, no side is run again; each has one.
    """

    repeats: int
    budget_seconds: float


@dataclass
class Runs:
    """The runs of one side.

    Attributes:
        warm_up: What the run before the measured ones returned.
        seconds: Of each measured run.
        answer: What the last run returned.
    """

    warm_up: Any
    seconds: list[float] = field(default_factory=list)
    answer: Any = None

    @property
    def median(self) -> float:
        """In seconds."""
        return float(np.median(self.seconds))

    def percentile(self, percent: float) -> float:
        """In seconds."""
        return float(np.percentile(self.seconds, percent))


def interleave(
    sides: Mapping[Name, Callable[[], Any]], limits: Limits, warm_up: Mapping[Name, Callable[[], Any]] | None = None
) -> dict[Name, Runs]:
    """Run all sides once to warm up, and then in turn, each as often, so that noise of the machine hits all alike.

    Args:
        sides: What to measure.
        limits: How often.
        warm_up: What some sides are warmed up with instead of themselves.
    """
    runs = {name: Runs({**sides, **(warm_up or {})}[name]()) for name in sides}
    for _ in range(limits.repeats):
        for name, side in sides.items():
            begin = time.perf_counter()
            runs[name].answer = side()
            runs[name].seconds.append(time.perf_counter() - begin)
        if max(sum(side.seconds) for side in runs.values()) >= limits.budget_seconds:
            break
    return runs
