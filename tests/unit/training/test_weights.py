"""Adapters: what is trained, and that they are added to the weights as PEFT adds them."""

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from genret.config import TuningConfig
from genret.training.weights import adapter_config, merge_adapters, untie

LORA = TuningConfig(method="lora", rank=3, alpha=12)


def tiny(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )  # fmt: skip


def test_full_tuning_has_no_adapters() -> None:
    assert adapter_config(TuningConfig(), tiny(), "semantic") is None


@pytest.mark.parametrize("identifier_type", ["semantic", "atomic"])
@pytest.mark.parametrize("tied", [False, True])
def test_merging_adds_what_peft_adds(identifier_type: str, tied: bool) -> None:
    plain = tiny(tied)
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    adapted = get_peft_model(plain, adapter_config(LORA, plain, identifier_type))
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert any("lm_head" in name for name in trained) == (identifier_type == "atomic")
    assert not any("embed_tokens" in name for name in trained)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    merged = merge_adapters(dict(adapted.named_parameters(remove_duplicate=False)), LORA.alpha / LORA.rank)
    expected = adapted.merge_and_unload().state_dict()
    assert merged.keys() == dict(tiny(tied).named_parameters(remove_duplicate=False)).keys()
    for name, weight in merged.items():
        assert torch.allclose(weight, expected[name], atol=1e-6), name
    changed = {name for name in merged if not torch.equal(merged[name], before[name])}
    assert ("lm_head.weight" in changed) == (identifier_type == "atomic")
    assert "model.embed_tokens.weight" not in changed


def test_untying_keeps_the_outputs() -> None:
    model = tiny(tied=True)
    ids = torch.arange(5)[None]
    before = model(ids).logits
    untie(model)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert torch.equal(model(ids).logits, before)
    assert not model.config.tie_word_embeddings
