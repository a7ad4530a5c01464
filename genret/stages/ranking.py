"""The stages that index and retrieve without training: BM25, retrieval."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pyarrow as pa

from genret import tables
from genret.cluster import map_batches
from genret.config import RetrievalConfig
from genret.retrieval.fusion import FUSION, fuse_runs
from genret.retrieval.names import LISTS, TRAINED, retriever_stages
from genret.retrieval.opening import open_retriever
from genret.runs import StageWriter
from genret.stages.context import Context

Result = TypeVar("Result")

# What the retrievers of a run are made of.
_RETRIEVER_STAGES = (*TRAINED, "bm25", "corpus", "encoder", "dense", "embedding", LISTS, "base_embedding")


def run_bm25(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Build the index of BM25."""
    from genret.retrieval.bm25 import Bm25Retriever

    retriever = Bm25Retriever.build(context.passages, context.config.retrieval)
    with TemporaryDirectory(prefix="genret-bm25-") as folder:
        retriever.save(Path(folder))
        writer.write_folder("bm25", Path(folder))
    return {}


def run_retrieval(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Answer the test queries with every retriever."""
    config = context.config.retrieval
    queries = context.table("corpus", "test_queries")
    found = {
        name: rank(context, "retrieval", name, queries, config.depth, config)
        for name in config.retrievers
        if name != FUSION
    }
    if FUSION in config.retrievers:
        # Made of what its parts found, in the time that these took and its own.
        parts = [found[part] for part in config.fusion.parts]
        begin = time.perf_counter()
        ranking = fuse_runs([run for run, _ in parts], queries, config)
        found[FUSION] = ranking, sum(seconds for _, seconds in parts) + time.perf_counter() - begin
    latencies = [
        {
            "retriever": name,
            "n_queries": queries.num_rows,
            "seconds": found[name][1],
            "milliseconds_a_query": 1000 * found[name][1] / max(1, queries.num_rows),
            "index_bytes": _index_bytes(context, name),
        }
        for name in config.retrievers
    ]
    writer.write_table("run", pa.concat_tables([found[name][0] for name in config.retrievers]))
    writer.write_table("latencies", tables.table_from_rows("latencies", latencies))
    return {}


def _index_bytes(context: Context, retriever: str) -> int:
    """Size of all files that a retriever reads; a pretrained encoder that was not trained is none of the run's."""
    config = context.config
    if retriever == FUSION:
        return sum(_index_bytes(context, part) for part in config.retrieval.fusion.parts)
    records = context.records
    folders = [folder for stage in retriever_stages(retriever, records) for folder in records[stage].folders.values()]
    return sum(size for folder in folders for size in folder["files"].values())


def rank(
    context: Context, stage: str, retriever: str, queries: pa.Table, k: int, search: RetrievalConfig
) -> tuple[pa.Table, float]:
    """A retriever's `run` table over queries on the pool of actors, and the seconds that retrieving took."""
    if not queries.num_rows:
        return tables.table_from_rows("run", []), 0.0
    ((ranking, seconds),) = rank_parts(context, stage, retriever, [queries], k, search, total=queries.num_rows)
    return ranking, seconds


def rank_parts(
    context: Context,
    stage: str,
    retriever: str,
    parts: Iterable[pa.Table],
    k: int,
    search: RetrievalConfig,
    *,
    total: int,
    before: int = 0,
) -> Iterator[tuple[pa.Table, float]]:
    """Likewise for queries in parts, each with a query at least, by actors that are started once for all of them.

    No actor waits for the end of a part: those behind are drawn meanwhile. Of the `total` queries those that were
    ranked `before` are not in the parts.
    """
    compute, size = context.config.compute, search.batch_size
    arguments = {
        "run_url": str(context.store.url),
        "records": {name: record for name, record in context.records.items() if name in _RETRIEVER_STAGES},
        "name": retriever,
        "config": search,
        "k": k,
        "threads": max(1, int(compute.cpus_a_worker)),
    }

    def apply(batches: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, float]]:
        return map_batches(
            batches,
            -(-(total - before) // size),
            open_retriever,
            arguments,
            compute,
            gpus=compute.gpus_a_worker if retriever != "bm25" else 0.0,
            progress=lambda done, _: context.reporter.progress(
                stage, min(before + done * size, total), total, "queries", retriever
            ),
        )

    for found in in_batches(parts, size, apply):
        yield pa.concat_tables([ranking for ranking, _ in found]), sum(seconds for _, seconds in found)


def in_batches(
    parts: Iterable[pa.Table], size: int, apply: Callable[[Iterator[pa.Table]], Iterator[Result]]
) -> Iterator[list[Result]]:
    """Apply a function to tables in batches.

    Args:
        parts: Tables with a row at least.
        size: Most rows of a batch; none holds rows of two tables.
        apply: From all batches, which it may draw ahead, to a result for each, in their order.

    Yields:
        The results of each table.
    """
    counts: deque[int] = deque()

    def batches() -> Iterator[pa.Table]:
        for part in parts:
            counts.append(-(-part.num_rows // size))
            for start in range(0, part.num_rows, size):
                yield part.slice(start, size)

    results = apply(batches())
    for first in results:
        yield [first, *islice(results, counts.popleft() - 1)]
