"""What the stages ask a language model, and what that will take."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import TYPE_CHECKING

import pyarrow as pa

from genret.config import HttpConfig, RunConfig, VllmConfig
from genret.errors import InputError
from genret.identifiers.semantic import keyword_requests
from genret.llm.base import Request
from genret.llm.budget import Budget, make_budget
from genret.llm.journal import Journal
from genret.llm.prompts import prompt_digest
from genret.llm.sending import Sender
from genret.llm.tokens import token_counter
from genret.synthesis.build import synthesis_requests
from genret.synthesis.multihop import multihop_requests
from genret.synthesis.negatives import CONTEXT
from genret.synthesis.queries import check_constraint_fields, passage_of, passage_rows, query_requests

if TYPE_CHECKING:
    from genret.retrieval.bm25 import Bm25Retriever

ASKING_STAGES = ("identifiers", "synthesis", "negatives")
"""The stages that ask an engine."""

_QUERY = "what does a query of about a dozen words say"


def make_sender(config: RunConfig) -> Sender:
    """What sends prompts to the model of a configuration.

    Raises:
        InputError: The configured engine has no model.
    """
    if isinstance(config.llm, VllmConfig):
        from genret.llm.vllm import VllmSender

        return VllmSender(config.llm, config.seed)
    if isinstance(config.llm, HttpConfig):
        from genret.llm.http import HttpSender

        return HttpSender(config.llm, config.seed, config.compute)
    raise InputError(f"llm.type: expected an engine with a language model (http or vllm), found {config.llm.type}")


def needs_neighbours(config: RunConfig) -> bool:
    """Whether synthesis needs BM25: to find related passages, or to look at its queries."""
    return config.synthesis.multihop_queries > 0 or config.synthesis.round_trip_top > 0


def related_requests(config: RunConfig, passages: pa.Table, neighbours: "Bm25Retriever | None") -> Iterable[Request]:
    """The requests over several passages; none where the configuration wants none."""
    if not config.synthesis.multihop_queries or neighbours is None:
        return ()
    return multihop_requests(
        config.synthesis.multihop_queries, passages, neighbours, config.synthesis.multihop_passages
    )


def foreseen_negatives(config: RunConfig, passages: pa.Table) -> Iterator[Request]:
    """Requests as long as those for hard negatives, whose queries are not written yet.

    Every passage is taken to get all queries that are asked for, and the passages behind it stand in for what a
    retriever will find.

    Args:
        config: The configuration; the dense retriever trains on negatives that are written.
        passages: The `passages` table.

    Yields:
        One request a query.
    """
    most = config.negatives.queries_a_passage
    asked = (
        (name, sum(one.n for one in group))
        for name, group in groupby(query_requests(config.synthesis, passages), passage_of)
    )
    name, count = next(asked, ("", 0))
    texts = passages.column("text")
    for place, row in enumerate(passage_rows(passages)):
        if row["passage_id"] != name:
            continue  # nothing is asked about it
        related = tuple(texts.slice(place + 1, CONTEXT).to_pylist())
        for number in range(min(count, most or count)):
            query = f"{row['passage_id']} {number} {_QUERY}"
            request_id = f"{row['passage_id']}|{number}|negative"
            yield Request(
                request_id, "negative", config.negatives.count, row["title"], row["text"], related=related, query=query
            )
        name, count = next(asked, ("", 0))


def budget_of(
    config: RunConfig,
    passages: pa.Table,
    journal: str,
    stages: Sequence[str],
    negatives: Iterable[Request] | None = None,
) -> Budget:
    """What asking the model of a configuration will take. Nothing is sent.

    Args:
        config: The configuration; its engine has a language model.
        passages: The `passages` table.
        journal: Local path or URL of the run's folder of completions: what is in there is paid for.
        stages: Which of `ASKING_STAGES` are ahead.
        negatives: The requests for hard negatives, where their queries are written. Without, they are foreseen
            (`foreseen_negatives`), and those that are kept already count as if they were not.

    Returns:
        The budget (`genret.llm.budget`).

    Raises:
        InputError: The engine has no language model, or what is asked for cannot be asked of these passages.
    """
    sender = make_sender(config)
    assert isinstance(config.llm, HttpConfig | VllmConfig)
    draws: list[Iterable[Request]] = []
    if "identifiers" in stages and config.identifiers.type == "semantic":
        draws.append(keyword_requests(config.identifiers, passages))
    if "synthesis" in stages:
        check_constraint_fields(config.synthesis, passages)
        neighbours = None
        if config.synthesis.multihop_queries > 0:
            from genret.retrieval.bm25 import Bm25Retriever

            neighbours = Bm25Retriever.build(passages, config.retrieval)
        related = related_requests(config, passages, neighbours)
        draws.append(synthesis_requests(config.synthesis, passages, related))
    if "negatives" in stages:
        draws.append(foreseen_negatives(config, passages) if negatives is None else negatives)
    return make_budget(
        config.llm,
        chain.from_iterable(draws),
        lambda prompt: prompt_digest(prompt, sender.model, sender.sampling),
        Journal(journal).done,
        token_counter(config.llm),
        sender.form,
    )
