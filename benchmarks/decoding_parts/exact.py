"""Exact search against brute force, and beam search against exact search."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decoding_parts.baselines import SCORINGS, WIDTH, Found, Scoring, agreement
from decoding_parts.brute import BruteForce, best
from decoding_parts.data import keyword_identifiers, prompts, random_model, shape
from decoding_parts.settings import Settings
from decoding_parts.tables import Table
from genret.decoding.results import SearchResult
from genret.decoding.search import Mode, TrieSearch
from genret.decoding.trie import Trie
from genret.retrieval.names import GENERATIVE
from genret.runs import RunStore
from genret.training.bundle import Bundle
from genret.training.encoding import encode_prompts

FORCE_NOTE = """\
The top 10 of exact search in single precision against brute force, which reads every identifier behind every prompt
with the same weights in double precision. "same": queries with the same ten identifiers in the same order; "same
set": in any order; "gap": the largest difference of two scores at the same rank."""
MISSES_NOTE = """\
Beam search of width 10 against exact search, of the same model with the same prompts, in batches of 32. Expansions
(stretches of tokens that the model read) and times are means a query. "proven": queries whose beam search knew its
result to be exact. "missing": queries for which the beam misses some of the true ten best, and how many of the ten
are missing on average over all queries."""
RANDOM_NOTE = """\
With random weights, tokens that the identifiers force are as improbable as all others. So under vocabulary scoring
the best identifiers are scattered over the trie: a hard case for both searches, and no picture of a trained model."""

MODEL = (2, 128, 2000)
IDENTIFIERS = 5_000
QUICK_QUERIES = 20
BATCH = 32


@dataclass(frozen=True)
class Searched:
    """The results of all queries in one mode, and the seconds that they took."""

    results: list[SearchResult]
    seconds: float

    def a_query(self) -> dict[str, float]:
        """Means."""
        expansions = float(np.mean([result.expansions for result in self.results]))
        return {"expansions": expansions, "milliseconds": 1000 * self.seconds / len(self.results)}


def run(settings: Settings) -> list[Table]:
    """Compare on a random model, and on the model of a finished run if one is given."""
    size = shape(*MODEL)
    n_queries = min(settings.queries, QUICK_QUERIES) if settings.quick else settings.queries
    where = f"Model {size}, vocabulary {size.vocabulary:,}, {IDENTIFIERS:,} identifiers, {n_queries} queries."
    truths = Table("Exact search against brute force", f"{FORCE_NOTE} {where}")
    misses = Table("Beam against exact search, random weights", f"{MISSES_NOTE} {RANDOM_NOTE} {where}")
    model, identifiers = random_model(size), keyword_identifiers(IDENTIFIERS, size.vocabulary)
    trie, queries = Trie.from_sequences(identifiers), prompts(n_queries, size.vocabulary)
    force = BruteForce(copy.deepcopy(model).double(), identifiers)
    scores = [force.scores(query) for query in queries]
    exact = {}
    for scoring in SCORINGS:
        exact[scoring] = searched(TrieSearch(model, trie, scoring), queries, "exact")
        add_truth(truths, scoring, exact[scoring].results, [best(of_query[scoring], WIDTH) for of_query in scores])
    for scoring in SCORINGS:
        add_misses(misses, scoring, searched(TrieSearch(model, trie, scoring), queries, "beam"), exact[scoring])
    return [truths, misses, *([] if settings.run is None else [of_run(settings.run, settings.queries)])]


def of_run(folder: Path, n_queries: int) -> Table:
    """Beam against exact search for the model, the identifiers and the test queries of a finished run."""
    store = RunStore.open_existing(folder)
    records = store.current()
    stage = next(stage for stage in GENERATIVE if stage in records)
    bundle = Bundle.load(store.local_folder(records[stage], stage))
    assert bundle.model is not None
    texts = store.read_table(records["corpus"], "test_queries").column("text").to_pylist()
    queries = encode_prompts(texts[:n_queries], bundle.tokenizer, bundle.settings.suffix, bundle.settings.max_tokens)
    where = (
        f"Run {folder.name}, stage {stage}: model {bundle.model.config.num_hidden_layers} x "
        f"{bundle.model.config.hidden_size}, {len(bundle.trie):,} {bundle.settings.identifier_type} identifiers, "
        f"{len(queries)} test queries."
    )
    table = Table("Beam against exact search, trained model", f"{MISSES_NOTE} {where}")
    scoring: Scoring = "trie" if bundle.settings.scoring == "trie" else "vocabulary"
    search = TrieSearch(bundle.model, bundle.trie, scoring)
    add_misses(table, scoring, searched(search, queries, "beam"), searched(search, queries, "exact"))
    return table


def searched(search: TrieSearch, queries: Sequence[Sequence[int]], mode: Mode) -> Searched:
    """Search for all queries, batch by batch, after one query to warm up."""
    search.search(queries[:1], k=WIDTH, mode=mode, beam=WIDTH)
    batches = [queries[at : at + BATCH] for at in range(0, len(queries), BATCH)]
    begin = time.perf_counter()
    results = [result for batch in batches for result in search.search(batch, k=WIDTH, mode=mode, beam=WIDTH)]
    return Searched(results, time.perf_counter() - begin)


def add_truth(table: Table, scoring: str, results: Sequence[SearchResult], truth: Sequence[Found]) -> None:
    """Add the row that compares exact search with brute force."""
    compared = agreement(results, truth)
    table.add(
        scoring=scoring,
        queries=len(results),
        exact=sum(result.exact for result in results),
        same=str(compared),
        same_set=sum(missing(result, one) == 0 for result, one in zip(results, truth, strict=True)),
        gap=compared.gap,
    )


def add_misses(table: Table, scoring: str, beam: Searched, exact: Searched) -> None:
    """Add the row that compares beam search with exact search."""
    missed = np.array([missing(one, two) for one, two in zip(beam.results, exact.results, strict=True)])
    table.add(
        scoring=scoring,
        expansions_of_beam=beam.a_query()["expansions"],
        expansions_of_exact=exact.a_query()["expansions"],
        ms_of_beam=beam.a_query()["milliseconds"],
        ms_of_exact=exact.a_query()["milliseconds"],
        proven_percent=100 * float(np.mean([result.exact for result in beam.results])),
        missing_percent=100 * float((missed > 0).mean()),
        mean_missing=float(missed.mean()),
    )


def missing(found: Any, truth: Any) -> int:
    """How many identifiers of the truth are not among those found."""
    return len(np.setdiff1d(truth.indices, found.indices))
