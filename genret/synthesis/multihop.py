"""Requests for queries that need several passages together.

arXiv 2502.17957 leaves such queries to later work (its limitations). They are what MultiHop-RAG tests (arXiv
2401.15391): facts from several documents, joined, compared or put in order.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice

import numpy as np
import pyarrow as pa

from genret.errors import InputError
from genret.llm.base import Request, Requests
from genret.synthesis.queries import passage_rows
from genret.types import Retriever, ScoredPassage

_BLOCK = 256
# How many are retrieved for each neighbour that is wanted: the passage itself and those of its document fall away.
_CANDIDATES = 10
# A query of thousands of words is slow for any retriever, and its neighbours are no better.
_MOST_QUERY_CHARACTERS = 2_000


def multihop_requests(queries: int, passages: pa.Table, retriever: Retriever, group_size: int = 3) -> Requests:
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
        retriever: What finds neighbours; it must have indexed `passages`. It is asked when the requests are drawn for
            the first time.
        group_size: Passages of a group, 2 or 3. A group has fewer where fewer neighbours are found, at least 2.

    Returns:
        Requests in the order of the passages, whose id is `PASSAGE|multihop`.

    Raises:
        InputError: `group_size` is neither 2 nor 3, or (when they are drawn) the retriever finds a passage that is not
            in the table.
    """
    if group_size not in (2, 3):
        raise InputError(f"multi-hop queries: expected groups of 2 or 3 passages, found {group_size}")
    groups = cache(lambda: _groups(passages, retriever, group_size))

    def draw() -> Iterator[Request]:
        for group in groups() if queries else ():
            row, *neighbours = (_row(passages, number) for number in group if number >= 0)
            related = tuple(map(_text, neighbours))
            yield Request(
                f"{row['passage_id']}|multihop", "multihop", queries, row["title"], row["text"], related=related
            )

    return Requests(draw)


def _groups(passages: pa.Table, retriever: Retriever, group_size: int) -> np.ndarray:
    """Row numbers of the passages of each group, -1 where it has fewer; int32, shape (groups, group_size)."""
    neighbourhood = _Neighbourhood(passages, retriever, group_size - 1)
    asked: set[frozenset[int]] = set()
    groups: list[list[int]] = []
    rows = enumerate(passage_rows(passages))
    while block := list(islice(rows, _BLOCK)):
        found = neighbourhood.of([row for _, row in block])
        for (number, _), neighbours in zip(block, found, strict=True):
            group = frozenset({number, *neighbours})
            if neighbours and group not in asked:
                asked.add(group)
                groups.append([number, *neighbours, *[-1] * (group_size - 1 - len(neighbours))])
    return np.array(groups, dtype=np.int32).reshape(-1, group_size)


class _Neighbourhood:
    """Finds the neighbours of passages."""

    def __init__(self, passages: pa.Table, retriever: Retriever, most: int) -> None:
        self._documents = passages.column("doc_id")
        self._retriever = retriever
        self._most = most
        self._rows = {name: row for row, name in enumerate(passages.column("passage_id").to_pylist())}

    def of(self, block: Sequence[dict[str, str]]) -> list[list[int]]:
        """For each passage, the row numbers of at most as many passages of other documents, the nearest first."""
        texts = [_text(row)[:_MOST_QUERY_CHARACTERS] for row in block]
        rankings = self._retriever.retrieve(texts, _CANDIDATES * self._most)
        return [list(self._choose(row, ranking)) for row, ranking in zip(block, rankings, strict=True)]

    def _choose(self, row: dict[str, str], ranking: Sequence[ScoredPassage]) -> Iterator[int]:
        documents = {row["doc_id"]}
        for place in ranking:
            if len(documents) > self._most:
                return
            number = self._number(place.passage_id)
            document = self._documents[number].as_py()
            if document not in documents:
                documents.add(document)
                yield number

    def _number(self, passage_id: str) -> int:
        number = self._rows.get(passage_id)
        if number is None:
            raise InputError(
                f"multi-hop queries: expected retriever {self._retriever.name} to find passages of the table, "
                f"found {passage_id!r}"
            )
        return number


def _row(passages: pa.Table, number: int) -> dict[str, str]:
    columns = passages.select(["passage_id", "title", "text"])
    row: dict[str, str] = columns.slice(int(number), 1).to_pylist()[0]
    return row


def _text(row: dict[str, str]) -> str:
    return f"{row['title']}\n{row['text']}".strip()
