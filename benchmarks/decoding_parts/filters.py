"""Search under metadata filters: what they cost, and whether they hold."""

import copy
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from decoding_parts.baselines import SCORINGS, WIDTH, Scoring, agreement
from decoding_parts.brute import BruteForce, best
from decoding_parts.data import SEED, keyword_identifiers, prompts, random_model, shape
from decoding_parts.settings import Settings
from decoding_parts.tables import Table
from decoding_parts.timing import interleave
from genret.decoding.filters import Equals, Predicate, leaf_mask
from genret.decoding.scoring import LeafFilter
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie

NOTE = """\
Beam and exact search for the ten best identifiers that a filter lets through, in one batch; the filters take turns,
and times are medians a query. "prepared": the time to test the metadata of all identifiers and to count the allowed
ones, once a filter. "outside": identifiers found, in both modes, that the filter does not allow. "same": queries
for which exact search finds the ten best of brute force in double precision, filtered afterwards, in the same
order; "gap": the largest difference of two scores at the same rank. "expansions of exact": stretches of tokens that the
model read for exact search behind the first choice, a query; "necessary choices": choices of the trie behind the first
one, a query, that lead to an allowed identifier and score more than the tenth result, so that no exact search can leave
them out. Over the trie an expansion is one choice, with those behind it that the filter decides; over the vocabulary it
may be as little as a token."""

MODEL = (2, 128, 2000)
IDENTIFIERS = 5_000
QUERIES = 16
FILTERS: dict[str, Predicate | None] = {
    "none": None,
    "50 %": Equals("half", "first"),
    "1 %": Equals("hundredth", 7),
    "one document": Equals("number", 1234),
}


def run(settings: Settings) -> list[Table]:
    """Measure both scorings."""
    size = shape(*MODEL)
    where = (
        f"Model {size}, vocabulary {size.vocabulary:,}, {IDENTIFIERS:,} identifiers with random metadata, "
        f"{QUERIES} queries."
    )
    table = Table("Filters", f"{NOTE} {where}")
    identifiers = keyword_identifiers(IDENTIFIERS, size.vocabulary)
    model, trie, queries = random_model(size), Trie.from_sequences(identifiers), prompts(QUERIES, size.vocabulary)
    force = BruteForce(copy.deepcopy(model).double(), identifiers)
    sums = [force.prefix_scores(query) for query in queries]
    for scoring in SCORINGS:
        of_scoring = [one[scoring] for one in sums]
        measure(table, TrieSearch(model, trie, scoring), scoring, queries, force, of_scoring, settings)
    return [table]


def measure(
    table: Table,
    search: TrieSearch,
    scoring: Scoring,
    queries: Sequence[Sequence[int]],
    force: BruteForce,
    sums: Sequence[np.ndarray],
    settings: Settings,
) -> None:
    """Add a row for each filter; `sums` are the scores of all prefixes behind each query, by brute force."""
    metadata = random_metadata(len(search.trie))
    prepared, masks, sides = {}, {}, {}
    for name, predicate in FILTERS.items():
        begin = time.perf_counter()
        masks[name] = np.ones(len(metadata), dtype=bool) if predicate is None else leaf_mask(predicate, metadata)
        allowed = None if predicate is None else LeafFilter(search.trie, masks[name])
        prepared[name] = time.perf_counter() - begin
        for mode in ("beam", "exact"):
            sides[name, mode] = _side(search, queries, mode, allowed)
    runs = interleave(sides, settings.limits)
    for name, mask in masks.items():
        beam, exact = runs[name, "beam"], runs[name, "exact"]
        truth = [best(np.where(mask, force.of_identifiers(of_query), -np.inf), WIDTH) for of_query in sums]
        threshold = [found.scores[-1] for found in truth]
        necessary = [force.necessary(one, mask, worst) for one, worst in zip(sums, threshold, strict=True)]
        compared = agreement(exact.answer, truth)
        table.add(
            scoring=scoring,
            filter=name,
            allowed=int(mask.sum()),
            prepared_ms=0.0 if name == "none" else 1000 * prepared[name],
            beam_ms=1000 * beam.median / len(queries),
            exact_ms=1000 * exact.median / len(queries),
            beam_by_unfiltered=beam.median / runs["none", "beam"].median,
            exact_by_unfiltered=exact.median / runs["none", "exact"].median,
            expansions_of_exact=float(np.mean([result.expansions for result in exact.answer])),
            necessary_choices=float(np.mean(necessary)),
            outside=sum(int((~mask[result.indices]).sum()) for side in (beam, exact) for result in side.answer),
            same=str(compared),
            gap=compared.gap,
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
