"""Threads of torch on a CPU, set so that the same work gives the same bits."""

from functools import cache

import torch

_FUNCTIONS = (torch.cos, torch.erf, torch.exp, torch.log, torch.log1p, torch.sin, torch.sqrt, torch.tanh)
"""Those of MKL's vector functions that decoders, encoders and their training call."""

_SHARED = 1 << 17
"""Numbers enough for torch to share them out between threads."""


def use_threads(count: int) -> None:
    """Set how many threads torch computes with in this process: sums in another order have other last bits.

    Args:
        count: Threads; less than one counts as one.
    """
    torch.set_num_threads(max(1, count))
    settle_vector_math()


@cache
def settle_vector_math() -> None:
    """Call each vector function of MKL on one thread, then on all, before a result matters.

    MKL chooses a function's kernel during its first call. Where two threads make that call together, one of them may
    compute its share with a kernel of low accuracy (errors of 1e-4 in a rotary embedding were seen, in three of
    ninety starts): https://github.com/pytorch/pytorch/issues/188792. Without MKL this changes nothing.
    """
    for size in (1, _SHARED):
        for dtype in (torch.float32, torch.float64):
            numbers = torch.ones(size, dtype=dtype)
            for function in _FUNCTIONS:
                function(numbers)
