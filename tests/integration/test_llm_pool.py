"""The extractive engine on real actors."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pytest

from genret import parts
from genret.cluster import ActorPool, connected
from genret.config import ComputeConfig, ExamplesConfig, ExtractiveConfig
from genret.examples.sft import build_sft_examples
from genret.llm import pool
from genret.llm.base import Request, Requests
from genret.llm.extractive import CorpusStatistics, ExtractiveEngine
from genret.llm.pool import KnownStatistics, PooledEngine
from genret.tables import iterate_passages, passages_to_table, table_from_rows
from genret.types import Passage

_TEXT = "The {n}th harbour keeps boats number {n} and lends oars to sailors who row past pier {m}."


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected(ComputeConfig()):
        yield


@pytest.fixture(scope="module")
def corpus() -> pa.Table:
    texts = (_TEXT.format(n=n, m=n % 7) for n in range(40))
    return passages_to_table(Passage(f"p{n}", f"p{n}", text, f"Harbour {n % 5}") for n, text in enumerate(texts))


@pytest.fixture(scope="module")
def requests(corpus: pa.Table) -> Requests:
    return Requests(
        lambda: (
            Request(f"{passage.passage_id}|{kind}", kind, 3, passage.title, passage.text)
            for passage in iterate_passages(corpus)
            for kind in ("keywords", "chunk")
        )
    )


@contextmanager
def pooled(corpus: pa.Table, workers: int, known: KnownStatistics) -> Iterator[PooledEngine]:
    actors = ActorPool(ComputeConfig(cpu_workers=workers, cpus_a_worker=0.5))
    try:
        yield PooledEngine(ExtractiveConfig(), corpus, 5, actors, lambda done, total: None, known)
    finally:
        actors.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_actors_answer_as_one_engine_does(
    cluster: None, corpus: pa.Table, requests: Requests, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_REQUESTS_A_BATCH", 7)
    monkeypatch.setattr(pool, "_LEAST_COUNTED", 9)
    alone = ExtractiveEngine(ExtractiveConfig(), CorpusStatistics.fit(iterate_passages(corpus)), 5)
    with pooled(corpus, workers, KnownStatistics()) as engine:
        assert list(engine.generate(requests)) == list(alone.generate(requests))


def test_what_one_engine_had_counted_the_next_one_takes(
    cluster: None, corpus: pa.Table, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = KnownStatistics()
    with pooled(corpus, 2, known) as engine:
        first = list(engine.generate(requests))
    assert known.statistics is not None
    monkeypatch.delattr(pool, "open_counting")
    with pooled(corpus, 1, known) as engine:
        assert list(engine.generate(requests)) == first


def test_actors_cut_contexts_as_this_process_does(
    cluster: None, corpus: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "rows_a_part", lambda rows: 7)
    passages = pa.concat_tables([corpus, passages_to_table([Passage("empty", "empty", " ")])])
    names = passages.column("passage_id").to_pylist()
    rows = ({"passage_id": name, "identifier": f"harbour {name}", "source": "llm"} for name in names)
    identifiers, queries = table_from_rows("identifiers", rows), table_from_rows("queries", [])
    actors = ActorPool(ComputeConfig(cpu_workers=2, cpus_a_worker=0.5))
    try:
        here, there = (
            build_sft_examples(ExamplesConfig(context_tokens=8), passages, identifiers, queries, 5, apply)
            for apply in (map, actors.apply)
        )
    finally:
        actors.close()
    assert pa.concat_tables(here.parts).equals(pa.concat_tables(there.parts))
    assert here.rows == there.rows > corpus.num_rows
    assert here.rejects.equals(there.rejects)
    assert here.rejects.column("input_id").to_pylist() == ["empty"]
