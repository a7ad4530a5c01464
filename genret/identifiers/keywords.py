"""The keywords of many passages in little room."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Keywords have no white space but single spaces.
_BETWEEN = "\n"
_READ_ROWS = 1024


def join_keywords(keywords: Iterable[str]) -> str:
    """Keywords as one text. None is empty, and none has white space but single spaces."""
    return _BETWEEN.join(keywords)


class KeywordLists:
    """The keywords of each passage, best first, kept as a column of texts: lists of strings take ten times the room.

    Args:
        joined: string: what `join_keywords` makes of the keywords of each passage.
    """

    def __init__(self, joined: pa.ChunkedArray) -> None:
        self._joined = joined

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._joined)

    def __iter__(self) -> Iterator[list[str]]:
        """The lists in the order of the passages."""
        for chunk in self._joined.chunks:
            for start in range(0, len(chunk), _READ_ROWS):
                yield from map(_split, chunk.slice(start, _READ_ROWS).to_pylist())

    def folded_shortest_first(self) -> Iterator[tuple[int, list[str]]]:
        """The lists by their length, and of the same length in the order of the passages; each with its place.

        Every keyword is in the form that is the same whatever its case (`str.casefold`).
        """
        lengths = self._lengths()
        for length in np.unique(lengths):
            first = 0
            for chunk in self._joined.chunks:
                rows = np.flatnonzero(lengths[first : first + len(chunk)] == length)
                for start in range(0, len(rows), _READ_ROWS):
                    some = rows[start : start + _READ_ROWS]
                    # All of a list at once: folding looks at each character by itself, and leaves what is between.
                    lists = (_split(joined.casefold()) for joined in chunk.take(pa.array(some)).to_pylist())
                    yield from zip((some + first).tolist(), lists, strict=True)
                first += len(chunk)

    def have_phrases(self) -> bool:
        """Whether any keyword is more than one word."""
        return any(pc.any(pc.match_substring(chunk, " ")).as_py() for chunk in self._joined.chunks)

    def _lengths(self) -> np.ndarray:
        """Keywords of each passage; int32."""
        counts = [
            pc.add(pc.count_substring(chunk, _BETWEEN), pc.cast(pc.not_equal(chunk, ""), pa.int32())).to_numpy()
            for chunk in self._joined.chunks
        ]
        return np.concatenate(counts) if counts else np.empty(0, dtype=np.int32)


def _split(joined: str) -> list[str]:
    return joined.split(_BETWEEN) if joined else []
