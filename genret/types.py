"""The records that pass between rooms, and the protocol that every retriever follows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Document:
    """What the user gave: one document of the corpus."""

    doc_id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Passage:
    """The unit that is retrieved: a chunk of a document, or all of it."""

    passage_id: str
    doc_id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Query:
    """A question that a person asked, to evaluate with."""

    query_id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Qrel:
    """A judgement: how relevant a document is to a query (0 is not relevant)."""

    query_id: str
    doc_id: str
    relevance: int


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    """One place in a ranking. Scores are comparable within one retriever and one query only."""

    passage_id: str
    score: float


@runtime_checkable
class Retriever(Protocol):
    """What evaluation, mining and serving see of any retriever."""

    name: str

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        """Rank passages for each query.

        Args:
            queries: Query texts; any text is allowed, the empty one too.
            k: How many passages a query, at least 1.

        Returns:
            A ranking a query, in the order of `queries`: at most `k` passages, best first, none twice. Fewer
            where the retriever finds fewer.
        """
        ...
