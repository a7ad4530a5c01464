"""The engines that stages ask for text, and what is told of them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from genret.asking import make_sender
from genret.config import HttpConfig, RunConfig, VllmConfig
from genret.llm.base import Engine
from genret.llm.completion import CompletionEngine, Counts
from genret.llm.filters import Limits
from genret.llm.pool import PooledEngine
from genret.llm.reasons import count_reasons
from genret.stages.context import Context

COMPLETIONS = "completions"
"""The run's folder of what a language model wrote."""

_SHOWN_REASONS = 3


def open_engine(context: Context, stage: str, passages: pa.Table) -> Engine:
    """The engine of a configuration, whose progress is shown as that of a stage."""
    config = context.config
    if isinstance(config.llm, HttpConfig | VllmConfig):
        # The journal is no part of a stage: another stage or configuration that asks the same finds the answer.
        engine = CompletionEngine(
            make_sender(config),
            context.store.shared_folder(COMPLETIONS),
            context.store.scratch(stage, context.mark),
            lambda done, total: context.reporter.progress(stage, done, total, "prompts", _note(engine.counts)),
        )
        return engine
    return PooledEngine(
        config.llm,
        passages,
        config.seed,
        context.pool,
        context.progress(stage, "batches"),
        context.known,
    )


def _note(counts: Counts) -> str:
    """What is shown beside the progress of a language model: its speed, and what failed why."""
    speed = [f"{counts.tokens_a_second:,.0f} tokens/s"] if counts.tokens_a_second else []
    frequent = sorted(counts.reasons.items(), key=lambda entry: -entry[1])[:_SHOWN_REASONS]
    return ", ".join([*speed, *(f"{number:,} {reason}" for reason, number in frequent)])


def told_of_engine(engine: Engine) -> dict[str, Any]:
    """What a stage tells of its engine."""
    return {"completions": asdict(engine.counts)} if isinstance(engine, CompletionEngine) else {}


def told_of_rejects(outputs: Mapping[str, pa.Table]) -> dict[str, Any]:
    """How many rows a stage rejected for which reason."""
    chunks = outputs["rejects"].column("reason").iterchunks()
    return {"reasons": count_reasons(reason for chunk in chunks for reason in chunk.to_pylist())}


def query_limits(config: RunConfig) -> Limits | None:
    """What a language model's queries must keep to; None for the engine that quotes its passages."""
    if config.llm.type == "extractive":
        return None
    return Limits(
        min_query_words=config.synthesis.min_query_words,
        max_query_characters=config.synthesis.max_query_characters,
        max_answer_words=config.synthesis.max_answer_words,
        max_overlap=config.synthesis.max_overlap,
    )
