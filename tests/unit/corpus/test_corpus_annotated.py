"""Queries that people judged for training become Query2ID rows."""

import json
from pathlib import Path

import pytest

from genret.config import CorpusConfig
from genret.corpus.prepare import prepare_corpus
from genret.corpus.readers import source_fingerprint
from genret.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    documents = [{"_id": f"d{number}", "text": f"text {number}"} for number in range(4)]
    queries = [{"_id": f"q{number}", "text": f"question {number}"} for number in range(3)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    header = "query-id\tcorpus-id\tscore\n"
    (tmp_path / "qrels" / "test.tsv").write_text(header + "q0\td0\t1\n", encoding="utf-8")
    (tmp_path / "qrels" / "train.tsv").write_text(
        header + "q1\td1\t1\nq1\td2\t2\nq2\td3\t0\nq2\td0\t1\n", encoding="utf-8"
    )
    return tmp_path


def test_every_relevant_document_gets_its_query(folder: Path) -> None:
    outputs = prepare_corpus(CorpusConfig(path=str(folder), train_split="train"))
    rows = outputs["annotated_queries"].to_pylist()
    assert [(row["passage_id"], row["text"]) for row in rows] == [
        ("d1", "question 1"),
        ("d2", "question 1"),
        ("d0", "question 2"),
    ]
    assert {(row["kind"], row["generator"]) for row in rows} == {("annotated", "corpus")}
    assert len({row["query_id"] for row in rows}) == 3
    assert outputs["test_queries"].column("query_id").to_pylist() == ["q0"]
    assert "annotated_queries" not in prepare_corpus(CorpusConfig(path=str(folder)))


def test_nothing_is_trained_to_find_a_document_that_is_not_there(folder: Path) -> None:
    with (folder / "qrels" / "train.tsv").open("a", encoding="utf-8") as stream:
        stream.write("q2\tmissing\t1\n")
    rows = prepare_corpus(CorpusConfig(path=str(folder), train_split="train"))["annotated_queries"].to_pylist()
    assert [row["passage_id"] for row in rows] == ["d1", "d2", "d0"]


def test_what_is_left_out_of_the_training_split_is_a_reject_once(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("\n" + json.dumps({"_id": "d9", "text": " "}))
    with (folder / "qrels" / "train.tsv").open("a", encoding="utf-8") as stream:
        stream.write("q1\tnowhere\t1\n")
    rejects = prepare_corpus(CorpusConfig(path=str(folder), train_split="train"))["rejects"].to_pylist()
    assert [(row["input_id"], row["reason"].partition(": ")[2]) for row in rejects] == [
        ("d9", "expected a text or a title, found none"),
        ("qrels", "1, 'nowhere' first; no search can find them (split 'train')"),
    ]


def test_a_change_of_the_judgements_is_a_change_of_the_corpus(folder: Path) -> None:
    config = CorpusConfig(path=str(folder), train_split="train")
    before = source_fingerprint(config)
    with (folder / "qrels" / "train.tsv").open("a", encoding="utf-8") as stream:
        stream.write("q2\td1\t1\n")
    assert source_fingerprint(config) != before


def test_a_missing_split_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"expected one of \['test', 'train'\]"):
        prepare_corpus(CorpusConfig(path=str(folder), train_split="dev"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "chunk"}, "expected nothing where chunks are retrieved"),
        ({"split": "train"}, "expected another split than that of the evaluation"),
        ({"type": "python_docs", "path": ""}, "expected nothing with the type python_docs"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorpusConfig(**({"path": "x", "train_split": "train"} | settings))
