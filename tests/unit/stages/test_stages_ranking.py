"""Tables in batches, and together again."""

from collections.abc import Iterator

import pyarrow as pa
import pytest

from genret.stages.ranking import in_batches


def numbers(parts: list[int]) -> list[pa.Table]:
    """Tables of so many rows, numbered through."""
    rows = pa.table({"number": range(sum(parts))})
    return [rows.slice(sum(parts[:place]), count) for place, count in enumerate(parts)]


def one_by_one(batches: Iterator[pa.Table]) -> Iterator[list[int]]:
    return (batch.column("number").to_pylist() for batch in batches)


def ahead(batches: Iterator[pa.Table]) -> Iterator[list[int]]:
    return one_by_one(iter(list(batches)))


@pytest.mark.parametrize("apply", [one_by_one, ahead])
def test_each_table_has_the_results_of_its_batches(apply) -> None:
    assert list(in_batches(numbers([5, 1, 4]), 2, apply)) == [[[0, 1], [2, 3], [4]], [[5]], [[6, 7], [8, 9]]]
    assert list(in_batches([], 2, apply)) == []


@pytest.mark.parametrize("sizes", [[12], [4, 8], [8, 4], [4, 4, 4]])
def test_parts_of_whole_batches_are_the_same_batches(sizes: list[int]) -> None:
    found = [batch for part in in_batches(numbers(sizes), 4, one_by_one) for batch in part]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_table_is_there_before_the_next_is_drawn() -> None:
    drawn = []

    def parts() -> Iterator[pa.Table]:
        for table in numbers([3, 3]):
            drawn.append(table.num_rows)
            yield table

    results = in_batches(parts(), 2, one_by_one)
    assert next(results) == [[0, 1], [2]] and drawn == [3]
