"""Wall-clock times of several sides of a comparison, taken in turn."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Name = TypeVar("Name")


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        repeats: Measured runs of each side.
        budget_seconds: A side that has taken so long is not run again; it has one run at least.
    """

    repeats: int
    budget_seconds: float


@dataclass
class Runs:
    """The runs of one side.

    Attributes:
        seconds: Of each run; the first one warms up.
        answer: What the last run returned.
    """

    seconds: list[float]
    answer: Any

    @property
    def measured(self) -> list[float]:
        """Without the first run, unless there was no other."""
        return self.seconds[1:] or self.seconds

    @property
    def median(self) -> float:
        """In seconds."""
        return float(np.median(self.measured))

    def percentile(self, percent: float) -> float:
        """In seconds."""
        return float(np.percentile(self.measured, percent))


def interleave(sides: Mapping[Name, Callable[[], Any]], limits: Limits) -> dict[Name, Runs]:
    """Run all sides once to warm up, then all of them again and again, so that noise of the machine hits all alike."""
    runs = {name: Runs([], None) for name in sides}
    for _ in range(limits.repeats + 1):
        for name, side in sides.items():
            if not runs[name].seconds or sum(runs[name].seconds) < limits.budget_seconds:
                begin = time.perf_counter()
                runs[name].answer = side()
                runs[name].seconds.append(time.perf_counter() - begin)
    return runs
