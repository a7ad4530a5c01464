"""Measures against hand-computed values, pytrec_eval and a second implementation."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from genret.config import CorpusConfig, EvaluationConfig
from genret.corpus.prepare import prepare_corpus
from genret.errors import InputError
from genret.evaluation.measures import (
    evaluate,
    first_relevant_rank,
    judgements,
    parse_measure,
    query_values,
    rank_documents,
)
from genret.tables import SCHEMAS, passages_to_table, table_from_rows
from genret.types import Passage

ALL_KINDS = ("HIT", "MAP", "MRR", "NDCG", "P", "R")


def passages_table(doc_of: dict[str, str]) -> pa.Table:
    return passages_to_table(
        Passage(passage_id=passage_id, doc_id=doc_id, text="text") for passage_id, doc_id in doc_of.items()
    )


def run_table(rankings: dict[str, list[str]], retriever: str = "a", score: float = 1.0) -> pa.Table:
    return table_from_rows(
        "run",
        [
            {"query_id": query_id, "passage_id": item, "rank": rank, "score": score, "retriever": retriever}
            for query_id, ranking in rankings.items()
            for rank, item in enumerate(ranking, 1)
        ],
    )


def qrels_table(qrels: dict[str, dict[str, int]]) -> pa.Table:
    return table_from_rows(
        "qrels",
        [
            {"query_id": query_id, "doc_id": doc_id, "relevance": relevance}
            for query_id, documents in qrels.items()
            for doc_id, relevance in documents.items()
        ],
    )


def queries_table(*query_ids: str) -> pa.Table:
    return table_from_rows("test_queries", [{"query_id": query_id, "text": ""} for query_id in query_ids])


def config_of(*measures: str) -> EvaluationConfig:
    return EvaluationConfig(measures=measures, bootstrap_samples=100)


DOCUMENTS = {f"d{number}": f"d{number}" for number in range(1, 8)}


def values_of(tables: dict[str, pa.Table], retriever: str = "a") -> dict[str, float]:
    rows = tables["measures"].to_pylist()
    return {row["measure"]: row["value"] for row in rows if row["retriever"] == retriever}


def test_one_query_by_hand() -> None:
    # Relevant: d2 (2), d5 (1), d7 (1, not found). Found: d1 d2 d3 d5 d4.
    tables = evaluate(
        config_of("HIT@1", "HIT@2", "MRR@1", "MRR@5", "P@4", "R@4", "MAP@4", "MAP@3", "NDCG@4"),
        run_table({"q": ["d1", "d2", "d3", "d5", "d4"]}),
        qrels_table({"q": {"d2": 2, "d5": 1, "d7": 1, "d3": 0}}),
        queries_table("q"),
        passages_table(DOCUMENTS),
    )
    gain = 2 / math.log2(3) + 1 / math.log2(5)
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    assert values_of(tables) == pytest.approx(
        {
            "HIT@1": 0.0,
            "HIT@2": 1.0,
            "MRR@1": 0.0,
            "MRR@5": 1 / 2,
            "P@4": 2 / 4,
            "R@4": 2 / 3,
            "MAP@4": (1 / 2 + 2 / 4) / 3,
            "MAP@3": (1 / 2) / 3,
            "NDCG@4": gain / ideal,
        }
    )


def test_equal_scores_do_not_reorder_a_ranking() -> None:
    """trec_eval breaks ties by the greater document id: left alone, d9 would come first here."""
    tables = evaluate(
        config_of("MRR@10"),
        run_table({"q": ["d1", "d9"]}, score=0.5),
        qrels_table({"q": {"d1": 1}}),
        queries_table("q"),
        passages_table({"d1": "d1", "d9": "d9"}),
    )
    assert values_of(tables) == {"MRR@10": 1.0}


def test_chunks_count_once_for_their_document_and_before_the_cut() -> None:
    doc_of = {"p1": "d1", "p2": "d1", "p3": "d1", "p4": "d2", "p5": "d2", "p6": "d3"}
    run = run_table({"q": ["p1", "p2", "p3", "p4", "p5", "p6"]})
    tables = evaluate(
        config_of("HIT@1", "HIT@2", "P@2", "MRR@2", "HIT@3"),
        run,
        qrels_table({"q": {"d2": 1}}),
        queries_table("q"),
        passages_table(doc_of),
    )
    assert values_of(tables) == {"HIT@1": 0.0, "HIT@2": 1.0, "P@2": 0.5, "MRR@2": 0.5, "HIT@3": 1.0}
    documents = rank_documents(run, passages_table(doc_of))
    assert documents.select(["doc_id", "rank"]).to_pylist() == [
        {"doc_id": "d1", "rank": 1},
        {"doc_id": "d2", "rank": 2},
        {"doc_id": "d3", "rank": 3},
    ]


def test_rank_decides_whatever_the_order_of_the_rows_and_the_scores() -> None:
    run = run_table({"q": ["d1", "d2", "d3"]})
    shuffled = run.take([2, 0, 1]).set_column(3, "score", pa.array([9.0, 1.0, 5.0]))
    documents = rank_documents(shuffled, passages_table(DOCUMENTS))
    assert documents.column("doc_id").to_pylist() == ["d1", "d2", "d3"]
    assert documents.column("score").to_pylist() == [1.0, 5.0, 9.0]


def test_a_query_without_results_counts_zero() -> None:
    tables = evaluate(
        config_of("HIT@1", "NDCG@10"),
        run_table({"q1": ["d1"]}),
        qrels_table({"q1": {"d1": 1}, "q2": {"d2": 1}}),
        queries_table("q1", "q2"),
        passages_table(DOCUMENTS),
    )
    assert values_of(tables) == {"HIT@1": 0.5, "NDCG@10": 0.5}
    assert {row["n_queries"] for row in tables["measures"].to_pylist()} == {2}
    assert [
        (row["query_id"], row["value"]) for row in tables["query_measures"].to_pylist() if row["measure"] == "HIT@1"
    ] == [("q1", 1.0), ("q2", 0.0)]


def test_relevant_documents_that_the_corpus_lacks_are_not_found(tmp_path: Path) -> None:
    documents = [{"_id": "d1", "text": "one"}, {"_id": "d2", "text": "two"}, {"_id": "empty", "text": ""}]
    queries = [{"_id": name, "text": name} for name in ("half", "none", "whole")]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "qrels").mkdir()
    judged = "half\td1\t1\nhalf\tmissing\t1\nnone\tempty\t1\nwhole\td2\t1\n"
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    corpus = prepare_corpus(CorpusConfig(path=str(tmp_path)))
    run = run_table({query_id: ["d1", "d2"] for query_id in ("half", "none", "whole")})
    tables = evaluate(config_of("R@10"), run, corpus["qrels"], corpus["test_queries"], corpus["passages"])
    values = {row["query_id"]: row["value"] for row in tables["query_measures"].to_pylist()}
    assert values == {"half": 0.5, "none": 0.0, "whole": 1.0}
    assert tables["measures"]["n_queries"].to_pylist() == [3]


def test_queries_that_cannot_be_scored_are_left_out_and_named() -> None:
    tables = evaluate(
        config_of("HIT@1"),
        run_table({"q1": ["d1"], "zero": ["d1"], "bare": ["d1"]}),
        qrels_table({"q1": {"d1": 1}, "zero": {"d1": 0, "d2": -1}, "stranger": {"d1": 1}}),
        queries_table("q1", "zero", "bare"),
        passages_table(DOCUMENTS),
    )
    assert [(row["value"], row["n_queries"]) for row in tables["measures"].to_pylist()] == [(1.0, 1)]
    assert [(row["stage"], row["input_id"], row["reason"]) for row in tables["rejects"].to_pylist()] == [
        ("evaluation", "zero", "the query has no relevant document"),
        ("evaluation", "bare", "the query has no judgement"),
        ("evaluation", "stranger", "judged, but not among the test queries"),
    ]


def test_without_a_query_to_score_the_tables_are_empty() -> None:
    for qrels in ({}, {"stranger": {"d1": 1}}):
        tables = evaluate(
            config_of("HIT@1"),
            run_table({}),
            qrels_table(qrels),
            queries_table(),
            passages_table({}),
            retrievers=["a"],
        )
        assert {name: table.num_rows for name, table in tables.items()} == {
            "measures": 0,
            "query_measures": 0,
            "rejects": len(qrels),
        }
        assert all(table.schema == SCHEMAS[name] for name, table in tables.items())


def test_retrievers_keep_their_order_and_may_have_found_nothing() -> None:
    run = pa.concat_tables([run_table({"q": ["d1"]}, "z"), run_table({"q": ["d2"]}, "b")])
    arguments = (qrels_table({"q": {"d1": 1}}), queries_table("q"), passages_table(DOCUMENTS))
    rows = evaluate(config_of("HIT@1", "MRR@3"), run, *arguments)["measures"].to_pylist()
    assert [(row["retriever"], row["measure"], row["value"]) for row in rows] == [
        ("z", "HIT@1", 1.0),
        ("z", "MRR@3", 1.0),
        ("b", "HIT@1", 0.0),
        ("b", "MRR@3", 0.0),
    ]
    named = evaluate(config_of("HIT@1"), run, *arguments, retrievers=["silent", "b"])["measures"].to_pylist()
    assert [(row["retriever"], row["value"]) for row in named] == [("silent", 0.0), ("b", 0.0), ("z", 1.0)]


def test_a_measure_named_twice_is_computed_once() -> None:
    tables = evaluate(
        config_of("HIT@1", "HIT@1"),
        run_table({"q": ["d1"]}),
        qrels_table({"q": {"d1": 1}}),
        queries_table("q"),
        passages_table(DOCUMENTS),
    )
    assert tables["measures"].num_rows == 1


def test_of_two_judgements_the_higher_counts() -> None:
    qrels = pa.concat_tables([qrels_table({"q": {"d1": 2}}), qrels_table({"q": {"d1": 1, "d2": -3}})])
    assert judgements(qrels) == {"q": {"d1": 2, "d2": 0}}


@pytest.mark.parametrize("name", ["HIT", "HIT@0", "HIT@-1", "HIT@04", "hit@1", "ERR@10", "NDCG@1.5", "MAP@ 3", ""])
def test_unknown_measures_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"expected one of HIT@k, MAP@k, MRR@k, NDCG@k, P@k, R@k with"):
        parse_measure(name)


def test_what_does_not_fit_together_is_refused() -> None:
    arguments = (qrels_table({"q": {"d1": 1}}), queries_table("q"), passages_table(DOCUMENTS))
    with pytest.raises(InputError, match=r"found 'lost' \(retriever a, query 'q'\)"):
        evaluate(config_of("HIT@1"), run_table({"q": ["lost"]}), *arguments)
    with pytest.raises(InputError, match=r"queries of the table test_queries, found 'other'"):
        evaluate(config_of("HIT@1"), run_table({"other": ["d1"]}), *arguments)
    twice = pa.concat_tables([run_table({"q": ["d1"]}), run_table({"q": ["d2"]})])
    with pytest.raises(InputError, match=r"one passage a rank, found rank 1 twice \(retriever a"):
        evaluate(config_of("HIT@1"), twice, *arguments)


def test_intervals_hold_the_mean_and_come_again() -> None:
    queries = [f"q{number}" for number in range(40)]
    arguments = (
        EvaluationConfig(measures=("HIT@1", "MRR@10"), bootstrap_samples=200),
        run_table({query: ["d1", "d2"] if query[-1] > "3" else ["d2", "d1"] for query in queries}),
        qrels_table({query: {"d1": 1} for query in queries}),
        queries_table(*queries),
        passages_table(DOCUMENTS),
    )
    first, again, other = evaluate(*arguments), evaluate(*arguments), evaluate(*arguments, seed=1)
    for row in first["measures"].to_pylist():
        assert 0 <= row["ci_low"] < row["value"] < row["ci_high"] <= 1
    assert first["measures"] == again["measures"]
    assert first["measures"] != other["measures"]
    assert first["query_measures"] == other["query_measures"]


def second_opinion(kind: str, depth: int, ranking: list[str], relevance: dict[str, int]) -> float:
    """The definitions, written down once more."""
    gains = [relevance.get(doc_id, 0) for doc_id in ranking[:depth]]
    hits = [gain > 0 for gain in gains]
    n_relevant = sum(value > 0 for value in relevance.values())
    if kind == "HIT":
        return float(any(hits))
    if kind == "MRR":
        return 1 / (hits.index(True) + 1) if any(hits) else 0.0
    if kind == "P":
        return sum(hits) / depth
    if kind == "R":
        return sum(hits) / n_relevant
    if kind == "MAP":
        return sum(sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit) / n_relevant
    ideal = sorted(relevance.values(), reverse=True)[:depth]
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains)) / sum(
        gain / math.log2(place + 2) for place, gain in enumerate(ideal)
    )


document_ids = st.sampled_from([f"dök {number}" for number in range(12)])


@given(
    ranking=st.lists(document_ids, unique=True, max_size=12),
    relevance=st.dictionaries(document_ids, st.integers(0, 3), min_size=1).filter(lambda r: max(r.values()) > 0),
    depth=st.integers(1, 15),
)
def test_measures_equal_a_second_implementation(ranking: list[str], relevance: dict[str, int], depth: int) -> None:
    measures = [parse_measure(f"{kind}@{depth}") for kind in ALL_KINDS]
    values = query_values(measures, {"q": relevance}, {"q": ranking, "unjudged": ["d"]})
    expected = [second_opinion(measure.kind, depth, ranking, relevance) for measure in measures]
    assert values.tolist() == [pytest.approx(expected)]


def test_measures_equal_pytrec_eval_on_a_whole_run() -> None:
    rankings = {f"q{n}": [f"d{(n * 7 + place * 5) % 23}" for place in range(20)] for n in range(25)}
    qrels = {f"q{n}": {f"d{(n * 3 + step) % 23}": step % 3 for step in range(1, 5)} for n in range(25)}
    names = {
        "success_5": "HIT@5",
        "map_cut_10": "MAP@10",
        "ndcg_cut_10": "NDCG@10",
        "P_20": "P@20",
        "recall_5": "R@5",
        "recip_rank": "MRR@20",
    }
    tables = evaluate(
        config_of(*names.values()),
        run_table(rankings),
        qrels_table(qrels),
        queries_table(*rankings),
        passages_table({f"d{number}": f"d{number}" for number in range(23)}),
    )
    run = {
        query_id: {doc_id: 100.0 - rank for rank, doc_id in enumerate(ranking)}
        for query_id, ranking in rankings.items()
    }
    expected = pytrec_eval.RelevanceEvaluator(
        qrels, {"success.5", "map_cut.10", "ndcg_cut.10", "P.20", "recall.5", "recip_rank"}
    ).evaluate(run)
    got = {(row["measure"], row["query_id"]): row["value"] for row in tables["query_measures"].to_pylist()}
    for query_id, results in expected.items():
        assert {name: got[name, query_id] for name in names.values()} == pytest.approx(
            {names[key]: value for key, value in results.items()}
        )


def test_first_relevant_rank() -> None:
    assert first_relevant_rank(["a", "b", "c"], {"c": 1, "b": 0}) == 3
    assert first_relevant_rank(["a"], {"c": 1}) == 0
    assert first_relevant_rank([], {}) == 0
