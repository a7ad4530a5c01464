"""What the stages ask a language model, and what that will take."""

from collections.abc import Iterable, Sequence
from itertools import chain
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
from genret.synthesis.queries import check_constraint_fields

if TYPE_CHECKING:
    from genret.retrieval.bm25 import Bm25Retriever

ASKING_STAGES = ("identifiers", "synthesis")
"""The stages that ask an engine."""


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


def budget_of(config: RunConfig, passages: pa.Table, journal: str, stages: Sequence[str] = ASKING_STAGES) -> Budget:
    """What asking the model of a configuration will take. Nothing is sent.

    Args:
        config: The configuration; its engine has a language model.
        passages: The `passages` table.
        journal: Local path or URL of the run's folder of completions: what is in there is paid for.
        stages: Which of `ASKING_STAGES` are ahead.

    Returns:
        The budget (`genret.llm.budget`).

    Raises:
        InputError: The engine has no language model, or what is asked for cannot be asked of these passages.
    """
    sender = make_sender(config)
    assert isinstance(config.llm, HttpConfig | VllmConfig)
    draws = []
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
    return make_budget(
        config.llm,
        chain.from_iterable(draws),
        lambda prompt: prompt_digest(prompt, sender.model, sender.sampling),
        Journal(journal).done,
        token_counter(config.llm),
        sender.form,
    )
