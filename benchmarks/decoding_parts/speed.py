"""Queries a second of the search, of transformers' `generate` and of a masked beam search."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from decoding_parts.baselines import SCORINGS, WIDTH, GenerateSearch, MaskedBeamSearch, PrefixArrays, Scoring, agreement
from decoding_parts.data import Identifiers, Shape, keyword_identifiers, prompts, random_model, shape
from decoding_parts.passes import passes_alone
from decoding_parts.settings import Settings
from decoding_parts.tables import Table
from decoding_parts.timing import interleave
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie

NOTE = """\
"search", "generate" and "masked": queries a second on the CPU, by the median of the repeats, of which each has as
many; they take turns after a run of each to warm up, and the same prompts of 16 to 48 tokens go to all, at batch 1
eight of them one after the other. "times": the search's queries a second by the other's. `generate` is transformers'
`generate(num_beams=10, num_return_sequences=10, length_penalty=0.0, prefix_allowed_tokens_fn=...)` over a trie of
dictionaries, with `renormalize_logits=True` for trie scoring, timed without the scores that it is compared by.
"masked" is a masked beam search with a trie in compressed sparse rows: prompts read once, all logits of all beams at
every token, the cache put into its new order at every token, all until the last query of the batch is done. "same":
queries with the same ten identifiers in the same order as the search's; "gap": the largest difference of two scores at
the same rank. "passes": the search's own forward passes alone, with the output layer where vocabulary scoring has it,
and nothing else, in queries a second; "passes times": by `generate`'s, about the most that a search with these passes
can reach. Identifiers are made of keywords and have 6 to 20 tokens."""

SIZES = ((2, 256), (12, 768))
VOCABULARIES = (12_000, 32_000)
COUNTS = (5_000, 100_000)
BATCHES = (1, 32)
# A single prompt would be one draw of how many tokens there are to read.
FEWEST_PROMPTS = 8

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Cell:
    """What is measured at a time."""

    size: Shape
    identifiers: int
    scoring: Scoring
    batch: int

    @property
    def name(self) -> str:
        """By which it is asked for."""
        size = self.size
        return f"{size.layers}x{size.hidden} {size.vocabulary} {self.identifiers} {self.scoring} {self.batch}"


class Sides:
    """Three searches over the same identifiers with the same model, and the passes of the first one alone."""

    def __init__(self, model: Any, identifiers: Identifiers, scoring: Scoring) -> None:
        self.ours = TrieSearch(model, Trie.from_sequences(identifiers), scoring)
        masked = MaskedBeamSearch(model, PrefixArrays.build(identifiers), scoring)
        self.generate = GenerateSearch(model, identifiers, scoring)
        self.searches: dict[str, Callable[[Prompts], Sequence[Any]]] = {
            "search": lambda queries: self.ours.search(queries, k=WIDTH, beam=WIDTH),
            "masked": masked.search,
            "generate": self.generate.search,
        }

    def for_batches(self, batches: Sequence[Prompts]) -> dict[str, Callable[[], Any]]:
        """All sides, given the same prompts."""
        sides = {name: in_turn(search, batches) for name, search in self.searches.items()}
        return {**sides, "passes": passes_alone(self.ours, sides["search"])}


def run(settings: Settings) -> list[Table]:
    """Measure every combination of model, vocabulary, identifiers, scoring and batch that is asked for."""
    table = Table("Speed", NOTE)
    for group in groups(settings):
        model = random_model(group[0].size)
        identifiers = keyword_identifiers(group[0].identifiers, group[0].size.vocabulary)
        for scoring in SCORINGS:
            cells = [cell for cell in group if cell.scoring == scoring]
            sides = Sides(model, identifiers, scoring) if cells else None
            for cell in cells:
                assert sides is not None
                measure(table, cell, sides, settings)
    return [table]


def groups(settings: Settings) -> Iterator[list[Cell]]:
    """The cells that are asked for, those with the same model and identifiers together."""
    sizes, counts = (SIZES[:1], COUNTS[:1]) if settings.quick else (SIZES, COUNTS)
    for (layers, hidden), vocabulary, count in product(sizes, VOCABULARIES, counts):
        size = shape(layers, hidden, vocabulary)
        cells = [Cell(size, count, scoring, batch) for scoring, batch in product(SCORINGS, BATCHES)]
        if wanted := [cell for cell in cells if settings.cells.search(cell.name)]:
            yield wanted


def measure(table: Table, cell: Cell, sides: Sides, settings: Settings) -> None:
    """Add the row of a cell."""
    queries = prompts(max(cell.batch, FEWEST_PROMPTS), cell.size.vocabulary)
    batches = [queries[at : at + cell.batch] for at in range(0, len(queries), cell.batch)]
    warm_up = {"generate": in_turn(sides.generate.found, batches)}
    runs = interleave(sides.for_batches(batches), settings.limits, warm_up)
    ours, masked, generate = runs["search"], runs["masked"], runs["generate"]
    with_masked, with_generate = (agreement(ours.answer, other) for other in (masked.answer, generate.warm_up))
    table.add(
        model=str(cell.size),
        vocabulary=cell.size.vocabulary,
        identifiers=cell.identifiers,
        scoring=cell.scoring,
        batch=cell.batch,
        search=len(queries) / ours.median,
        generate=len(queries) / generate.median,
        times_generate=generate.median / ours.median,
        same_as_generate=str(with_generate),
        gap=with_generate.gap,
        masked=len(queries) / masked.median,
        times_masked=masked.median / ours.median,
        same_as_masked=str(with_masked),
        gap_to_masked=with_masked.gap,
        passes=len(queries) / runs["passes"].median,
        passes_times=generate.median / runs["passes"].median,
        repeats=len(ours.seconds),
    )


def in_turn(search: Callable[[Prompts], Sequence[Any]], batches: Sequence[Prompts]) -> Callable[[], Any]:
    """A function that searches for one batch after the other, and gives the results of all."""
    return lambda: [result for batch in batches for result in search(batch)]
