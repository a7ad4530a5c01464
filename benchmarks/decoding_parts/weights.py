"""One query at a time on the large model: how long its weights take to arrive, and to be multiplied with.

A pass of a single query reads a few dozen tokens: too few for the weights to come out of memory unnoticed, too many for
that to be all. Where the processor does not fetch the next weights while it multiplies, products take both together.
"""

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch

from decoding_parts.baselines import WIDTH, GenerateSearch
from decoding_parts.data import keyword_identifiers, prompts, random_model, shape
from decoding_parts.settings import Settings
from decoding_parts.tables import Table
from decoding_parts.timing import interleave
from genret.decoding.packed import PackedMatrix, can_pack
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie

NOTE = """\
Beam search over the vocabulary, eight queries one after the other, in ms a query by the median of the repeats; all
sides take turns. "passes": a query, on average; "states": a pass, on average, padded. "products": the search's own
products with its weights, those of the output layer among them, once more and with nothing between them. "reading":
the bytes of the weights of all these products by the rate at which a sum reads a tensor as large as the weights of a
pass; "multiplying": their operations by the rate of one product of 2,048 states with a laid-out matrix of 2,048
rows. "generate by products": how many times as fast as `generate` a search would be that does nothing but these
products."""

LARGE, SMALL = (12, 768), (2, 256)
COUNT = 5_000
VOCABULARIES = (12_000, 32_000)
QUERIES = 8
ROWS = 2048
# Calls of what takes a few milliseconds in each turn.
CALLS = 10

# A laid-out matrix, the states `[states, width]` that it is multiplied with, and how many products each of them gets.
Call = tuple[PackedMatrix, torch.Tensor, int]


def run(settings: Settings) -> list[Table]:
    """Measure both vocabularies, where this build of torch has products of weights that are laid out."""
    if not can_pack([torch.ones(2, 2)]):
        print("weights: not measured, this build of torch lays no weights out")
        return []
    layers, hidden = SMALL if settings.quick else LARGE
    table = Table("Weights, one query at a time", f"{NOTE} Model {layers} x {hidden}, {COUNT:,} identifiers.")
    for vocabulary in VOCABULARIES[:1] if settings.quick else VOCABULARIES:
        model = random_model(shape(layers, hidden, vocabulary))
        identifiers = keyword_identifiers(COUNT, vocabulary)
        search = TrieSearch(model, Trie.from_sequences(identifiers), "vocabulary")
        add_row(table, vocabulary, search, GenerateSearch(model, identifiers, "vocabulary"), settings)
    return [table]


def add_row(table: Table, vocabulary: int, search: TrieSearch, generate: GenerateSearch, settings: Settings) -> None:
    """Measure one vocabulary."""
    queries = prompts(QUERIES, vocabulary)

    def find() -> list[Any]:
        return [result for query in queries for result in search.search([query], k=WIDTH, beam=WIDTH)]

    calls, passes = recorded(search, find)
    read, operations = work(calls)
    of_pass, square = torch.ones(read // passes // 4), torch.ones(ROWS, ROWS)
    laid_out = PackedMatrix(square)
    sides: dict[str, Callable[[], Any]] = {
        "search": find,
        "generate": lambda: [generate.search([query]) for query in queries],
        "products": lambda: repeat(calls),
        "sum": lambda: [of_pass.sum() for _ in range(CALLS)],
        "product": lambda: repeat([(laid_out, square, ROWS)] * CALLS),
    }
    runs = interleave(sides, settings.limits)
    median = {name: run.median for name, run in runs.items()}
    reading = passes * median["sum"] / CALLS
    multiplying = operations / (2 * ROWS**3 * CALLS / median["product"])
    table.add(
        vocabulary=vocabulary,
        passes=passes / QUERIES,
        states=sum(len(states) for matrix, states, _ in calls if matrix is calls[0][0]) / passes,
        search_ms=1000 * median["search"] / QUERIES,
        products_ms=1000 * median["products"] / QUERIES,
        reading_ms=1000 * reading / QUERIES,
        multiplying_ms=1000 * multiplying / QUERIES,
        generate_ms=1000 * median["generate"] / QUERIES,
        times_generate=median["generate"] / median["search"],
        generate_by_products=median["generate"] / median["products"],
        repeats=len(runs["search"].seconds),
    )


def recorded(search: TrieSearch, find: Callable[[], Any]) -> tuple[list[Call], int]:
    """Search once: the products with laid-out weights, and how many passes there were."""
    calls: list[Call] = []
    product = PackedMatrix.product

    def taken(self: PackedMatrix, states: torch.Tensor) -> torch.Tensor:
        products = product(self, states)
        calls.append((self, states, products.shape[1]))
        return products

    forward = mock.Mock(side_effect=search.decoder.forward)
    with mock.patch.object(PackedMatrix, "product", taken), mock.patch.object(search.decoder, "forward", forward):
        find()
    return calls, forward.call_count


def repeat(calls: Sequence[Call]) -> None:
    """The same products once more."""
    with torch.inference_mode():
        for matrix, states, _ in calls:
            matrix.product(states)


def work(calls: Sequence[Call]) -> tuple[int, int]:
    """The bytes of the weights of all products, and the operations that these take."""
    weights = [states.shape[1] * n_products for _, states, n_products in calls]
    operations = [2 * count * len(states) for count, (_, states, _) in zip(weights, calls, strict=True)]
    return 4 * sum(weights), sum(operations)
