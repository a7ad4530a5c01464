"""Threads of a stage that computes in the driver."""

import pytest
import torch

from genret.stages.launching import torch_threads


def test_threads_are_set_for_the_stage_alone() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="stop"), torch_threads(before + 1.5):
        assert torch.get_num_threads() == before + 1
        raise ValueError("stop")
    assert torch.get_num_threads() == before
