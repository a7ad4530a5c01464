"""The memory plan against tensors that PyTorch really keeps, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from genret.errors import InputError
from genret.training.memory import GIB, Architecture, Demand, check_memory, layer_activations, plan_memory

MISTRAL_7B = MistralConfig(vocab_size=32768, sliding_window=None)  # the other sizes are Transformers' defaults
DEMAND = Demand(
    section="sft",
    micro_batch_size=16,
    sequences=1,
    tokens=700,
    sixteen_bits=True,
    lora_rank=0,
    whole_head=False,
    vocabulary_scoring=True,
    children=0,
    workers=8,
    zero_stage=0,
    offload="none",
    gradient_checkpointing=False,
)


@pytest.fixture(scope="module")
def mistral() -> Architecture:
    return Architecture.of(MISTRAL_7B)


def test_sizes_are_those_of_the_published_model(mistral: Architecture) -> None:
    assert mistral.parameters == 7_248_023_552  # https://huggingface.co/mistralai/Mistral-7B-v0.3
    assert mistral.head == 32768 * 4096
    assert mistral.keys == 1024
    assert Architecture.of(MISTRAL_7B, 1000).parameters == mistral.parameters + 2 * 1000 * 4096


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_about_what_pytorch_keeps(checkpointing: bool) -> None:
    config = MistralConfig(
        vocab_size=64, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, sliding_window=None, attn_implementation="sdpa",
    )  # fmt: skip
    model = MistralForCausalLM(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = 256
    ids = torch.randint(0, 64, (1, tokens))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state
    states.sum().backward()
    architecture = Architecture.of(config)
    layer = layer_activations(architecture, 4)
    border = architecture.hidden * 4
    expected = 4 * border if checkpointing else 4 * layer
    assert sum(kept.values()) / tokens == pytest.approx(expected + 3 * border, rel=0.3)


def test_sharding_divides_and_offloading_moves(mistral: Architecture) -> None:
    count = mistral.parameters
    plain = plan_memory(mistral, replace(DEMAND, sixteen_bits=False))
    assert (plain.parameters, plain.gradients, plain.optimiser) == (4 * count, 4 * count, 8 * count)
    two = plan_memory(mistral, replace(DEMAND, zero_stage=2))
    assert (two.parameters, two.optimiser) == (2 * count, 12 * count // 8)
    three = plan_memory(mistral, replace(DEMAND, zero_stage=3))
    assert three.parameters < two.parameters / 4
    moved = plan_memory(mistral, replace(DEMAND, zero_stage=3, offload="optimizer"))
    assert (moved.optimiser, moved.host) == (0, three.optimiser)
    lora = plan_memory(mistral, replace(DEMAND, lora_rank=16))
    assert lora.parameters == 2 * count
    assert lora.optimiser == 8 * 16 * mistral.adapted


def test_what_cannot_fit_is_refused_with_what_would(mistral: Architecture) -> None:
    with pytest.raises(InputError, match=r"sft: training needs about .* GiB a worker \(parameters 40\.5, ") as refusal:
        check_memory(mistral, DEMAND, 40 * GIB, 400 * GIB)
    message = str(refusal.value)
    assert "with sft.micro_batch_size=" in message or "compute.gradient_checkpointing=true" in message
    assert "compute.zero_stage=3" in message or "compute.zero_stage=2" in message


def test_the_papers_machine_holds_the_papers_model(mistral: Architecture) -> None:
    plan = check_memory(mistral, replace(DEMAND, zero_stage=3, gradient_checkpointing=True), 40 * GIB, 64 * GIB)
    assert plan.total < 37 * GIB


def test_nothing_fits_a_watch(mistral: Architecture) -> None:
    with pytest.raises(InputError, match="no setting makes it fit"):
        check_memory(mistral, DEMAND, GIB // 2, GIB)
