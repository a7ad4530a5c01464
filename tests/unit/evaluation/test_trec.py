"""TREC files, read back by the readers of others."""

import io
import math
from urllib.parse import unquote

import ir_measures
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.errors import InputError
from genret.evaluation.measures import rank_documents
from genret.evaluation.trec import write_qrels, write_run
from genret.tables import passages_to_table, table_from_rows
from genret.types import Passage


def run_of(places: list[tuple[str, str, float]], retriever: str = "bm25") -> pa.Table:
    ranks: dict[str, int] = {}
    rows = []
    for query_id, passage_id, score in places:
        ranks[query_id] = ranks.get(query_id, 0) + 1
        rows.append(
            {
                "query_id": query_id,
                "passage_id": passage_id,
                "rank": ranks[query_id],
                "score": score,
                "retriever": retriever,
            }
        )
    return table_from_rows("run", rows)


def test_lines_have_six_columns() -> None:
    run = run_of([("q1", "p1", 2.5), ("q1", "p2", -1.0), ("q2", "p1", 0.125)])
    assert write_run(run, "bm25") == ("q1 Q0 p1 1 2.5 bm25\nq1 Q0 p2 2 -1.0 bm25\nq2 Q0 p1 1 0.125 bm25\n")


def test_only_one_retriever_is_written() -> None:
    run = pa.concat_tables([run_of([("q", "p1", 1.0)], "sft"), run_of([("q", "p2", 1.0)], "rpo")])
    assert write_run(run, "rpo") == "q Q0 p2 1 1.0 rpo\n"
    assert write_run(run, "bm25") == ""


def test_documents_are_written_where_the_ranking_is_of_documents() -> None:
    passages = passages_to_table([Passage("p1", "d1", "a"), Passage("p2", "d1", "b"), Passage("p3", "d 2", "c")])
    documents = rank_documents(run_of([("q", "p2", 3.0), ("q", "p1", 2.0), ("q", "p3", 1.0)]), passages)
    assert write_run(documents, "bm25") == "q Q0 d1 1 3.0 bm25\nq Q0 d%202 2 1.0 bm25\n"


def test_ids_with_white_space_are_read_back() -> None:
    ids = [
        "two words",
        "tab\there",
        "line\nbreak",
        "50%",
        "nbsp\u00a0",
        "line\u2028",
        "é",
        "\x00\x1f",
        "plain:/#?&",
    ]
    run = run_of([(f"query {name}", name, 1.0) for name in ids])
    read = list(ir_measures.read_trec_run(io.StringIO(write_run(run, "bm25"))))
    assert [(unquote(row.query_id), unquote(row.doc_id)) for row in read] == [(f"query {name}", name) for name in ids]
    assert [row.doc_id for row in read][-1] == "plain:/#?&"
    qrels = table_from_rows("qrels", [{"query_id": name, "doc_id": name, "relevance": 2} for name in ids])
    judged = list(ir_measures.read_trec_qrels(io.StringIO(write_qrels(qrels))))
    assert [(unquote(row.query_id), unquote(row.doc_id), row.relevance) for row in judged] == [
        (name, name, 2) for name in ids
    ]


@given(st.lists(st.floats(-1e30, 1e30, width=64), min_size=1, max_size=20))
def test_readers_that_sort_by_score_get_our_ranking(scores: list[float]) -> None:
    run = run_of([("q", f"p{number}", score) for number, score in enumerate(scores)])
    read = list(ir_measures.read_trec_run(io.StringIO(write_run(run, "bm25"))))
    single = np.array([row.score for row in read], dtype=np.float32)
    assert (np.diff(single) < 0).all()
    assert [row.doc_id for row in read] == [f"p{number}" for number in range(len(scores))]


def test_scores_that_fall_are_kept_to_the_last_digit() -> None:
    scores = [0.1 + 0.2, 0.1, 1e-12, -1 / 3]
    read = ir_measures.read_trec_run(
        io.StringIO(write_run(run_of([("q", f"p{number}", s) for number, s in enumerate(scores)]), "bm25"))
    )
    assert [row.score for row in read] == scores


def test_measures_of_the_file_are_those_of_the_ranking() -> None:
    run = run_of([("q", "p1", 1.0), ("q", "p9", 1.0)])
    qrels = table_from_rows("qrels", [{"query_id": "q", "doc_id": "p1", "relevance": 1}])
    read = ir_measures.pytrec_eval.calc_aggregate(
        [ir_measures.RR],
        ir_measures.read_trec_qrels(io.StringIO(write_qrels(qrels))),
        ir_measures.read_trec_run(io.StringIO(write_run(run, "bm25"))),
    )
    assert read == {ir_measures.RR: 1.0}


@pytest.mark.parametrize("score", [math.inf, -math.inf, math.nan, 1e300])
def test_scores_must_be_finite(score: float) -> None:
    with pytest.raises(InputError, match="query 'q', rank 1: expected a finite score"):
        write_run(run_of([("q", "p", score)]), "bm25")
