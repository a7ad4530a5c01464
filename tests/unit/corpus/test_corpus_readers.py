import gzip
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genret.config import CorpusConfig
from genret.corpus import readers
from genret.corpus.documents import Documents
from genret.corpus.readers import Corpus, open_input, read_corpus, source_fingerprint
from genret.errors import InputError
from genret.tables import passages_to_table, table_from_rows
from genret.types import Document, Passage, Qrel, Query

DOCUMENTS = [{"_id": "d1", "title": "One", "text": "first"}, {"_id": "d2", "title": "", "text": "second"}]
QUERIES = [{"_id": "q1", "text": "which is first"}, {"_id": "q2", "text": "which is second"}]
HEADER = "query-id\tcorpus-id\tscore\n"
QRELS = HEADER + "q1\td1\t1\nq2\td2\t2\n"


def json_lines(rows: Iterable[Any]) -> str:
    return "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)


def beir(
    folder: Path,
    documents: Iterable[Any] = DOCUMENTS,
    queries: Iterable[Any] = QUERIES,
    qrels: str | None = QRELS,
) -> CorpusConfig:
    (folder / "corpus.jsonl").write_text(json_lines(documents), encoding="utf-8")
    (folder / "queries.jsonl").write_text(json_lines(queries), encoding="utf-8")
    (folder / "qrels").mkdir(exist_ok=True)
    if qrels is not None:
        (folder / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    return CorpusConfig(path=str(folder))


def reasons(corpus: Corpus) -> list[tuple[str, str]]:
    assert all(row["stage"] == "corpus" for row in corpus.rejects)
    return [(row["input_id"], row["reason"]) for row in corpus.rejects]


EXPECTED = Corpus(
    Documents.collect([Document("d1", "first", "One"), Document("d2", "second")]),
    [Query("q1", "which is first"), Query("q2", "which is second")],
    [Qrel("q1", "d1", 1), Qrel("q2", "d2", 2)],
    [],
)


# ---- what is read


def test_beir(tmp_path: Path) -> None:
    assert read_corpus(beir(tmp_path)) == EXPECTED


def test_a_url_and_a_folder_with_a_slash(tmp_path: Path) -> None:
    beir(tmp_path)
    assert read_corpus(CorpusConfig(path=f"file://{tmp_path}")) == EXPECTED
    assert read_corpus(CorpusConfig(path=f"{tmp_path}/")) == EXPECTED


def test_compressed_files_in_several_members_with_other_line_ends(tmp_path: Path) -> None:
    config = beir(tmp_path)
    (tmp_path / "corpus.jsonl").unlink()
    members = [gzip.compress(json_lines([row]).replace("\n", "\r\n").encode()) for row in DOCUMENTS]
    (tmp_path / "corpus.jsonl.gz").write_bytes(b"".join(members))
    (tmp_path / "queries.jsonl").write_bytes(b"\xef\xbb\xbf" + json_lines(QUERIES).encode() + b"\n \n")
    (tmp_path / "qrels" / "test.tsv").write_bytes(QRELS.replace("\n", "\r\n").encode())
    assert read_corpus(config) == EXPECTED


def test_qrels_without_header_and_ids_that_are_numbers(tmp_path: Path) -> None:
    config = beir(tmp_path, [{"_id": 7, "text": "seven"}], [{"_id": 1, "text": "one"}], "1\t7\t1")
    corpus = read_corpus(config)
    assert list(corpus.documents) == [Document("7", "seven")]
    assert corpus.qrels == [Qrel("1", "7", 1)]


def test_only_the_splits_queries_are_kept(tmp_path: Path) -> None:
    config = beir(tmp_path, qrels=HEADER + "q2\td1\t0\n")
    assert read_corpus(config).queries == [Query("q2", "which is second")]
    (tmp_path / "qrels" / "dev.tsv").write_text(HEADER + "q1\td1\t1\n")
    assert read_corpus(config.model_copy(update={"split": "dev"})).queries == [Query("q1", "which is first")]


def test_metadata_is_the_object_of_that_name_or_the_other_fields(tmp_path: Path) -> None:
    documents = [
        {"_id": "d1", "text": "a", "metadata": {"source": "x", "tags": ["y"]}, "url": "left out"},
        {"_id": "d2", "text": "b", "url": "kept", "author": None, "title": None},
    ]
    corpus = read_corpus(beir(tmp_path, documents))
    assert [document.metadata for document in corpus.documents] == [
        {"source": "x", "tags": ["y"]},
        {"url": "kept"},
    ]


def test_queries_have_metadata_too(tmp_path: Path) -> None:
    queries = [
        {"_id": "q1", "text": "a", "metadata": {"type": "comparison"}},
        {"_id": "q2", "text": "b", "year": 1999},
    ]
    corpus = read_corpus(beir(tmp_path, queries=queries))
    assert [query.metadata for query in corpus.queries] == [{"type": "comparison"}, {"year": 1999}]


def test_jsonl_with_its_own_field_names(tmp_path: Path) -> None:
    rows = [{"key": "d1", "head": "One", "body": "first", "year": 1999}]
    (tmp_path / "docs.jsonl").write_text(json_lines(rows))
    path = str(tmp_path / "docs.jsonl")
    config = CorpusConfig(type="jsonl", path=path, id_field="key", title_field="head", text_field="body")
    documents = Documents.collect([Document("d1", "first", "One", {"year": 1999})])
    assert read_corpus(config) == Corpus(documents, [], [], [])


def test_jsonl_with_queries(tmp_path: Path) -> None:
    beir(tmp_path)
    config = CorpusConfig(
        type="jsonl",
        path=f"{tmp_path}/corpus.jsonl",
        queries_path=f"{tmp_path}/queries.jsonl",
        qrels_path=f"{tmp_path}/qrels/test.tsv",
    )
    assert read_corpus(config) == EXPECTED
    with pytest.raises(InputError, match=r"corpus\.qrels_path: .* corpus\.queries_path is given"):
        read_corpus(config.model_copy(update={"qrels_path": ""}))


def test_parquet_file_and_folder(tmp_path: Path) -> None:
    table = pa.table(
        {
            "_id": [1, 2, 3],
            "title": ["One", None, ""],
            "text": pa.array(["first", "second", None], pa.large_string()),
            "year": [1999, None, 2001],
        }
    )
    (tmp_path / "parts").mkdir()
    pq.write_table(table.slice(0, 1), tmp_path / "parts" / "0.parquet")
    pq.write_table(table.slice(1), tmp_path / "parts" / "1.parquet")
    pq.write_table(table, tmp_path / "all.parquet")
    whole = read_corpus(CorpusConfig(type="parquet", path=f"{tmp_path}/all.parquet"))
    assert list(whole.documents) == [Document("1", "first", "One", {"year": 1999}), Document("2", "second")]
    assert [input_id for input_id, _ in reasons(whole)] == ["3"]
    parts = read_corpus(CorpusConfig(type="parquet", path=f"{tmp_path}/parts"))
    assert parts.documents == whole.documents


def test_parquet_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    config = CorpusConfig(type="parquet", path=str(path))
    pq.write_table(pa.table({"_id": ["a"], "body": ["b"]}), path)
    with pytest.raises(InputError, match=r"x\.parquet: expected a column 'text', found .*'body'"):
        read_corpus(config)
    pq.write_table(pa.table({"_id": ["a", "b"], "text": [1, 2]}), path)
    with pytest.raises(InputError, match=r"x\.parquet, row 1, field 'text': expected text, found 1"):
        read_corpus(config)
    pq.write_table(pa.table({"_id": ["a", "a"], "text": ["b", "c"]}), path)
    with pytest.raises(InputError, match=r"row 2, field '_id': .* found 'a', which .*row 1 has too"):
        read_corpus(config)
    path.write_bytes(b"no parquet at all")
    with pytest.raises(InputError, match="expected Parquet"):
        read_corpus(config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found none at"):
        read_corpus(config.model_copy(update={"path": f"{tmp_path}/empty"}))


def test_ir_datasets(tmp_path: Path) -> None:
    ir_datasets = pytest.importorskip("ir_datasets", reason="the extra ir-datasets is not installed")
    (tmp_path / "docs.tsv").write_text("d1\tfirst\nd2\tsecond\n")
    (tmp_path / "queries.tsv").write_text("q1\twhich is first\n")
    (tmp_path / "qrels").write_text("q1 0 d1 1\n")
    dataset = ir_datasets.create_dataset(
        docs_tsv=str(tmp_path / "docs.tsv"),
        queries_tsv=str(tmp_path / "queries.tsv"),
        qrels_trec=str(tmp_path / "qrels"),
    )
    ir_datasets.registry.register("made-for-this-test", dataset)
    corpus = read_corpus(CorpusConfig(type="ir_datasets", path="made-for-this-test"))
    assert list(corpus.documents) == [Document("d1", "first"), Document("d2", "second")]
    assert corpus.queries == [Query("q1", "which is first")]
    assert corpus.qrels == [Qrel("q1", "d1", 1)]
    with pytest.raises(InputError, match="found 'no-such-set'"):
        read_corpus(CorpusConfig(type="ir_datasets", path="no-such-set"))


def test_ir_datasets_that_is_missing_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ir_datasets", None)
    with pytest.raises(InputError, match=r"pip install genret\[ir-datasets\]"):
        read_corpus(CorpusConfig(type="ir_datasets", path="beir/scifact"))


def test_python_docs_with_an_unknown_split() -> None:
    with pytest.raises(InputError, match=r"corpus\.split: .*\['dev', 'test'\]"):
        read_corpus(CorpusConfig(type="python_docs", split="train"))


# ---- what is wrong with the input


def test_no_path_and_nothing_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpus\.path: a corpus of type beir needs a path"):
        read_corpus(CorpusConfig())
    with pytest.raises(InputError, match=r"found nothing at .*absent"):
        read_corpus(CorpusConfig(path=f"{tmp_path}/absent"))
    for kind in ("jsonl", "parquet"):
        with pytest.raises(InputError, match="absent"):
            read_corpus(CorpusConfig(type=kind, path=f"{tmp_path}/absent"))
    with pytest.raises(InputError, match="expected a file, found a folder"):
        read_corpus(CorpusConfig(type="jsonl", path=str(tmp_path)))
    with pytest.raises(InputError, match="expected a local path or a URL"):
        read_corpus(CorpusConfig(path="gopher://host/corpus"))


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_folder_that_is_not_beir_says_which_file_is_missing(tmp_path: Path, missing: str) -> None:
    config = beir(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(InputError, match=missing.replace("test", "SPLIT")):
        read_corpus(config)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    beir(tmp_path)
    with pytest.raises(InputError, match="expected a BEIR folder, found the file"):
        read_corpus(CorpusConfig(path=f"{tmp_path}/corpus.jsonl"))


def test_an_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    config = beir(tmp_path)
    (tmp_path / "qrels" / "train.tsv").write_text(QRELS)
    with pytest.raises(InputError, match=r"expected one of \['test', 'train'\] .* found 'dev'"):
        read_corpus(config.model_copy(update={"split": "dev"}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "d3", "text": \n', "expected a JSON object, found"),
        ("[1, 2]\n", r"expected a JSON object, found '\[1, 2\]'"),
        ("[" * 100_000 + "\n", "expected a JSON object, found"),
        ('{"text": "x"}\n', r"field '_id': expected an id .* found only the fields \['text'\]"),
        ('{"_id": null, "text": "x"}\n', "field '_id': expected an id .* found None"),
        ('{"_id": "", "text": "x"}\n', "field '_id': expected an id .* found ''"),
        ('{"_id": true, "text": "x"}\n', "field '_id': expected an id .* found True"),
        ('{"_id": 1.5, "text": "x"}\n', r"field '_id': expected an id .* found 1\.5"),
        ('{"_id": "d3"}\n', r"field 'text': expected text, found only the fields \['_id'\]"),
        ('{"_id": "d3", "text": 5}\n', "field 'text': expected text, found 5"),
        ('{"_id": "d3", "text": "x", "title": ["y"]}\n', r"field 'title': expected text, found \['y'\]"),
        (
            '{"_id": "d1", "text": "x"}\n',
            r"field '_id': .* found 'd1', which .*corpus\.jsonl, line 1 has too",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    config = beir(tmp_path, [*DOCUMENTS, line])
    with pytest.raises(InputError, match=rf"corpus\.jsonl, line 3.*{message}"):
        read_corpus(config)


def test_a_bad_query_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"queries\.jsonl, line 2, field 'text': expected text, found 3"):
        read_corpus(beir(tmp_path, queries=[QUERIES[0], {"_id": "q2", "text": 3}]))


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    config = beir(tmp_path)
    with (tmp_path / "corpus.jsonl").open("ab") as file:
        file.write(b'\n{"_id": "d3", "text": "\xff"}\n')
    with pytest.raises(InputError, match=r"corpus\.jsonl, line 4: expected UTF-8, found the byte 0xff at byte 23"):
        read_corpus(config)


def test_a_compressed_file_that_is_cut_off_or_none(tmp_path: Path) -> None:
    beir(tmp_path)
    path = tmp_path / "docs.jsonl.gz"
    many = [{"_id": str(number), "text": f"{number * 7919 % 10007}"} for number in range(5000)]
    path.write_bytes(gzip.compress(json_lines(many).encode())[:-2000])
    with pytest.raises(InputError, match=r"docs\.jsonl\.gz"):
        read_corpus(CorpusConfig(type="jsonl", path=str(path)))
    path.write_bytes(b"plain text, not gzip")
    with pytest.raises(InputError, match=r"docs\.jsonl\.gz"):
        read_corpus(CorpusConfig(type="jsonl", path=str(path)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1\td1\n", r"line 3: expected \['query-id'.* found 'q1\\td1'"),
        ("q1 d1 1\n", "line 3: expected"),
        ("q1\td1\t1\t1\n", "line 3: expected"),
        ("q1\td1\thigh\n", "line 3, field 'score': expected a whole number, found 'high'"),
        ("q1\td1\t1.0\n", r"line 3, field 'score': expected a whole number, found '1\.0'"),
        ("q1\td1\t99999999999\n", "line 3, field 'score': expected a whole number"),
    ],
)
def test_a_bad_judgement_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"test\.tsv, {message}"):
        read_corpus(beir(tmp_path, qrels=HEADER + "q2\td2\t1\n" + line))


@pytest.mark.parametrize("documents", [[], [{"_id": "d1", "text": " ", "title": "\n"}]])
def test_no_documents(tmp_path: Path, documents: list[dict[str, str]]) -> None:
    with pytest.raises(InputError, match=rf"expected documents, found none \({len(documents)} without text\)"):
        read_corpus(beir(tmp_path, documents))


# ---- what is left out, and said


def test_documents_and_queries_without_text_are_rejected(tmp_path: Path) -> None:
    documents = [{"_id": "d0", "text": " \n"}, *DOCUMENTS, {"_id": "d3", "text": "", "title": "Title alone"}]
    corpus = read_corpus(beir(tmp_path, documents, [{"_id": "q0", "text": ""}, *QUERIES]))
    assert [document.doc_id for document in corpus.documents] == ["d1", "d2", "d3"]
    assert corpus.queries == EXPECTED.queries
    (d0, d0_reason), (q0, q0_reason) = reasons(corpus)
    assert (d0, q0) == ("d0", "q0")
    assert "corpus.jsonl, line 1: expected a text or a title" in d0_reason
    assert "queries.jsonl, line 1: expected a query" in q0_reason


def test_judgements_of_no_query_and_repeated_ones_are_rejected(tmp_path: Path) -> None:
    corpus = read_corpus(beir(tmp_path, qrels=QRELS + "qx\td1\t1\nq1\td1\t0\n"))
    assert corpus.qrels == EXPECTED.qrels
    (repeated, repeated_reason), (qx, qx_reason) = reasons(corpus)
    assert (repeated, qx) == ("q1", "qx")
    assert "test.tsv, line 5: the first judgement on document 'd1' counts" in repeated_reason
    assert "expected a query of the corpus" in qx_reason


def test_judgements_on_documents_that_are_not_there_are_kept_and_told(tmp_path: Path) -> None:
    documents = [*DOCUMENTS, {"_id": "d3", "text": ""}]
    queries = [*QUERIES, {"_id": "q3", "text": "which is nowhere"}]
    lines = QRELS + "q1\tdx\t1\nq2\tdx\t1\nq3\td3\t1\n"
    corpus = read_corpus(beir(tmp_path, documents, queries, lines))
    assert [(qrel.query_id, qrel.doc_id) for qrel in corpus.qrels[2:]] == [("q1", "dx"), ("q2", "dx"), ("q3", "d3")]
    assert [query.query_id for query in corpus.queries] == ["q1", "q2", "q3"]
    (d3, _), (told, reason) = reasons(corpus)
    assert (d3, told) == ("d3", "qrels")
    assert reason == "judged documents that the corpus lacks: 2, 'dx' first; no search can find them"


def test_no_judgement_left_is_an_error_but_no_judgement_at_all_is_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 1 judgements of split 'test', none of them"):
        read_corpus(beir(tmp_path, qrels=HEADER + "q1\tdx\t1\n"))
    assert read_corpus(beir(tmp_path, qrels=HEADER)).queries == []


def test_judgements_beyond_the_first_documents_are_counted(tmp_path: Path) -> None:
    documents = [{"_id": "d0", "text": ""}, *DOCUMENTS, "not read any more"]
    config = beir(tmp_path, documents, qrels=QRELS + "q1\td2\t1\n").model_copy(update={"max_documents": 1})
    corpus = read_corpus(config)
    assert [document.doc_id for document in corpus.documents] == ["d1"]
    assert corpus.qrels == [Qrel("q1", "d1", 1)]
    assert reasons(corpus)[1:] == [("max_documents", "2 judgements on documents that are not among the first 1")]


# ---- any text


def test_lone_surrogates_become_replacement_characters(tmp_path: Path) -> None:
    line = r'{"_id": "d\ud800", "text": "\ud83d\ude00 \udc00", "metadata": {"k\udfff": ["\ud800"]}}' + "\n"
    config = beir(tmp_path, [line], QUERIES, "q1\td\ufffd\t1\n")
    assert list(read_corpus(config).documents) == [
        Document("d\ufffd", "\U0001f600 \ufffd", "", {"k\ufffd": ["\ufffd"]})
    ]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(min_size=1), st.text(), st.text(min_size=1)), unique_by=lambda row: row[0]))
def test_any_text_comes_through_to_the_tables(rows: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "docs.jsonl"
        lines = ({"_id": doc_id, "title": title, "text": text} for doc_id, title, text in rows)
        path.write_text(json_lines(lines), encoding="utf-8")
        expected = [Document(*row) for row in ((i, text, title) for i, title, text in rows)]
        expected = [document for document in expected if document.text.strip() or document.title.strip()]
        if not expected:
            with pytest.raises(InputError):
                read_corpus(CorpusConfig(type="jsonl", path=str(path)))
            return
        corpus = read_corpus(CorpusConfig(type="jsonl", path=str(path)))
        assert list(corpus.documents) == expected
        passages = [Passage(one.doc_id, one.doc_id, one.text, one.title) for one in corpus.documents]
        assert passages_to_table(passages).column("text").to_pylist() == [one.text for one in expected]
        assert table_from_rows("rejects", corpus.rejects).num_rows == len(rows) - len(expected)


BYTES = st.binary(max_size=60) | st.text('{}[]":,_idtexn0\\ud8\t\n q1-', max_size=60).map(str.encode)


@given(BYTES, BYTES, BYTES)
def test_any_bytes_are_read_or_are_an_input_error(documents: bytes, queries: bytes, qrels: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = beir(Path(folder), qrels=QRELS)
        for name, content in {
            "corpus.jsonl": documents,
            "queries.jsonl": queries,
            "qrels/test.tsv": qrels,
        }.items():
            with (Path(folder) / name).open("ab") as file:
                file.write(content)
        try:
            corpus = read_corpus(config)
        except InputError as error:
            assert folder in str(error)
        else:
            assert list(corpus.documents)[:2] == list(EXPECTED.documents)


def test_a_document_of_a_megabyte(tmp_path: Path) -> None:
    text = "A sentence — with “marks”, 日本語 and हिन्दी. \0" * 20_000
    config = beir(tmp_path, [{"_id": "d1", "text": text}], QUERIES, "q1\td1\t1\n")
    assert list(read_corpus(config).documents) == [Document("d1", text)]


def test_of_two_faults_the_first_is_told(tmp_path: Path) -> None:
    lines = [{"_id": "a", "text": "x"}, {"_id": "b", "text": "x"}, {"_id": "a", "text": "x"}, {"_id": "", "text": "x"}]
    path = tmp_path / "corpus.jsonl"
    config = CorpusConfig(type="jsonl", path=str(path))
    path.write_text(json_lines(lines))
    with pytest.raises(InputError, match=r"line 3, field '_id': .* 'a', which .*line 1 has too"):
        read_corpus(config)
    path.write_text(json_lines([{"_id": "a", "text": 1}, *lines]))
    with pytest.raises(InputError, match=r"line 1, field 'text'"):
        read_corpus(config)
    # What comes behind the last document that is wanted is not looked at.
    path.write_text(json_lines(lines))
    assert len(read_corpus(config.model_copy(update={"max_documents": 2})).documents) == 2
    with pytest.raises(InputError, match=r"which .*line 1 has too"):
        read_corpus(config.model_copy(update={"max_documents": 3}))


def test_ids_with_the_same_digest_are_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_digest", len)
    path = tmp_path / "corpus.jsonl"
    path.write_text(json_lines({"_id": name, "text": "x"} for name in ("a", "b", "cc")))
    assert len(read_corpus(CorpusConfig(type="jsonl", path=str(path))).documents) == 3


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def assert_read_as_json_does(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError as error:
        with pytest.raises(type(error)) as raised:
            readers._parse_json(text)
        assert str(raised.value) == str(error)
    else:
        # As text NaN equals itself, and -0.0 is not 0.
        assert repr(readers._parse_json(text)) == repr(expected)


@given(_JSON.map(json.dumps), st.booleans(), st.data())
def test_json_is_read_as_the_standard_library_reads_it(text: str, broken: bool, data: st.DataObject) -> None:
    if broken:
        place = data.draw(st.integers(0, len(text)))
        text = text[:place] + data.draw(st.text('{}[]",:\\eE+-.0189 \tNaInfinityud', max_size=6)) + text[place + 1 :]
    assert_read_as_json_does(text)


@pytest.mark.parametrize(
    "text", ['"\\ud800"', '"\\udc00\\ud800 \\u00e9"', "9" * 4301, "1e999", "[" * 500 + "]" * 500, '{"a": 1, "a": 2}']
)
def test_json_at_its_edges_is_read_as_the_standard_library_reads_it(text: str) -> None:
    assert_read_as_json_does(text)


# ---- the fingerprint


def test_the_fingerprint_follows_the_content_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = beir(tmp_path / "a"), beir(tmp_path / "b")
    first = source_fingerprint(one)
    assert source_fingerprint(two) == first
    assert source_fingerprint(one.model_copy(update={"unit": "chunk"})) == first
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        with (tmp_path / "b" / name).open("a") as file:
            file.write("\n")
        assert source_fingerprint(two) != first
        beir(tmp_path / "b")
    (tmp_path / "a" / "corpus.jsonl").unlink()
    with pytest.raises(InputError, match=r"corpus\.jsonl"):
        source_fingerprint(one)


def test_the_fingerprint_of_other_types(tmp_path: Path) -> None:
    beir(tmp_path)
    jsonl = CorpusConfig(type="jsonl", path=f"{tmp_path}/corpus.jsonl")
    with_queries = jsonl.model_copy(
        update={"queries_path": f"{tmp_path}/queries.jsonl", "qrels_path": f"{tmp_path}/qrels/test.tsv"}
    )
    docs = CorpusConfig(type="python_docs")
    sets = [CorpusConfig(type="ir_datasets", path=name) for name in ("a", "b")]
    digests = [source_fingerprint(config) for config in (jsonl, with_queries, docs, *sets)]
    assert len(set(digests)) == 5
    assert source_fingerprint(docs) == digests[2]


def test_open_input_reads_blocks(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"abc" * 1000))
    with open_input(str(tmp_path / "x.gz")) as stream:
        assert stream.read(4) == b"abca"
        assert len(stream.read()) == 2996
