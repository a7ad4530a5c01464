"""The order of the training rows: the same for any number of workers, and after any restart."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

PADDING = "padding"
"""The mark of a row that only fills the last batch of a pass; it counts for nothing."""


@dataclass(frozen=True)
class Shares:
    """How the rows of an optimiser step are shared out.

    Attributes:
        batch: Rows of a step.
        micro_batch: Rows that a worker takes at once.
        accumulation: How often each worker takes them a step.
        workers: Number of workers.
    """

    batch: int
    micro_batch: int
    accumulation: int
    workers: int

    @classmethod
    def of(cls, batch: int, largest: int, workers: int) -> "Shares":
        """As few rounds as `largest` rows at once allow, all workers alike; what is left over in them stays empty."""
        accumulation = math.ceil(batch / (largest * workers))
        return cls(batch, math.ceil(batch / (accumulation * workers)), accumulation, workers)

    @property
    def places(self) -> int:
        """Places for rows in a step, at least `batch`."""
        return self.micro_batch * self.accumulation * self.workers

    def places_for(self, rows: int) -> int:
        """Places that a step with so many rows takes: all workers do as many rounds."""
        if rows == self.batch:
            return self.places
        at_once = self.micro_batch * self.workers if self.workers > 1 else 1
        return math.ceil(rows / at_once) * at_once


class PassSampler(Sampler[int]):
    """Row numbers of one pass over the training set, in an order that the seed and the pass decide.

    A step has the same rows whatever the number of workers. Places that they leave empty get numbers from `count` on,
    which `PaddedRows` answers with rows that count for nothing. (Accelerate alone fills the last batches of a pass with
    its first rows, so that several workers train on some rows twice.)

    The pass is asked for when it begins: what Transformers tells a sampler about it gets lost on the way where several
    workers share one (accelerate's `BatchSamplerShard`), and a resumed training would begin with the first pass again.
    """

    def __init__(self, count: int, seed: int, shares: Shares, current_pass: Callable[[], int]) -> None:
        self._count = count
        self._seed = seed
        self._shares = shares
        self._current_pass = current_pass

    def __len__(self) -> int:
        steps, rest = divmod(self._count, self._shares.batch)
        return steps * self._shares.places + (self._shares.places_for(rest) if rest else 0)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._current_pass())
        order = torch.randperm(self._count, generator=generator).tolist()
        for begin in range(0, self._count, self._shares.batch):
            rows = order[begin : begin + self._shares.batch]
            yield from rows
            yield from range(self._count, self._count + self._shares.places_for(len(rows)) - len(rows))


class PaddedRows(Dataset[Mapping[str, Any]]):
    """A training set that has an answer for the numbers beyond its last row."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        """The rows with these numbers, at once."""
        count = len(self._rows)
        found = self._rows.__getitems__([index if index < count else 0 for index in indices])
        return [row if index < count else {**row, PADDING: True} for index, row in zip(indices, found, strict=True)]


def row_weights(rows: Sequence[Mapping[str, Any]]) -> torch.Tensor | None:
    """How much each row of a batch counts, 1 or 0, float `(n,)`; None where all count."""
    if not any(row.get(PADDING) for row in rows):
        return None
    return torch.tensor([0.0 if row.get(PADDING) else 1.0 for row in rows])
