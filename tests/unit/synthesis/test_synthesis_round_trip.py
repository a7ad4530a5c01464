import pytest

from genret.config import RetrievalConfig
from genret.errors import InputError
from genret.retrieval.bm25 import Bm25Retriever
from genret.synthesis import round_trip as module
from genret.synthesis.round_trip import round_trip
from genret.tables import SCHEMAS, check_table, passages_to_table, table_from_rows
from genret.types import Passage

PASSAGES = passages_to_table(
    [
        Passage("fjord", "fjord", "A glacier carved the deep fjord in Norway."),
        Passage("lake", "lake", "A glacier carved the lake in Sweden, and another glacier the next lake."),
        Passage("bread", "bread", "Bakers knead flour and yeast."),
    ]
)
TEXTS = [
    ("fjord", "which fjord is deep"),
    ("fjord", "glacier lake"),
    ("fjord", "who kneads flour"),
    ("lake", "lake in Sweden"),
    ("bread", "unknown words"),
    ("bread", ""),
]


@pytest.fixture(scope="module")
def bm25():
    return Bm25Retriever.build(PASSAGES, RetrievalConfig())


def queries(texts=TEXTS):
    return table_from_rows(
        "queries",
        (
            {"query_id": f"q{n}", "passage_id": name, "text": text, "kind": "chunk", "generator": "x"}
            for n, (name, text) in enumerate(texts)
        ),
    )


def ids(table):
    return table.column("query_id").to_pylist()


def test_only_queries_that_find_their_passage_are_kept(bm25):
    kept, rejects = round_trip(queries(), bm25, 1)
    assert ids(kept) == ["q0", "q3"]
    assert check_table("queries", kept).schema == SCHEMAS["queries"]
    assert [row["input_id"] for row in rejects] == ["q1", "q2", "q4", "q5"]
    assert rejects[0] == {
        "stage": "synthesis",
        "input_id": "q1",
        "reason": "round trip: bm25 does not find the passage among its first 1",
        "raw": "glacier lake",
    }
    assert table_from_rows("rejects", rejects).num_rows == 4


def test_a_wider_top_keeps_more(bm25):
    assert ids(round_trip(queries(), bm25, 2)[0]) == ["q0", "q1", "q3"]


def test_preference_queries_too(bm25):
    table = table_from_rows(
        "preference_queries",
        ({"query_id": n, "passage_id": "fjord", "text": n, "answer": "x"} for n in ("deep fjord", "flour")),
    )
    kept, rejects = round_trip(table, bm25, 1)
    assert ids(check_table("preference_queries", kept)) == ["deep fjord"]
    assert len(rejects) == 1


def test_more_queries_than_a_block_and_none(bm25, monkeypatch):
    whole = round_trip(queries(), bm25, 1)
    monkeypatch.setattr(module, "_BLOCK", 2)
    assert round_trip(queries(), bm25, 1) == whole
    kept, rejects = round_trip(queries([]), bm25, 1)
    assert (kept.num_rows, rejects) == (0, [])


def test_no_depth_is_an_error(bm25):
    with pytest.raises(InputError, match="at least 1, found 0"):
        round_trip(queries(), bm25, 0)
