"""Vectors in few bits, and exact search over them: every query is compared with every vector."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from genret.decoding.packed import multiplication
from genret.errors import InputError
from genret.training.machine import choose_device

VectorFormat = Literal["fp16", "int8"]

VECTORS, SCALES = "vectors.npy", "scales.npy"
"""The files of an index: the stored numbers, and what each row is multiplied by."""

_LARGEST_INT8 = 127
# Vectors that are compared at a time: 64 MiB in 32 bits at 256 dimensions.
_SEARCH_BLOCK = 65_536
# An index of at most so many bytes in 32 bits is laid out for products in its first search and stays so; a larger one
# is converted anew for every search.
_MOST_KEPT = 64 << 20


class VectorIndex(Protocol):
    """What finds vectors near a query's."""

    def __len__(self) -> int:
        """Number of vectors."""

    def search(self, queries: Tensor, k: int, allowed: np.ndarray | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Places and scores of at most k vectors a query, best first, of those at which `allowed` is true."""


@dataclass(frozen=True)
class QuantisedVectors:
    """Vectors as they are stored.

    Attributes:
        values: `(n, dimensions)`, float16 or int8.
        scales: float32 `(n,)`: what int8 rows are multiplied by; ones for float16.
    """

    values: np.ndarray
    scales: np.ndarray


def quantise(vectors: Tensor, kind: VectorFormat) -> QuantisedVectors:
    """Vectors in fewer bits.

    Args:
        vectors: float32 `(n, dimensions)`.
        kind: `fp16`: rounded. `int8`: symmetric, with one scale a vector, so that its largest number is 127.

    Raises:
        InputError: A number is not finite, or too large for the format.
    """
    if not bool(torch.isfinite(vectors).all()):
        raise InputError("dense: expected finite vectors, found a passage whose vector is not")
    if kind == "fp16":
        if bool((vectors.abs() > torch.finfo(torch.float16).max).any()):
            raise InputError("dense.vectors: expected vectors that fit fp16, found larger numbers")
        return QuantisedVectors(vectors.half().numpy(), np.ones(len(vectors), dtype=np.float32))
    largest = vectors.abs().amax(dim=1) if vectors.shape[1] else torch.zeros(len(vectors))
    scales = torch.where(largest > 0, largest / _LARGEST_INT8, torch.ones(()))
    values = (vectors / scales.unsqueeze(1)).round().clamp(-_LARGEST_INT8, _LARGEST_INT8)
    return QuantisedVectors(values.to(torch.int8).numpy(), scales.numpy())


class DenseIndex:
    """Vectors on disk, memory-mapped, and exact search over them: every query is compared with every vector.

    Small ones are held in 32 bits too, on the device, from the first search on.
    """

    def __init__(self, vectors: QuantisedVectors) -> None:
        self._vectors = vectors
        self._multiply: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self._vectors.values)

    @property
    def dimensions(self) -> int:
        """Width of the vectors."""
        return int(self._vectors.values.shape[1])

    def save(self, folder: Path) -> None:
        """Write the arrays into a folder."""
        np.save(folder / VECTORS, self._vectors.values, allow_pickle=False)
        np.save(folder / SCALES, self._vectors.scales, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "DenseIndex":
        """Open what `save` wrote; vectors are memory-mapped.

        Raises:
            InputError: A file is missing, or they do not belong together.
        """
        for file in (VECTORS, SCALES):
            if not (folder / file).is_file():
                raise InputError(f"dense index {folder}: expected the file {file}, found none")
        values = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
        scales = np.load(folder / SCALES, allow_pickle=False)
        if values.ndim != 2 or values.dtype not in (np.float16, np.int8) or len(scales) != len(values):
            raise InputError(
                f"dense index {folder}: expected rows of float16 or int8 and as many scales, found "
                f"{values.dtype} {values.shape} and {scales.shape}"
            )
        return cls(QuantisedVectors(values, scales))

    def rows(self, places: np.ndarray) -> np.ndarray:
        """The vectors at some places, float32 `(places, dimensions)`."""
        rows: np.ndarray = self._vectors.values[places].astype(np.float32)
        rows *= self._vectors.scales[places, None]
        return rows

    def check_width(self, queries: Tensor) -> None:
        """Refuse queries `(q, dimensions)` of another width than the vectors.

        Raises:
            InputError: Names both.
        """
        if queries.shape[1] != self.dimensions:
            raise InputError(f"dense index: expected {self.dimensions} dimensions, found {queries.shape[1]}")

    @torch.inference_mode()
    def search(self, queries: Tensor, k: int, allowed: np.ndarray | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        """The k vectors with the largest inner product with each query.

        Args:
            queries: float32 `(q, dimensions)`.
            k: How many, at least 1.
            allowed: bool `[len(self)]`: others are not found; None: all may be.

        Returns:
            Places (int64) and scores (float32) a query, best first; equal ones in the order of their places. What is
            said of them holds for finite queries.

        Raises:
            InputError: The queries are of another width than the vectors.
        """
        self.check_width(queries)
        device = choose_device()
        queries = queries.to(device, torch.float32)
        found = []
        for start, products in self._products(queries, device):
            kept = np.arange(products.shape[1])
            if allowed is not None:
                kept = np.flatnonzero(allowed[start : start + len(kept)])
                products = products[:, torch.from_numpy(kept).to(device)]
            if len(kept):
                columns, values = _best_columns(products, k)
                found.append((start + kept[columns], values))
        if not found:
            return [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)) for _ in range(len(queries))]
        places, scores = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        if len(found) > 1:
            # Each block's are in order, and the blocks too: equal ones stay in the order of their places.
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            places, scores = (np.take_along_axis(values, order, axis=1) for values in (places, scores))
        return list(zip(places, scores, strict=True))

    def _products(self, queries: Tensor, device: str | torch.device) -> Iterator[tuple[int, Tensor]]:
        """Inner products `(q, rows)` of queries with the vectors in parts, and the place of each part's first."""
        if 0 < len(self) <= _SEARCH_BLOCK and 4 * self._vectors.values.size <= _MOST_KEPT:
            if self._multiply is None:
                self._multiply = multiplication(torch.from_numpy(self.rows(np.arange(len(self)))).to(device))
            yield 0, self._multiply(queries)
            return
        for start in range(0, len(self), _SEARCH_BLOCK):
            block = slice(start, start + _SEARCH_BLOCK)
            vectors = torch.tensor(self._vectors.values[block], device=device).float()
            yield start, queries @ vectors.T * torch.tensor(self._vectors.scales[block], device=device)


def _best_columns(products: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values of the k highest numbers of each row `(rows, at most k)`.

    The highest comes first, and of equal ones the one that stands first in the row.
    """
    n = products.shape[1]
    # One more than wanted: where the last two differ, no other column ties with those that are wanted.
    highest = products.topk(min(k + 1, n), dim=1, sorted=True)
    columns, values = highest.indices.cpu().numpy(), highest.values.cpu().numpy()
    tied = values[:, k - 1] == values[:, k] if k < n else np.zeros(len(values), dtype=bool)
    columns, values = columns[:, :k], values[:, :k]
    order = np.lexsort((columns, -values), axis=1)
    columns, values = (np.take_along_axis(array, order, axis=1) for array in (columns, values))
    for row in np.flatnonzero(tied):
        # `topk` took any of those that tie.
        everything = products[row].cpu().numpy()
        columns[row] = np.argsort(-everything, kind="stable")[:k]
        values[row] = everything[columns[row]]
    return columns, values
