"""Threads of torch: as many as asked for, and full accuracy from the first call on."""

import subprocess
import sys

import pytest
import torch

from genret.threads import settle_vector_math, use_threads

_FIRST_CALL = """
import torch
from genret.threads import use_threads
use_threads(2)
angles = torch.arange(1 << 20, dtype=torch.float32) / (1 << 14)
for function in (torch.cos, torch.sin, torch.exp, torch.tanh):
    first, exact = function(angles), function(angles.double())
    assert torch.allclose(first.double(), exact, rtol=1e-6, atol=1e-6), function
    assert torch.equal(first, function(angles)), function
"""


@pytest.mark.parametrize(("asked", "expected"), [(1, 1), (3, 3), (0, 1)])
def test_as_many_threads_as_asked_for(asked: int, expected: int) -> None:
    before = torch.get_num_threads()
    try:
        use_threads(asked)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_kernels_are_settled_once_a_process() -> None:
    settle_vector_math()
    misses = settle_vector_math.cache_info().misses
    settle_vector_math()
    assert settle_vector_math.cache_info().misses == misses == 1


def test_the_first_parallel_call_of_a_process_is_accurate() -> None:
    subprocess.run([sys.executable, "-c", _FIRST_CALL], check=True)
