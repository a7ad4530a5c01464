"""Search under metadata filters: what they cost, and whether they hold."""

import copy
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from decoding_parts.baselines import SCORINGS, WIDTH, Scoring, agreement
from decoding_parts.brute import BruteForce, best
from decoding_parts.data import SEED, Shape, keyword_identifiers, prompts, random_model, shape
from decoding_parts.passes import passes_alone
from decoding_parts.settings import Settings
from decoding_parts.tables import Table
from decoding_parts.timing import Limits, interleave
from genret.decoding.filters import Equals, Predicate, leaf_mask
from genret.decoding.scoring import LeafFilter
from genret.decoding.search import Mode, TrieSearch
from genret.decoding.trie import Trie

NOTE = """\
Beam and exact search for the ten best identifiers that a filter lets through, in one batch; the filters take turns,
and times are medians a query. "by unfiltered": the time divided by that without a filter; "passes by unfiltered": the
same for the search's own forward passes alone, once more and without the search: what it takes to reach other
identifiers, whatever the filter itself does (over the trie without the output layer). "prepared": the time to test the
metadata of all identifiers and to count the allowed ones, once a filter and not in the other times. "outside":
identifiers found, in both modes, that the filter does not allow. "same": queries for which exact search finds the ten
best of brute force in double precision, filtered afterwards, in the same order; "gap": the largest difference of two
scores at the same rank. "expansions of exact": stretches of tokens that the model read for exact search behind the
first choice, a query; "necessary choices": choices of the trie behind the first one, a query, that lead to an allowed
identifier and score more than the last result, so that no exact search can leave them out. Over the trie an expansion
is one choice, with those behind it that the filter decides; over the vocabulary it may be as little as a token."""
MANY_NOTE = """\
The same of more identifiers, too many to compare with brute force. Where few of few identifiers are allowed, as above,
the ten best of them lie deep among the improbable ones, and to reach them is work; of many there are ten that are
probable. Exact search over the vocabulary would take minutes a query. "expansions": stretches of tokens that the model
read behind the first choice, a query."""

MODEL = (2, 128, 2000)
IDENTIFIERS, MANY = 5_000, 100_000
QUERIES = 16
MODES: tuple[Mode, ...] = ("beam", "exact")
FILTERS: dict[str, Predicate | None] = {
    "none": None,
    "50 %": Equals("half", "first"),
    "1 %": Equals("hundredth", 7),
    "one document": Equals("number", 1234),
}


def run(settings: Settings) -> list[Table]:
    """Measure both scorings, with few identifiers and with many."""
    size = shape(*MODEL)
    model, queries = random_model(size), prompts(QUERIES, size.vocabulary)
    identifiers = keyword_identifiers(IDENTIFIERS, size.vocabulary)
    trie = Trie.from_sequences(identifiers)
    force = BruteForce(copy.deepcopy(model).double(), identifiers)
    sums = [force.prefix_scores(query) for query in queries]
    table = Table("Filters", f"{NOTE} {_where(size, IDENTIFIERS)}")
    for scoring in SCORINGS:
        few = Filtered(TrieSearch(model, trie, scoring), queries, MODES, settings.limits)
        add_compared(table, scoring, few, force, [one[scoring] for one in sums])
    if settings.quick:
        return [table]
    large = Trie.from_sequences(keyword_identifiers(MANY, size.vocabulary))
    beyond = Table("Filters, many identifiers", f"{MANY_NOTE} {_where(size, MANY)}")
    for scoring in SCORINGS:
        modes = MODES if scoring == "trie" else MODES[:1]
        add_many(beyond, scoring, Filtered(TrieSearch(model, large, scoring), queries, modes, settings.limits))
    return [table, beyond]


def _where(size: Shape, count: int) -> str:
    return (
        f"Model {size}, vocabulary {size.vocabulary:,}, {count:,} identifiers with random metadata, {QUERIES} queries."
    )


class Filtered:
    """The runs of one search under each filter.

    Attributes:
        queries: The prompts.
        masks: By filter, bool `[n]`: which identifiers it allows.
        prepared_ms: By filter: what it takes to test and to count.
        runs: By filter and mode.
        passes: By filter and mode: the forward passes of these runs alone.
    """

    def __init__(
        self, search: TrieSearch, queries: Sequence[Sequence[int]], modes: Sequence[Mode], limits: Limits
    ) -> None:
        """Measure."""
        self.queries = queries
        self.masks: dict[str, np.ndarray] = {}
        self.prepared_ms: dict[str, float] = {}
        metadata, sides = random_metadata(len(search.trie)), {}
        for name, predicate in FILTERS.items():
            begin = time.perf_counter()
            self.masks[name] = (
                np.ones(len(metadata), dtype=bool) if predicate is None else leaf_mask(predicate, metadata)
            )
            allowed = None if predicate is None else LeafFilter(search.trie, self.masks[name])
            self.prepared_ms[name] = 0.0 if predicate is None else 1000 * (time.perf_counter() - begin)
            for mode in modes:
                sides[name, mode] = _side(search, queries, mode, allowed)
        # Each mode in turns of its own: over the vocabulary an exact search takes far longer than a beam.
        self.runs: dict[tuple[str, Mode], Any] = {}
        self.passes: dict[tuple[str, Mode], Any] = {}
        for mode in modes:
            whole = {key: side for key, side in sides.items() if key[1] == mode}
            alone = {(*key, "passes"): passes_alone(search, side) for key, side in whole.items()}
            runs = interleave({**whole, **alone}, limits)
            self.runs |= {key: runs[key] for key in whole}
            self.passes |= {key: runs[*key, "passes"] for key in whole}

    def of(self, name: str, mode: Mode) -> dict[str, float]:
        """Columns with the times of a filter and a mode."""
        seconds, unfiltered = self.runs[name, mode].median, self.runs["none", mode].median
        return {
            f"{mode}_ms": 1000 * seconds / len(self.queries),
            f"{mode}_by_unfiltered": seconds / unfiltered,
            f"{mode}_passes_by_unfiltered": self.passes[name, mode].median / self.passes["none", mode].median,
        }

    def expansions(self, name: str, mode: Mode) -> float:
        """A query's, on average."""
        return float(np.mean([result.expansions for result in self.runs[name, mode].answer]))

    def outside(self, name: str) -> int:
        """How many identifiers were found that the filter does not allow."""
        mask = self.masks[name]
        answers = [run.answer for (filtered, _), run in self.runs.items() if filtered == name]
        return sum(int((~mask[result.indices]).sum()) for answer in answers for result in answer)


def add_compared(table: Table, scoring: Scoring, filtered: Filtered, force: BruteForce, sums: Sequence[Any]) -> None:
    """Add a row for each filter; `sums` are the scores of all prefixes behind each query, by brute force."""
    for name, mask in filtered.masks.items():
        truth = [best(np.where(mask, force.of_identifiers(of_query), -np.inf), WIDTH) for of_query in sums]
        threshold = [found.scores[-1] for found in truth]
        necessary = [force.necessary(one, mask, worst) for one, worst in zip(sums, threshold, strict=True)]
        compared = agreement(filtered.runs[name, "exact"].answer, truth)
        table.add(
            scoring=scoring,
            filter=name,
            allowed=int(mask.sum()),
            prepared_ms=filtered.prepared_ms[name],
            **filtered.of(name, "beam"),
            **filtered.of(name, "exact"),
            expansions_of_exact=filtered.expansions(name, "exact"),
            necessary_choices=float(np.mean(necessary)),
            outside=filtered.outside(name),
            same=str(compared),
            gap=compared.gap,
        )


def add_many(table: Table, scoring: Scoring, filtered: Filtered) -> None:
    """Add a row for each filter and mode."""
    for name, mode in filtered.runs:
        times = filtered.of(name, mode)
        table.add(
            scoring=scoring,
            mode=mode,
            filter=name,
            allowed=int(filtered.masks[name].sum()),
            prepared_ms=filtered.prepared_ms[name],
            ms=times[f"{mode}_ms"],
            by_unfiltered=times[f"{mode}_by_unfiltered"],
            passes_by_unfiltered=times[f"{mode}_passes_by_unfiltered"],
            expansions=filtered.expansions(name, mode),
            outside=filtered.outside(name),
        )


def random_metadata(count: int) -> list[dict[str, Any]]:
    """Of each identifier: one of two halves, one of a hundred parts, and its own number."""
    random = np.random.default_rng(SEED)
    halves, parts = random.choice(["first", "second"], size=count), random.integers(100, size=count)
    return [
        {"half": half, "hundredth": part, "number": number}
        for number, (half, part) in enumerate(zip(halves.tolist(), parts.tolist(), strict=True))
    ]


def _side(search: TrieSearch, queries: Sequence[Sequence[int]], mode: Any, allowed: LeafFilter | None) -> Any:
    return lambda: search.search(queries, k=WIDTH, mode=mode, beam=WIDTH, allowed=allowed)
