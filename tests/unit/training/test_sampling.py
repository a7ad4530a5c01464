"""Which rows a step trains on: the same with any number of workers."""

import pyarrow as pa
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from genret.training.sampling import PADDING, PaddedRows, PassSampler, Shares, row_weights


def steps_of(sampler: PassSampler, shares: Shares) -> list[list[int]]:
    """The rows of each step as accelerate hands them to the workers."""
    batches = BatchSampler(sampler, shares.micro_batch, drop_last=False)
    # A single worker's batches are left as they are.
    parts = [list(batches)]
    if shares.workers > 1:
        parts = [list(BatchSamplerShard(batches, shares.workers, rank)) for rank in range(shares.workers)]
    assert len({len(part) for part in parts}) == 1, "all workers do as many rounds"
    steps: list[list[int]] = []
    for number in range(len(parts[0])):
        if number % shares.accumulation == 0:
            steps.append([])
        steps[-1] += [index for part in parts for index in part[number]]
    return steps


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_steps_have_the_same_rows_with_any_number_of_workers(count, batch, largest, workers, current) -> None:
    shares = Shares.of(batch, largest, workers)
    assert shares.micro_batch <= largest
    sampler = PassSampler(count, 3, shares, lambda: current)
    assert len(list(sampler)) == len(sampler)
    steps = [[index for index in step if index < count] for step in steps_of(sampler, shares)]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3 + current)).tolist()
    assert [set(step) for step in steps] == [set(order[i : i + batch]) for i in range(0, count, batch)]
    assert sum(map(len, steps)) == count


def test_numbers_beyond_the_last_row_count_for_nothing() -> None:
    rows = PaddedRows(Dataset(pa.table({"prompt": [[1], [2]], "identifier": [4, 5]})))
    found = rows.__getitems__([1, 0, 2, 3])
    assert [row["identifier"] for row in found[:2]] == [5, 4]
    assert [bool(row.get(PADDING)) for row in found] == [False, False, True, True]
    assert row_weights(found).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert row_weights(found[:2]) is None
    assert len(rows) == 2


@pytest.mark.parametrize(("batch", "largest", "workers"), [(256, 256, 1), (64, 16, 2), (100, 64, 1), (96, 32, 3)])
def test_places_are_filled_as_far_as_they_can_be(batch, largest, workers) -> None:
    shares = Shares.of(batch, largest, workers)
    assert batch <= shares.places < batch + shares.accumulation * workers
