"""Search of the lists nearest to a query instead of all vectors: faiss, for corpora above some million passages."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from genret.errors import InputError
from genret.retrieval.packages import check_faiss
from genret.retrieval.vectors import DenseIndex

LISTS = "lists.faiss"
"""The file that the lists are in."""

# Vectors to a centroid in its training: faiss warns of fewer than the first; the second, which bounds what is held of a
# large corpus, is well above that.
_FEWEST_A_LIST, _MOST_A_LIST = 39, 64
# The lists hold numbers of eight bits; of so many times the candidates the scores are computed from the vectors.
_OVERSAMPLING = 4
_ADDED_ROWS = 65_536


def _faiss() -> Any:
    """The package faiss: optional, and slow to start, so that only what needs it imports it."""
    check_faiss()
    import faiss

    return faiss


def build_lists(vectors: DenseIndex, seed: int) -> Any:
    """Inverted lists over vectors: k-means centroids by inner product, and in each list 8 bits a number.

    About 4 sqrt(n) lists, as https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index has it.

    Args:
        vectors: All vectors, at least one.
        seed: Seed of the sample that the centroids are found with, and of k-means.

    Returns:
        faiss' index.

    Raises:
        InputError: faiss is not installed.
    """
    faiss = _faiss()
    count, width = len(vectors), vectors.dimensions
    lists = max(1, min(round(4 * math.sqrt(count)), count // _FEWEST_A_LIST))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width), width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.by_residual = False
    index.cp.seed, index.cp.min_points_per_centroid = seed, 1  # a tiny corpus is no reason for a warning
    sample = np.random.default_rng(seed).permutation(count)[: lists * _MOST_A_LIST]
    index.train(vectors.rows(np.sort(sample)))
    for start in range(0, count, _ADDED_ROWS):
        index.add(vectors.rows(np.arange(start, min(count, start + _ADDED_ROWS))))
    return index


def write_lists(index: Path, folder: Path, seed: int) -> None:
    """Write the lists of a saved index into a folder; of no vectors there are none."""
    vectors = DenseIndex.load(index)
    if len(vectors):
        _faiss().write_index(build_lists(vectors, seed), str(folder / LISTS))


class ApproximateIndex:
    """Looks through the lists nearest to a query; what they hold is scored as the exact search scores it."""

    def __init__(self, lists: Any, vectors: DenseIndex, probes: int) -> None:
        self._lists = lists
        self._vectors = vectors
        if lists is not None:
            lists.nprobe = min(probes, lists.nlist)

    def __len__(self) -> int:
        return len(self._vectors)

    @classmethod
    def load(cls, index: Path, folder: Path, probes: int) -> "ApproximateIndex":
        """Open a saved index with its lists, which stay on disk.

        Args:
            index: The folder of the index.
            folder: That of the lists.
            probes: How many lists are looked through a query.

        Raises:
            InputError: faiss is not installed, a file is missing, or they do not belong together.
        """
        faiss = _faiss()
        vectors = DenseIndex.load(index)
        if not len(vectors):
            return cls(None, vectors, probes)
        if not (folder / LISTS).is_file():
            raise InputError(f"dense index {folder}: expected the file {LISTS}, found none")
        try:
            lists = faiss.read_index(str(folder / LISTS), faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            raise InputError(f"dense index {folder}: expected an index of faiss in {LISTS}: {error}") from error
        if (lists.ntotal, lists.d) != (len(vectors), vectors.dimensions):
            raise InputError(
                f"dense index {folder}: expected lists of {len(vectors)} vectors of {vectors.dimensions} dimensions, "
                f"found {lists.ntotal} of {lists.d}"
            )
        return cls(lists, vectors, probes)

    def search(self, queries: Tensor, k: int, allowed: np.ndarray | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        """The k vectors with the largest inner product with each query among those of its lists.

        Args:
            queries: float32 `(q, dimensions)`.
            k: How many, at least 1; fewer are found where the lists hold fewer.
            allowed: bool `[len(self)]`: others are not found; None: all may be.

        Returns:
            Places (int64) and scores (float32) a query, best first; equal ones in the order of their places.

        Raises:
            InputError: The queries are of another width than the vectors.
        """
        self._vectors.check_width(queries)
        if self._lists is None:
            return self._vectors.search(queries, k, allowed)
        rows = np.ascontiguousarray(queries.cpu().float().numpy())
        parameters = None
        if allowed is not None:
            faiss = _faiss()
            chosen = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            parameters = faiss.SearchParametersIVF(sel=chosen, nprobe=self._lists.nprobe)
        _, found = self._lists.search(rows, min(len(self), _OVERSAMPLING * k), params=parameters)
        results = []
        for query, places in zip(rows, found, strict=True):
            kept = np.sort(places[places >= 0])
            results.append(_best_places(kept, self._vectors.rows(kept) @ query, k))
        return results


def _best_places(places: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k places with the highest scores, given by rising place; equal ones in the order of their places."""
    order = np.argsort(-scores, kind="stable")[:k]
    return places[order], scores[order]
