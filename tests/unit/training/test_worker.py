"""Checkpoints know how many workers they are of."""

from pathlib import Path

import pytest

from genret.errors import InputError
from genret.training.setup import Setup
from genret.training.worker import _check_workers, _sealed


def test_with_zero_a_checkpoint_is_of_as_many_workers(tmp_path: Path) -> None:
    _sealed(tmp_path, Setup(workers=4, zero_stage=3))
    _check_workers(tmp_path, Setup(workers=4, zero_stage=3))
    with pytest.raises(InputError, match=r"training_workers: expected 4, .* found 2; go on with as many, or without"):
        _check_workers(tmp_path, Setup(workers=2, zero_stage=3))


def test_without_zero_any_number_goes_on(tmp_path: Path) -> None:
    _sealed(tmp_path, Setup(workers=4))
    _check_workers(tmp_path, Setup(workers=1))
