"""The stages whose output is text: corpus, identifiers, synthesis, examples.

Here and beside, what takes seconds to import (PyTorch, transformers, TRL) is imported by the stage that works with it,
so that a run whose work is done, or that stops early, does not wait for it.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from genret import tables
from genret.asking import needs_neighbours, related_requests
from genret.corpus.prepare import prepare_corpus
from genret.errors import InputError
from genret.examples.sft import Apply, build_sft_examples
from genret.identifiers.build import build_identifiers
from genret.llm.filters import Limits
from genret.runs import StageWriter
from genret.stages.context import Context, write_tables
from genret.stages.engines import open_engine, query_limits, told_of_engine, told_of_rejects
from genret.synthesis.build import synthesize
from genret.synthesis.round_trip import round_trip
from genret.types import Retriever

ROWS_FOR_ACTORS = 200_000
"""Passages that a process cuts in the second or two that actors take to start."""


def run_corpus(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Read the corpus."""
    write_tables(writer, prepare_corpus(context.config.corpus))
    return {}


def run_identifiers(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Give each passage its identifier."""
    passages = context.passages
    engine = open_engine(context, "identifiers", passages)
    # The engine without a model quotes its passages: what it writes is not judged.
    limits = None if context.config.llm.type == "extractive" else Limits()
    outputs = build_identifiers(context.config.identifiers, passages, engine, limits)
    write_tables(writer, outputs)
    sources = outputs["identifiers"].column("source").value_counts().to_pylist()
    return (
        {"sources": {entry["values"]: entry["counts"] for entry in sources}}
        | told_of_rejects(outputs)
        | told_of_engine(engine)
    )


def run_synthesis(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Write synthetic queries."""
    passages = context.passages
    engine = open_engine(context, "synthesis", passages)
    from genret.retrieval.bm25 import Bm25Retriever

    config = context.config.synthesis
    neighbours = Bm25Retriever.build(passages, context.config.retrieval) if needs_neighbours(context.config) else None
    related = related_requests(context.config, passages, neighbours)
    outputs = synthesize(config, passages, engine, query_limits(context.config), related)
    if config.round_trip_top and neighbours is not None:
        outputs = _round_trip(outputs, neighbours, config.round_trip_top)
    write_tables(writer, outputs)
    kinds = outputs["queries"].column("kind").value_counts().to_pylist()
    told = {
        "passages": passages.num_rows,
        "kinds": {entry["values"]: entry["counts"] for entry in kinds},
        "preference": outputs["preference_queries"].num_rows,
    }
    return told | told_of_rejects(outputs) | told_of_engine(engine)


def _round_trip(outputs: Mapping[str, pa.Table], retriever: Retriever, top: int) -> dict[str, pa.Table]:
    kept, rejects = dict(outputs), [outputs["rejects"]]
    for name in ("queries", "preference_queries"):
        kept[name], rows = round_trip(outputs[name], retriever, top)
        rejects.append(tables.table_from_rows("rejects", rows))
    return kept | {"rejects": pa.concat_tables(rejects)}


def run_examples(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Build the rows of SFT."""
    examples = build_sft_examples(
        context.config.examples,
        context.passages,
        context.table("identifiers", "identifiers"),
        _training_queries(context),
        context.config.seed,
        _apply(context),
    )
    if not examples.rows:
        raise InputError(
            "examples: expected at least one training row, found none: there are no synthetic queries, and no passage "
            "has text for examples.context2id"
        )
    writer.write_parts("sft_examples", examples.parts)
    writer.write_table("rejects", examples.rejects)
    return {}


def _apply(context: Context) -> Apply:
    """Has actors work where there are some, or where there is more to do than it takes to start them."""
    return context.pool.apply if context.pool.started or context.passages.num_rows >= ROWS_FOR_ACTORS else map


def _training_queries(context: Context) -> pa.Table:
    """The synthetic queries, and those that the corpus brings to train on."""
    queries = context.table("synthesis", "queries")
    if "annotated_queries" not in context.records["corpus"].tables:
        return queries
    return pa.concat_tables([queries, context.table("corpus", "annotated_queries")])
