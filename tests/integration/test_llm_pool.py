"""The extractive engine on real actors."""

from collections.abc import Iterator

import pyarrow as pa
import pytest

from genret.cluster import connected
from genret.config import ComputeConfig, ExtractiveConfig
from genret.llm import pool
from genret.llm.base import Request, Requests
from genret.llm.extractive import CorpusStatistics, ExtractiveEngine
from genret.llm.pool import Counted, PooledEngine
from genret.tables import iterate_passages, passages_to_table
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


def pooled(corpus: pa.Table, workers: int, counted: Counted) -> PooledEngine:
    compute = ComputeConfig(cpu_workers=workers, cpus_a_worker=0.5)
    return PooledEngine(ExtractiveConfig(), corpus, 5, compute, lambda done, total: None, counted)


@pytest.mark.parametrize("workers", [1, 2])
def test_actors_answer_as_one_engine_does(
    cluster: None, corpus: pa.Table, requests: Requests, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_REQUESTS_A_BATCH", 7)
    monkeypatch.setattr(pool, "_LEAST_COUNTED", 9)
    alone = ExtractiveEngine(ExtractiveConfig(), CorpusStatistics.fit(iterate_passages(corpus)), 5)
    assert list(pooled(corpus, workers, Counted()).generate(requests)) == list(alone.generate(requests))


def test_what_one_engine_had_counted_the_next_one_takes(
    cluster: None, corpus: pa.Table, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    first = list(pooled(corpus, 2, counted).generate(requests))
    assert counted.statistics is not None
    monkeypatch.delattr(pool, "open_counting")
    assert list(pooled(corpus, 1, counted).generate(requests)) == first
