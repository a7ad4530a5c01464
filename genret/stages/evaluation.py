"""The stages that judge a run: evaluation, report."""

import time
from typing import Any

import pyarrow as pa

from genret import tables
from genret.config import resolved_yaml
from genret.evaluation.measures import evaluate, rank_documents
from genret.evaluation.report import ReportInputs, write_report
from genret.evaluation.significance import compare_retrievers
from genret.evaluation.similarity import query_sets, win_rates
from genret.evaluation.slices import TRAINED_ON, slice_by_training, slice_measures, slice_queries
from genret.evaluation.statistics import (
    dataset_statistics,
    identifier_depths,
    identifier_statistics,
    query_moves,
    rank_moves,
)
from genret.evaluation.trec import write_qrels, write_run
from genret.runs import StageRecord, StageWriter
from genret.stages.context import Context, versions, write_tables


def run_evaluation(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Judge what was retrieved."""
    ranking, qrels = context.table("retrieval", "run"), context.table("corpus", "qrels")
    passages = context.passages
    outputs = evaluate(
        context.config.evaluation,
        ranking,
        qrels,
        context.table("corpus", "test_queries"),
        passages,
        retrievers=context.config.retrieval.retrievers,
        seed=context.config.seed,
    )
    write_tables(writer, outputs | _analyses(context, outputs["query_measures"]))
    writer.write_text("qrels.trec", write_qrels(qrels))
    documents = rank_documents(ranking, passages)
    for retriever in context.config.retrieval.retrievers:
        writer.write_text(f"{retriever}.trec", write_run(documents, retriever))
    return {}


def _analyses(context: Context, query_measures: pa.Table) -> dict[str, pa.Table]:
    """What the evaluation tells beyond the measures."""
    from genret.training.bundle import load_identifier_tokens

    config, seed = context.config.evaluation, context.config.seed
    retrievers = context.config.retrieval.retrievers
    ranking, qrels = context.table("retrieval", "run"), context.table("corpus", "qrels")
    passages, test_queries = context.passages, context.table("corpus", "test_queries")
    queries, identifiers = context.table("synthesis", "queries"), context.table("identifiers", "identifiers")
    measured = query_measures.column("query_id").unique().to_pylist()
    slices = slice_queries(
        config.slice_fields, measured, test_queries, context.gather("query_metadata"), qrels, passages
    )
    if "annotated_queries" in context.records["corpus"].tables:
        annotated = context.table("corpus", "annotated_queries")
        slices[TRAINED_ON] = slice_by_training(measured, qrels, passages, annotated)
    moves = tables.table_from_rows("query_moves", [])
    if {"sft", "rpo"} <= set(retrievers):
        moves = query_moves(ranking, qrels, test_queries, passages, "sft", "rpo")
    tokens = load_identifier_tokens(context.store.local_folder(context.records["base"], "base"))
    return {
        "significance": compare_retrievers(config, query_measures, seed),
        "slice_measures": slice_measures(config, query_measures, slices, seed),
        "rank_moves": rank_moves(moves, "sft", "rpo"),
        "query_moves": moves,
        "win_rates": win_rates(query_sets(queries), test_queries, qrels, passages),
        "dataset_statistics": dataset_statistics(
            passages, test_queries, queries, context.table("synthesis", "preference_queries")
        ),
        "identifier_statistics": identifier_statistics(identifiers, tokens),
        "identifier_depths": identifier_depths(tokens),
    }


def run_report(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Write the page."""
    records = list(context.records.values())
    inputs = ReportInputs(
        name=context.config.name,
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        versions=versions(),
        stages=[stage_summary(record) for record in records],
        config_yaml=resolved_yaml(context.config),
        measures=context.table("evaluation", "measures"),
        query_measures=context.table("evaluation", "query_measures"),
        significance=context.table("evaluation", "significance"),
        slice_measures=context.table("evaluation", "slice_measures"),
        rank_moves=context.table("evaluation", "rank_moves"),
        # An evaluation of an earlier version has no such table.
        query_moves=context.gather("query_moves"),
        win_rates=context.table("evaluation", "win_rates"),
        dataset_statistics=context.table("evaluation", "dataset_statistics"),
        identifier_statistics=context.table("evaluation", "identifier_statistics"),
        identifier_depths=context.table("evaluation", "identifier_depths"),
        run=context.table("retrieval", "run"),
        latencies=context.table("retrieval", "latencies"),
        test_queries=context.table("corpus", "test_queries"),
        qrels=context.table("corpus", "qrels"),
        passages=context.passages,
        identifiers=context.table("identifiers", "identifiers"),
        training_log=context.gather_logs("training_log"),
        validation_log=context.gather_logs("validation_log"),
        rejects=context.gather("rejects"),
    )
    writer.write_text("report.html", write_report(inputs))
    return {}


def stage_summary(record: StageRecord) -> dict[str, Any]:
    """What a person wants to know of a finished stage: name, seconds, rows of each table, rejects."""
    rows = {name: entry["rows"] for name, entry in record.tables.items() if name != "rejects"}
    return {
        "stage": record.stage,
        "seconds": record.details["seconds"],
        "rows": rows,
        "rejects": record.tables["rejects"]["rows"] if "rejects" in record.tables else 0,
    }
