"""What a worker reads, and that checkpoints know how many workers they are of."""

from pathlib import Path

import pytest

from genret.errors import InputError
from genret.runs import RunStore
from genret.tables import table_from_rows
from genret.training import worker
from genret.training.setup import Setup
from genret.training.worker import _check_workers, _hand_over, _sealed, evenly_spaced


def test_with_zero_a_checkpoint_is_of_as_many_workers(tmp_path: Path) -> None:
    _sealed(tmp_path, Setup(workers=4, zero_stage=3))
    _check_workers(tmp_path, Setup(workers=4, zero_stage=3))
    with pytest.raises(InputError, match=r"training_workers: expected 4, .* found 2; go on with as many, or without"):
        _check_workers(tmp_path, Setup(workers=2, zero_stage=3))


def test_without_zero_any_number_goes_on(tmp_path: Path) -> None:
    _sealed(tmp_path, Setup(workers=4))
    _check_workers(tmp_path, Setup(workers=1))


@pytest.mark.parametrize(
    ("rank", "stage", "reported"),
    [(0, 0, ["part", "workers.txt"]), (1, 0, None), (0, 3, ["part", "workers.txt"]), (1, 3, ["part", "workers.txt"])],
)
def test_no_worker_keeps_a_checkpoint_that_it_has_reported(tmp_path: Path, rank, stage, reported) -> None:
    found = []
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "part").write_bytes(b"weights")
        setup = Setup(workers=2, zero_stage=stage)
        _hand_over(
            folder, setup, rank, lambda given: found.append(given and sorted(path.name for path in given.iterdir()))
        )
    assert found == [reported, reported]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", [1, 3, 100])
@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [0]), (3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10)))]
)
def test_rows_are_taken_evenly_from_a_table_in_parts(tmp_path, monkeypatch, part, count, expected) -> None:
    monkeypatch.setattr(worker, "_ROWS_A_PART", part)
    store = RunStore(tmp_path)
    writer = store.begin("corpus", "0" * 16)
    rows = [{"query_id": str(number), "text": "x"} for number in range(10)]
    writer.write_table("test_queries", table_from_rows("test_queries", rows))
    found = evenly_spaced(store, writer.commit({}), "test_queries", count)
    assert [int(name) for name in found.column("query_id").to_pylist()] == expected
