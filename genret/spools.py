"""Tables that are larger than memory should hold: written to disk part by part, then mapped."""

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from genret.errors import InputError

_ROWS_A_BLOCK = 65_536
_BYTES_A_BLOCK = 8 << 20
# A few rows may hold on to much more than themselves: to all that came with them from another process.
_PARTS_A_BLOCK = 256


class NoRoomError(InputError):
    """Temporary files cannot be written."""


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoRoomError(
            f"{tempfile.gettempdir()}: expected room for temporary files (another folder: TMPDIR), found: {error}"
        ) from error


class Spool:
    """A table that grows on disk.

    Its file lies where temporary files do (TMPDIR), uncompressed, and has no name: nothing of it is left, however the
    process ends. What is read of the table are pages of that file, which the system may drop at any time, and not
    memory of the process; it is used like any other table.

    Args:
        schema: Of all parts.

    Raises:
        NoRoomError: The file cannot be written; all methods raise it.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._pending: list[pa.Table] = []
        self._rows = self._bytes = 0
        with _room():
            self._file = tempfile.TemporaryFile(prefix="genret-")  # noqa: SIM115 (closed when it is mapped)
            self._writer = pa.ipc.new_file(self._file, schema)

    def append(self, part: pa.Table) -> None:
        """Add rows. They are copied: the part is not kept for longer than it takes to fill a block."""
        if not part.num_rows:
            return
        self._pending.append(part)
        self._rows += part.num_rows
        self._bytes += part.nbytes
        if self._rows >= _ROWS_A_BLOCK or self._bytes >= _BYTES_A_BLOCK or len(self._pending) == _PARTS_A_BLOCK:
            self._flush()

    def _flush(self) -> None:
        # One array a block and column: what takes rows from tables is slow with many.
        with _room():
            for batch in pa.concat_tables(self._pending).combine_chunks().to_batches(_ROWS_A_BLOCK):
                self._writer.write_batch(batch)
        self._pending, self._rows, self._bytes = [], 0, 0
        # The allocator keeps what it was given back, many blocks of it.
        pa.default_memory_pool().release_unused()

    def table(self) -> pa.Table:
        """All rows, in blocks; ends the writing."""
        if self._rows:
            self._flush()
        with _room(), self._file:
            self._writer.close()
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()


def take_rows(column: pa.ChunkedArray, rows: np.ndarray) -> pa.Array:
    """Some values of a column, copied out of its chunks.

    `ChunkedArray.take` copies all of a column of strings into one array before it takes any.

    Args:
        column: Of any type.
        rows: Row numbers, in any order; may repeat.

    Returns:
        The values, in the order of `rows`.
    """
    by_place = np.argsort(rows, kind="stable")
    places = rows[by_place]
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    bounds = [0, *np.searchsorted(places, ends).tolist()]
    parts = [
        chunk.take(pa.array(places[low:high] - (end - len(chunk))))
        for chunk, end, low, high in zip(column.chunks, ends, bounds, bounds[1:], strict=False)
        if low < high
    ]
    order = np.empty(len(rows), dtype=np.int64)
    order[by_place] = np.arange(len(rows))
    return pa.concat_arrays(parts or [pa.array([], column.type)]).take(pa.array(order))
