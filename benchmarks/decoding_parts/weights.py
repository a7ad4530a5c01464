"""One query at a time on the large model: how long its weights take to arrive, and to be multiplied with.

A pass of a single query reads a few dozen tokens: too few for the weights to come out of memory unnoticed, too many for
that to be all. Products that do not fetch the next weights while they multiply, such as torch's, take both together.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from decoding_parts.baselines import WIDTH, GenerateSearch
from decoding_parts.data import keyword_identifiers, prompts, random_model, shape
from decoding_parts.settings import Settings
from decoding_parts.tables import Table
from decoding_parts.timing import interleave
from genret.decoding.native import kernels
from genret.decoding.packed import PackedMatrix, can_pack, padded
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie

NOTE = """\
Beam search over the vocabulary, eight queries one after the other, in ms a query by the median of the repeats; all
sides take turns. "search by oneDNN": the same search with torch's products, norms and attention, as where there is no
compiler; "times": by "search". "passes": a query, on average; "states": a pass, on average. "products": the search's
own products with its weights, those of the output layer among them, once more and with nothing between them. "reading":
the bytes of the weights of all these products by the rate at which a sum reads a tensor as large as the weights of a
pass; "multiplying": their operations by the rate of one product of 2,048 states with a laid-out matrix of 2,048 rows.
"oneDNN": products of as many states with random matrices of the same shapes, laid out for oneDNN, which torch uses;
without norms, turning, gates, what is added and sums of exponentials, which the search's own products make, and with as
many states as oneDNN's are compiled for. "generate by products": how many times as fast as `generate` a search would be
that does nothing but these products."""

LARGE, SMALL = (12, 768), (2, 256)
COUNT = 5_000
VOCABULARIES = (12_000, 32_000)
QUERIES = 8
ROWS = 2048
# Calls of what takes a few milliseconds in each turn.
CALLS = 10


@dataclass(frozen=True)
class Call:
    """A product of the search.

    Attributes:
        again: Makes it once more.
        matrix: The laid-out matrix.
        states: What it is multiplied with, `[states, width]`.
        rows: How many rows the matrix has.
    """

    again: Callable[[], Any]
    matrix: PackedMatrix
    states: torch.Tensor
    rows: int


def run(settings: Settings) -> list[Table]:
    """Measure both vocabularies, where this build of torch has oneDNN's products."""
    with without_kernels():
        has_one_dnn = can_pack([torch.ones(2, 2)])
    if not has_one_dnn:
        print("weights: not measured, this build of torch has no products of oneDNN to compare with")
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

    with without_kernels():
        plain = TrieSearch(search.decoder.model, search.trie, "vocabulary")

    def find_plainly() -> list[Any]:
        with without_kernels():
            return [result for query in queries for result in plain.search([query], k=WIDTH, beam=WIDTH)]

    calls, passes = recorded(search, find)
    read, operations = work(calls)
    of_pass, square = torch.ones(read // passes // 4), torch.ones(ROWS, ROWS)
    laid_out = PackedMatrix(square)
    sides: dict[str, Callable[[], Any]] = {
        "search": find,
        "by oneDNN": find_plainly,
        "generate": lambda: [generate.search([query]) for query in queries],
        "products": lambda: repeat(calls),
        "oneDNN": one_dnn(calls),
        "sum": lambda: [of_pass.sum() for _ in range(CALLS)],
        "product": lambda: [laid_out.product(square) for _ in range(CALLS)],
    }
    runs = interleave(sides, settings.limits)
    median = {name: run.median for name, run in runs.items()}
    reading = passes * median["sum"] / CALLS
    multiplying = operations / (2 * ROWS**3 * CALLS / median["product"])
    table.add(
        vocabulary=vocabulary,
        passes=passes / QUERIES,
        states=sum(len(call.states) for call in calls if call.matrix is calls[0].matrix) / passes,
        search_ms=1000 * median["search"] / QUERIES,
        search_by_oneDNN_ms=1000 * median["by oneDNN"] / QUERIES,
        times=median["by oneDNN"] / median["search"],
        products_ms=1000 * median["products"] / QUERIES,
        oneDNN_ms=1000 * median["oneDNN"] / QUERIES,
        reading_ms=1000 * reading / QUERIES,
        multiplying_ms=1000 * multiplying / QUERIES,
        generate_ms=1000 * median["generate"] / QUERIES,
        times_generate=median["generate"] / median["search"],
        generate_by_products=median["generate"] / median["products"],
        repeats=len(runs["search"].seconds),
    )


@contextmanager
def without_kernels() -> Iterator[None]:
    """What is made meanwhile, and used, has no products of our own."""
    with mock.patch.dict(os.environ, {"CXX": ""}):
        kernels.cache_clear()
        try:
            yield
        finally:
            kernels.cache_clear()
    kernels()


def recorded(search: TrieSearch, find: Callable[[], Any]) -> tuple[list[Call], int]:
    """Search once: the products with laid-out weights, and how many passes there were."""
    calls: list[Call] = []
    forward = mock.Mock(side_effect=search.decoder.forward)

    def taken(name: str) -> Callable[..., Any]:
        plain = getattr(PackedMatrix, name)

        def again(self: PackedMatrix, states: torch.Tensor, *others: Any, **more: Any) -> Any:
            made = plain(self, states, *others, **more)
            if made is not None:
                calls.append(Call(lambda: plain(self, states, *others, **more), self, states, self.rows))
            return made

        return again

    with ExitStack() as stack:
        for name in ("product", "summed"):
            stack.enter_context(mock.patch.object(PackedMatrix, name, taken(name)))
        stack.enter_context(mock.patch.object(search.decoder, "forward", forward))
        find()
    return calls, forward.call_count


def repeat(calls: Sequence[Call]) -> None:
    """The same products once more."""
    with torch.inference_mode():
        for call in calls:
            call.again()


def one_dnn(calls: Sequence[Call]) -> Callable[[], None]:
    """What makes as large products by oneDNN."""
    shapes = {id(call.matrix): (call.rows, call.states.shape[1]) for call in calls}
    with without_kernels():
        matrices = {key: PackedMatrix(torch.randn(shape)) for key, shape in shapes.items()}
        states = [padded(call.states) for call in calls]

    def multiply() -> None:
        with torch.inference_mode():
            for call, some in zip(calls, states, strict=True):
                matrices[id(call.matrix)].product(some)

    return multiply


def work(calls: Sequence[Call]) -> tuple[int, int]:
    """The bytes of the weights of all products, and the operations that these take."""
    weights = [call.states.shape[1] * call.rows for call in calls]
    operations = [2 * count * len(call.states) for count, call in zip(weights, calls, strict=True)]
    return 4 * sum(weights), sum(operations)
