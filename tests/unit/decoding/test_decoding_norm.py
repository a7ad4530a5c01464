"""RMSNorm: the numbers of double precision in every type, and each way of making them."""

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from ways import all_ways

from genret.decoding.norm import Norm


def a_module(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    module = LlamaRMSNorm(24, eps=0.1)
    with torch.no_grad():
        module.weight.copy_(torch.randn(24))
    return module.to(dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
@all_ways
def test_norms_are_those_of_double_precision(way: str, dtype: torch.dtype, tolerance: float) -> None:
    module, states = a_module(dtype), 3 * torch.randn(7, 24).to(dtype)
    expected = nn.functional.rms_norm(states.double(), (24,), module.weight.double(), 0.1)
    with torch.inference_mode():
        found = Norm(module).scaled(states)
    assert found.dtype == dtype
    # In 32 bits at least, and no better in 64.
    assert (found - expected).abs().max() < max(tolerance, 1e-6)


def test_factors_may_be_left_for_later() -> None:
    module, states = a_module(), 3 * torch.randn(7, 24)
    norm = Norm(module)
    expected = nn.functional.rms_norm(states.double(), (24,), None, 0.1)
    with torch.inference_mode():
        assert (norm.evened(states) - expected).abs().max() < 1e-5
    assert norm.epsilon == 0.1 and norm.factors() is module.weight


@all_ways
def test_factors_of_another_type_are_heeded(way: str) -> None:
    module, states = a_module(), 3 * torch.randn(7, 24)
    module.weight = nn.Parameter(module.weight.detach().bfloat16())
    expected = nn.functional.rms_norm(states.double(), (24,), module.weight.double(), 0.1)
    with torch.inference_mode():
        assert (Norm(module).scaled(states) - expected).abs().max() < 1e-5
