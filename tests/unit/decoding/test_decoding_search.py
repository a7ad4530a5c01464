import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from genret.decoding import attention, best_first, hypotheses, scoring, search
from genret.decoding.results import SearchResult
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie
from genret.errors import InputError

VOCABULARY = 64
END = 2
SCORINGS: tuple[scoring.Scoring, ...] = ("trie", "vocabulary")
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    # Large weights: distributions far from uniform, as those of a trained model are.
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": END,
    "pad_token_id": 0,
}


def build(config: Any, dtype: torch.dtype = torch.float64, attn: str = "sdpa") -> Any:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attn).to(dtype).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return build(MistralConfig(**SHAPE, sliding_window=None))


def some_identifiers(count: int, seed: int = 0, tokens: Sequence[int] = range(3, 12)) -> list[list[int]]:
    """Unique identifiers of one to seven tokens and an end; many share prefixes, and many end in forced tokens."""
    random = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        found[(*random.choice(tokens, size=random.integers(1, 8)).tolist(), END)] = None
    identifiers = [list(tokens) for tokens in found]
    random.shuffle(identifiers)
    return identifiers


def record_passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows of the cache in each pass from now on, and the tokens that it reads."""
    passes: list[tuple[int, int]] = []
    forward = attention.TreeDecoder.forward

    def recorded(self: Any, ids: np.ndarray, positions: np.ndarray, current: Any, wanted: Any) -> torch.Tensor:
        passes.append((current.rows, len(ids)))
        return forward(self, ids, positions, current, wanted)

    monkeypatch.setattr(attention.TreeDecoder, "forward", recorded)
    return passes


def some_prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(3, VOCABULARY, size=length).tolist() for length in lengths]


@torch.inference_mode()
def scores_of_prefixes(
    model: Any, identifiers: list[list[int]], prompt: list[int], how: scoring.Scoring
) -> dict[tuple[int, ...], float]:
    """The score of every prefix of the identifiers, by teacher forcing over whole sequences."""
    following: dict[tuple[int, ...], set[int]] = {}
    for tokens in identifiers:
        for depth, token in enumerate(tokens):
            following.setdefault(tuple(tokens[:depth]), set()).add(token)
    longest = max(map(len, identifiers))
    rows = [[*prompt, *tokens, *[0] * (longest - len(tokens))] for tokens in identifiers]
    logits = model(input_ids=torch.tensor(rows), use_cache=False).logits[:, len(prompt) - 1 :].double()
    scores = {(): 0.0}
    for row, tokens in enumerate(identifiers):
        for depth, token in enumerate(tokens):
            here, before = logits[row, depth], tuple(tokens[:depth])
            rivals = here if how == "vocabulary" else here[sorted(following[before])]
            # Over the trie a token without rivals is certain, whatever the model says.
            own = 0.0 if len(rivals) == 1 else float(here[token] - rivals.logsumexp(0))
            scores[(*before, token)] = scores[before] + own
    return scores


def brute_force(model: Any, identifiers: list[list[int]], prompt: list[int], how: scoring.Scoring) -> np.ndarray:
    """Every identifier's score by teacher forcing."""
    scores = scores_of_prefixes(model, identifiers, prompt, how)
    return np.array([scores[tuple(tokens)] for tokens in identifiers])


def plain_beams(
    scores: dict[tuple[int, ...], float], allowed: list[list[int]], width: int
) -> tuple[list[list[int]], list[int]]:
    """Beam search token by token over the allowed identifiers, given the scores of all prefixes.

    Returns:
        What it finds, the best first; and how many hypotheses are in the beam after each token.
    """
    prefixes = {tuple(tokens[:length]) for tokens in allowed for length in range(1, len(tokens) + 1)}
    beam, found, sizes = [()], [], []
    while beam:
        candidates = sorted((one for one in prefixes if one[:-1] in beam), key=lambda one: -scores[one])[: 2 * width]
        found += [one for one in candidates[:width] if one[-1] == END]
        beam = [one for one in candidates if one[-1] != END][:width]
        sizes.append(len(beam))
    return [list(one) for one in sorted(found, key=lambda one: -scores[one])[:width]], sizes


def plain_beam(scores: dict[tuple[int, ...], float], allowed: list[list[int]], width: int) -> list[list[int]]:
    """What `plain_beams` finds."""
    return plain_beams(scores, allowed, width)[0]


def assert_top(result: SearchResult, scores: np.ndarray, k: int, tolerance: float = 1e-9) -> None:
    """The result is the k best of all these scores; -inf stands for an identifier that may not be returned."""
    best = np.sort(scores[scores > -np.inf])[::-1][:k]
    assert len(result.indices) == len(best)
    np.testing.assert_allclose(result.scores, best, atol=tolerance)
    # Equal scores may come in any order, so identity is checked by score.
    np.testing.assert_allclose(scores[result.indices], result.scores, atol=tolerance)
    assert len(set(result.indices.tolist())) == len(result.indices)
    assert result.indices.dtype == np.int64 and result.scores.dtype == np.float64


identifier_lists = st.lists(st.lists(st.integers(3, 6), max_size=5), min_size=1, max_size=30, unique_by=tuple).map(
    lambda found: [[*tokens, END] for tokens in found]
)
prompt_lists = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=4)


@pytest.mark.parametrize("how", SCORINGS)
@settings(max_examples=20, deadline=None)
@given(identifiers=identifier_lists, prompts=prompt_lists, k=st.integers(1, 12), beam=st.integers(1, 4))
def test_exact_mode_is_brute_force(
    model: Any,
    how: scoring.Scoring,
    identifiers: list[list[int]],
    prompts: list[list[int]],
    k: int,
    beam: int,
) -> None:
    found = TrieSearch(model, Trie.from_sequences(identifiers), how).search(prompts, k=k, mode="exact", beam=beam)
    for prompt, result in zip(prompts, found, strict=True):
        assert result.exact
        assert_top(result, brute_force(model, identifiers, prompt, how), k)


@pytest.mark.parametrize("how", SCORINGS)
@settings(max_examples=20, deadline=None)
@given(identifiers=identifier_lists, prompts=prompt_lists, k=st.integers(1, 6), beam=st.integers(1, 6))
def test_beam_mode_returns_true_scores_and_knows_when_it_is_exact(
    model: Any,
    how: scoring.Scoring,
    identifiers: list[list[int]],
    prompts: list[list[int]],
    k: int,
    beam: int,
) -> None:
    found = TrieSearch(model, Trie.from_sequences(identifiers), how).search(prompts, k=k, beam=beam)
    for prompt, result in zip(prompts, found, strict=True):
        scores = brute_force(model, identifiers, prompt, how)
        assert len(result.indices) == min(k, len(identifiers))
        np.testing.assert_allclose(result.scores, scores[result.indices], atol=1e-9)
        assert (np.diff(result.scores) <= 0).all()
        assert len(set(result.indices.tolist())) == len(result.indices)
        if result.exact:
            assert_top(result, scores, k)


def generated(
    model: Any, identifiers: list[list[int]], prompts: list[list[int]], how: scoring.Scoring
) -> list[tuple[list[list[int]], np.ndarray]]:
    """The ten best of transformers' beam search under a dictionary trie: token sequences and scores."""
    root: dict[int, Any] = {}
    for tokens in identifiers:
        node = root
        for token in tokens:
            node = node.setdefault(token, {})
    longest = max(map(len, prompts))

    def allowed(_: int, sentence: torch.Tensor) -> list[int]:
        node = root
        for token in sentence[longest:].tolist():
            node = node.get(token, {})
        return list(node) or [END]

    output = model.generate(
        input_ids=torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        num_beams=10,
        num_return_sequences=10,
        length_penalty=0.0,
        max_new_tokens=12,
        prefix_allowed_tokens_fn=allowed,
        renormalize_logits=how == "trie",
        return_dict_in_generate=True,
        output_scores=True,
    )
    sequences = [row[longest:].tolist() for row in output.sequences]
    sequences = [tokens[: tokens.index(END) + 1] for tokens in sequences]
    scores = output.sequences_scores.double().numpy()
    return [(sequences[at : at + 10], scores[at : at + 10]) for at in range(0, len(sequences), 10)]


@pytest.mark.parametrize("count", [300, 40])
@pytest.mark.parametrize("how", SCORINGS)
def test_beam_mode_is_beam_search_of_transformers(model: Any, how: scoring.Scoring, count: int) -> None:
    identifiers = some_identifiers(count)
    prompts = some_prompts(3, 9, 1, 5, 5, 8)
    found = TrieSearch(model, Trie.from_sequences(identifiers), how).search(prompts, k=10, beam=10)
    pruned = 0
    for prompt, result, (sequences, scores) in zip(
        prompts, found, generated(model, identifiers, prompts, how), strict=True
    ):
        assert [identifiers[index] for index in result.indices] == sequences
        np.testing.assert_allclose(result.scores, scores, atol=1e-4)
        best = np.argsort(-brute_force(model, identifiers, prompt, how))[:10]
        pruned += set(best.tolist()) != set(result.indices.tolist())
    # The comparison means something only if the beams lost identifiers that are better.
    assert pruned or count == 40 or how == "trie"


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
@settings(max_examples=15, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20), min_size=1, max_size=8),
    k=st.integers(1, 12),
    beam=st.integers(1, 8),
    data=st.data(),
)
def test_a_query_does_not_depend_on_its_batch(
    model: Any,
    how: scoring.Scoring,
    mode: search.Mode,
    prompts: list[list[int]],
    k: int,
    beam: int,
    data: st.DataObject,
) -> None:
    finder = TrieSearch(model, Trie.from_sequences(some_identifiers(200)), how)
    order = data.draw(st.permutations(range(len(prompts))))
    together = finder.search(prompts, k=k, mode=mode, beam=beam)
    shuffled = finder.search([prompts[number] for number in order], k=k, mode=mode, beam=beam)
    alone = [finder.search([prompt], k=k, mode=mode, beam=beam)[0] for prompt in prompts]
    # In another order, and with other rows to be padded to.
    for other in ([shuffled[order.index(number)] for number in range(len(prompts))], alone):
        for one, two in zip(together, other, strict=True):
            assert one.indices.tolist() == two.indices.tolist() and one.exact == two.exact
            np.testing.assert_allclose(one.scores, two.scores, atol=1e-9)


def test_reading_ahead_changes_the_work_and_not_the_result(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Over so many tokens identifiers part early, and end in forced tokens, but not all at the same place.
    identifiers = some_identifiers(200, tokens=range(3, 20))
    finder = TrieSearch(model, Trie.from_sequences(identifiers), "vocabulary")
    prompts = some_prompts(2, 11, 5)
    results = []
    for tokens in (1, 20, 10_000):
        monkeypatch.setitem(hypotheses.TOKENS_PER_PASS, "cpu", tokens)
        # Without a bound, exact mode takes room for more hypotheses first.
        results.append(finder.search(prompts, k=5, mode="exact", beam=5, max_expansions=10_000))
    for one, two, three in zip(*results, strict=True):
        assert one.indices.tolist() == two.indices.tolist() == three.indices.tolist()
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-9)
        np.testing.assert_allclose(one.scores, three.scores, atol=1e-9)
    expansions = [sum(one.expansions for one in found) for found in results]
    assert expansions[0] > expansions[1] > expansions[2]


def test_a_beam_reads_no_more_than_it_compares(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hypotheses.TOKENS_FOR_A_PASS, "cpu", 0)
    identifiers = some_identifiers(200, tokens=range(3, 20))
    finder = TrieSearch(model, Trie.from_sequences(identifiers), "vocabulary")
    passes = record_passes(monkeypatch)
    counts = {False: 0, True: 0}
    for seed in range(20):
        (prompt,) = some_prompts(5, seed=seed)
        _, sizes = plain_beams(scores_of_prefixes(model, identifiers, prompt, "vocabulary"), identifiers, 5)
        found = {}
        for ahead in counts:
            monkeypatch.setitem(hypotheses.BEAMS_READ_AHEAD, "cpu", ahead)
            passes.clear()
            (found[ahead],) = finder.search([prompt], k=5, beam=5)
            counts[ahead] += len(passes)
            if not ahead:
                assert passes[0] == (1, 5) and sum(tokens for _, tokens in passes[1:]) <= sum(sizes)
        assert found[False].indices.tolist() == found[True].indices.tolist()
        np.testing.assert_allclose(found[False].scores, found[True].scores, atol=1e-9)
    assert counts[False] <= 1.05 * counts[True], "hardly ever a pass more"


def test_rounding_of_many_layers_is_no_reason_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = attention.TreeDecoder.forward

    def rounded(self: Any, *arguments: Any) -> torch.Tensor:
        states = forward(self, *arguments)
        return states + 2 * attention.TOLERANCE[torch.float64] * states.abs().max()

    monkeypatch.setattr(attention.TreeDecoder, "forward", rounded)
    attention.TreeDecoder(build(MistralConfig(**SHAPE | {"num_hidden_layers": 32}, sliding_window=None)))
    with pytest.raises(InputError, match="heeds a position id"):
        attention.TreeDecoder(build(MistralConfig(**SHAPE, sliding_window=None)))


def test_weights_on_several_devices_are_refused() -> None:
    changed = build(MistralConfig(**SHAPE, sliding_window=None))
    changed.lm_head.to("meta")
    with pytest.raises(InputError, match="expected weights on one device, found cpu, meta"):
        attention.TreeDecoder(changed)


def test_logits_are_made_of_what_is_wanted_only() -> None:
    # With logits that are softcapped, states are logits.
    softcapped = build(Gemma2Config(**SHAPE, head_dim=8, sliding_window=6, final_logit_softcapping=2.0), attn="eager")
    decoder, sizes = attention.TreeDecoder(softcapped), []
    softcapped.lm_head.register_forward_hook(lambda *call: sizes.append(call[-1].shape[1]))
    with decoder.evaluating():
        decoder.begin([[3, 4, 5, 6], [7, 8]], [9])
    assert decoder.head is None and sizes == [4]


@pytest.mark.parametrize("how", SCORINGS)
def test_a_long_search_takes_few_passes(model: Any, monkeypatch: pytest.MonkeyPatch, how: scoring.Scoring) -> None:
    identifiers, prompts = some_identifiers(400), some_prompts(4)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    # As many a pass as there is room for, however long the search.
    monkeypatch.setattr(best_first, "EXPANDED_A_PASS", 10**9)
    monkeypatch.setattr(best_first, "EXPANDED_A_PASS_WITHOUT_RESULTS", 10**9)
    passes = record_passes(monkeypatch)
    counts, found = {}, {}
    for tokens in (1, 64):
        monkeypatch.setitem(hypotheses.TOKENS_PER_PASS, "cpu", tokens)
        monkeypatch.setitem(hypotheses.HYPOTHESES_PER_PASS, "cpu", tokens)
        (found[tokens],) = finder.search(prompts, k=20, mode="exact", beam=2)
        counts[tokens] = len(passes)
        passes.clear()
    assert found[64].exact and found[64].indices.tolist() == found[1].indices.tolist()
    assert_top(found[64], brute_force(model, identifiers, prompts[0], how), 20)
    assert counts[1] == 1 + -(-found[1].expansions // 2)
    assert counts[64] < counts[1] / 2


def test_a_bound_on_expansions_is_not_spent_on_room(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = TrieSearch(model, Trie.from_sequences(some_identifiers(400)), "vocabulary")
    passes = record_passes(monkeypatch)
    (found,) = finder.search(some_prompts(4), k=20, mode="exact", beam=2, max_expansions=40)
    assert found.expansions == 40 and len(passes) == 1 + 40 // 2


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
@pytest.mark.parametrize("share", [0.5, 0.03, 0.0])
def test_a_filter_is_a_filter_of_brute_force(model: Any, how: scoring.Scoring, mode: search.Mode, share: float) -> None:
    identifiers = some_identifiers(150)
    prompts = some_prompts(4, 2)
    allowed = np.random.default_rng(3).random(len(identifiers)) < share
    # A beam that nothing falls out of.
    found = TrieSearch(model, Trie.from_sequences(identifiers), how).search(
        prompts, k=10, mode=mode, beam=200, allowed=allowed
    )
    for prompt, result in zip(prompts, found, strict=True):
        scores = np.where(allowed, brute_force(model, identifiers, prompt, how), -np.inf)
        assert_top(result, scores, 10)
        assert result.exact


@pytest.mark.parametrize("how", SCORINGS)
@settings(max_examples=20, deadline=None)
@given(identifiers=identifier_lists, prompts=prompt_lists, k=st.integers(1, 12), data=st.data())
def test_any_filter_is_a_filter_of_brute_force(
    model: Any,
    how: scoring.Scoring,
    identifiers: list[list[int]],
    prompts: list[list[int]],
    k: int,
    data: st.DataObject,
) -> None:
    count = len(identifiers)
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    found = finder.search(prompts, k=k, mode="exact", beam=2, allowed=allowed)
    narrow = finder.search(prompts, k=k, beam=1, allowed=allowed)
    for prompt, result, some in zip(prompts, found, narrow, strict=True):
        assert_top(result, np.where(allowed, brute_force(model, identifiers, prompt, how), -np.inf), k)
        assert allowed[result.indices].all()
        kept = [identifiers[index] for index in np.flatnonzero(allowed)]
        scores = scores_of_prefixes(model, identifiers, prompt, how)
        # After nothing but padding, which is embedded as zeros, all tokens are alike, and rounding decides which one
        # stays in the beam.
        assert not any(prompt) or [identifiers[index] for index in some.indices] == plain_beam(scores, kept, k)


@pytest.mark.parametrize("tokens", [1, 32, 10_000])
@pytest.mark.parametrize(("k", "width"), [(1, 1), (4, 4), (10, 10), (1, 10), (3, 10)])
@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("how", SCORINGS)
def test_a_beam_under_a_filter_is_a_beam_over_what_it_allows(
    model: Any, monkeypatch: pytest.MonkeyPatch, how: scoring.Scoring, share: float, k: int, width: int, tokens: int
) -> None:
    monkeypatch.setitem(hypotheses.TOKENS_PER_PASS, "cpu", tokens)
    identifiers = some_identifiers(300)
    allowed = np.random.default_rng(4).random(len(identifiers)) < share
    kept = [identifiers[index] for index in np.flatnonzero(allowed)]
    prompts = some_prompts(4, 2, 9)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    found = finder.search(prompts, k=k, beam=width, allowed=allowed)
    for prompt, result in zip(prompts, found, strict=True):
        scores = scores_of_prefixes(model, identifiers, prompt, how)
        expected = plain_beam(scores, kept, width)[:k]
        assert [identifiers[index] for index in result.indices] == expected
        np.testing.assert_allclose(result.scores, [scores[tuple(one)] for one in expected], atol=1e-9)


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
def test_a_filter_may_leave_one_child_of_many(
    model: Any, monkeypatch: pytest.MonkeyPatch, how: scoring.Scoring, mode: search.Mode
) -> None:
    # All nodes count as wide, and are scored one at a time.
    monkeypatch.setattr(scoring, "WIDE", 1)
    identifiers, prompts = some_identifiers(150), some_prompts(4, 2)
    allowed = np.random.default_rng(5).random(len(identifiers)) < 0.1
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    for prompt, result in zip(prompts, finder.search(prompts, k=9, mode=mode, beam=99, allowed=allowed), strict=True):
        assert_top(result, np.where(allowed, brute_force(model, identifiers, prompt, how), -np.inf), 9)


def test_a_query_without_a_pass_of_its_own_stays_in_the_batch(model: Any) -> None:
    # Where few are wanted most hypotheses are soon out of the question: often all that a query waits for.
    for seed in range(8):
        finder = TrieSearch(model, Trie.from_sequences(some_identifiers(200, seed, tokens=range(3, 6))), "trie")
        lengths = np.random.default_rng(seed).integers(1, 12, size=32)
        prompts = some_prompts(*lengths.tolist(), seed=seed)
        for k in (1, 2):
            for prompt, result in zip(prompts, finder.search(prompts, k=k, beam=10), strict=True):
                (alone,) = finder.search([prompt], k=k, beam=10)
                assert result.indices.tolist() == alone.indices.tolist()
                np.testing.assert_allclose(result.scores, alone.scores, atol=1e-9)


def test_a_bounded_search_under_a_filter_does_not_depend_on_its_batch(model: Any) -> None:
    identifiers, prompts = some_identifiers(300), some_prompts(*range(1, 17))
    allowed = np.random.default_rng(6).random(len(identifiers)) < 0.1
    finder = TrieSearch(model, Trie.from_sequences(identifiers), "trie")
    bounds: dict[str, Any] = {"k": 10, "mode": "exact", "beam": 3, "max_expansions": 6, "allowed": allowed}
    for prompt, result in zip(prompts, finder.search(prompts, **bounds), strict=True):
        (alone,) = finder.search([prompt], **bounds)
        assert result.expansions == alone.expansions and result.indices.tolist() == alone.indices.tolist()


@pytest.mark.parametrize("how", SCORINGS)
def test_what_a_filter_forces_takes_one_pass(model: Any, monkeypatch: pytest.MonkeyPatch, how: scoring.Scoring) -> None:
    # Four choices on every path, of which the filter leaves only the first one.
    identifiers = [[*path, END] for path in itertools.product(range(3, 7), repeat=4)]
    allowed = np.array([path[1] == path[2] == path[3] == 3 for path in identifiers])
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    passes = record_passes(monkeypatch)
    (result,) = finder.search(some_prompts(4), k=4, beam=4, allowed=allowed)
    assert len(passes) == 2 and result.expansions == 4
    assert_top(result, np.where(allowed, brute_force(model, identifiers, some_prompts(4)[0], how), -np.inf), 4)


def test_a_narrow_beam_stays_within_the_filter(model: Any) -> None:
    finder = TrieSearch(model, Trie.from_sequences(some_identifiers(300)), "trie")
    allowed = np.zeros(300, dtype=bool)
    for position in (0, 17, 299):
        allowed[:] = False
        allowed[position] = True
        (result,) = finder.search(some_prompts(4), k=3, beam=1, allowed=allowed)
        assert result.indices.tolist() == [position]


def test_a_filter_can_be_prepared_once(model: Any) -> None:
    trie, other = Trie.from_sequences(some_identifiers(50)), Trie.from_sequences(some_identifiers(50))
    finder = TrieSearch(model, trie, "trie")
    allowed = np.arange(50) % 2 == 0
    prompts = some_prompts(4, 2)
    expected = finder.search(prompts, k=5, allowed=allowed)
    found = finder.search(prompts, k=5, allowed=scoring.LeafFilter(trie, allowed))
    assert [result.indices.tolist() for result in found] == [result.indices.tolist() for result in expected]
    with pytest.raises(InputError, match="allowed: expected a filter made for this trie"):
        finder.search(prompts, k=5, allowed=scoring.LeafFilter(other, allowed))


def test_more_results_than_identifiers(model: Any) -> None:
    identifiers = some_identifiers(7)
    for how in SCORINGS:
        for mode in ("beam", "exact"):
            (result,) = TrieSearch(model, Trie.from_sequences(identifiers), how).search(
                some_prompts(3), k=50, mode=mode
            )
            assert_top(result, brute_force(model, identifiers, some_prompts(3)[0], how), 50)
            assert result.exact


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("identifiers", [[[5, 7, 9, END]], [[8]]])
def test_one_identifier(model: Any, identifiers: list[list[int]], mode: search.Mode) -> None:
    trie = Trie.from_sequences(identifiers)
    prompts = some_prompts(3, 5)
    for result in TrieSearch(model, trie, "trie").search(prompts, k=3, mode=mode):
        assert (result.indices.tolist(), result.scores.tolist(), result.expansions) == ([0], [0.0], 0)
    for prompt, result in zip(
        prompts, TrieSearch(model, trie, "vocabulary").search(prompts, k=3, mode=mode), strict=True
    ):
        assert_top(result, brute_force(model, identifiers, prompt, "vocabulary"), 3)


@pytest.mark.parametrize("how", SCORINGS)
def test_tokens_that_all_identifiers_share(model: Any, how: scoring.Scoring) -> None:
    identifiers = [[7, 8, 8, *tokens] for tokens in some_identifiers(60)]
    prompts = some_prompts(3, 6)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    for mode in ("beam", "exact"):
        for prompt, result in zip(prompts, finder.search(prompts, k=4, mode=mode, beam=60), strict=True):
            assert_top(result, brute_force(model, identifiers, prompt, how), 4)


def test_of_atomic_identifiers_only_their_own_rows_are_read() -> None:
    model = build(MistralConfig(**SHAPE | {"vocab_size": 1000}, sliding_window=None), torch.float32)
    trie, prompts = Trie.from_sequences([[token] for token in range(400, 1000)]), some_prompts(3, 6)
    finder = TrieSearch(model, trie, "trie")
    expected = finder.search(prompts, k=10)
    with torch.no_grad():
        model.lm_head.weight[:400] = torch.nan
    for ready in (finder, TrieSearch(model, trie, "trie")):
        for one, two in zip(expected, ready.search(prompts, k=10), strict=True):
            assert one.indices.tolist() == two.indices.tolist() and one.scores.tolist() == two.scores.tolist()


@pytest.mark.parametrize("how", SCORINGS)
@pytest.mark.parametrize("first", [100, 0])
def test_atomic_identifiers_take_one_pass(how: scoring.Scoring, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(MistralConfig(**SHAPE | {"vocab_size": 700}, sliding_window=None))
    tokens = np.random.default_rng(0).permutation(np.arange(first, first + 600))
    # New tokens behind the vocabulary are contiguous rows; others are not.
    tokens = tokens if first else tokens[tokens % 2 == 0]
    identifiers = tokens[:, None].tolist()
    prompts = some_prompts(3, 6, 1)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    for mode in ("beam", "exact"):
        with monkeypatch.context() as patch:
            passes = record_passes(patch)
            found = finder.search(prompts, k=10, mode=mode)
        assert len(passes) == 1
        for prompt, result in zip(prompts, found, strict=True):
            assert_top(result, brute_force(model, identifiers, prompt, how), 10)
            assert result.exact and result.expansions == 0


def test_forced_tokens_need_no_pass_under_trie_scoring(model: Any) -> None:
    identifiers = [[token, *range(10, 20), 40 + token] for token in range(5)]
    finder = TrieSearch(model, Trie.from_sequences(identifiers), "trie")
    for mode in ("beam", "exact"):
        (result,) = finder.search(some_prompts(3), k=5, mode=mode)
        assert result.expansions == 0 and len(result.indices) == 5


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
def test_nodes_with_many_children(how: scoring.Scoring, mode: search.Mode) -> None:
    model = build(MistralConfig(**SHAPE | {"vocab_size": 400}, sliding_window=None))
    assert scoring.WIDE < 300
    identifiers = [[first, second] for first in (3, 4) for second in range(50, 350)] + [[5, 6]]
    prompts = some_prompts(3, 6)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    allowed = np.random.default_rng(0).random(len(identifiers)) < 0.3
    for mask in (None, allowed):
        for prompt, result in zip(prompts, finder.search(prompts, k=8, mode=mode, beam=8, allowed=mask), strict=True):
            scores = brute_force(model, identifiers, prompt, how)
            assert_top(result, scores if mask is None else np.where(mask, scores, -np.inf), 8)


def test_work_is_cut_into_chunks(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    identifiers, prompts = some_identifiers(100), some_prompts(3, 6)
    for how in SCORINGS:
        finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
        whole = finder.search(prompts, k=5, mode="exact")
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "CHUNK_ELEMENTS", 3 * VOCABULARY)
            pieces = finder.search(prompts, k=5, mode="exact")
        for one, two in zip(whole, pieces, strict=True):
            assert one.indices.tolist() == two.indices.tolist()
            np.testing.assert_allclose(one.scores, two.scores, atol=1e-9)


ARCHITECTURES = {
    "llama": LlamaConfig(**SHAPE),
    "llama, eager": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "mistral, window": MistralConfig(**SHAPE, sliding_window=6),
    "mistral, window, eager": MistralConfig(**SHAPE, sliding_window=6),
    "qwen2, window in one layer": Qwen2Config(**SHAPE, sliding_window=6, use_sliding_window=True, max_window_layers=1),
    # A bias in the output layer.
    "phi": PhiConfig(**SHAPE),
    # Softcapped logits, windows in every other layer.
    "gemma2, eager": Gemma2Config(
        **SHAPE, head_dim=8, sliding_window=6, final_logit_softcapping=2.0, attn_logit_softcapping=1.5
    ),
    # Scaled logits.
    "granite": GraniteConfig(**SHAPE, logits_scaling=3.0),
    # Learned positions.
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.4),
}


@pytest.mark.parametrize(
    ("worth", "step"),
    [(0, 1), (attention.WORTH_GROUPS["cpu"], 1), (0, 8)],
    ids=["in groups", "together", "in groups by eight columns"],
)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str, worth: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.WORTH_GROUPS, "cpu", worth)
    monkeypatch.setitem(attention.COLUMN_STEP, "cpu", step)
    model = build(ARCHITECTURES[name], attn="eager" if name.endswith("eager") else "sdpa")
    identifiers, prompts = some_identifiers(60), some_prompts(3, 12, 1)
    for how in SCORINGS:
        finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
        for prompt, result in zip(prompts, finder.search(prompts, k=5, mode="exact"), strict=True):
            # Eager attention has its softmax in single precision.
            assert_top(result, brute_force(model, identifiers, prompt, how), 5, tolerance=1e-5)
    changed_logits = name in ("gemma2, eager", "granite")
    assert (finder.decoder.head is None) == changed_logits


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
@pytest.mark.parametrize("how", SCORINGS)
def test_lower_precision(dtype: torch.dtype, tolerance: float, how: scoring.Scoring) -> None:
    config = MistralConfig(**SHAPE | {"initializer_range": 0.15}, sliding_window=None)
    model, reference = build(config, dtype), build(config, dtype).double()
    identifiers, prompts = some_identifiers(200), some_prompts(3, 9, 5)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    for mode in ("beam", "exact"):
        for prompt, result in zip(prompts, finder.search(prompts, k=10, mode=mode), strict=True):
            scores = brute_force(reference, identifiers, prompt, how)
            assert len(set(result.indices.tolist())) == 10
            np.testing.assert_allclose(result.scores, scores[result.indices], atol=tolerance)
            if mode == "exact":
                best = np.sort(scores)[::-1][:10]
                np.testing.assert_allclose(result.scores, best, atol=tolerance)


@pytest.mark.parametrize("how", SCORINGS)
def test_a_bounded_search_says_so_and_returns_what_it_has(model: Any, how: scoring.Scoring) -> None:
    identifiers, prompts = some_identifiers(300), some_prompts(3, 6)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    # Without any bound, more would be expanded at once.
    full = finder.search(prompts, k=10, mode="exact", beam=2, max_expansions=10_000)
    for bound in (0, 1, 5, 20):
        for prompt, whole, result in zip(
            prompts, full, finder.search(prompts, k=10, mode="exact", beam=2, max_expansions=bound), strict=True
        ):
            scores = brute_force(model, identifiers, prompt, how)
            np.testing.assert_allclose(result.scores, scores[result.indices], atol=1e-9)
            assert result.expansions == min(bound, whole.expansions)
            assert result.exact == (whole.expansions <= bound)
    assert min(result.expansions for result in full) > 5


@pytest.mark.parametrize("mode", ["beam", "exact"])
def test_a_deadline_ends_the_search(model: Any, mode: search.Mode) -> None:
    identifiers, prompts = some_identifiers(300), some_prompts(3, 6)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), "vocabulary")
    for prompt, result in zip(prompts, finder.search(prompts, k=10, mode=mode, deadline_seconds=0.0), strict=True):
        assert not result.exact and result.expansions == 0
        scores = brute_force(model, identifiers, prompt, "vocabulary")
        np.testing.assert_allclose(result.scores, scores[result.indices], atol=1e-9)
    patient = finder.search(prompts, k=10, mode="exact", deadline_seconds=1e6)
    assert all(result.exact for result in patient)


@pytest.mark.parametrize("mode", ["beam", "exact"])
def test_a_deadline_leaves_what_is_known_already(model: Any, mode: search.Mode) -> None:
    identifiers = [[3, 10, 11, 2], [4, 10, 12, 2], [5, 6, 2], [5, 7, 2]]
    finder = TrieSearch(model, Trie.from_sequences(identifiers), "trie")
    for prompt in some_prompts(3, 6, 9):
        (result,) = finder.search([prompt], k=4, mode=mode, deadline_seconds=0.0)
        scores = brute_force(model, identifiers, prompt, "trie")
        # Behind the prompt two identifiers are decided, and two have a choice left.
        assert sorted(result.indices.tolist()) == [0, 1] and not result.exact
        np.testing.assert_allclose(result.scores, scores[result.indices], atol=1e-9)
        (first,) = finder.search([prompt], k=1, mode=mode, deadline_seconds=0.0)
        rest = np.logaddexp(*scores[2:])
        assert first.indices.tolist() == [int(np.argmax(scores[:2]))] and first.exact == (first.scores[0] >= rest)


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
@settings(max_examples=15, deadline=None)
@given(
    identifiers=identifier_lists,
    prompts=prompt_lists,
    token=st.integers(3, 6),
    bad=st.sampled_from([torch.nan, torch.inf, -torch.inf]),
)
def test_logits_that_are_not_numbers_give_no_identifier(
    how: scoring.Scoring,
    mode: search.Mode,
    identifiers: list[list[int]],
    prompts: list[list[int]],
    token: int,
    bad: float,
) -> None:
    model = build(PhiConfig(**SHAPE))
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    with torch.no_grad():
        model.lm_head.bias[token] = bad
    try:
        found = finder.search(prompts, k=5, mode=mode)
    except FloatingPointError as error:
        assert "NaN or +inf" in str(error) and bad != -torch.inf
        return
    for prompt, result in zip(prompts, found, strict=True):
        scores = brute_force(model, identifiers, prompt, how)
        assert np.isfinite(scores[result.indices]).all()
        np.testing.assert_allclose(result.scores, scores[result.indices], atol=1e-9)


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
def test_logits_that_are_not_numbers_are_an_error(how: scoring.Scoring, mode: search.Mode) -> None:
    model = build(PhiConfig(**SHAPE))
    finder = TrieSearch(model, Trie.from_sequences(some_identifiers(50)), how)
    for bad in (torch.nan, torch.inf):
        with torch.no_grad():
            model.lm_head.bias[5] = bad
        with pytest.raises(FloatingPointError, match=r"NaN or \+inf"):
            finder.search(some_prompts(3), k=5, mode=mode)


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
def test_where_no_token_is_possible_nothing_is_found(how: scoring.Scoring, mode: search.Mode) -> None:
    model = build(PhiConfig(**SHAPE))
    with torch.no_grad():
        model.lm_head.bias.fill_(-torch.inf)
    finder = TrieSearch(model, Trie.from_sequences(some_identifiers(50)), how)
    for result in finder.search(some_prompts(3, 5), k=5, mode=mode):
        assert not len(result.indices)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nor_may_logits_be_that_no_identifier_asks_for(bad: float, dtype: torch.dtype) -> None:
    model = build(PhiConfig(**SHAPE), dtype)
    finder = TrieSearch(model, Trie.from_sequences([[3, 4], [3, 5], [6, 7, 8]]), "vocabulary")
    with torch.no_grad():
        model.lm_head.bias[VOCABULARY - 1] = bad
    with pytest.raises(FloatingPointError, match=r"NaN or \+inf"):
        finder.search([[9, 10]], k=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [None, 0.0, -150.0, 95.0])
@pytest.mark.parametrize("factor", [1.0, 40.0, 3000.0])
def test_a_normaliser_takes_logits_of_any_size(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bias: float | None, factor: float
) -> None:
    monkeypatch.setattr(attention, "SLAB", 16)
    monkeypatch.setattr(scoring, "CHUNK_STATES", 8)
    monkeypatch.setattr(scoring, "WIDE", 4)
    changed = build(MistralConfig(**SHAPE, sliding_window=None)).to(dtype)
    head = torch.nn.Linear(changed.config.hidden_size, VOCABULARY, bias=bias is not None).to(dtype)
    with torch.no_grad():
        head.weight *= factor
        if bias is not None:
            head.bias.fill_(bias)
    changed.lm_head = head
    scorer = scoring.Scorer(
        attention.TreeDecoder(changed), Trie.from_sequences([[3, 4], [4, 5], [20, 3], [21, 9], [30, 2]]), "vocabulary"
    )
    states = torch.randn(21, changed.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    at_root, owner, token = np.array([0, 7, 8, 20]), np.array([3, 3, 20, 0]), np.array([VOCABULARY - 1, 0, 15, 16])
    with torch.inference_mode():
        logits = head.double()(states.double())
        head.to(dtype)
        normaliser, logit, found = scorer._over_vocabulary(states, scoring._Wanted(owner, token, at_root))
    largest = float(logits.abs().max().clamp(min=1))
    tolerance = {torch.bfloat16: 1e-3, torch.float32: 1e-6, torch.float64: 1e-12}[dtype] * largest
    np.testing.assert_allclose(normaliser, logits.logsumexp(-1).numpy(), atol=10 * tolerance)
    # Of single tokens also in low precision, whose own products are further off.
    np.testing.assert_allclose(logit, logits[owner, token].numpy(), atol=min(10 * tolerance, 1e-5 * largest))
    assert found is not None
    np.testing.assert_allclose(
        found.double().numpy(), logits[at_root][:, [3, 4, 20, 21, 30]].numpy(), atol=10 * tolerance
    )


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
def test_impossible_tokens_are_never_returned(how: scoring.Scoring, mode: search.Mode) -> None:
    model = build(PhiConfig(**SHAPE))
    identifiers, prompts = some_identifiers(80), some_prompts(3, 5)
    with torch.no_grad():
        model.lm_head.bias[[4, 7]] = -torch.inf
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    scores = [brute_force(model, identifiers, prompt, how) for prompt in prompts]
    for allowed in (None, np.random.default_rng(0).random(80) < 0.2):
        found = finder.search(prompts, k=100, mode=mode, allowed=allowed)
        for expected, result in zip(scores, found, strict=True):
            # Where every child of a node is impossible the reference is not a number.
            possible = ~np.isnan(expected) & (True if allowed is None else allowed)
            assert_top(result, np.where(possible, expected, -np.inf), 100)
            assert len(result.indices) < (80 if allowed is None else np.count_nonzero(allowed))
    with torch.no_grad():
        model.lm_head.bias[: VOCABULARY // 2] = -torch.inf
    for result in TrieSearch(model, Trie.from_sequences(identifiers), how).search(prompts, k=5, mode=mode):
        assert len(result.indices) == 0


def test_no_prompts(model: Any) -> None:
    assert TrieSearch(model, Trie.from_sequences([[3], [4]]), "trie").search([], k=3) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [[3], []]}, "prompt 1: expected at least one token"),
        ({"prompts": [[3, VOCABULARY]]}, "prompt 0: expected tokens from 0 to 63, found 3 to 64"),
        ({"prompts": [[3, -1]]}, "prompt 0: expected tokens"),
        ({"prompts": [[3.7]]}, "prompt 0: expected token ids, found float64"),
        ({"prompts": [["a"]]}, "prompt 0: expected token ids, found <U1"),
        ({"prompts": [[3] * 127]}, "prompt 0: expected at most 128 tokens"),
        ({"k": 0}, "k: expected at least 1, found 0"),
        ({"beam": 0}, "beam: expected at least 1"),
        ({"mode": "greedy"}, "mode: expected 'beam' or 'exact', found 'greedy'"),
        ({"max_expansions": -1}, "max_expansions: expected at least 0"),
        ({"allowed": np.ones(3, dtype=bool)}, "allowed: expected 2 truth values"),
        ({"allowed": np.ones(2)}, "allowed: expected 2 truth values, found float64"),
    ],
)
def test_bad_arguments_are_named(model: Any, arguments: dict[str, Any], message: str) -> None:
    finder = TrieSearch(model, Trie.from_sequences([[3, END], [4, END]]), "trie")
    with pytest.raises(InputError, match=message):
        finder.search(**{"prompts": [[3]], "k": 1} | arguments)


def test_models_and_tries_that_do_not_fit_are_refused(model: Any) -> None:
    with pytest.raises(InputError, match="identifiers: expected tokens below 64"):
        TrieSearch(model, Trie.from_sequences([[VOCABULARY], [1]]), "trie")
    with pytest.raises(InputError, match="scoring: expected 'trie' or 'vocabulary', found 'beam'"):
        TrieSearch(model, Trie.from_sequences([[3], [1]]), "beam")  # type: ignore[arg-type]


def test_a_model_without_tree_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = build(LlamaConfig(**SHAPE))
    rotary = llama.model.rotary_emb
    forward = rotary.forward

    def ignoring(x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return forward(x, torch.arange(position_ids.shape[1]).expand_as(position_ids))

    monkeypatch.setattr(rotary, "forward", ignoring)
    with pytest.raises(InputError, match=r"Llama.*expected a decoder that uses transformers' attention"):
        TrieSearch(llama, Trie.from_sequences([[3], [1]]), "trie")
    # Linear biases instead of positions, in attention code of its own.
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4)
    bloom = build(config, attn="eager")
    with pytest.raises(InputError, match="Bloom"):
        TrieSearch(bloom, Trie.from_sequences([[3], [1]]), "trie")


@pytest.mark.parametrize("factor", [0.5, 0.97])
def test_what_hooks_do_to_logits_counts(model: Any, factor: float) -> None:
    identifiers, (prompt,) = some_identifiers(50), some_prompts(4)
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: output * factor)
    try:
        finder = TrieSearch(model, Trie.from_sequences(identifiers), "trie")
        (result,) = finder.search([prompt], k=10, mode="exact")
        assert_top(result, brute_force(model, identifiers, prompt, "trie"), 10)
    finally:
        hook.remove()


def test_sequences_that_longrope_would_turn_otherwise_are_refused() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rotary = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 24, **factors}
    model = build(LlamaConfig(**SHAPE, rope_parameters=rotary))
    identifiers, prompts = some_identifiers(50), some_prompts(5, 16)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), "vocabulary")
    for prompt, result in zip(prompts, finder.search(prompts, k=10, mode="exact"), strict=True):
        assert_top(result, brute_force(model, identifiers, prompt, "vocabulary"), 10)
    with pytest.raises(InputError, match="prompt 1: expected at most 24 tokens with the longest identifier's 8"):
        finder.search(some_prompts(5, 17), k=10)


def test_modules_keep_their_modes() -> None:
    model = build(PhiConfig(**SHAPE))
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    TrieSearch(model, Trie.from_sequences([[3, 4], [3, 5]]), "trie").search([[3]], k=1)
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2


def test_the_model_keeps_its_mode(model: Any) -> None:
    finder = TrieSearch(model, Trie.from_sequences([[3, 4], [3, 5]]), "trie")
    model.train()
    finder.search([[3]], k=1)
    assert model.training and all(module.training for module in model.modules())
    model.eval()


def test_a_trie_from_disk_serves_as_well(model: Any, tmp_path: Path) -> None:
    identifiers, prompts = some_identifiers(100), some_prompts(3, 5)
    trie = Trie.from_sequences(identifiers)
    trie.save(tmp_path)
    expected = TrieSearch(model, trie, "vocabulary").search(prompts, k=5)
    found = search.search(model, Trie.load(tmp_path), prompts, k=5, scoring="vocabulary")
    for one, two in zip(expected, found, strict=True):
        assert one.indices.tolist() == two.indices.tolist()


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
def test_rows_attend_beside_those_with_about_as_many_tokens(
    model: Any, how: scoring.Scoring, mode: search.Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    finder, prompts = TrieSearch(model, Trie.from_sequences(some_identifiers(200)), how), some_prompts(*range(1, 25))
    made: list[tuple[Any, list[Any]]] = []
    groups = attention.TreeSession._groups

    def watched(self: attention.TreeSession, width: Any) -> Any:
        made.append((width, groups(self, width)))
        return made[-1][1]

    monkeypatch.setattr(attention.TreeSession, "_groups", watched)
    monkeypatch.setitem(attention.WORTH_GROUPS, "cpu", 1 << 40)
    together = finder.search(prompts, k=10, mode=mode)
    assert all(len(found) == 1 for _, found in made)
    made.clear()
    monkeypatch.setitem(attention.WORTH_GROUPS, "cpu", 0)
    in_groups = finder.search(prompts, k=10, mode=mode)
    assert len(made[0][1]) > 4 and any(len(found) > 1 for _, found in made[1:])
    for width, found in made:
        assert sorted(np.concatenate(found).tolist()) == np.flatnonzero(width).tolist() or len(width) == 1
        assert all(width[rows].max() < attention.ALIKE * width[rows].min() + 1e-9 for rows in found)
    for one, two in zip(together, in_groups, strict=True):
        assert one.indices.tolist() == two.indices.tolist() and one.exact == two.exact
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-9)


def test_the_cache_shrinks_when_queries_are_done(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = TrieSearch(model, Trie.from_sequences(some_identifiers(200)), "vocabulary")
    passes = record_passes(monkeypatch)
    finder.search(some_prompts(*range(1, 13)), k=1, mode="exact", beam=1)
    rows = [count for count, _ in passes]
    assert rows[0] == 12 and rows[-1] < 12 and rows == sorted(rows, reverse=True)
