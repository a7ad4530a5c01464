import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_decoding_search import record_passes
from ways import packed_ways

from genret.decoding.packed import rounded_up
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SCORINGS = ("trie", "vocabulary")


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the decoding benchmark by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"decoding_parts.{name}")


@pytest.fixture
def small(part: Any) -> Any:
    """A tiny model, identifiers over its vocabulary, and prompts of different lengths."""
    data = part("data")
    model = data.random_model(data.shape(2, 64, 200), torch.float64)
    return model, data.keyword_identifiers(200, 200), data.prompts(5, 200)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_both_baselines_find_what_the_search_finds(part: Any, small: Any, scoring: Any) -> None:
    model, identifiers, prompts = small
    baselines = part("baselines")
    ours = TrieSearch(model, Trie.from_sequences(identifiers), scoring).search(prompts, k=10, beam=10)
    masked = baselines.MaskedBeamSearch(model, baselines.PrefixArrays.build(identifiers), scoring)
    generate = baselines.GenerateSearch(model, identifiers, scoring)
    for found in (masked.search(prompts), generate.found(prompts)):
        compared = baselines.agreement(ours, found)
        assert compared.same == compared.queries == 5
        assert compared.gap < 1e-4
    # What is timed makes the same sequences, without their scores.
    timed, scored = generate.search(prompts), generate._generate(prompts, output_scores=True)
    assert torch.equal(timed.sequences, scored.sequences) and "scores" not in timed


@pytest.mark.parametrize("scoring", SCORINGS)
def test_few_identifiers_leave_the_masked_beam_unfilled(part: Any, small: Any, scoring: Any) -> None:
    model, identifiers, prompts = small
    baselines = part("baselines")
    few = identifiers[:4]
    masked = baselines.MaskedBeamSearch(model, baselines.PrefixArrays.build(few), scoring).search(prompts[:1])
    (ours,) = TrieSearch(model, Trie.from_sequences(few), scoring).search(prompts[:1], k=10)
    assert masked[0].indices.tolist() == ours.indices.tolist()
    np.testing.assert_allclose(masked[0].scores, ours.scores, atol=1e-4)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_brute_force_finds_what_exact_search_finds(part: Any, small: Any, scoring: Any) -> None:
    model, identifiers, prompts = small
    brute, agreement = part("brute"), part("baselines").agreement
    force = brute.BruteForce(model, identifiers)
    truth = [brute.best(force.scores(prompt)[scoring], 10) for prompt in prompts]
    ours = TrieSearch(model, Trie.from_sequences(identifiers), scoring).search(prompts, k=10, mode="exact")
    compared = agreement(ours, truth)
    assert compared.same == 5 and compared.gap < 1e-9


def test_prefix_arrays_spell_all_identifiers(part: Any, small: Any) -> None:
    _, identifiers, _ = small
    prefixes = part("baselines").PrefixArrays.build(identifiers)
    spelled = {}
    for leaf in np.flatnonzero(prefixes.identifier >= 0):
        tokens, state = [], leaf
        while state:
            tokens.append(int(prefixes.token[state - 1]))
            state = prefixes.parent[state]
        spelled[int(prefixes.identifier[leaf])] = tokens[::-1]
    assert [spelled[number] for number in range(len(identifiers))] == identifiers
    assert len(prefixes.parent) == 1 + len({tuple(tokens[:end]) for tokens in identifiers for end in range(1, 21)})


def test_necessary_passes_skip_depths_without_a_choice(part: Any) -> None:
    # 1 -> 2 -> {3, 4}; 5 -> 6 -> 7; every identifier ends in 9.
    prefixes = part("baselines").PrefixArrays.build([[1, 2, 3, 9], [1, 2, 4, 9], [5, 6, 7, 9]])
    floor = part("floor")
    # The prefixes of one token, of two, and of three; all are open, in two queries of which one ends after a token.
    levels = prefixes.levels
    by_depth = [list(range(levels[depth], levels[depth + 1])) for depth in (1, 2, 3)]
    queries = [by_depth, by_depth[:1]]
    # Over the trie: one pass to the only choice behind the root, for the one hypothesis that has it.
    assert floor.necessary_passes(prefixes, queries, "trie") == [floor.Pass(1, 2, 2)]
    # Over the vocabulary: two hypotheses to that choice, then all three to their last tokens; one token of the other.
    assert floor.necessary_passes(prefixes, queries, "vocabulary") == [floor.Pass(2, 3, 6), floor.Pass(1, 3, 3)]


@pytest.mark.parametrize("scoring", SCORINGS)
def test_passes_alone_are_those_of_the_search(part: Any, small: Any, scoring: Any) -> None:
    model, identifiers, prompts = small
    finder = TrieSearch(model, Trie.from_sequences(identifiers), scoring)
    states = []
    forward = finder.decoder.forward

    def kept(*arguments: Any) -> torch.Tensor:
        states.append(forward(*arguments))
        return states[-1]

    finder.decoder.forward = kept  # type: ignore[method-assign]
    # In two batches, each of which has a cache of its own.
    repeat = part("passes").passes_alone(
        finder, lambda: [finder.search(some, k=3, mode="exact") for some in (prompts, prompts[::-1])]
    )
    of_search = states.copy()
    for _ in range(2):
        # Rows that are kept may be others, but those of the prompts come first, and all numbers are made.
        again = repeat()
        assert [found.shape for found in again] == [found.shape for found in of_search]
        torch.testing.assert_close(again[0], of_search[0])
        torch.testing.assert_close(again[1], of_search[1])


@pytest.mark.parametrize("scoring", SCORINGS)
def test_shares_of_a_search_are_its_whole(part: Any, small: Any, scoring: Any) -> None:
    model, identifiers, prompts = small
    floor = part("floor")
    case = floor.Case(scoring, model, TrieSearch(model, Trie.from_sequences(identifiers), scoring), prompts)
    record = case.recorded()
    shares = record.shares()
    assert len(record.tokens) > 1 and min(shares.values()) > 0
    four = ("decoder_percent", "output_layer_percent", "log-probabilities_percent", "outside_percent")
    assert sum(shares[name] for name in four) == pytest.approx(100)
    assert shares["beyond_forward_percent"] == pytest.approx(sum(shares[name] for name in four[2:]))


def test_the_replay_reads_all_prompts_and_all_necessary_tokens(part: Any, small: Any) -> None:
    model, _, prompts = small
    floor = part("floor")
    read, scored = [], []
    decoder, head = model.get_decoder(), model.lm_head
    counting = decoder.register_forward_hook(lambda _, __, output: read.append(output[0].shape[:2]))
    lengths, later = [len(prompt) for prompt in prompts], [floor.Pass(5, 3, 11), floor.Pass(2, 4, 8)]
    replay = floor.replay(decoder, lambda states: scored.append(len(head(states))), lengths, later)
    read.clear()
    replay()
    counting.remove()
    # The five prompts together, and the later passes, the last one of fewer rows.
    assert read == [(5, max(lengths)), (5, 3), (2, 4)]
    assert scored == [5, 11, 8]


def test_all_sides_are_measured_equally_often_after_a_warm_up(part: Any) -> None:
    timing = part("timing")
    called: list[str] = []
    sides = {name: lambda name=name: called.append(name) for name in "ab"}
    runs = timing.interleave(sides, timing.Limits(3, 60.0), {"b": lambda: called.append("warm")})
    assert called == ["a", "warm", *"ababab"]
    assert [len(side.seconds) for side in runs.values()] == [3, 3]
    # However little time there is, each is measured once.
    called.clear()
    runs = timing.interleave(sides, timing.Limits(3, 0.0))
    assert called == [*"abab"] and [len(side.seconds) for side in runs.values()] == [1, 1]


def test_identifiers_at_scale_are_unique_and_part_at_four_places(part: Any) -> None:
    index = part("index")
    words = index.word_table(np.random.default_rng(0))
    rows = index.identifier_rows(np.arange(3 * index.BELOW_ROOT), words)
    identifiers = [row[row >= 0].tolist() for row in rows]
    trie = Trie.from_sequences(identifiers)
    assert {len(tokens) for tokens in identifiers} <= set(range(8, 17))
    indptr, _, node = trie.branches()
    assert (np.diff(indptr) == 4).all()
    assert {len(trie.children(each)[0]) for each in set(node.tolist())} == {3, index.FAN_OUT}


def test_a_section_of_the_results_is_replaced_and_the_others_stay(part: Any, tmp_path: Path) -> None:
    update = part("tables").update_file
    path = tmp_path / "RESULTS.md"
    update(path, "one", "first")
    update(path, "two", "second")
    before = path.read_text()
    update(path, "one", "third")
    assert path.read_text() == before.replace("first", "third")
    assert path.read_text().startswith("# ") and "second" in path.read_text()


def test_necessary_choices_are_those_that_an_exact_search_expands(part: Any, small: Any) -> None:
    model, identifiers, prompts = small
    force = part("brute").BruteForce(model, identifiers)
    finder = TrieSearch(model, Trie.from_sequences(identifiers), "trie")
    for share in (1.0, 0.3):
        allowed = np.random.default_rng(1).random(len(identifiers)) < share
        for prompt in prompts:
            (found,) = finder.search([prompt], k=5, mode="exact", beam=1, allowed=allowed)
            necessary = force.necessary(force.prefix_scores(prompt)["trie"], allowed, found.scores[-1])
            # No more in vain than the last pass may expand, which doubles what those before it did. Choices that a
            # filter forces are expanded together.
            assert found.expansions <= 2 * necessary + 1
            assert share < 1 or necessary <= found.expansions


@packed_ways
def test_products_are_those_of_every_pass(part: Any, small: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, identifiers, prompts = small
    weights = part("weights")
    finder = TrieSearch(model.float(), Trie.from_sequences(identifiers), "vocabulary")
    passes = record_passes(monkeypatch)
    calls, count = weights.recorded(finder, lambda: finder.search(prompts[:1], k=3))
    assert count == len(passes) > 1
    # Four of each layer and one of the output layer a pass; the last layer makes outputs for wanted states only.
    assert len(calls) == 9 * count
    parameters = sum(weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2) - 200 * 64
    read, operations = weights.work(calls)
    assert read == 4 * count * parameters
    states = [rounded_up(tokens) for _, tokens in passes]
    assert 2 * min(states) * parameters * count <= operations <= 2 * max(states) * parameters * count
    weights.repeat(calls)
    weights.one_dnn(calls)()
