"""Checks, batches and tables that all retrievers share."""

import pyarrow as pa
import pytest

from genret.errors import InputError
from genret.retrieval.base import BatchedRetriever, retrieve_run
from genret.tables import SCHEMAS, table_from_rows
from genret.types import Retriever, ScoredPassage


class CountingRetriever(BatchedRetriever):
    """Finds as many passages as the query has words, and remembers its batches."""

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__("counting", batch_size)
        self.batches: list[list[str]] = []

    def _retrieve_batch(self, queries: list[str], k: int) -> list[list[ScoredPassage]]:
        self.batches.append(queries)
        return [
            [ScoredPassage(word, float(-place)) for place, word in enumerate(query.split()[:k])] for query in queries
        ]


def queries_table(*texts: str) -> pa.Table:
    return table_from_rows(
        "test_queries", [{"query_id": f"q{number}", "text": text} for number, text in enumerate(texts)]
    )


def test_batches_keep_the_order() -> None:
    retriever = CountingRetriever(batch_size=2)
    rankings = retriever.retrieve(["a", "b c", "", "d", "e"], 10)
    assert retriever.batches == [["a", "b c"], ["", "d"], ["e"]]
    assert [[place.passage_id for place in ranking] for ranking in rankings] == [
        ["a"],
        ["b", "c"],
        [],
        ["d"],
        ["e"],
    ]
    assert isinstance(retriever, Retriever)


def test_no_query_needs_no_batch() -> None:
    retriever = CountingRetriever()
    assert retriever.retrieve([], 3) == []
    assert retriever.batches == []


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "3", None])
def test_k_must_be_a_positive_whole_number(k: object) -> None:
    with pytest.raises(InputError, match="counting: expected k to be a whole number of at least 1, found"):
        CountingRetriever().retrieve(["a"], k)  # type: ignore[arg-type]


def test_queries_must_be_a_list_of_strings() -> None:
    with pytest.raises(InputError, match="query 1: expected a string, found None"):
        CountingRetriever().retrieve(["a", None], 1)  # type: ignore[list-item]
    with pytest.raises(InputError, match="expected a list of queries, found one string"):
        CountingRetriever().retrieve("a", 1)


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(InputError, match="batch size of at least 1, found 0"):
        CountingRetriever(batch_size=0)


def test_a_batch_with_a_lost_ranking_is_a_defect() -> None:
    class Losing(CountingRetriever):
        def _retrieve_batch(self, queries: list[str], k: int) -> list[list[ScoredPassage]]:
            return super()._retrieve_batch(queries, k)[1:]

    with pytest.raises(RuntimeError, match="2 queries got 1 rankings"):
        Losing().retrieve(["a", "b"], 1)


def test_run_counts_ranks_from_one_and_keeps_scores() -> None:
    run = retrieve_run(CountingRetriever(), queries_table("x y z", "", "w"), 2)
    assert run.schema == SCHEMAS["run"]
    assert run.to_pylist() == [
        {"query_id": "q0", "passage_id": "x", "rank": 1, "score": 0.0, "retriever": "counting"},
        {"query_id": "q0", "passage_id": "y", "rank": 2, "score": -1.0, "retriever": "counting"},
        {"query_id": "q2", "passage_id": "w", "rank": 1, "score": 0.0, "retriever": "counting"},
    ]


def test_run_of_no_queries_is_an_empty_table() -> None:
    run = retrieve_run(CountingRetriever(), queries_table(), 2)
    assert run.num_rows == 0
    assert run.schema == SCHEMAS["run"]


def test_query_ids_must_be_unique() -> None:
    queries = pa.concat_tables([queries_table("a"), queries_table("b")])
    with pytest.raises(InputError, match="found 'q0' twice"):
        retrieve_run(CountingRetriever(), queries, 1)
