import inspect
import json
import pydoc
import sys
from pathlib import Path

import pytest

from genret.corpus import python_docs
from genret.corpus.python_docs import PythonDocs, Question, judge, read_python_docs, read_questions
from genret.errors import InputError
from genret.types import Document, Query


@pytest.fixture(scope="module")
def docs() -> PythonDocs:
    return read_python_docs()


@pytest.fixture(scope="module")
def by_id(docs: PythonDocs) -> dict[str, Document]:
    return {document.doc_id: document for document in docs.documents}


@pytest.mark.parametrize(
    ("doc_id", "module", "kind"),
    [
        ("heapq.merge", "heapq", "function"),
        ("json", "json", "module"),
        ("json.JSONDecoder", "json", "class"),
        ("collections.Counter.most_common", "collections", "method"),
        ("os.path.join", "os.path", "function"),
        ("builtins.sorted", "builtins", "function"),
        ("builtins.open", "builtins", "function"),
        ("builtins.str.split", "builtins", "method"),
        ("asyncio.run", "asyncio", "function"),
        ("concurrent.futures.wait", "concurrent.futures", "function"),
        ("pathlib.PurePath.joinpath", "pathlib", "method"),
        ("xml.etree.ElementTree.parse", "xml.etree.ElementTree", "function"),
        ("unittest.mock.Mock", "unittest.mock", "class"),
        ("typing.Optional", "typing", "data"),
        ("itertools.chain", "itertools", "class"),
        ("bisect.insort_left", "bisect", "function"),
    ],
)
def test_public_names(by_id: dict[str, Document], doc_id: str, module: str, kind: str) -> None:
    package = module.split(".")[0]
    assert by_id[doc_id].metadata == {"module": module, "package": package, "kind": kind}
    assert by_id[doc_id].title.startswith(doc_id)


def test_the_text_is_the_docstring(by_id: dict[str, Document]) -> None:
    checked = [name for name in by_id if name.split(".")[0] in ("heapq", "json", "textwrap", "pathlib", "csv")]
    assert len(checked) > 50
    for name in checked:
        assert by_id[name].text == (inspect.getdoc(pydoc.locate(name)) or "").strip(), name


def test_title_has_the_signature(by_id: dict[str, Document]) -> None:
    assert by_id["heapq.merge"].title == "heapq.merge(*iterables, key=None, reverse=False)"
    assert by_id["json"].title == "json"
    assert all(len(document.title) < 200 for document in by_id.values())


@pytest.mark.parametrize(
    ("name", "doc_id"),
    [
        ("pathlib.Path.joinpath", "pathlib.PurePath.joinpath"),
        ("json.decoder.JSONDecoder", "json.JSONDecoder"),
        ("asyncio.runners.run", "asyncio.run"),
        ("random.Random.choice", "random.choice"),
        ("collections.Counter.keys", "builtins.dict.keys"),
        ("builtins.IOError", "builtins.OSError"),
        ("io.open", "builtins.open"),
        ("heapq.merge", "heapq.merge"),
    ],
)
def test_other_names_lead_to_the_document(docs: PythonDocs, name: str, doc_id: str) -> None:
    assert docs.listed_under[name] == doc_id


def test_documents_are_many_sorted_and_differ(docs: PythonDocs) -> None:
    ids = [document.doc_id for document in docs.documents]
    assert 4000 < len(ids) < 12000
    assert ids == sorted(set(ids))
    assert len({document.text for document in docs.documents}) == len(ids)
    assert set(docs.listed_under.values()) == set(ids)
    assert not any(part.startswith("_") for name in ids for part in name.split("."))
    assert not {name.split(".")[0] for name in ids} & {
        "posixpath",
        "ntpath",
        "test",
        "idlelib",
        "antigravity",
    }


def test_the_same_every_time_and_wherever_python_is(
    docs: PythonDocs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "a folder" / "python"
    elsewhere.parent.mkdir()
    elsewhere.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(elsewhere))
    assert read_python_docs() == docs


def test_modules_are_imported_elsewhere(docs: PythonDocs) -> None:
    assert "ftplib.FTP" in docs.listed_under
    assert "nntplib" not in sys.modules and "xdrlib" not in sys.modules and "turtle" not in sys.modules


def test_a_process_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended with 1"):
        read_python_docs()


def test_questions_are_well_formed_and_answered(docs: PythonDocs) -> None:
    rows = [json.loads(line) for line in python_docs.QUESTIONS.read_text(encoding="utf-8").splitlines()]
    assert all(row.keys() == {"_id", "text", "relevant", "split"} for row in rows)
    assert len({row["_id"] for row in rows}) == len(rows)
    assert {row["split"] for row in rows} == {"dev", "test"}
    questions = read_questions("dev") + read_questions("test")
    assert len(questions) == len(rows)
    qrels, _ = judge(questions, docs)
    # Written for several versions of Python, some of which lack a few of the names.
    assert len({qrel.query_id for qrel in qrels}) >= 0.97 * len(questions)
    assert {qrel.doc_id for qrel in qrels} <= {document.doc_id for document in docs.documents}


def test_an_unknown_split_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"\['dev', 'test'\], found 'train'"):
        read_questions("train")


def test_judging_maps_merges_and_rejects() -> None:
    docs = PythonDocs([Document("a.b", "text")], {"a.b": "a.b", "a.c": "a.b"})
    questions = [
        Question(Query("q1", "both names"), ("a.b", "a.c"), "test"),
        Question(Query("q2", "one is missing"), ("a.c", "a.x"), "test"),
        Question(Query("q3", "all are missing"), ("a.x",), "test"),
    ]
    qrels, rejects = judge(questions, docs)
    assert [(qrel.query_id, qrel.doc_id, qrel.relevance) for qrel in qrels] == [
        ("q1", "a.b", 1),
        ("q2", "a.b", 1),
    ]
    assert [(row["stage"], row["input_id"], row["raw"]) for row in rejects] == [
        ("corpus", "q2", "one is missing"),
        ("corpus", "q3", "all are missing"),
    ]
    assert "a.x" in rejects[0]["reason"] and "left out" not in rejects[0]["reason"]
    assert rejects[1]["reason"].endswith("the question is left out")
