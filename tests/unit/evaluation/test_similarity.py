"""Win rates against a hand-worked example and the formula written down once more."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.evaluation.similarity import jaccard, query_sets, win_rates
from genret.llm.words import split_words
from genret.tables import SCHEMAS, passages_to_table, table_from_rows
from genret.types import Passage

texts = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=4).map(" ".join)


def queries_table(*rows: tuple[str, str, str]) -> pa.Table:
    """Synthetic queries from passage, kind and text."""
    return table_from_rows(
        "queries",
        [
            {"query_id": str(number), "passage_id": passage, "text": text, "kind": kind, "generator": "g"}
            for number, (passage, kind, text) in enumerate(rows)
        ],
    )


def corpus(asked: dict[str, str], relevant: dict[str, list[str]], doc_of: dict[str, str]) -> tuple[pa.Table, ...]:
    return (
        table_from_rows("test_queries", [{"query_id": name, "text": text} for name, text in asked.items()]),
        table_from_rows(
            "qrels",
            [
                {"query_id": name, "doc_id": doc_id, "relevance": 1}
                for name, doc_ids in relevant.items()
                for doc_id in doc_ids
            ],
        ),
        passages_to_table(Passage(passage_id, doc_id, "") for passage_id, doc_id in doc_of.items()),
    )


def test_jaccard_by_hand() -> None:
    assert jaccard(frozenset("ab"), frozenset("bc")) == 1 / 3
    assert jaccard(frozenset("ab"), frozenset("ab")) == 1.0
    assert jaccard(frozenset("ab"), frozenset()) == jaccard(frozenset(), frozenset()) == 0.0


def test_win_rates_by_hand() -> None:
    data = corpus(
        {"q1": "Where does the RIVER end?", "q2": "flour and yeast", "q3": "no synthetic query", "q4": "unjudged"},
        {"q1": ["d1"], "q2": ["d2", "d1"], "q3": ["d3"]},
        {"p1": "d1", "p2": "d1", "p3": "d2", "p4": "d3"},
    )
    queries = queries_table(
        ("p1", "chunk", "where does it end"),  # q1: 3 of 6 words; q2: 0
        ("p2", "sentence", "the river"),  # q1: 2 of 5; q2: 0
        ("p3", "sentence", "flour, yeast!"),  # q2: 2 of 3
        ("p4", "chunk", ""),
    )
    rows = win_rates(query_sets(queries), *data).to_pylist()
    found = {(row["set_a"], row["set_b"]): (row["win_rate"], row["tie_rate"]) for row in rows}
    assert found == {
        ("chunk", "sentence"): (1 / 3, 1 / 3),
        ("sentence", "chunk"): (1 / 3, 1 / 3),
        ("chunk", "all"): (0.0, 2 / 3),
        ("all", "chunk"): (1 / 3, 2 / 3),
        ("sentence", "all"): (0.0, 2 / 3),
        ("all", "sentence"): (1 / 3, 2 / 3),
    }
    assert {row["n_queries"] for row in rows} == {3}
    similarity = {row["set_a"]: row["similarity_a"] for row in rows}
    assert similarity == pytest.approx({"chunk": 0.5 / 3, "sentence": (0.4 + 2 / 3) / 3, "all": (0.5 + 2 / 3) / 3})
    assert all(row["similarity_b"] == similarity[row["set_b"]] for row in rows)


def test_a_query_about_nothing_in_the_corpus_is_no_tie() -> None:
    queries = queries_table(("p1", "chunk", "a b"), ("p1", "sentence", "c"))
    data = corpus({"q1": "a b", "q2": "a"}, {"q1": ["d1", "missing"], "q2": ["missing"]}, {"p1": "d1"})
    rows = win_rates(query_sets(queries), *data)
    (found,) = [row for row in rows.to_pylist() if (row["set_a"], row["set_b"]) == ("chunk", "sentence")]
    assert (found["win_rate"], found["tie_rate"], found["n_queries"]) == (1.0, 0.0, 1)


@given(
    st.dictionaries(st.sampled_from(["q1", "q2", "q3"]), texts, min_size=1),
    st.dictionaries(st.sampled_from(["q1", "q2", "q3"]), st.lists(st.sampled_from(["d1", "d2"]), unique=True)),
    st.lists(st.tuples(st.sampled_from(["p1", "p2", "p3"]), st.sampled_from(["S", "T"]), texts), max_size=12),
)
def test_win_rates_are_the_formula(
    asked: dict[str, str], relevant: dict[str, list[str]], synthetic: list[tuple[str, str, str]]
) -> None:
    doc_of = {"p1": "d1", "p2": "d1", "p3": "d2"}
    sets = {
        name: queries_table(*(row for row in synthetic if row[1] == name)).select(["passage_id", "text"])
        for name in ("S", "T")
    }
    rows = win_rates(sets, *corpus(asked, relevant, doc_of)).to_pylist()

    def best(query: str, name: str) -> float:
        words = set(split_words(asked[query]))
        others = [
            set(split_words(text))
            for passage, kind, text in synthetic
            if kind == name and doc_of[passage] in relevant[query]
        ]
        return max((len(words & other) / len(words | other) for other in others if words | other), default=0.0)

    counted = [query for query in asked if relevant.get(query)]
    if not counted:
        assert not rows
        return
    for row in rows:
        wins = sum(best(query, row["set_a"]) > best(query, row["set_b"]) for query in counted)
        assert row["win_rate"] == pytest.approx(wins / len(counted))
    assert rows[0]["win_rate"] + rows[1]["win_rate"] + rows[0]["tie_rate"] == pytest.approx(1.0)


def test_sets_are_the_kinds_and_all_of_them() -> None:
    queries = queries_table(("p1", "sentence", "a"), ("p1", "chunk", "b"), ("p2", "sentence", "c"))
    sets = query_sets(queries)
    assert {name: table["text"].to_pylist() for name, table in sets.items()} == {
        "sentence": ["a", "c"],
        "chunk": ["b"],
        "all": ["a", "b", "c"],
    }
    assert list(query_sets(queries.slice(1, 1))) == ["chunk"]
    assert query_sets(queries.slice(0, 0)) == {}


def test_without_two_sets_or_a_query_there_is_nothing_to_compare() -> None:
    data = corpus({"q1": "a"}, {"q1": ["d1"]}, {"p1": "d1"})
    one = query_sets(queries_table(("p1", "chunk", "a")))
    two = query_sets(queries_table(("p1", "chunk", "a"), ("p1", "sentence", "a")))
    assert win_rates(two, *data).num_rows == 6
    for sets, inputs in ((one, data), ({}, data), (two, corpus({"q1": "a"}, {}, {"p1": "d1"}))):
        table = win_rates(sets, *inputs)
        assert table.schema == SCHEMAS["win_rates"]
        assert table.num_rows == 0
