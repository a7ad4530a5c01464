import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.config import CorpusConfig
from genret.corpus.chunking import tokenize_words
from genret.corpus.prepare import make_passages, prepare_corpus
from genret.tables import check_table, passages_from_table
from genret.types import Document


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = [
        {"_id": "a", "title": "Rain", "text": "It rains. " * 20, "metadata": {"source": "x"}},
        {"_id": "b", "title": "Only a title", "text": ""},
        {"_id": "c", "title": "", "text": " "},
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (tmp_path / "queries.jsonl").write_text(
        '{"_id": "q", "text": "wet", "metadata": {"type": "yes or no", "at": [2]}}\n{"_id": "p", "text": "plain"}\n'
    )
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\np\ta\t0\n")
    return tmp_path


@pytest.mark.parametrize("unit", ["document", "chunk"])
def test_tables(folder: Path, unit: str) -> None:
    tables = prepare_corpus(CorpusConfig(path=str(folder), unit=unit, chunk_tokens=16))
    assert set(tables) == {"passages", "test_queries", "query_metadata", "qrels", "rejects"}
    assert all(check_table(name, table).equals(table) for name, table in tables.items())
    assert tables["test_queries"].to_pylist() == [{"query_id": "q", "text": "wet"}, {"query_id": "p", "text": "plain"}]
    assert tables["query_metadata"].to_pylist() == [{"query_id": "q", "metadata": '{"at": [2], "type": "yes or no"}'}]
    assert tables["qrels"].to_pylist() == [
        {"query_id": "q", "doc_id": "a", "relevance": 1},
        {"query_id": "p", "doc_id": "a", "relevance": 0},
    ]
    assert [row["input_id"] for row in tables["rejects"].to_pylist()] == ["c"]


def test_queries_without_metadata_give_no_table_of_it(folder: Path) -> None:
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "wet"}\n')
    assert set(prepare_corpus(CorpusConfig(path=str(folder)))) == {"passages", "test_queries", "qrels", "rejects"}


def test_the_unit_document_is_the_document(folder: Path) -> None:
    passages = passages_from_table(prepare_corpus(CorpusConfig(path=str(folder)))["passages"])
    assert [(passage.passage_id, passage.doc_id) for passage in passages] == [("a", "a"), ("b", "b")]
    assert passages[0].text == "It rains. " * 20
    assert passages[0].metadata == {"source": "x"}


def test_chunks_have_numbers_and_share_title_and_metadata(folder: Path) -> None:
    config = CorpusConfig(path=str(folder), unit="chunk", chunk_tokens=16)
    passages = passages_from_table(prepare_corpus(config)["passages"])
    assert [passage.passage_id for passage in passages] == ["a#0", "a#1", "a#2", "a#3", "b#0"]
    assert {(passage.doc_id, passage.title) for passage in passages} == {("a", "Rain"), ("b", "Only a title")}
    assert all(passage.metadata == {"source": "x"} for passage in passages[:4])
    assert [len(tokenize_words(passage.text)) for passage in passages] == [15, 15, 15, 15, 0]


@given(st.sets(st.text("ab#01", min_size=1, max_size=5), min_size=1), st.integers(1, 40))
def test_chunk_ids_differ_whatever_the_document_ids(doc_ids: set[str], words: int) -> None:
    config = CorpusConfig(unit="chunk", chunk_tokens=16)
    passages = list(make_passages([Document(doc_id, "x " * words) for doc_id in doc_ids], config))
    assert len({passage.passage_id for passage in passages}) == len(passages) == len(doc_ids) * -(-words // 16)


def test_only_the_first_documents(folder: Path) -> None:
    tables = prepare_corpus(CorpusConfig(path=str(folder), max_documents=1))
    assert tables["passages"].column("passage_id").to_pylist() == ["a"]
    assert tables["rejects"].num_rows == 0


def test_python_docs() -> None:
    tables = prepare_corpus(CorpusConfig(type="python_docs", split="dev", max_documents=3000))
    assert tables["passages"].num_rows == 3000
    assert 0 < tables["test_queries"].num_rows < tables["qrels"].num_rows
    limits = [row for row in tables["rejects"].to_pylist() if row["input_id"] == "max_documents"]
    assert len(limits) == 1 and "first 3000" in limits[0]["reason"]


@pytest.mark.skipif("GENRET_DATA" not in os.environ, reason="GENRET_DATA names no folder of BEIR corpora")
@pytest.mark.parametrize(
    ("name", "passages", "queries", "qrels"),
    [
        ("covid_faq", 210, 238, 239),
        ("multihop_rag_evidence500", 326, 429, 1117),
        ("pir_agnews", 230, 100, 100),
        ("pir_allsides", 500, 51, 100),
        ("scifact", 5183, 300, 339),
        ("xquad_en", 240, 346, 346),
    ],
)
def test_real_corpora(name: str, passages: int, queries: int, qrels: int) -> None:
    tables = prepare_corpus(CorpusConfig(path=str(Path(os.environ["GENRET_DATA"]) / name)))
    counts = {table: rows.num_rows for table, rows in tables.items()}
    expected = {"passages": passages, "test_queries": queries, "query_metadata": queries, "qrels": qrels, "rejects": 0}
    assert counts == expected
