"""Schemas: what fits comes back as it was, what does not is named."""

import json
import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.errors import InputError
from genret.tables import (
    SCHEMAS,
    check_table,
    passages_from_table,
    passages_to_table,
    reject,
    table_from_rows,
    text_table,
)
from genret.types import Passage

VALUES = {pa.string(): "naïve", pa.int32(): 3, pa.int64(): 2**40, pa.float64(): 0.1}

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("name", SCHEMAS)
def test_rows_come_back_as_they_were(name: str) -> None:
    row = {field.name: VALUES[field.type] for field in SCHEMAS[name]}
    table = table_from_rows(name, [row, row])
    assert table.to_pylist() == [row, row]
    assert table.schema.equals(SCHEMAS[name])
    assert not any(field.nullable for field in table.schema)
    assert table_from_rows(name, []).num_rows == 0


QREL = {"query_id": "q", "doc_id": "d", "relevance": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query_id": "q", "doc_id": "d"}, "row 1: column 'relevance' is missing; .* found .'doc_id', 'query_id'"),
        (QREL | {"relevance": "many"}, "row 1, column 'relevance': expected int32, found 'many'"),
        (QREL | {"relevance": 2**31}, "row 1, column 'relevance': expected int32, found 2147483648"),
        (QREL | {"doc_id": 7}, "row 1, column 'doc_id': expected string, found 7"),
        (QREL | {"doc_id": None}, "row 1, column 'doc_id': expected string, found null"),
        (QREL | {"doc_id": "half \ud800"}, "row 1, column 'doc_id': expected string, found 'half "),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_named(row: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"table qrels, {message}"):
        table_from_rows("qrels", [QREL, row])


def test_columns_are_put_in_order_and_cast() -> None:
    table = pa.table({"relevance": pa.array([1], pa.int64()), "doc_id": ["d"], "query_id": ["q"]})
    checked = check_table("qrels", table)
    assert checked.schema.equals(SCHEMAS["qrels"])
    assert checked.to_pylist() == [QREL]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query_id": ["q"], "doc_id": ["d"]}, "expected the columns .*'relevance'.*, found .'query_id', 'doc_id'"),
        (
            {"query_id": ["q"], "doc_id": ["d"], "relevance": [1], "extra": [0]},
            "expected the columns .*, found .*'extra'",
        ),
        ({"query_id": ["q", None], "doc_id": ["d", "d"], "relevance": [1, 1]}, "row 1, column 'query_id': .* null"),
        ({"query_id": ["q"], "doc_id": ["d"], "relevance": [2**31]}, "column 'relevance': expected int32, found int64"),
        ({"query_id": ["q"], "doc_id": ["d"], "relevance": [1.5]}, "column 'relevance': expected int32, found double"),
        ({"query_id": ["q"], "doc_id": [["d"]], "relevance": [1]}, "column 'doc_id': expected string, found list"),
    ],
)
def test_a_table_that_does_not_fit_is_named(columns: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"table qrels.*{message}"):
        check_table("qrels", pa.table(columns))


@given(st.lists(st.builds(Passage, texts, texts, texts, texts, st.dictionaries(texts, json_values)), max_size=4))
def test_passages_come_back_as_they_were(passages: list[Passage]) -> None:
    assert passages_from_table(passages_to_table(passages)) == passages


def test_metadata_that_is_no_json_is_written_as_text() -> None:
    table = passages_to_table([Passage("p", "d", "text", metadata={"when": pa.scalar(1), "b": "ü", "a": 2})])
    (stored,) = table.column("metadata").to_pylist()
    assert stored.startswith('{"a": 2, "b": "ü", "when": "')
    assert set(json.loads(stored)) == {"a", "b", "when"}


def test_a_reject_can_always_be_written() -> None:
    row = reject("corpus", "id\ud800", "why \udfff", "r" * 499 + "\ud800" + "beyond")
    (stored,) = table_from_rows("rejects", [row]).to_pylist()
    assert stored == {"stage": "corpus", "input_id": "id?", "reason": "why ?", "raw": "r" * 499 + "?"}
    assert reject("corpus", "id", "why")["raw"] == ""


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]))] * 4)))
def test_a_table_of_texts_is_what_rows_give(rows: list[tuple[str, ...]]) -> None:
    names = SCHEMAS["rejects"].names
    columns = {name: [row[number] for row in rows] for number, name in enumerate(names)}
    assert text_table("rejects", columns).equals(
        table_from_rows("rejects", [dict(zip(names, row, strict=True)) for row in rows])
    )


def test_a_table_of_texts_takes_no_text_that_is_broken_or_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {name: ["abc", "def"] for name in SCHEMAS["rejects"].names}
    with pytest.raises(UnicodeEncodeError):
        text_table("rejects", columns | {"raw": ["a", "\ud800"]})
    monkeypatch.setattr("genret.tables._MOST_BYTES", 5)
    with pytest.raises(OverflowError, match="at most 5 bytes of text in a column, found 6"):
        text_table("rejects", columns)


def test_a_table_of_texts_needs_no_pandas() -> None:
    code = (
        "import sys; from genret.tables import SCHEMAS, text_table; "
        "text_table('rejects', {name: ['a'] for name in SCHEMAS['rejects'].names}); assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
