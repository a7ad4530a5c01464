"""Requests for queries that need several passages together.

arXiv 2502.17957 leaves such queries to later work (its limitations). They are what MultiHop-RAG tests (arXiv
2401.15391): facts from several documents, joined, compared or put in order.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import pyarrow as pa

from genret.errors import InputError
from genret.llm.base import Request
from genret.synthesis.queries import passage_rows
from genret.types import Retriever, ScoredPassage

_BLOCK = 256
# How many are retrieved for each neighbour that is wanted: the passage itself and those of its document fall away.
_CANDIDATES = 10
# A query of thousands of words is slow for any retriever, and its neighbours are no better.
_MOST_QUERY_CHARACTERS = 2_000


def multihop_requests(queries: int, passages: pa.Table, retriever: Retriever, group_size: int = 3) -> Iterator[Request]:
    """Ask for queries over groups of related passages.

    A passage's group is the passage and its first neighbours from other documents: what the retriever finds for its
    title and text. Of groups with the same passages only the first is asked about; a passage for which no neighbour
    is found has none.

    The queries belong to the passage that the group was formed around, and to no other of the group: a row of the
    `queries` table has one passage, and rows with the same text for the others would train towards one identifier
    each, against each other.

    Args:
        queries: How many queries a group; 0 asks for none, and retrieves nothing.
        passages: The `passages` table.
        retriever: What finds neighbours; it must have indexed `passages`.
        group_size: Passages of a group, 2 or 3. A group has fewer where fewer neighbours are found, at least 2.

    Yields:
        Requests in the order of the passages, whose id is `PASSAGE|multihop`.

    Raises:
        InputError: `group_size` is neither 2 nor 3, or the retriever finds a passage that is not in the table.
    """
    if group_size not in (2, 3):
        raise InputError(f"multi-hop queries: expected groups of 2 or 3 passages, found {group_size}")
    if not queries:
        return
    rows = passage_rows(passages)
    neighbourhood = _Neighbourhood(passages, retriever, group_size - 1)
    asked: set[frozenset[str]] = set()
    while block := list(islice(rows, _BLOCK)):
        for row, neighbours in zip(block, neighbourhood.of(block), strict=True):
            group = frozenset({row["passage_id"], *(neighbour["passage_id"] for neighbour in neighbours)})
            if neighbours and group not in asked:
                asked.add(group)
                related = tuple(_text(neighbour) for neighbour in neighbours)
                yield Request(
                    f"{row['passage_id']}|multihop", "multihop", queries, row["title"], row["text"], related=related
                )


class _Neighbourhood:
    """Finds the neighbours of passages."""

    def __init__(self, passages: pa.Table, retriever: Retriever, most: int) -> None:
        self._passages = passages
        self._retriever = retriever
        self._most = most
        self._rows = {name: row for row, name in enumerate(passages.column("passage_id").to_pylist())}

    def of(self, block: Sequence[dict[str, str]]) -> list[list[dict[str, str]]]:
        """For each passage, at most as many passages of other documents, the nearest first."""
        texts = [_text(row)[:_MOST_QUERY_CHARACTERS] for row in block]
        rankings = self._retriever.retrieve(texts, _CANDIDATES * self._most)
        return [list(self._choose(row, ranking)) for row, ranking in zip(block, rankings, strict=True)]

    def _choose(self, row: dict[str, str], ranking: Sequence[ScoredPassage]) -> Iterator[dict[str, str]]:
        documents = {row["doc_id"]}
        for place in ranking:
            if len(documents) > self._most:
                return
            found = self._row(place.passage_id)
            if found["doc_id"] not in documents:
                documents.add(found["doc_id"])
                yield found

    def _row(self, passage_id: str) -> dict[str, str]:
        number = self._rows.get(passage_id)
        if number is None:
            raise InputError(
                f"multi-hop queries: expected retriever {self._retriever.name} to find passages of the table, "
                f"found {passage_id!r}"
            )
        columns = self._passages.select(["passage_id", "doc_id", "title", "text"])
        row: dict[str, str] = columns.slice(number, 1).to_pylist()[0]
        return row


def _text(row: dict[str, str]) -> str:
    return f"{row['title']}\n{row['text']}".strip()
