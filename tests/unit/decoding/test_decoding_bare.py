"""The bare forward pass: the numbers of the modules, and only where nothing was added to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config
from ways import OWN, all_ways

from genret.decoding import attention, packed
from genret.decoding.attention import TreeDecoder
from genret.decoding.bare import is_bare
from genret.decoding.native import Kernels
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie
from genret.errors import InputError

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,
    "max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "llama with stretched positions": LlamaConfig(**SHAPE, rope_parameters=YARN),
    "llama with positions that stretch": LlamaConfig(
        **{**SHAPE, "max_position_embeddings": 32}, rope_parameters=DYNAMIC
    ),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "mistral with a window": MistralConfig(**SHAPE, sliding_window=6),
    "mistral with another activation": MistralConfig(**SHAPE, sliding_window=None, hidden_act="gelu"),
    "qwen2": Qwen2Config(**SHAPE),
}


def build(config: Any, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@contextmanager
def hooked(model: Any) -> Iterator[None]:
    """What is made meanwhile goes through the modules."""
    handle = model.get_decoder().layers[0].mlp.register_forward_hook(lambda *_: None)
    yield
    handle.remove()


def identifiers() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [list(found) for found in {tuple(random.integers(3, 12, size=7)) for _ in range(200)}]


@pytest.mark.parametrize("how", ["trie", "vocabulary"])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_finds_what_the_modules_find(name: str, how: Any) -> None:
    model, trie = build(CONFIGS[name]), Trie.from_sequences(identifiers())
    prompts = [np.random.default_rng(length).integers(3, 64, size=length).tolist() for length in (1, 4, 12)]
    bare = TrieSearch(model, trie, how)
    with hooked(model):
        modules = TrieSearch(model, trie, how)
    assert bare.decoder.bare is not None and modules.decoder.bare is None
    pairs = zip(bare.search(prompts, k=8), modules.search(prompts, k=8), strict=True)
    for found, expected in pairs:
        assert found.indices.tolist() == expected.indices.tolist()
        assert found.scores == pytest.approx(expected.scores, abs=1e-5)


def with_larger_heads(name: str) -> Any:
    """A model in single precision, with heads that our own attention takes."""
    config = deepcopy(CONFIGS[name])
    config.head_dim = 32
    return build(config, torch.float32)


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", ["trie", "vocabulary"])
@pytest.mark.parametrize("name", CONFIGS)
@all_ways
def test_single_precision_finds_what_the_modules_find_in_double(way: str, name: str, how: Any, mode: Any) -> None:
    model, trie = with_larger_heads(name), Trie.from_sequences([[12, 13, *tokens] for tokens in identifiers()])
    prompts = [np.random.default_rng(length).integers(3, 64, size=length).tolist() for length in (1, 4, 12, 22)]
    single, double = TrieSearch(model, trie, how), deepcopy(model).double()
    with hooked(double):
        modules = TrieSearch(double, trie, how)
    assert single.decoder.own_attention == (way == OWN) and not modules.decoder.own_attention
    with mock.patch.object(Kernels, "attention", autospec=True, side_effect=Kernels.attention) as called:
        found = single.search(prompts, k=8, mode=mode)
    assert (called.call_count > 0) == (way == OWN)
    for one, expected in zip(found, modules.search(prompts, k=8, mode=mode), strict=True):
        assert one.indices.tolist() == expected.indices.tolist()
        assert one.scores == pytest.approx(expected.scores, abs=1e-4)


@pytest.mark.parametrize("way", [OWN], indirect=True)
@pytest.mark.parametrize("name", CONFIGS)
def test_models_that_are_too_large_to_be_laid_out_have_our_own_attention(
    way: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "LARGEST_COPY", 0)
    model, trie = with_larger_heads(name), Trie.from_sequences(identifiers())
    prompts = [np.random.default_rng(length).integers(3, 64, size=length).tolist() for length in (1, 4, 12)]
    finder, double = TrieSearch(model, trie, "vocabulary"), TrieSearch(deepcopy(model).double(), trie, "vocabulary")
    assert finder.decoder.own_attention and not packed.can_pack([model.lm_head.weight])
    for one, expected in zip(finder.search(prompts, k=8), double.search(prompts, k=8), strict=True):
        assert one.indices.tolist() == expected.indices.tolist()
        assert one.scores == pytest.approx(expected.scores, abs=1e-4)


@pytest.mark.parametrize("way", [OWN], indirect=True)
def test_parts_of_other_types_are_refused_or_heeded(way: str) -> None:
    trie = Trie.from_sequences(identifiers())
    model = with_larger_heads("llama")
    model.model.embed_tokens.bfloat16()
    with pytest.raises(InputError, match="expected numbers in single precision"):
        TrieSearch(model, trie, "vocabulary")
    model = with_larger_heads("llama")
    model.model.norm.weight = nn.Parameter(model.model.norm.weight.detach().bfloat16())
    finder, double = TrieSearch(model, trie, "vocabulary"), TrieSearch(deepcopy(model).double(), trie, "vocabulary")
    one, other = (some.search([[3, 4, 5]], k=8)[0] for some in (finder, double))
    assert one.indices.tolist() == other.indices.tolist() and one.scores == pytest.approx(other.scores, abs=1e-4)


@pytest.mark.parametrize("way", [OWN], indirect=True)
@pytest.mark.parametrize("name", ["llama", "mistral with a window"])
def test_passes_may_change_between_both_kinds_of_attention(
    way: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, trie = with_larger_heads(name), Trie.from_sequences(identifiers())
    prompts = [np.random.default_rng(length).integers(3, 64, size=length).tolist() for length in (1, 4, 12)]
    finder = TrieSearch(model, trie, "vocabulary")
    expected = finder.search(prompts, k=8, mode="exact")
    for prompt, appended in ((12, 30), (11, 30), (11, 1 << 20)):
        # Prompts, or what comes after some passes, or both go another way.
        monkeypatch.setattr(attention, "LONG_PROMPT", prompt)
        monkeypatch.setattr(attention, "FEW_APPENDED", appended)
        forward = mock.Mock(side_effect=finder.decoder.forward)
        with mock.patch.object(finder.decoder, "forward", forward):
            found = finder.search(prompts, k=8, mode="exact")
        assert {call.args[2].tree is None for call in forward.call_args_list} == {True, False}
        for one, other in zip(found, expected, strict=True):
            assert one.indices.tolist() == other.indices.tolist()
            assert one.scores == pytest.approx(other.scores, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_its_states_are_those_of_the_model(name: str, dtype: torch.dtype) -> None:
    model = build(CONFIGS[name], dtype)
    decoder = TreeDecoder(model)
    assert decoder.bare is not None
    ids = np.random.default_rng(1).integers(3, 64, size=20)
    with decoder.evaluating():
        _, states = decoder.begin([ids[:11]], ids[11:])
        expected = model.get_decoder()(input_ids=torch.tensor(ids)[None], use_cache=False).last_hidden_state[0, 10:]
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    assert (states[0] - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("is_bare", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@all_ways
def test_states_that_are_not_wanted_change_no_others(way: str, dtype: torch.dtype, is_bare: bool) -> None:
    decoder = TreeDecoder(build(CONFIGS["mistral"], dtype))
    decoder.bare = decoder.bare if is_bare else None
    query, start, length, tokens = np.zeros(2, np.int64), np.zeros(2, np.int64), np.array([4, 3]), np.arange(10, 17)
    found = {}
    for wanted in (None, np.array([1, 2, 6])):
        with decoder.evaluating():
            session, _ = decoder.begin([[3, 4, 5]], [])
            paths = np.full((2, 8), -1, dtype=np.int32)
            first = session.append(query, start, length, tokens, paths, wanted)
            # What was not wanted is in the cache all the same.
            second = session.append(query, start + length, np.ones(2, np.int64), np.array([20, 21]), paths)
        found[wanted is None] = first if wanted is not None else first[[1, 2, 6]], second
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("name", ["llama", "llama with positions that stretch"])
def test_sequences_may_grow_longer(name: str) -> None:
    model = build(CONFIGS[name])
    decoder = TreeDecoder(model)
    # The last length is beyond what the second model was made for, the last but one well within it.
    for length in (3, 30, 7, 60):
        ids = np.random.default_rng(length).integers(3, 64, size=length)
        with decoder.evaluating():
            _, states = decoder.begin([ids[:-2]], ids[-2:])
            expected = model.get_decoder()(input_ids=torch.tensor(ids)[None], use_cache=False).last_hidden_state[0, -3:]
        assert (states[0] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_trained_weights_are_seen() -> None:
    model = build(CONFIGS["llama"])
    decoder = TreeDecoder(model)
    with decoder.evaluating():
        _, before = decoder.begin([[3, 4]], [])
    with torch.no_grad():
        model.get_decoder().layers[1].mlp.down_proj.weight.mul_(2)
    with decoder.evaluating():
        _, after = decoder.begin([[3, 4]], [])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("name", ["input_layernorm", "post_attention_layernorm"])
@all_ways
def test_factors_of_norms_that_change_are_seen(way: str, name: str) -> None:
    model, trie = build(CONFIGS["llama"], torch.float32), Trie.from_sequences(identifiers())
    kept = TrieSearch(model, trie, "vocabulary")
    before = kept.search([[3, 4]], k=8)[0]
    with torch.no_grad():
        model.get_decoder().layers[0].get_submodule(name).weight.mul_(1.5)
    after, anew = kept.search([[3, 4]], k=8)[0], TrieSearch(model, trie, "vocabulary").search([[3, 4]], k=8)[0]
    assert after.indices.tolist() == anew.indices.tolist() and after.scores.tolist() == anew.scores.tolist()
    assert before.scores.tolist() != after.scores.tolist()


@pytest.mark.parametrize("name", ["weight", "bias"])
@all_ways
def test_what_is_made_of_other_weights_is_read_each_time(way: str, name: str) -> None:
    normed = build(CONFIGS["llama"], torch.float32)
    parametrize.register_parametrization(normed.get_decoder().norm, "weight", nn.Identity())
    assert not is_bare(normed.get_decoder())
    model, trie = build(CONFIGS["llama"], torch.float32), Trie.from_sequences(identifiers())
    model.lm_head.bias = nn.Parameter(torch.randn(64))
    parametrize.register_parametrization(model.lm_head, name, nn.Identity())
    kept = TrieSearch(model, trie, "vocabulary")
    before = kept.search([[3, 4]], k=8)[0]
    with torch.no_grad():
        model.lm_head.parametrizations[name].original.mul_(2)
    after, anew = kept.search([[3, 4]], k=8)[0], TrieSearch(model, trie, "vocabulary").search([[3, 4]], k=8)[0]
    assert after.scores.tolist() == anew.scores.tolist() != before.scores.tolist()


def test_other_default_types_do_not_matter() -> None:
    ids = [[3, 4, 5]]
    decoder = TreeDecoder(build(CONFIGS["llama"], torch.float32))
    with decoder.evaluating():
        expected = decoder.begin(ids, [])[1]
    torch.set_default_dtype(torch.float64)
    try:
        other = TreeDecoder(decoder.model)
        with other.evaluating():
            found = other.begin(ids, [])[1]
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=1e-6)


def test_what_was_added_to_a_model_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_bare(build(CONFIGS["qwen2"]).get_decoder())
    adapted = get_peft_model(build(CONFIGS["mistral"]), LoraConfig(target_modules=["q_proj"]))
    assert not is_bare(adapted.get_base_model().get_decoder())
    hooked_model = build(CONFIGS["mistral"])
    with hooked(hooked_model):
        assert not is_bare(hooked_model.get_decoder())
    assert is_bare(hooked_model.get_decoder())
    replaced = build(CONFIGS["llama"]).get_decoder()
    monkeypatch.setattr(replaced.rotary_emb, "forward", replaced.rotary_emb.forward)
    assert not is_bare(replaced)

    class Wider(nn.Linear):
        """As a quantised layer is: another type of the same name."""

    other = build(CONFIGS["llama"]).get_decoder()
    other.layers[1].mlp.up_proj = Wider(32, 48, bias=False)
    assert not is_bare(other)


def test_other_shapes_go_through_their_modules() -> None:
    gemma = build(Gemma2Config(**SHAPE, query_pre_attn_scalar=8, sliding_window=6))
    assert not is_bare(gemma.get_decoder()) and TreeDecoder(gemma).bare is None
