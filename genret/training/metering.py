"""Throughput of a training: model FLOPs, and what the machine can do."""

import resource
import sys
import time
from typing import Any

import torch
from torch import nn

# Sizes of the matrices by which a machine's rate is measured: large enough to fill it, a fraction of a second in all.
_GPU_SIZE, _CPU_SIZE = 8192, 1024
_REPEATS = 3


def flops_a_token(model: nn.Module, *, whole_head: bool = True) -> float:
    """FLOPs of a training step a token: 2 a weight forward, 2 back to the activations, 2 for each trained weight.

    Embeddings that are only looked up do not count, nor does attention between tokens, which is short beside the
    matrices for sequences of some hundred tokens (Chowdhery et al., 2022, arXiv 2204.02311, appendix B).

    Args:
        model: A model, possibly with adapters.
        whole_head: Whether all rows of the output head are multiplied at every token. If not, as where only the
            children of the trie's nodes are scored, the head is left out, and the figure is a little too low.
    """
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    left_out = tables - linear  # a table that is also the head is multiplied there
    head_of: Any = getattr(model, "get_output_embeddings", None)
    if not whole_head and head_of is not None:
        left_out |= {id(weight) for weight in head_of().parameters()}
    multiplied = [weight for weight in model.parameters() if weight.ndim >= 2 and id(weight) not in left_out]
    return float(sum(_size(weight) * (6 if weight.requires_grad else 4) for weight in multiplied))


def _size(weight: torch.Tensor) -> int:
    """Elements of a parameter, also where ZeRO holds a part of it here."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of the best of some matrix products: what the device does when nothing holds it up."""
    size = _GPU_SIZE if device.type == "cuda" else _CPU_SIZE
    left = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(_REPEATS + 1):  # the first one warms up
        begin = time.perf_counter()
        torch.mm(left, left)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has had on the device; without a GPU, in memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
