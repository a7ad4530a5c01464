"""Hypotheses of a beam that part before it is known which of them go on: fewer passes, and nothing else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoding_overlay import assert_same
from test_decoding_search import END, SHAPE, VOCABULARY, build, prompt_lists, record_passes
from transformers import MistralConfig

from genret.decoding import hypotheses
from genret.decoding.building import flattened
from genret.decoding.overlay import GrownTrie
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Paths, Trie

identifier_lists = st.lists(st.lists(st.integers(3, 6), max_size=7), min_size=2, max_size=40, unique_by=tuple).map(
    lambda found: [[*tokens, END] for tokens in found]
)


@pytest.fixture(scope="module")
def model() -> Any:
    """Of double precision: no two identifiers have equal scores."""
    return build(MistralConfig(**SHAPE, sliding_window=None))


def searched(
    finder: TrieSearch, prompts: list[list[int]], tokens: int, ahead: bool, **how: Any
) -> tuple[list[Any], list[int]]:
    """Results with so many tokens for a pass, and the tokens that each pass read."""
    with pytest.MonkeyPatch.context() as patch:
        passes = record_passes(patch)
        patch.setitem(hypotheses.TOKENS_FOR_A_PASS, "cpu", tokens)
        patch.setitem(hypotheses.BEAMS_READ_AHEAD, "cpu", ahead)
        results = finder.search(prompts, mode="beam", **how)
    return results, [read for _, read in passes]


@settings(max_examples=60, deadline=None)
@given(
    identifiers=identifier_lists,
    prompts=prompt_lists,
    k=st.integers(1, 6),
    beam=st.integers(1, 6),
    tokens=st.integers(1, 60),
    ahead=st.booleans(),
    data=st.data(),
)
def test_parting_early_changes_no_result(
    model: Any,
    identifiers: list[list[int]],
    prompts: list[list[int]],
    k: int,
    beam: int,
    tokens: int,
    ahead: bool,
    data: st.DataObject,
) -> None:
    size = len(identifiers)
    added = data.draw(st.integers(0, size - 1), label="added")
    removed = data.draw(st.lists(st.integers(0, size - 1), max_size=size - 1), label="removed")
    trie: Paths = Trie.from_sequences(identifiers)
    if added or removed:
        kept, more = identifiers[: size - added], identifiers[size - added :]
        trie = GrownTrie.grow(Trie.from_sequences(kept), *flattened(more), removed)
    allowed = data.draw(st.none() | st.lists(st.booleans(), min_size=size, max_size=size).map(np.array))
    finder = TrieSearch(model, trie, "vocabulary")
    expected, _ = searched(finder, prompts, 0, ahead, k=k, beam=beam, allowed=allowed)
    found, _ = searched(finder, prompts, tokens, ahead, k=k, beam=beam, allowed=allowed)
    assert_same(found, expected)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("tokens", [12, 128])
def test_parting_early_in_a_large_trie_changes_no_result(model: Any, tokens: int, ahead: bool) -> None:
    random = np.random.default_rng(0)
    # Identifiers of any length, so that some end while others part.
    found = {tuple(random.integers(3, 12, size=random.integers(1, 8)).tolist()) for _ in range(200)}
    finder = TrieSearch(model, Trie.from_sequences([[*one, END] for one in sorted(found)]), "vocabulary")
    spared = 0
    for width in range(2, 12):
        prompts = random.integers(3, VOCABULARY, size=(4, 3)).tolist()
        for batch in [[prompt] for prompt in prompts] if tokens == 12 else [prompts]:
            expected, plain = searched(finder, batch, 0, ahead, k=width, beam=width)
            others, passes = searched(finder, batch, tokens, ahead, k=width, beam=width)
            assert_same(others, expected)
            spared += len(plain) - len(passes)
    assert spared > 0


# Of a beam of four hypotheses one parts at the second token, into two, and all go on to the third.
PARTING = [[3, 7, 9, 12, END], [3, 8, 9, END], [4, 7, 9, 13, END], [5, 8, 9, END], [6, 8, 7, END]]


def test_a_pass_is_spared_for_few_tokens(model: Any) -> None:
    finder = TrieSearch(model, Trie.from_sequences(PARTING), "vocabulary")
    before, plain = searched(finder, [[20, 21]], 0, False, k=4, beam=4)
    after, spared = searched(finder, [[20, 21]], 12, False, k=4, beam=4)
    assert_same(after, before)
    # Two passes become one. Its first token is read for five hypotheses instead of four, and one of five is pruned.
    assert plain[:2] == [2, 4] and len(spared) == len(plain) - 1
    assert sum(plain) < sum(spared) <= sum(plain) + 12
    _, scarce = searched(finder, [[20, 21]], 3, False, k=4, beam=4)
    assert scarce == plain


def test_queries_that_share_a_pass_share_its_room(model: Any) -> None:
    finder = TrieSearch(model, Trie.from_sequences(PARTING), "vocabulary")
    passes = {size: searched(finder, [[20, 21]] * size, 12, False, k=4, beam=4)[1] for size in (1, 3, 4)}
    # One token more up to the choice, and of twelve behind it the fifth that is for a hypothesis too many: 3.4 a query.
    assert len(passes[1]) == len(passes[3]) == len(passes[4]) - 1


def test_what_parted_is_compared_before_time_is_up(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = TrieSearch(model, Trie.from_sequences(PARTING), "vocabulary")
    ((whole,), passes) = searched(finder, [[20, 21]], 12, False, k=4, beam=4)
    # Time is up after the pass in which five hypotheses of a beam of four are read to their ends.
    calls = []
    monkeypatch.setattr(hypotheses.Batch, "late", lambda batch: calls.append(batch) or len(calls) >= len(passes))
    ((late,), same) = searched(finder, [[20, 21]], 12, False, k=4, beam=4)
    assert same == passes and late.indices.tolist() == whole.indices.tolist() and late.exact == whole.exact
