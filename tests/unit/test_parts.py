import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret import parts
from genret.parts import Parts, cut_table, rows_a_part


@pytest.mark.parametrize(
    ("rows", "size"), [(0, 128), (1_000, 128), (64_000, 500), (200_000, 1_562), (10_000_000, 4_096)]
)
def test_parts_grow_with_the_table_up_to_a_bound(rows: int, size: int) -> None:
    assert rows_a_part(rows) == size


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 8))
def test_a_table_is_cut_into_all_of_its_rows(chunks: list[int], size: int) -> None:
    columns = [pa.array(range(length), pa.int64()) for length in chunks]
    table = pa.table([pa.chunked_array(columns, pa.int64())], names=["number"])
    numbers = table.column("number").to_pylist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "rows_a_part", lambda rows: size)
        cut = cut_table(table)
    for _ in range(2):
        found = list(cut)
        assert len(found) == len(cut)
        assert [row for part in found for row in part.column("number").to_pylist()] == numbers
        assert all(part.num_rows == size for part in found[:-1])
        assert all(part.column("number").num_chunks == 1 for part in found)


def test_parts_are_made_anew_whenever_they_are_drawn() -> None:
    drawn: list[int] = []

    def draw() -> list[int]:
        drawn.append(1)
        return [1, 2]

    parts_of_two = Parts(draw, 2)
    assert len(parts_of_two) == 2 and not drawn
    assert list(parts_of_two) == list(parts_of_two) == [1, 2]
    assert len(drawn) == 2
