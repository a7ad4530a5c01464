"""Memory that a process has freed stays its own."""

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
import torch
from genret.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    return torch.ones(24, 1 << 20).sum() + torch.ones(3, 1 << 20).sum()
for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", _FAULTS, mode], check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_pages_are_not_cleared_again_for_what_is_asked_for_again() -> None:
    assert _faults("keep") < 0.05 * _faults("default")
