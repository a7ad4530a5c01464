"""Work in parts that can be drawn more than once, each time anew, so that nobody has to keep them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

import pyarrow as pa

_PARTS = 128
_FEWEST_ROWS, _MOST_ROWS = 128, 4_096

Drawn = TypeVar("Drawn")
Drawn_co = TypeVar("Drawn_co", covariant=True)


class Counted(Protocol[Drawn_co]):
    """Things that can be drawn more than once and whose number is known: a list, or `Parts`."""

    def __len__(self) -> int:
        """Their number."""

    def __iter__(self) -> Iterator[Drawn_co]:
        """All of them, from the first."""


class Drawing(Generic[Drawn]):
    """Things that can be drawn more than once, and are made anew each time: nobody has to keep them.

    Args:
        draw: Makes them, the same ones in the same order whenever it is called.
    """

    def __init__(self, draw: Callable[[], Iterable[Drawn]]) -> None:
        self._draw = draw

    def __iter__(self) -> Iterator[Drawn]:
        """All of them, from the first."""
        return iter(self._draw())


class Parts(Drawing[Drawn]):
    """A known number of such things.

    Args:
        draw: As for `Drawing`.
        count: How many it makes.
    """

    def __init__(self, draw: Callable[[], Iterable[Drawn]], count: int) -> None:
        super().__init__(draw)
        self._count = count

    def __len__(self) -> int:
        """Their number."""
        return self._count


def cut_table(table: pa.Table) -> Parts[pa.Table]:
    """Some rows of a table at a time, `rows_a_part` of them. Combined they are quicker to send than slices of chunks.

    Args:
        table: Any table.

    Returns:
        Tables whose columns have one chunk each; none of them for a table without rows.
    """
    size = rows_a_part(table.num_rows)
    starts = range(0, table.num_rows, size)
    return Parts(lambda: (table.slice(start, size).combine_chunks() for start in starts), len(starts))


def rows_a_part(rows: int) -> int:
    """How many rows of a table of so many make a part.

    To hand a part over costs some milliseconds, whatever its size; but more workers than parts have nothing to do.
    There are 128 of tables of 16,384 to 524,288 rows, fewer of smaller and more of larger ones.
    """
    return min(max(rows // _PARTS, _FEWEST_ROWS), _MOST_ROWS)
