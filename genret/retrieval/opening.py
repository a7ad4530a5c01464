"""Opening the retrievers of a run by name.

Each kind is imported where it is opened: PyTorch and transformers take seconds, which nobody waits for who asks BM25.
"""

import time
from collections.abc import Callable, Mapping

import pyarrow as pa

from genret.config import RetrievalConfig
from genret.errors import InputError
from genret.retrieval.base import retrieve_run
from genret.retrieval.fusion import FUSION, FusionRetriever
from genret.retrieval.names import INDEXES, LISTS, retriever_names, retriever_stages
from genret.runs import RunStore, StageRecord
from genret.types import Retriever


def load_retriever(
    store: RunStore, records: Mapping[str, StageRecord], name: str, config: RetrievalConfig
) -> Retriever:
    """Open a retriever of a run.

    Args:
        store: The run.
        records: Its current stages.
        name: `rpo`, `sft`, `bm25`, `dense` or `fusion`; also `dense_base`, where negatives are retrieved with it.
        config: The `retrieval` section.

    Returns:
        The retriever, ready to be asked.

    Raises:
        InputError: The run has no such retriever.
    """
    names = retriever_names(records, config)
    if name not in names and not (name == "dense_base" and INDEXES[name] in records):
        raise InputError(f"retriever: expected one of {names}, found {name!r}")
    if name == FUSION:
        return FusionRetriever([load_retriever(store, records, part, config) for part in config.fusion.parts], config)
    if name in INDEXES:
        from genret.retrieval.dense import DenseRetriever

        stage = INDEXES[name]
        folder = store.local_folder(records[stage], stage)
        lists = store.local_folder(records[LISTS], LISTS) if name == "dense" and LISTS in records else None
        return DenseRetriever.load(folder, store, records, name, config, lists)
    (stage,) = retriever_stages(name, records)
    folder = store.local_folder(records[stage], name)
    if name == "bm25":
        from genret.retrieval.bm25 import Bm25Retriever

        return Bm25Retriever.load(folder)
    from genret.retrieval.generative import GenerativeRetriever

    return GenerativeRetriever.load(folder, config, name)


def open_retriever(
    run_url: str,
    records: Mapping[str, StageRecord],
    name: str,
    config: RetrievalConfig,
    k: int,
    threads: int,
) -> Callable[[pa.Table], tuple[pa.Table, float]]:
    """A retriever as a function on batches of queries, in an actor.

    Args:
        run_url: The run store.
        records: Its current stages.
        name: Which retriever.
        config: The `retrieval` section.
        k: Passages a query.
        threads: CPU threads of the model.

    Returns:
        From a table with `query_id` and `text` to its `run` table and the seconds it took.
    """
    if name != "bm25":
        from genret.threads import use_threads

        use_threads(threads)
    retriever = load_retriever(RunStore(run_url), records, name, config)

    def rank(queries: pa.Table) -> tuple[pa.Table, float]:
        begin = time.perf_counter()
        ranking = retrieve_run(retriever, queries, k)
        return ranking, time.perf_counter() - begin

    return rank
