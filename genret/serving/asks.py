"""What a retriever's replica is asked, and what it answers."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genret.decoding.filters import parse_predicate


@dataclass(frozen=True, slots=True)
class Ask:
    """One query, as a retriever gets it.

    Attributes:
        query: The text.
        k: How many passages.
        filter: The filter as canonical JSON; empty for none.
        timeout: Seconds from when it was sent.
        explain: Whether tokens are wanted.
    """

    query: str
    k: int
    filter: str
    timeout: float
    explain: bool


@dataclass(slots=True)
class Answer:
    """What a retriever found for one query.

    Attributes:
        places: Passage ids and scores, best first.
        exact: Whether no better passage can exist.
        timed_out: Whether the deadline cut the search off.
        expansions: What the search cost, in stretches that the model read; 0 where it has none.
        identifiers: Of each place; None of retrievers that write none.
        tokens: Text and log-probability of each token of each place, where they were asked for.
        wait_seconds: From its arrival to the begin of the search.
        search_seconds: Of the batch.
        batch: Queries that were searched for together.
    """

    places: list[tuple[str, float]]
    exact: bool
    timed_out: bool = False
    expansions: int = 0
    identifiers: list[str] | None = None
    tokens: list[list[tuple[str, float]]] | None = None
    wait_seconds: float = 0.0
    search_seconds: float = 0.0
    batch: int = 1


def canonical_filter(data: dict[str, Any] | None) -> str:
    """A filter as text that is the same for the same filter.

    Raises:
        InputError: It is no predicate.
    """
    if data is None:
        return ""
    parse_predicate(data)
    return json.dumps(data, sort_keys=True, ensure_ascii=False)


def grouped(asks: Sequence[Ask], beam: int) -> list[list[int]]:
    """The numbers of queries that one search can answer together.

    Those with another filter go apart, and those that ask for more than the beam's width, as that widens the beam and
    changes what is found. So do those whose deadlines differ by more than a factor of two: a search has one deadline,
    and a query must not lose most of its time to a hasty neighbour.
    """
    groups: dict[tuple[int, str, int], list[int]] = {}
    for number, ask in enumerate(asks):
        haste = math.floor(math.log2(max(ask.timeout, 1e-3)))
        groups.setdefault((max(ask.k, beam), ask.filter, haste), []).append(number)
    return list(groups.values())
