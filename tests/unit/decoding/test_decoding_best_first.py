"""What exact search spares: columns of the cache that nobody sees, and hypotheses that nobody expands."""

from typing import Any

import numpy as np
import pytest
from test_decoding_search import (
    ARCHITECTURES,
    END,
    SCORINGS,
    SHAPE,
    VOCABULARY,
    assert_top,
    brute_force,
    build,
    record_passes,
    some_identifiers,
    some_prompts,
)
from transformers import MistralConfig

from genret.decoding import attention, best_first, hypotheses, scoring
from genret.decoding.cache import RowGroup
from genret.decoding.hypotheses import Batch, Expansions, Hypotheses
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie


@pytest.fixture(scope="module")
def model() -> Any:
    """Of double precision: no two identifiers have equal scores."""
    return build(MistralConfig(**SHAPE, sliding_window=None))


def search_all(
    finder: TrieSearch,
    prompts: list[list[int]],
    identifiers: list[list[int]],
    k: int,
    bound: int | None = None,
    tolerance: float = 1e-9,
) -> list[Any]:
    """Results of exact search, which are the k best of brute force."""
    how: scoring.Scoring = "vocabulary" if finder.scorer.over_vocabulary else "trie"
    found = finder.search(prompts, k=k, mode="exact", beam=2, max_expansions=bound)
    for prompt, result in zip(prompts, found, strict=True):
        assert_top(result, brute_force(finder.decoder.model, identifiers, prompt, how), k, tolerance)
    return found


@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("worth", [0, attention.WORTH_GROUPS["cpu"]], ids=["in groups", "together"])
@pytest.mark.parametrize("name", ["llama", "mistral, window", "qwen2, window in one layer", "gemma2, eager", "gpt2"])
def test_a_pass_looks_at_few_of_many_columns(name: str, worth: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.COLUMN_STEP, "cpu", step)
    monkeypatch.setitem(attention.WORTH_GROUPS, "cpu", worth)
    monkeypatch.setattr(attention, "FEW_APPENDED", 8)
    groups: list[RowGroup] = []
    made = attention.TreeSession._group

    def recorded(*arguments: Any) -> RowGroup:
        groups.append(made(*arguments))
        return groups[-1]

    monkeypatch.setattr(attention.TreeSession, "_group", recorded)
    model = build(ARCHITECTURES[name], attn="eager" if name.endswith("eager") else "sdpa")
    identifiers, prompts = some_identifiers(300), some_prompts(3, 5, 1)
    for how in SCORINGS:
        finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
        groups.clear()
        # Eager attention has its softmax in single precision.
        search_all(finder, prompts, identifiers, 30, 10_000, tolerance=1e-5)
        gathered = [group for group in groups if group.slots is not None]
        assert gathered and len(gathered) < len(groups)
        masks = [mask for group in groups for mask in group.masks.values() if mask is not None]
        assert step == 1 or all(mask.shape[-1] % step == 0 for mask in masks if mask.shape[-1] != mask.shape[-2])


@pytest.mark.parametrize("bound", [None, 10_000])
@pytest.mark.parametrize("how", SCORINGS)
def test_hypotheses_are_made_of_children_that_are_expanded(
    how: scoring.Scoring, bound: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(MistralConfig(**SHAPE | {"vocab_size": 700}, sliding_window=None))
    random = np.random.default_rng(2)
    identifiers = [[token, *random.integers(3, 9, size=3).tolist(), END] for token in range(3, 600) for _ in range(2)]
    identifiers = [list(one) for one in dict.fromkeys(map(tuple, identifiers))]
    made: list[int] = []
    children = Batch.children

    def recorded(self: Batch, moved: Hypotheses, child: np.ndarray, score: np.ndarray) -> Hypotheses:
        made.append(len(child))
        return children(self, moved, child, score)

    monkeypatch.setattr(Batch, "children", recorded)
    prompts = some_prompts(4, 7)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    found = search_all(finder, prompts, identifiers, 3, bound)
    assert 0 < sum(made) <= sum(result.expansions for result in found)


@pytest.mark.parametrize("how", SCORINGS)
def test_long_searches_take_fewer_and_larger_passes(
    model: Any, how: scoring.Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    identifiers, prompts = some_identifiers(1500), some_prompts(3, 6)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    monkeypatch.setitem(hypotheses.HYPOTHESES_PER_PASS, "cpu", 4)
    passes = record_passes(monkeypatch)
    taken, tokens = [], []
    for share, before in ((10**9, 10**9), (best_first.EXPANDED_A_PASS, best_first.EXPANDED_A_PASS_WITHOUT_RESULTS)):
        monkeypatch.setattr(best_first, "EXPANDED_A_PASS", share)
        monkeypatch.setattr(best_first, "EXPANDED_A_PASS_WITHOUT_RESULTS", before)
        passes.clear()
        search_all(finder, prompts, identifiers, 200)
        taken.append(len(passes))
        tokens.append(sum(read for _, read in passes))
    assert taken[1] < 0.6 * taken[0]
    assert tokens[1] <= tokens[0] * (1 + 1 / best_first.EXPANDED_A_PASS)


@pytest.mark.parametrize("how", SCORINGS)
def test_hardly_more_at_once_before_there_are_results(
    model: Any, how: scoring.Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    identifiers, prompts = some_identifiers(300), some_prompts(3, 6)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), how)
    monkeypatch.setitem(hypotheses.HYPOTHESES_PER_PASS, "cpu", 4)
    at_once: list[int] = []
    expand = Batch.expand

    def recorded(self: Batch, some: Hypotheses, *arguments: Any) -> Expansions:
        at_once.append(len(some))
        return expand(self, some, *arguments)

    monkeypatch.setattr(Batch, "expand", recorded)
    monkeypatch.setattr(best_first, "EXPANDED_A_PASS_WITHOUT_RESULTS", 10**9)
    for k, fewest, most in ((300, 1, 4), (100, 5, 64)):
        at_once.clear()
        search_all(finder, prompts, identifiers, k)
        assert fewest <= max(at_once) <= most


@pytest.mark.parametrize(
    ("name", "states", "most"), [("llama", 100, 1024), ("granite", 100, 100), ("granite", 9999, 1024)]
)
def test_logits_of_a_pass_are_bounded_where_all_are_made(
    name: str, states: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypotheses, "CHUNK_ELEMENTS", states * VOCABULARY)
    finder = TrieSearch(build(ARCHITECTURES[name]), Trie.from_sequences(some_identifiers(20)), "trie")
    assert Batch(finder.scorer, [], None, None, None).most_hypotheses == most


@pytest.mark.parametrize("most", [20, 50])
@pytest.mark.parametrize("equal", [True, False])
def test_a_frontier_gives_each_query_its_own_number(
    model: Any, equal: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trie = Trie.from_sequences([[token, END] for token in range(3, 43)])
    counts, random = np.array([5, 0, most, -1, 12]), np.random.default_rng(3)
    batch = Batch(TrieSearch(model, trie, "vocabulary").scorer, [np.array([3])] * len(counts), None, None, None)
    made: list[int] = []
    children = batch.children

    def recorded(moved: Hypotheses, child: np.ndarray, score: np.ndarray) -> Hypotheses:
        made.append(len(child))
        return children(moved, child, score)

    monkeypatch.setattr(batch, "children", recorded)
    frontier = best_first._Frontier(batch)
    roots = np.zeros(len(counts), dtype=hypotheses.HYPOTHESIS)
    roots["query"] = np.arange(len(counts))
    first, n_children = (int(part[0]) for part in trie.child_span(np.array([trie.root])))
    child = np.concatenate([first + random.permutation(n_children) for _ in counts])
    # Sorted as they stand in the trie, and so are their scores.
    score = np.full(len(child), -1.0) if equal else -1.0 - child
    frontier.push(roots, np.arange(len(counts)).repeat(n_children), child, score)
    taken = frontier.pop(counts)
    expected = [(query, leaf) for query, count in enumerate(counts) for leaf in range(min(max(count, 0), n_children))]
    assert list(zip(taken["query"].tolist(), taken["leaf"].tolist(), strict=True)) == expected
    assert equal or sum(made) == len(expected)
    left = [n_children - min(max(count, 0), n_children) for count in counts]
    assert (frontier.score > -np.inf).sum(axis=1).tolist() == left
