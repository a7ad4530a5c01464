"""The stages of the dense retriever: encoder, candidates, negatives, examples, training, index."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from genret import tables
from genret.cluster import map_batches
from genret.examples.contrastive import (
    USES_RETRIEVED,
    USES_SYNTHETIC,
    build_contrastive_examples,
    by_query,
    hard_negatives,
    sample_queries,
)
from genret.llm.base import Requests
from genret.retrieval.packages import check_faiss
from genret.runs import StageWriter
from genret.stages.context import Context, write_tables
from genret.stages.engines import open_engine, query_limits, told_of_engine, told_of_rejects
from genret.stages.launching import launch, torch_threads, training_setup
from genret.stages.ranking import rank
from genret.synthesis.negatives import negative_requests, write_negatives


def run_encoder(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Build the encoder that the dense retriever starts from."""
    from genret.training.base import passage_texts
    from genret.training.encoder import build_scratch_encoder

    config = context.config
    with torch_threads(config.compute.cpus_a_training_worker), TemporaryDirectory(prefix="genret-encoder-") as folder:
        encoder = build_scratch_encoder(config.dense, passage_texts(context.passages), config.seed)
        encoder.save(Path(folder))
        writer.write_folder("encoder", Path(folder))
    return {"parameters": sum(weight.numel() for weight in encoder.model.parameters())}


def run_candidates(context: Context, writer: StageWriter) -> dict[str, Any]:
    """The queries to train the dense retriever with, and what a retriever finds for them."""
    config = context.config.negatives
    queries = sample_queries(context.table("synthesis", "queries"), config.queries_a_passage, context.config.seed)
    run = tables.table_from_rows("run", [])
    if config.source in USES_RETRIEVED | USES_SYNTHETIC:
        wanted = queries.select(["query_id", "text"])
        run = rank(context, "candidates", config.retriever, wanted, config.candidates, context.config.retrieval)[0]
    writer.write_table("queries", queries)
    writer.write_table("run", run)
    return {}


def asked_negatives(context: Context) -> Requests:
    """What the engine is asked about the queries of the candidates, which are there."""
    queries, passages = context.table("candidates", "queries"), context.passages
    return negative_requests(queries, passages, _found_negatives(context, queries), context.config.negatives.count)


def _found_negatives(context: Context, queries: pa.Table) -> dict[str, list[str]]:
    """The passages that were found for each query and are not its own, nor too near to it."""
    positive = dict(zip(queries.column("query_id").to_pylist(), queries.column("passage_id").to_pylist(), strict=True))
    return {
        query_id: hard_negatives(ranking, positive[query_id], context.config.negatives.max_score_ratio)
        for query_id, ranking in by_query(context.table("candidates", "run")).items()
    }


def run_negatives(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Have hard negatives written."""
    passages, queries = context.passages, context.table("candidates", "queries")
    found = _found_negatives(context, queries)
    engine = open_engine(context, "negatives", passages)
    count = context.config.negatives.count
    outputs = write_negatives(queries, passages, found, count, engine, query_limits(context.config))
    write_tables(writer, outputs)
    return told_of_rejects(outputs) | told_of_engine(engine)


def run_contrastive(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Build the rows that train the dense retriever."""
    written = (
        context.table("negatives", "negatives")
        if "negatives" in context.records
        else tables.table_from_rows("negatives", [])
    )
    outputs = build_contrastive_examples(
        context.config.negatives,
        context.table("candidates", "queries"),
        context.table("candidates", "run"),
        written,
        context.passages,
        context.config.seed,
    )
    write_tables(writer, outputs)
    sources = outputs["contrastive_examples"].column("negative_source").value_counts().to_pylist()
    return {"sources": {entry["values"]: entry["counts"] for entry in sources}}


def run_dense(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Train the dense retriever."""
    from genret.training.dense import read_share_log
    from genret.training.encoder import EncoderPlace, chosen_family
    from genret.training.launch import DenseInputs, TrainingTask

    config = context.config
    task = TrainingTask(
        stage="dense",
        section=config.dense.model_dump(),
        pretrained=None,
        run_url=str(context.store.url),
        model=None,
        examples=(context.records["contrastive"], "contrastive_examples"),
        seed=config.seed,
        # The encoder is small: ZeRO is not for it.
        setup=replace(training_setup(context, "dense"), zero_stage=0, offload="none"),
        threads=max(1, int(config.compute.cpus_a_training_worker)),
        dense=DenseInputs(
            config.negatives.model_dump(),
            EncoderPlace.of(str(context.store.url), config.dense, base=True),
            {name: record for name, record in context.records.items() if name == "encoder"},
            (context.records["corpus"], "passages"),
        ),
    )

    def deliver(folder: Path) -> None:
        writer.write_folder("dense", folder)
        writer.write_table("share_log", read_share_log(folder))

    return launch(context, writer, task, deliver) | _told_of_family(chosen_family(config.dense))


def run_embedding(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Embed all passages with the trained encoder."""
    return _embed(context, writer, "embedding", base=False)


def run_base_embedding(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Embed all passages with the encoder that training starts from."""
    return _embed(context, writer, "base_embedding", base=True)


def _embed(context: Context, writer: StageWriter, stage: str, *, base: bool) -> dict[str, Any]:
    """The vectors of all passages; blocks that an attempt before finished are not embedded again."""
    from genret.retrieval.dense import BLOCK, missing_blocks, open_embedder, write_index
    from genret.training.encoder import EncoderPlace, chosen_family

    compute, passages = context.config.compute, context.passages
    section = context.config.dense
    place = EncoderPlace.of(str(context.store.url), section, base=base)
    scratch = context.store.scratch(stage, context.mark)
    missing = missing_blocks(scratch, passages.num_rows)
    blocks = ((number, passages.slice(number * BLOCK, BLOCK).combine_chunks()) for number in missing)
    arguments = {
        "place": place,
        "records": {name: record for name, record in context.records.items() if name == place.stage},
        "scratch": scratch,
        "threads": max(1, int(compute.cpus_a_worker)),
    }
    progress = context.progress(stage, "blocks")
    for _ in map_batches(
        blocks, len(missing), open_embedder, arguments, compute, gpus=compute.gpus_a_worker, progress=progress
    ):
        pass
    with TemporaryDirectory(prefix="genret-embedding-") as folder:
        write_index(Path(folder), scratch, passages.column("passage_id"), place)
        writer.write_folder(stage, Path(folder))
    kept = -(-passages.num_rows // BLOCK) - len(missing)
    return {"blocks_kept": kept} | _told_of_family(chosen_family(section))


def run_lists(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Sort the vectors into lists, of which a search looks through the nearest."""
    check_faiss()  # once more: a driver that goes on may be another machine
    from genret.retrieval.approximate import write_lists

    index = context.store.local_folder(context.records["embedding"], "embedding")
    with TemporaryDirectory(prefix="genret-lists-") as folder:
        write_lists(index, Path(folder), context.config.seed)
        writer.write_folder(writer.stage, Path(folder))
    return {}


def _told_of_family(family: str | None) -> dict[str, Any]:
    """By which family's rules texts are read, which a name may tell without anybody having asked for it."""
    return {} if family is None else {"family": family}
