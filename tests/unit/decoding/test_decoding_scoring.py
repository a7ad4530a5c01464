"""Log-probabilities of tokens and of the children of nodes, against a plain log-softmax."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, PhiConfig

from genret.decoding import attention, scoring
from genret.decoding.attention import TreeDecoder
from genret.decoding.scoring import LeafFilter, Scorer
from genret.decoding.trie import Trie

VOCABULARY, WIDTH = 64, 32
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
# A plain output layer, one with a bias, and one whose logits are softcapped, so that states are logits.
MODELS = {
    "plain": MistralConfig(**SHAPE, sliding_window=None),
    "bias": PhiConfig(**SHAPE),
    "dense": Gemma2Config(**SHAPE, head_dim=8, sliding_window=6, final_logit_softcapping=2.0),
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-4}


def a_decoder(name: str, dtype: torch.dtype) -> TreeDecoder:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name]).to(dtype).eval()
    if name == "bias":
        with torch.no_grad():
            model.lm_head.bias.normal_()
    return TreeDecoder(model)


def some_states(decoder: TreeDecoder, count: int) -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
    """States, and the logits of all tokens after each in double precision."""
    width = VOCABULARY if decoder.head is None else WIDTH
    states = torch.randn(count, width).to(decoder.dtype)
    logits = states.double()
    if decoder.head is not None:
        logits = logits @ decoder.head.weight.detach().double().T
        if decoder.head.bias is not None:
            logits = logits + decoder.head.bias.detach().double()
    return states, logits.numpy()


@pytest.fixture(scope="module")
def trie() -> Trie:
    """All of the root's children part again, into few and many."""
    random = np.random.default_rng(0)
    return Trie.from_sequences([list(found) for found in {tuple(random.integers(3, 40, size=3)) for _ in range(2000)}])


def some_nodes(trie: Trie, count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    inner = trie.children(trie.root)[1]
    node = random.choice(inner[inner >= 0], size=count)
    node[random.random(count) < 0.3] = -1
    node[random.random(count) < 0.4] = trie.root
    return node


@pytest.mark.parametrize("at_once", [4, 8, 128])
@pytest.mark.parametrize("slab", [24, 4096])
@pytest.mark.parametrize("wide", [2, 30, 256])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", list(MODELS))
def test_scores_are_those_of_a_plain_log_softmax(
    trie: Trie,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
    wide: int,
    slab: int,
    at_once: int,
) -> None:
    for module, constant, value in (
        (scoring, "WIDE", wide), (scoring, "CHUNK_STATES", at_once), (attention, "SLAB", slab),
        (scoring, "CHUNK_ELEMENTS", 5 * VOCABULARY), (scoring, "GATHERED_ELEMENTS", 5 * VOCABULARY),
    ):  # fmt: skip
        monkeypatch.setattr(module, constant, value)
    decoder, random = a_decoder(name, dtype), np.random.default_rng(1)
    allowed = LeafFilter(trie, random.random(len(trie)) < 0.3)
    for how in ("vocabulary", "trie"):
        scorer = Scorer(decoder, trie, how)
        for count, leaf_filter in ((1, None), (23, None), (23, allowed)):
            states, logits = some_states(decoder, count)
            node = some_nodes(trie, count, random)
            target = np.full(count, -1)
            if scorer.over_vocabulary:
                target = np.where(node < 0, random.integers(0, VOCABULARY, count), -1)
            with decoder.evaluating():
                found = scorer.score(states, target, node, leaf_filter, None)
            expected = references(trie, logits, target, node, leaf_filter, scorer.over_vocabulary)
            compare(found, *expected, TOLERANCE[dtype])


@pytest.mark.parametrize("slab", [24, 4096])
def test_in_low_precision_no_token_is_more_than_certain(trie: Trie, monkeypatch: pytest.MonkeyPatch, slab: int) -> None:
    monkeypatch.setattr(attention, "SLAB", slab)
    decoder = a_decoder("plain", torch.bfloat16)
    states, _ = some_states(decoder, 300)
    # Large logits, of which sixteen bits know no fractions below eighths, so that one token is all but certain.
    states = states * 16
    logits = states.double() @ decoder.model.lm_head.weight.detach().double().T
    logprob = logits.log_softmax(-1)
    node, largest = np.full(300, -1), float(logits.abs().max())
    with decoder.evaluating():
        # The most probable tokens, and any.
        for target in (logits.argmax(-1), torch.arange(300) % VOCABULARY):
            found = Scorer(decoder, trie, "vocabulary").score(states, target.numpy(), node, None, None)
            assert (found.target <= 0).all()
            expected = logprob.gather(-1, target[:, None])[:, 0].numpy()
            # Not rounded to sixteen bits again.
            assert np.abs(found.target - expected).max() <= 1e-6 * largest


def references(
    trie: Trie,
    logits: npt.NDArray[np.float64],
    target: npt.NDArray[np.int64],
    node: npt.NDArray[np.int64],
    leaf_filter: LeafFilter | None,
    over_vocabulary: bool,
) -> tuple[npt.NDArray[np.float64], dict[tuple[int, int], float]]:
    """Log-probabilities of targets, and of children by state and place, one state after the other."""
    targets, children = np.zeros(len(target)), {}
    for state, row in enumerate(logits):
        whole = np.log(np.exp(row).sum())
        if target[state] >= 0:
            targets[state] = row[target[state]] - whole
        if node[state] < 0:
            continue
        tokens = trie.children(int(node[state]))[0]
        first, count = trie.child_span(node[state : state + 1])
        places = np.arange(first[0], first[0] + count[0])
        kept = np.ones(len(places), bool) if leaf_filter is None else leaf_filter.children(places)
        reference = whole if over_vocabulary else np.log(np.exp(row[tokens]).sum())
        for place, token in zip(places[kept], tokens[kept], strict=True):
            children[state, int(place)] = float(row[token] - reference)
    return targets, children


def compare(
    found: Any, targets: npt.NDArray[np.float64], children: dict[tuple[int, int], float], tolerance: float
) -> None:
    np.testing.assert_allclose(found.target, targets, atol=tolerance)
    pairs = list(zip(found.owner.tolist(), found.child.tolist(), strict=True))
    assert set(pairs) == set(children) and len(pairs) == len(children)
    np.testing.assert_allclose(found.logprob, [children[pair] for pair in pairs], atol=tolerance)


def test_only_the_roots_logits_are_kept(trie: Trie, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "WIDE", 2)
    scorer = Scorer(a_decoder("plain", torch.float32), trie, "vocabulary")
    kept: list[torch.Tensor | None] = []
    over_vocabulary = scorer._over_vocabulary

    def watched(states: torch.Tensor, wanted: scoring._Wanted) -> Any:
        found = over_vocabulary(states, wanted)
        kept.append(found[2])
        return found

    monkeypatch.setattr(scorer, "_over_vocabulary", watched)
    inner = trie.children(trie.root)[1]
    node = np.array([inner[0], trie.root, inner[1], trie.root])
    with scorer.decoder.evaluating():
        scorer.score(torch.randn(4, WIDTH), np.full(4, -1), node, None, None)
        scorer.score(torch.randn(1, WIDTH), np.full(1, -1), inner[:1], None, None)
    assert kept[0] is not None and kept[0].shape == (2, len(inner))
    assert kept[1] is None
