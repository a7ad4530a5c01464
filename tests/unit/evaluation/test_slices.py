"""Slices of the test queries, and the measures on them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import query_measures

from genret.config import EvaluationConfig
from genret.errors import InputError
from genret.evaluation.intervals import bootstrap_intervals
from genret.evaluation.slices import NO, QUERY_LENGTH, YES, Slices, slice_by_training, slice_measures, slice_queries
from genret.tables import SCHEMAS, passages_to_table, table_from_rows
from genret.types import Passage


def slices_of(
    fields: list[str],
    queries: dict[str, str],
    documents: dict[str, dict] | None = None,
    relevant: dict[str, list[str]] | None = None,
    own: dict[str, dict] | None = None,
) -> dict[str, Slices]:
    documents, relevant = documents or {"d": {}}, relevant or {}
    return slice_queries(
        fields,
        list(queries),
        table_from_rows("test_queries", [{"query_id": name, "text": text} for name, text in queries.items()]),
        table_from_rows(
            "query_metadata",
            [{"query_id": name, "metadata": json.dumps(metadata)} for name, metadata in (own or {}).items()],
        ),
        table_from_rows(
            "qrels",
            [
                {"query_id": name, "doc_id": doc_id, "relevance": 1}
                for name, doc_ids in relevant.items()
                for doc_id in doc_ids
            ],
        ),
        passages_to_table(
            Passage(f"{name}#{number}", name, "", metadata=metadata)
            for name, metadata in documents.items()
            for number in range(2)
        ),
    )


def many(prefix: str, count: int = 5) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_lengths() -> None:
    queries = {"none": "?", "three": "a, b c", "four": "a b c d", "six": "a b c d e f", "long": "a " * 51}
    assert slices_of([], queries) == {
        QUERY_LENGTH: {"0–3": ["none", "three"], "4–6": ["four", "six"], "over 50": ["long"]}
    }


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20))
def test_every_query_has_one_length(lengths: list[int]) -> None:
    queries = {f"q{number}": "word " * length for number, length in enumerate(lengths)}
    found = slices_of([], queries)[QUERY_LENGTH]
    assert sorted(name for names in found.values() for name in names) == sorted(queries)
    assert all(found.values())


def test_values_are_the_querys_own_or_those_of_its_relevant_documents() -> None:
    names = {"mine": many("m"), "theirs": many("t")}
    queries = {name: "" for group in names.values() for name in group}
    found = slices_of(
        ["kind", "topic"],
        queries,
        documents={"d1": {"kind": "document", "topic": "rain"}, "d2": {"topic": "snow"}, "d3": {"topic": "sun"}},
        relevant={name: ["d1", "d2"] for name in queries},
        own={name: {"kind": "own"} for name in names["mine"]},
    )
    assert found["kind"] == {"document": names["theirs"], "own": names["mine"]}
    assert found["topic"] == {"rain": list(queries), "snow": list(queries)}


def test_lists_numbers_and_what_is_no_value() -> None:
    metadata = {
        "list": ["x", "y", "x", None, " "],
        "number": 7,
        "truth": True,
        "text": " 7 ",
        "object": {"a": 1},
        "null": None,
        "empty": "",
        "blank": [],
    }
    queries = {f"{name}{number}": "" for name in metadata for number in range(5)}
    own = {query_id: {"f": metadata[query_id[:-1]]} for query_id in queries}
    found = slices_of(["f"], queries, own=own)["f"]
    assert {value: sorted({name[:-1] for name in names}) for value, names in found.items()} == {
        "7": ["number", "text"],
        "true": ["truth"],
        "x": ["list"],
        "y": ["list"],
        "(none)": ["blank", "empty", "null", "object"],
    }
    assert next(iter(found)) == "7"


def test_rare_values_stand_together() -> None:
    own = {f"q{number}": {"f": f"value {number // 6}"} for number in range(150)}
    own |= {name: {"f": ["rare", "rarer"]} for name in many("r", 4)} | {"n": {}}
    found = slices_of(["f"], dict.fromkeys(own, ""), own=own)["f"]
    assert len(found) == 22
    assert [len(names) for names in found.values()] == [6] * 20 + [5 * 6 + 4, 1]
    assert list(found)[-2:] == ["(other)", "(none)"]


def test_a_field_that_nothing_has_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"slice_fields: no query and no passage has the field 'topik'; they have \['k"
    ):
        slices_of(["topic", "topik"], {"q": ""}, documents={"d": {"topic": "x", "kind": "y"}})
    found = slices_of(["topic"], {"q": ""}, documents={"d": {"topic": "x"}})
    assert found["topic"] == {"(none)": ["q"]}, "the field is there, on another document"


def test_no_query_has_no_slice() -> None:
    assert slices_of(["unknown"], {}) == {}


def test_measures_on_slices() -> None:
    values = {("rpo", "HIT@1"): [1.0, 0.0, 1.0], ("rpo", "MRR@10"): [1.0, 0.5, 1.0], ("bm25", "HIT@1"): [0.0, 0.0, 1.0]}
    slices = {"length": {"short": ["q0", "q1"], "long": ["q2"]}, "kind": {"x": ["q2", "q0"]}}
    config = EvaluationConfig(bootstrap_samples=200, confidence=0.9)
    table = slice_measures(config, query_measures(values), slices, seed=4)
    assert table.schema == SCHEMAS["slice_measures"]
    rows = table.to_pylist()
    found = {tuple(row[name] for name in ("slice_by", "slice", "retriever", "measure")): row for row in rows}
    assert len(found) == len(rows) == 9
    assert {key: row["value"] for key, row in found.items() if key[2] == "rpo"} == {
        ("length", "short", "rpo", "HIT@1"): 0.5,
        ("length", "short", "rpo", "MRR@10"): 0.75,
        ("length", "long", "rpo", "HIT@1"): 1.0,
        ("length", "long", "rpo", "MRR@10"): 1.0,
        ("kind", "x", "rpo", "HIT@1"): 1.0,
        ("kind", "x", "rpo", "MRR@10"): 1.0,
    }
    assert [found["kind", "x", "bm25", "HIT@1"][name] for name in ("value", "n_queries")] == [0.5, 2]
    low, high = bootstrap_intervals(np.array([[1.0], [0.0]]), 200, 0.9, seed=4)
    short = found["length", "short", "rpo", "HIT@1"]
    assert (short["ci_low"], short["ci_high"]) == (low[0], high[0])


def test_no_slices_and_no_queries_are_an_empty_table() -> None:
    assert slice_measures(EvaluationConfig(), query_measures({}), {}).num_rows == 0


def slices_by_training(relevant: dict[str, dict[str, int]], asked_for: list[str]) -> Slices:
    qrels = [
        {"query_id": name, "doc_id": doc_id, "relevance": relevance}
        for name, judged in relevant.items()
        for doc_id, relevance in judged.items()
    ]
    annotated = [
        {"query_id": str(number), "passage_id": name, "text": "?", "kind": "annotated", "generator": "person"}
        for number, name in enumerate(asked_for)
    ]
    return slice_by_training(
        list(relevant),
        table_from_rows("qrels", qrels),
        passages_to_table(Passage(f"{name}#{number}", name, "") for name in "abc" for number in range(2)),
        table_from_rows("annotated_queries", annotated),
    )


def test_queries_are_told_apart_by_whether_people_asked_for_a_relevant_document_in_training() -> None:
    relevant = {"old": {"a": 1}, "new": {"b": 1}, "both": {"b": 1, "a": 2}, "irrelevant": {"a": 0, "c": 1}}
    assert slices_by_training(relevant, ["a#1"]) == {YES: ["old", "both"], NO: ["new", "irrelevant"]}
    assert slices_by_training(relevant, []) == {NO: list(relevant)}
    assert slices_by_training({}, ["a#0"]) == {}
