from io import FileIO

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret import spools
from genret.spools import NoRoomError, Spool, take_rows

SCHEMA = pa.schema([pa.field("name", pa.string(), nullable=False), pa.field("number", pa.int32())])


def part(*numbers: int) -> pa.Table:
    return pa.table([[f"n{number}" for number in numbers], list(numbers)], schema=SCHEMA)


@given(st.lists(st.lists(st.integers(0, 99), max_size=7), max_size=6), st.integers(1, 9))
def test_a_table_comes_back_whole(parts: list[list[int]], rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spools, "_ROWS_A_BLOCK", rows)
        spool = Spool(SCHEMA)
        for numbers in parts:
            spool.append(part(*numbers))
        table = spool.table()
    assert table.equals(part(*(number for numbers in parts for number in numbers)))
    assert table.schema.equals(SCHEMA)


def test_it_takes_no_memory() -> None:
    before = pa.total_allocated_bytes()
    spool = Spool(SCHEMA)
    for start in range(0, 300_000, 10_000):
        spool.append(part(*range(start, start + 10_000)))
    table = spool.table()
    assert table.num_rows == 300_000 and table.nbytes > 3_000_000
    assert pa.total_allocated_bytes() - before < 100_000


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows_of_many_parts_hold_on_to_few_of_them(rows: int) -> None:
    before = pa.total_allocated_bytes()
    spool = Spool(SCHEMA)
    for _ in range(1000):
        spool.append(part(*range(1000)).slice(0, rows))
    assert pa.total_allocated_bytes() - before < 0.3 * 1000 * part(*range(1000)).nbytes
    assert spool.table().num_rows == 1000 * rows


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools.tempfile, "TemporaryFile", lambda prefix: FileIO("/dev/full", "r+"))
    with pytest.raises(NoRoomError, match=r"expected room for temporary files .*No space left"):
        spool = Spool(SCHEMA)
        spool.append(part(*range(spools._ROWS_A_BLOCK)))


@given(st.lists(st.lists(st.text(max_size=3), max_size=5), max_size=5), st.data())
def test_rows_are_taken_from_any_chunk(chunks: list[list[str]], data: st.DataObject) -> None:
    values = [value for chunk in chunks for value in chunk]
    column = pa.chunked_array(chunks, pa.string())
    places = st.lists(st.integers(0, len(values) - 1), max_size=12) if values else st.just([])
    rows = data.draw(places)
    assert take_rows(column, np.array(rows, dtype=np.int32)).to_pylist() == [values[row] for row in rows]
