"""Statistics of data and identifiers, and what a training stage moved, against plain definitions."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.config import EvaluationConfig
from genret.evaluation.measures import evaluate
from genret.evaluation.statistics import (
    MOVES,
    dataset_statistics,
    identifier_depths,
    identifier_statistics,
    query_moves,
    rank_moves,
    reciprocal_rank,
)
from genret.tables import SCHEMAS, passages_to_table, table_from_rows
from genret.training.batches import IdentifierTokens
from genret.types import Passage


def tokens_of(*sequences: list[int]) -> IdentifierTokens:
    offsets = np.cumsum([0, *(len(sequence) for sequence in sequences)])
    return IdentifierTokens(np.array([token for sequence in sequences for token in sequence], dtype=np.int64), offsets)


def rows_table(name: str, *rows: tuple) -> pa.Table:
    return table_from_rows(name, [dict(zip(SCHEMAS[name].names, row, strict=True)) for row in rows])


# --- data ---


def test_data_by_hand() -> None:
    passages = passages_to_table(
        [
            Passage("p1", "d1", "one two three", "a title is not counted"),
            Passage("p2", "d2", "four"),
            Passage("p3", "d1", "five, six"),
        ]
    )
    queries = rows_table(
        "queries", ("q1", "p1", "a b", "sentence", "g"), ("q2", "p1", "a", "chunk", "g"), ("q3", "p2", "", "chunk", "g")
    )
    table = dataset_statistics(
        passages,
        rows_table("test_queries", ("t", "what is it?")),
        queries,
        rows_table("preference_queries", ("r", "p1", "a b c d", "answer")),
    )
    assert table.schema == SCHEMAS["dataset_statistics"]
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("documents", 2, 3.0, 3.0, 5),
        ("passages", 3, 2.0, 2.0, 3),
        ("sentence queries", 1, 2.0, 2.0, 2),
        ("chunk queries", 2, 0.5, 0.5, 1),
        ("preference queries", 1, 4.0, 4.0, 4),
        ("test queries", 1, 3.0, 3.0, 3),
    ]


def test_what_there_is_none_of_has_no_row() -> None:
    empty = [rows_table(name) for name in ("test_queries", "queries", "preference_queries")]
    table = dataset_statistics(passages_to_table([Passage("p", "d", "")]), *empty)
    assert [(row["part"], row["words_max"]) for row in table.to_pylist()] == [("documents", 0), ("passages", 0)]
    assert dataset_statistics(passages_to_table([]), *empty).num_rows == 0


# --- identifiers ---


def test_identifiers_by_source() -> None:
    identifiers = rows_table(
        "identifiers", ("a", "x", "llm"), ("b", "x y", "extended"), ("c", "z", "llm"), ("d", "z 2", "llm")
    )
    table = identifier_statistics(identifiers, tokens_of([1, 0], [1, 2, 3, 0], [5, 0], [5, 6, 0]))
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("llm", 3, pytest.approx(7 / 3), 3),
        ("extended", 1, 4.0, 4),
        ("all", 4, 11 / 4, 4),
    ]
    atomic = rows_table("identifiers", ("a", "0", "ordinal"), ("b", "1", "ordinal"))
    assert [tuple(row.values()) for row in identifier_statistics(atomic, tokens_of([7], [8])).to_pylist()] == [
        ("ordinal", 2, 1.0, 1)
    ]


def test_depths_by_hand() -> None:
    # a | b1 b2 | c1 c2x c2y: six identifiers; what is alone stays alone.
    table = identifier_depths(tokens_of([1, 0], [2, 1, 0], [2, 2, 0], [3, 1, 0], [3, 2, 4, 0], [3, 2, 5, 0]))
    assert table.schema == SCHEMAS["identifier_depths"]
    first = -(1 / 6 * math.log2(1 / 6) + 2 / 6 * math.log2(2 / 6) + 3 / 6 * math.log2(3 / 6))
    second = -(4 / 6 * math.log2(1 / 6) + 2 / 6 * math.log2(2 / 6))
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        (1, 3, 5, pytest.approx(first)),
        (2, 5, 2, pytest.approx(second)),
        (3, 6, 0, pytest.approx(math.log2(6))),
    ]


@given(st.sets(st.lists(st.integers(1, 3), max_size=5).map(tuple), min_size=1, max_size=20))
def test_depths_are_the_entropy_of_prefixes(names: set[tuple[int, ...]]) -> None:
    sequences = [[*name, 0] for name in sorted(names)]
    rows = identifier_depths(tokens_of(*sequences)).to_pylist()
    n = len(sequences)
    for row in rows:
        counts = Counter(tuple(sequence[: row["depth"]]) for sequence in sequences)
        assert row["prefixes"] == len(counts)
        assert row["shared"] == sum(count for count in counts.values() if count > 1)
        assert row["bits"] == pytest.approx(-sum(c / n * math.log2(c / n) for c in counts.values()), abs=1e-9)
    assert [row["depth"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["shared"] == 0
    assert all(row["shared"] for row in rows[:-1])


def test_no_identifier_has_no_depth() -> None:
    assert identifier_depths(tokens_of()).num_rows == 0
    assert identifier_statistics(rows_table("identifiers"), tokens_of()).num_rows == 0


# --- moves ---


def ranked(retriever: str, rankings: dict[str, str]) -> list[tuple]:
    return [
        (query_id, passage_id, rank, -float(rank), retriever)
        for query_id, ranking in rankings.items()
        for rank, passage_id in enumerate(ranking, 1)
    ]


PASSAGES = passages_to_table(Passage(name, name, "") for name in "abcd")


def test_moves_by_hand() -> None:
    before = {"up": "bca", "down": "ab", "same": "ba", "found": "bcd", "lost": "a", "never": "b"}
    after = {"up": "ba", "down": "bcda", "same": "cab", "found": "bcda", "lost": "", "never": "cd"}
    query_ids = [*before, "unjudged"]
    tables = (
        rows_table("run", *ranked("sft", before), *ranked("rpo", after)),
        rows_table("qrels", *((query_id, "a", 1) for query_id in before), ("unjudged", "a", 0)),
        rows_table("test_queries", *((query_id, "") for query_id in query_ids)),
        PASSAGES,
    )
    moves = query_moves(*tables, "sft", "rpo")
    assert moves.schema == SCHEMAS["query_moves"]
    assert [tuple(row.values()) for row in moves.to_pylist()] == [
        ("up", 3, 2),
        ("down", 1, 4),
        ("same", 2, 2),
        ("found", 0, 4),
        ("lost", 1, 0),
        ("never", 0, 0),
    ]
    table = rank_moves(moves, "sft", "rpo")
    assert table.schema == SCHEMAS["rank_moves"]
    rows = table.to_pylist()
    assert [(row["move"], row["n_queries"]) for row in rows] == [
        ("found", 1),
        ("up", 1),
        ("unchanged", 2),
        ("down", 1),
        ("lost", 1),
    ]
    assert [row["mrr_change"] for row in rows] == pytest.approx(
        [1 / 4 / 6, (1 / 2 - 1 / 3) / 6, 0.0, (1 / 4 - 1) / 6, -1 / 6]
    )
    assert {(row["retriever_before"], row["retriever_after"]) for row in rows} == {("sft", "rpo")}
    run, qrels, queries, passages = tables
    measures = evaluate(EvaluationConfig(measures=("MRR@10",), bootstrap_samples=100), run, qrels, queries, passages)
    mrr = {row["retriever"]: row["value"] for row in measures["measures"].to_pylist()}
    assert sum(row["mrr_change"] for row in rows) == pytest.approx(mrr["rpo"] - mrr["sft"])


def test_nothing_moves_without_a_query() -> None:
    moves = query_moves(
        rows_table("run"), rows_table("qrels"), rows_table("test_queries", ("q", "")), PASSAGES, "a", "b"
    )
    assert moves.num_rows == rank_moves(moves, "a", "b").num_rows == 0
    assert len(MOVES) == 5


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20))
def test_moves_add_up(ranks: list[tuple[int, int]]) -> None:
    moves = rows_table("query_moves", *((f"q{number}", *pair) for number, pair in enumerate(ranks)))
    rows = rank_moves(moves, "a", "b").to_pylist()
    assert sum(row["n_queries"] for row in rows) == len(ranks)
    changes = [reciprocal_rank(new) - reciprocal_rank(old) for old, new in ranks]
    assert sum(row["mrr_change"] for row in rows) == pytest.approx(sum(changes) / len(ranks), abs=1e-12)
