"""Contrastive rows: which queries, which negatives, and the guard against false ones."""

import pytest

from genret.config import NegativesConfig
from genret.examples.contrastive import build_contrastive_examples, by_query, hard_negatives, sample_queries
from genret.tables import table_from_rows


def query_table(*rows: tuple[str, str]):
    return table_from_rows(
        "queries",
        (
            {"query_id": name, "passage_id": passage, "text": f"text of {name}", "kind": "chunk", "generator": "x"}
            for name, passage in rows
        ),
    )


def run_table(**rankings: list[tuple[str, float]]):
    return table_from_rows(
        "run",
        (
            {"query_id": query, "passage_id": name, "rank": rank, "score": score, "retriever": "bm25"}
            for query, ranking in rankings.items()
            for rank, (name, score) in enumerate(ranking, start=1)
        ),
    )


QUERIES = query_table(("q1", "river"), ("q2", "bread"))
RUN = run_table(
    q1=[("lake", 9.9), ("river", 10.0), ("winter", 5.0), ("train", 1.0)],
    q2=[("cake", 3.0), ("train", 2.0)],
)
WRITTEN = table_from_rows(
    "negatives",
    [{"query_id": "q2", "passage_id": "bread", "text": "no bread", "generator": "x"}],
)


def build(passages, run=RUN, **settings):
    table = build_contrastive_examples(NegativesConfig(**settings), QUERIES, run, WRITTEN, passages, 0)
    return table["contrastive_examples"].to_pylist()


def test_what_scores_nearly_as_the_positive_is_no_negative() -> None:
    ranking = by_query(RUN)["q1"]
    assert hard_negatives(ranking, "river", 0.95) == ["winter", "train"]
    assert hard_negatives(ranking, "river", 1.0) == ["lake", "winter", "train"]


def test_a_positive_that_was_not_found_guards_against_all() -> None:
    assert hard_negatives(by_query(RUN)["q2"], "bread", 0.95) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("none", [("q1", "none"), ("q2", "none")]),
        ("retrieved", [("q1", "retrieved"), ("q1", "retrieved"), ("q2", "none")]),
        ("synthetic", [("q1", "none"), ("q2", "synthetic")]),
        ("hybrid", [("q1", "retrieved"), ("q1", "retrieved"), ("q2", "synthetic")]),
    ],
)
def test_sources(passages, source, expected) -> None:
    rows = build(passages, source=source)
    assert [(row["query_id"], row["negative_source"]) for row in rows] == expected
    for row in rows:
        assert bool(row["negative_id"]) == (row["negative_source"] == "retrieved")
        assert bool(row["negative_text"]) == (row["negative_source"] == "synthetic")


def test_random_negatives_are_other_passages_and_repeatable(passages) -> None:
    rows = build(passages, source="random", count=2)
    assert rows == build(passages, source="random", count=2)
    assert {row["negative_source"] for row in rows} == {"random"}
    assert all(row["negative_id"] != row["positive_id"] for row in rows)
    assert len(rows) == len({(row["query_id"], row["negative_id"]) for row in rows}) >= 12


def test_at_most_so_many_queries_a_passage() -> None:
    queries = query_table(*((f"q{number}", "river" if number % 3 else "lake") for number in range(12)))
    kept = sample_queries(queries, 2, seed=0)
    assert kept.column("passage_id").to_pylist().count("river") == 2
    assert kept.column("passage_id").to_pylist().count("lake") == 2
    assert kept.equals(sample_queries(queries, 2, seed=0))
    assert sample_queries(queries, 0, seed=0).equals(queries)
    assert sample_queries(queries, 100, seed=0).equals(queries)
