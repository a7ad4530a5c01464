"""Packed linear layers: the numbers of the layers that they are made of, also after training."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.activations import SiLUActivation
from ways import ONE_DNN, OWN, PLAIN, all_ways, packed_ways

from genret.decoding import attention, packed, scoring
from genret.decoding.attention import TreeDecoder
from genret.decoding.explain import token_log_probs
from genret.decoding.norm import Norm
from genret.decoding.packed import PackedMatrix, Projections, can_pack, multiplication, padded, rounded_up
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie

VOCABULARY = 64
SCORINGS: tuple[scoring.Scoring, ...] = ("trie", "vocabulary")


def some_linears(bias: bool) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(24, 40, bias=bias), nn.Linear(24, 8, bias=False), nn.Linear(24, 16, bias=bias)]


def farthest(projections: Projections, linears: list[nn.Linear], states: torch.Tensor, rows: slice) -> float:
    """The largest difference from the layers in double precision."""
    with torch.inference_mode():
        expected = torch.cat([deepcopy(linear).double()(states.double())[:, rows] for linear in linears], dim=1)
        projections.follow()
        found = projections(states)
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


@pytest.mark.parametrize("rows", [None, slice(3, 11)])
@pytest.mark.parametrize("bias", [True, False])
@all_ways
def test_outputs_are_those_of_the_layers(way: str, bias: bool, rows: slice | None) -> None:
    linears = some_linears(bias)
    projections = Projections(linears, way != PLAIN, rows)
    for count in (1, 3, 8, 33, 200):
        states = torch.randn(count, 24)
        assert farthest(projections, linears, states, rows or slice(None)) < 1e-5
        with torch.inference_mode():
            outputs = projections(states)
            added = torch.randn_like(outputs)
            assert (projections(states, added) - outputs - added).abs().max() < 1e-5


class RootMeanSquare(nn.RMSNorm):
    """As transformers names what it is made of."""

    variance_epsilon = 0.1


@pytest.mark.parametrize("bias", [True, False])
@all_ways
def test_a_norm_stands_before_layers(way: str, bias: bool) -> None:
    packs = way != PLAIN
    linears, norm = some_linears(bias), RootMeanSquare(24, eps=0.1)
    order = torch.randperm(64) if packs else torch.arange(64)
    projections = Projections(linears, packs, norm=Norm(norm), order=order if packs else None)
    for factor in (torch.randn(24), torch.randn(24)):
        with torch.no_grad():
            norm.weight.copy_(factor)
        projections.follow()
        for count in (4, 200):
            states = 3 * torch.randn(count, 24)
            normed = deepcopy(norm).double()(states.double())
            expected = torch.cat([deepcopy(linear).double()(normed) for linear in linears], 1)[:, order]
            with torch.inference_mode():
                assert (projections(states) - expected).abs().max() < 1e-5


class Doubled(nn.SiLU):
    """Not what it is made of."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("activation", [nn.SiLU(), SiLUActivation(), nn.GELU(), Doubled()])
@pytest.mark.parametrize("bias", [True, False])
@all_ways
def test_a_layer_is_a_gate_for_another(way: str, bias: bool, activation: nn.Module) -> None:
    torch.manual_seed(0)
    # One with whole panels, and one without.
    for size in (32, 41):
        linears, norm = [nn.Linear(24, size, bias=bias) for _ in range(2)], RootMeanSquare(24, eps=0.1)
        projections = Projections(linears, way != PLAIN, norm=Norm(norm), gate=activation)
        for count in (1, 4, 30):
            states = projections.padded(5 * torch.randn(count, 24))
            gate, up = (deepcopy(linear).double()(deepcopy(norm).double()(states.double())) for linear in linears)
            with torch.inference_mode():
                assert (projections.gated(states) - activation(gate) * up).abs().max() < 1e-5


@all_ways
def test_weights_that_change_are_seen(way: str) -> None:
    linears, states = some_linears(True), torch.randn(5, 24)
    projections = Projections(linears, way != PLAIN)
    with torch.no_grad():
        linears[1].weight.mul_(3)
    assert farthest(projections, linears, states, slice(None)) < 1e-5
    with torch.no_grad():
        linears[2].bias.add_(1)
    assert farthest(projections, linears, states, slice(None)) < 1e-5
    linears[0].weight = nn.Parameter(torch.randn(40, 24))
    assert farthest(projections, linears, states, slice(None)) < 1e-5


@packed_ways
def test_weights_that_are_replaced_again_and_again_are_seen(way: str) -> None:
    linears, states = some_linears(True), torch.randn(5, 24)
    projections = Projections(linears, packed=True)
    for _ in range(20):
        # Nothing holds the old ones but the layers, so that new ones may get their place in memory.
        for linear in linears:
            fresh = {name: torch.randn_like(value) for name, value in linear.state_dict().items()}
            linear.load_state_dict(fresh, assign=True)
        assert farthest(projections, linears, states, slice(None)) < 1e-4


@pytest.mark.parametrize("way", [ONE_DNN], indirect=True)
def test_numbers_of_states_are_few_and_close(way: str) -> None:
    for count in range(1, 5000):
        assert count <= rounded_up(count) <= max(4, count + 1, count * 17 / 16)
        assert rounded_up(rounded_up(count)) == rounded_up(count)
    assert len({rounded_up(count) for count in range(1, 4097)}) == 127
    states = torch.randn(9, 2, 3)
    whole = states[:8]
    assert padded(states).shape == (10, 2, 3) and padded(whole) is whole and padded(states[:1]).shape == (4, 2, 3)
    assert torch.equal(padded(states)[:9], states) and not padded(states)[9:].any()


@pytest.mark.parametrize("way", [OWN], indirect=True)
def test_our_own_products_are_of_any_number_of_states(way: str) -> None:
    states = torch.randn(9, 3)
    assert [rounded_up(count) for count in range(100)] == list(range(100)) and padded(states) is states


@all_ways
def test_only_single_precision_on_a_cpu_is_packed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(2, 2)
    assert not can_pack([weight.double()]) and not can_pack([weight.bfloat16()])
    assert not can_pack([weight, weight.to("meta")])
    weights = [linear.weight for linear in some_linears(False)]
    monkeypatch.setattr(packed, "LARGEST_COPY", 4 * 24 * 64 - 1)
    assert not can_pack(weights) and can_pack(weights[:2]) == (way != PLAIN)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@all_ways
def test_a_matrix_is_multiplied_in_every_type(way: str, dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    # Rows that do not stand one behind the other, as those of some tokens of a head.
    rows, added = torch.randn(300, 24, dtype=dtype)[::3], torch.randn(100, dtype=dtype) if bias else None
    multiply = multiplication(rows, added)
    assert isinstance(multiply, PackedMatrix) == (way != PLAIN and dtype == torch.float32)
    for count in (0, 1, 3, 8, 33, 200):
        states = torch.randn(count, 24, dtype=dtype)
        expected = states.double() @ rows.double().T + (0 if added is None else added.double())
        torch.testing.assert_close(multiply(states).double(), expected, atol=1e-5, rtol=1e-5)


def a_model() -> Any:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        mlp_bias=True,
        initializer_range=0.15,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def a_trie() -> Trie:
    random = np.random.default_rng(0)
    return Trie.from_sequences([list(found) for found in {tuple(random.integers(3, 12, size=7)) for _ in range(200)}])


def some_prompts() -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(3, VOCABULARY, size=length).tolist() for length in (1, 4, 11, 2, 6)]


@pytest.mark.parametrize("how", SCORINGS)
@all_ways
def test_scores_are_those_of_double_precision(way: str, how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several parts of the vocabulary, the last of them smaller, several chunks of states, and of rows several groups.
    monkeypatch.setattr(attention, "SLAB", 24)
    monkeypatch.setitem(attention.WORTH_GROUPS, "cpu", 0)
    monkeypatch.setattr(scoring, "CHUNK_STATES", 8)
    model, trie, prompts = a_model(), a_trie(), some_prompts()
    found = TrieSearch(model, trie, how).search(prompts, k=10)
    expected = TrieSearch(deepcopy(model).double(), trie, how).search(prompts, k=10)
    for one, two in zip(found, expected, strict=True):
        assert one.indices.tolist() == two.indices.tolist()
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-4)


@pytest.mark.parametrize("how", SCORINGS)
@all_ways
def test_padding_and_batch_do_not_matter(way: str, how: Any) -> None:
    prompts = some_prompts()
    finder = TrieSearch(a_model(), a_trie(), how)
    together = finder.search(prompts, k=10)
    backwards = finder.search(prompts[::-1], k=10)[::-1]
    alone = [finder.search([prompt], k=10)[0] for prompt in prompts]
    for other in (backwards, alone):
        for one, two in zip(together, other, strict=True):
            assert one.indices.tolist() == two.indices.tolist()
            np.testing.assert_allclose(one.scores, two.scores, atol=1e-4)


@pytest.mark.parametrize("how", SCORINGS)
@all_ways
def test_a_search_follows_training(way: str, how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The root's children have their rows laid out for themselves, over the trie.
    monkeypatch.setattr(scoring, "WIDE", 2)
    model, trie = a_model(), Trie.from_sequences([[3, 4], [3, 5], [6, 7, 8], [9, 3]])
    kept = TrieSearch(model, trie, how)
    (before,) = kept.search([[9, 10]], k=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    explained = token_log_probs(kept, [9, 10], range(4))
    (after,) = kept.search([[9, 10]], k=3)
    for place, score in zip(after.indices, after.scores, strict=True):
        assert explained[place].sum() == pytest.approx(score, abs=1e-5)
    (anew,) = TrieSearch(model, trie, how).search([[9, 10]], k=3)
    assert after.scores.tolist() == anew.scores.tolist() != before.scores.tolist()


@all_ways
def test_parts_of_the_vocabulary_make_the_whole(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SLAB", 24)
    decoder, states = TreeDecoder(a_model()), torch.randn(4, 32)
    assert decoder.head is not None and len(decoder.slabs) == 3
    with decoder.evaluating():
        parts = torch.cat([slab(states) for slab in decoder.slabs], dim=1)
        assert torch.allclose(parts, decoder.head(states), atol=1e-5)
        found = [slab.summed(states) for slab in decoder.slabs]
        assert [one is None for one in found] == [way != OWN] * 3
        if way == OWN:
            made, sums = zip(*filter(None, found), strict=True)
            assert torch.equal(torch.cat(made, dim=1), parts)
            assert torch.allclose(sum(sums).log(), decoder.head(states).logsumexp(1), atol=1e-5)
