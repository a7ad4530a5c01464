"""Vectors in few bits, and exact search over them: every query is compared with every vector."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from genret.errors import InputError
from genret.training.machine import choose_device

VectorFormat = Literal["fp16", "int8"]

VECTORS, SCALES = "vectors.npy", "scales.npy"
"""The files of an index: the stored numbers, and what each row is multiplied by."""

_LARGEST_INT8 = 127
# Vectors that are compared at a time: 64 MiB in 32 bits at 256 dimensions.
_SEARCH_BLOCK = 65_536


class VectorIndex(Protocol):
    """What finds vectors near a query's."""

    def __len__(self) -> int:
        """Number of vectors."""

    def search(self, queries: Tensor, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Places and scores of at most k vectors a query, best first."""


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
    """Vectors on disk, memory-mapped, and exact search over them: every query is compared with every vector."""

    def __init__(self, vectors: QuantisedVectors) -> None:
        self._vectors = vectors

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
    def search(self, queries: Tensor, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The k vectors with the largest inner product with each query.

        Args:
            queries: float32 `(q, dimensions)`.
            k: How many, at least 1.

        Returns:
            Places (int64) and scores (float32) a query, best first; equal ones in the order of their places.

        Raises:
            InputError: The queries are of another width than the vectors.
        """
        self.check_width(queries)
        device = choose_device()
        queries = queries.to(device, torch.float32)
        places: list[list[Tensor]] = [[] for _ in range(len(queries))]
        scores: list[list[Tensor]] = [[] for _ in range(len(queries))]
        for start in range(0, len(self), _SEARCH_BLOCK):
            block = slice(start, start + _SEARCH_BLOCK)
            vectors = torch.tensor(self._vectors.values[block], device=device).float()
            products = queries @ vectors.T * torch.tensor(self._vectors.scales[block], device=device)
            # All that tie with the k-th stay in until the stable sort: `topk` keeps an arbitrary one.
            least = products.topk(min(k, products.shape[1]), dim=1).values[:, -1:]
            for row, kept in enumerate(products >= least):
                found = kept.nonzero()[:, 0]
                places[row].append((found + start).cpu())
                scores[row].append(products[row, found].cpu())
        return [best_places(row, found, k) for row, found in zip(places, scores, strict=True)]


def best_places(places: list[Tensor], scores: list[Tensor], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k places with the highest scores, given in parts by rising place; equal ones in the order of their places."""
    if not places:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    everything, values = torch.cat(places).numpy(), torch.cat(scores).numpy()
    order = np.argsort(-values, kind="stable")[:k]
    return everything[order], values[order]
