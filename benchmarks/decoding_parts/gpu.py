"""A model of seven billion parameters on a GPU."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import torch

from decoding_parts.baselines import SCORINGS, agreement
from decoding_parts.data import MISTRAL_7B, Identifiers, Shape, keyword_identifiers, prompts, random_model, shape
from decoding_parts.settings import Settings
from decoding_parts.speed import Prompts, Sides
from decoding_parts.tables import Table
from decoding_parts.timing import Limits, interleave

NOTE = """\
Queries a second by the median, and the 50th and 99th percentile of the time of a batch (`--repeats 100 --budget 600` or
more for the percentiles), for the search, for a masked beam search, and for transformers' `generate` with a trie of
dictionaries, all with a beam of 10; they take turns. The repeats go through ten batches of other prompts in turn. Every
side has searched all ten before the clock runs, so that what a GPU does when it first meets a shape is left out.
"attention" is the model's implementation of it for the search's and all other passes. "same": queries of one batch with
the same ten identifiers in the same order; in 16 bits near ties fall either way, and rounding depends on the shape of a
batch."""

IDENTIFIERS = 100_000
BATCHES = (1, 8, 32)
QUICK_SIZE, QUICK_IDENTIFIERS = (2, 256, 32_000), 5_000
# Batches of other prompts, so that percentiles are over queries also.
DIFFERENT = 10


def run(settings: Settings) -> list[Table]:
    """Measure on the first GPU, if there is one."""
    size, count = (shape(*QUICK_SIZE), QUICK_IDENTIFIERS) if settings.quick else (MISTRAL_7B, IDENTIFIERS)
    table = Table("GPU", NOTE)
    if not torch.cuda.is_available():
        print("\n### GPU\n\nNot run: no GPU here.", flush=True)
        return []
    model = random_model(size, torch.bfloat16, "cuda")
    measure(table, model, size, keyword_identifiers(count, size.vocabulary), BATCHES, settings.limits)
    return [table]


def measure(
    table: Table, model: Any, size: Shape, identifiers: Identifiers, batches: Sequence[int], limits: Limits
) -> None:
    """Add a row for each scoring, batch size and side. Results come to the CPU, so that no clock stops too early."""
    for scoring in SCORINGS:
        sides = Sides(model, identifiers, scoring)
        for batch in batches:
            queries = [prompts(batch, size.vocabulary, seed) for seed in range(DIFFERENT)]
            searches = sides.searches
            # A GPU prepares much when it first meets a shape: each batch of prompts has been there before it counts.
            warm_up = {name: partial(_all, search, queries) for name, search in searches.items()}
            turns = {name: _taking_turns(search, queries) for name, search in searches.items()}
            runs = interleave(turns, limits, warm_up)
            answers = {name: search(queries[0]) for name, search in searches.items() if name != "generate"}
            answers["generate"] = sides.generate.found(queries[0])
            for name, side in runs.items():
                compared = agreement(answers["search"], answers[name])
                table.add(
                    scoring=scoring,
                    batch=batch,
                    side=name,
                    queries_a_second=batch / side.median,
                    ratio=side.median / runs["search"].median,
                    p50_ms=1000 * side.percentile(50),
                    p99_ms=1000 * side.percentile(99),
                    repeats=len(side.seconds),
                    attention=model.config._attn_implementation,
                    same=str(compared),
                    gap=compared.gap,
                )


def _all(search: Callable[[Prompts], Any], queries: Sequence[Prompts]) -> None:
    for batch in queries:
        search(batch)


def _taking_turns(search: Callable[[Prompts], Any], queries: Sequence[Prompts]) -> Callable[[], Any]:
    turns: Iterator[Prompts] = cycle(queries)
    return lambda: search(next(turns))
