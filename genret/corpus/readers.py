"""Reading corpora: documents, and the queries and judgements to evaluate with."""

import hashlib
import io
import json
import re
import sys
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic_core import from_json

from genret.config import CorpusConfig
from genret.corpus import python_docs
from genret.corpus.documents import Documents
from genret.errors import InputError
from genret.tables import reject
from genret.types import Document, Qrel, Query

_STAGE = "corpus"
_QRELS_HEADER = ["query-id", "corpus-id", "score"]
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_BLOCK_BYTES = 1 << 20
_KINDS = {
    fs.FileType.NotFound: "nothing",
    fs.FileType.Directory: "a folder",
    fs.FileType.Unknown: "something else",
}


@dataclass(frozen=True)
class Corpus:
    """What a corpus brings. Every judgement names a query that is here; a judged document may be missing."""

    documents: Documents
    queries: list[Query]
    """Only those that have a judgement."""
    qrels: list[Qrel]
    rejects: list[dict[str, str]]
    """Rows of the `rejects` table: what was left out, and why; and how many judged documents are missing."""


class Row(NamedTuple):
    """A record as it was read, and where it stands, for messages."""

    place: str
    values: dict[str, Any]
    raw: str


class FieldNames(NamedTuple):
    """The names of the fields that a document is read from."""

    id: str = "_id"
    title: str = "title"
    text: str = "text"


def read_corpus(config: CorpusConfig) -> Corpus:
    """Read the corpus that the configuration names.

    Args:
        config: The corpus section. Paths are local, or URLs of any filesystem that pyarrow knows (`s3://`,
            `gs://`, `file://`); `.gz` and other usual compressions are undone.

    Returns:
        The corpus. Documents without title and text, queries without text, judgements that name no query that is
        there, and those on documents beyond `max_documents` are among its rejects. Other judgements on documents that
        are not there are kept, as trec_eval keeps them: a relevant document that nobody can find is not found.

    Raises:
        InputError: A path, a record or a field is not as expected (the message says where), an id stands
            twice, there are no documents, or there are judgements of which none is on one of them.
    """
    _check_path(config)
    return _READERS[config.type](config)


def training_part(config: CorpusConfig) -> CorpusConfig:
    """The corpus section whose queries and judgements are those to train on."""
    return config.model_copy(update={"split": config.train_split, "train_split": ""})


def source_fingerprint(config: CorpusConfig) -> str:
    """A digest of the corpus's content, to see whether it has changed.

    Args:
        config: The corpus section. How it reads (field names, unit) is no part of the digest.

    Returns:
        The sha256, in hexadecimal, of the input files in their order; for `python_docs` of the Python version
        and the questions; for `ir_datasets`, whose content does not change, of the id.

    Raises:
        InputError: The path is missing, or a file is missing or cannot be read.
    """
    _check_path(config)
    digest = hashlib.sha256(config.type.encode())
    if config.type == "python_docs":
        digest.update(sys.version.encode() + python_docs.QUESTIONS.read_bytes())
    elif config.type == "ir_datasets":
        digest.update(config.path.encode())
    else:
        for path in _input_files(config):
            digest.update(_file_digest(path))
    return digest.hexdigest()


def _check_path(config: CorpusConfig) -> None:
    if config.type != "python_docs" and not config.path:
        raise InputError(f"corpus.path: a corpus of type {config.type} needs a path, found none")


def _file_digest(path: str) -> bytes:
    digest = hashlib.sha256()
    with open_input(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


def _input_files(config: CorpusConfig) -> list[str]:
    if config.type == "beir":
        training = _beir_files(training_part(config))[2:] if config.train_split else ()
        return [*_beir_files(config), *training]
    documents = _parquet_files(config.path) if config.type == "parquet" else [config.path]
    return documents + [path for path in (config.queries_path, config.qrels_path) if path]


# ---- one reader a type


def _read_beir(config: CorpusConfig) -> Corpus:
    corpus, queries, qrels = _beir_files(config)
    return _assemble(config, lambda: read_json_lines(corpus), FieldNames(), queries, qrels)


def _beir_files(config: CorpusConfig) -> tuple[str, str, str]:
    """The paths of documents, queries and judgements of a BEIR folder (https://github.com/beir-cellar/beir)."""
    folder = config.path.rstrip("/") or "/"
    if _file_type(folder) == fs.FileType.NotFound:
        raise InputError(f"corpus.path: expected a BEIR folder, found nothing at {folder}")
    if _file_type(folder) != fs.FileType.Directory:
        raise InputError(f"corpus.path: expected a BEIR folder, found the file {folder}")
    corpus, queries = (_beir_file(folder, name) for name in ("corpus.jsonl", "queries.jsonl"))
    qrels = f"{folder}/qrels/{config.split}.tsv"
    if _file_type(qrels) != fs.FileType.File:
        splits = [Path(name).stem for name in _list_files(f"{folder}/qrels") if name.endswith(".tsv")]
        if not splits:
            raise InputError(f"corpus.path: {folder} is not a BEIR folder: it has no qrels/SPLIT.tsv")
        raise InputError(f"corpus.split: expected one of {sorted(splits)} of {folder}, found {config.split!r}")
    return corpus, queries, qrels


def _beir_file(folder: str, name: str) -> str:
    for candidate in (f"{folder}/{name}", f"{folder}/{name}.gz"):
        if _file_type(candidate) == fs.FileType.File:
            return candidate
    raise InputError(f"corpus.path: {folder} is not a BEIR folder: it has no {name} or {name}.gz")


def _read_jsonl(config: CorpusConfig) -> Corpus:
    _check_judgement_paths(config)
    return _assemble(
        config, lambda: read_json_lines(config.path), _configured_fields(config), config.queries_path, config.qrels_path
    )


def _read_parquet(config: CorpusConfig) -> Corpus:
    _check_judgement_paths(config)
    fields = _configured_fields(config)
    files = _parquet_files(config.path)

    def rows() -> Iterator[Row]:
        return (row for path in files for row in _parquet_rows(path, fields))

    return _assemble(config, rows, fields, config.queries_path, config.qrels_path)


def _configured_fields(config: CorpusConfig) -> FieldNames:
    return FieldNames(config.id_field, config.title_field, config.text_field)


def _check_judgement_paths(config: CorpusConfig) -> None:
    if bool(config.queries_path) != bool(config.qrels_path):
        given, missing = ("queries_path", "qrels_path") if config.queries_path else ("qrels_path", "queries_path")
        raise InputError(f"corpus.{missing}: expected a path, as corpus.{given} is given too, found none")


def _read_ir_datasets(config: CorpusConfig) -> Corpus:
    dataset = _load_ir_dataset(config.path)

    def documents() -> Iterator[Row]:
        return (_ir_datasets_row(config.path, document) for document in dataset.docs_iter())

    if not (dataset.has_queries() and dataset.has_qrels()):
        return _assemble(config, documents, FieldNames("doc_id"), "", "")
    queries = [Query(_clean(query.query_id), _clean(query.default_text())) for query in dataset.queries_iter()]
    qrels = [Qrel(_clean(qrel.query_id), _clean(qrel.doc_id), int(qrel.relevance)) for qrel in dataset.qrels_iter()]
    rejects: list[dict[str, str]] = []
    return _keep_judged(config, _documents(config, documents, FieldNames("doc_id"), rejects), queries, qrels, rejects)


def _load_ir_dataset(name: str) -> Any:
    try:
        import ir_datasets
    except ImportError as error:
        raise InputError(
            "corpus.type: ir_datasets needs a package that is not installed: pip install genret[ir-datasets]"
        ) from error
    try:
        dataset = ir_datasets.load(name)
    except KeyError as error:
        raise InputError(f"corpus.path: expected the id of a dataset of ir_datasets, found {name!r}") from error
    if not dataset.has_docs():
        raise InputError(f"corpus.path: expected a dataset with documents, found none in {name!r}")
    return dataset


def _ir_datasets_row(name: str, document: Any) -> Row:
    values = document._asdict()
    if "text" not in values:
        # Title, body and whatever else the dataset calls its text, as one.
        values = {**values, "title": "", "text": document.default_text()}
    return Row(f"{name}, document {document.doc_id}", _clean_all(values), "")


def _read_python_docs(config: CorpusConfig) -> Corpus:
    questions = python_docs.read_questions(config.split)
    docs = python_docs.read_python_docs()
    qrels, rejects = python_docs.judge(questions, docs)
    documents = Documents.collect(docs.documents[: config.max_documents or None])
    return _keep_judged(config, documents, [question.query for question in questions], qrels, rejects)


_READERS: dict[str, Callable[[CorpusConfig], Corpus]] = {
    "beir": _read_beir,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "ir_datasets": _read_ir_datasets,
    "python_docs": _read_python_docs,
}


# ---- from records to a corpus


_Draw = Callable[[], Iterable[Row]]


def _assemble(config: CorpusConfig, rows: _Draw, fields: FieldNames, queries_path: str, qrels_path: str) -> Corpus:
    rejects: list[dict[str, str]] = []
    documents = _documents(config, rows, fields, rejects)
    if not queries_path:
        return _keep_judged(config, documents, [], [], rejects)
    queries = _queries(lambda: read_json_lines(queries_path), rejects)
    return _keep_judged(config, documents, queries, _qrels(qrels_path, rejects), rejects)


def _documents(config: CorpusConfig, rows: _Draw, fields: FieldNames, rejects: list[dict[str, str]]) -> Documents:
    documents = Documents.collect(_each_document(config, rows, fields, rejects))
    if not len(documents):
        raise InputError(f"{config.path}: expected documents, found none ({len(rejects)} without text)")
    return documents


def _each_document(
    config: CorpusConfig, rows: _Draw, fields: FieldNames, rejects: list[dict[str, str]]
) -> Iterator[Document]:
    count = 0
    with closing(_with_unique_ids(rows, fields.id)) as identified:
        for doc_id, row in identified:
            title = _text_field(row, fields.title, required=False)
            text = _text_field(row, fields.text)
            if text.strip() or title.strip():
                count += 1
                yield Document(doc_id, text, title, _metadata(row.values, fields))
            else:
                rejects.append(reject(_STAGE, doc_id, f"{row.place}: expected a text or a title, found none", row.raw))
            if 0 < config.max_documents == count:
                break


def _metadata(values: dict[str, Any], fields: FieldNames) -> dict[str, Any]:
    if isinstance(metadata := values.get("metadata"), dict):
        return metadata
    return {name: value for name, value in values.items() if name not in fields and value is not None}


def _queries(rows: _Draw, rejects: list[dict[str, str]]) -> list[Query]:
    queries = []
    with closing(_with_unique_ids(rows, "_id")) as identified:
        for query_id, row in identified:
            if (text := _text_field(row, "text")).strip():
                queries.append(Query(query_id, text, _metadata(row.values, FieldNames())))
            else:
                rejects.append(reject(_STAGE, query_id, f"{row.place}: expected a query, found no text", row.raw))
    return queries


def _with_unique_ids(draw: _Draw, field: str) -> Generator[tuple[str, Row], None, None]:
    """The rows with their ids. It must be closed: only then are ids that stand twice an error.

    Kept are eight bytes an id. Where two have the same, the rows are drawn again to see whether it is one id.
    """
    digests = array("q")
    try:
        for row in draw():
            identifier = _identifier(row, field)
            digests.append(_digest(identifier))
            yield identifier, row
    finally:
        # Also behind an error: of two, the one that stands first in the file is told.
        _check_unique(digests, draw, field)


def _identifier(row: Row, field: str) -> str:
    value = row.values.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(f"{row.place}, field {field!r}: expected an id (text or whole number), {_found(row, field)}")
    return str(value)


def _digest(identifier: str) -> int:
    # Compared within this process alone, in which it is always the same.
    return hash(identifier)


def _check_unique(digests: "array[int]", draw: _Draw, field: str) -> None:
    keys = np.sort(np.frombuffer(digests, dtype=np.int64))
    twice = set(keys[1:][keys[1:] == keys[:-1]].tolist())
    places: dict[str, str] = {}
    for row in islice(draw(), len(digests)) if twice else ():
        identifier = _identifier(row, field)
        if identifier in places:
            raise InputError(
                f"{row.place}, field {field!r}: expected an id of its own, found {identifier!r}, "
                f"which {places[identifier]} has too"
            )
        if _digest(identifier) in twice:
            places[identifier] = row.place


def _text_field(row: Row, field: str, required: bool = True) -> str:
    value = row.values.get(field)
    if value is None and (field in row.values or not required):
        return ""
    if not isinstance(value, str):
        raise InputError(f"{row.place}, field {field!r}: expected text, {_found(row, field)}")
    return value


def _found(row: Row, field: str) -> str:
    if field in row.values:
        return f"found {row.values[field]!r:.80}"
    return f"found only the fields {sorted(row.values)}"


def _qrels(path: str, rejects: list[dict[str, str]]) -> list[Qrel]:
    """Read judgements: a header, then query id, document id and relevance, with tabs between them."""
    relevance: dict[tuple[str, str], int] = {}
    for number, line in read_lines(path):
        fields = line.split("\t")
        if number == 1 and [field.strip() for field in fields] == _QRELS_HEADER:
            continue
        if len(fields) != 3:
            raise InputError(
                f"{path}, line {number}: expected {_QRELS_HEADER} with tabs between them, found {line!r:.80}"
            )
        query_id, doc_id, score = fields
        if not _INTEGER.fullmatch(score.strip()):
            raise InputError(f"{path}, line {number}, field 'score': expected a whole number, found {score!r:.80}")
        if (query_id, doc_id) in relevance:
            reason = f"{path}, line {number}: the first judgement on document {doc_id!r} counts, this is another"
            rejects.append(reject(_STAGE, query_id, reason, line))
        else:
            relevance[query_id, doc_id] = int(score)
    return [Qrel(query_id, doc_id, score) for (query_id, doc_id), score in relevance.items()]


def _keep_judged(
    config: CorpusConfig,
    documents: Documents,
    queries: list[Query],
    qrels: list[Qrel],
    rejects: list[dict[str, str]],
) -> Corpus:
    """Leave out judgements of no query and beyond the first documents, and queries that nobody judged."""
    limited = len(documents) == config.max_documents
    doc_ids = documents.among({qrel.doc_id for qrel in qrels})
    query_ids = {query.query_id for query in queries}
    kept: list[Qrel] = []
    beyond = 0
    for qrel in qrels:
        if qrel.query_id not in query_ids:
            reason = f"a judgement on document {qrel.doc_id!r}: expected a query of the corpus, found no such id"
            rejects.append(reject(_STAGE, qrel.query_id, reason))
        elif limited and qrel.doc_id not in doc_ids:
            beyond += 1
        else:
            kept.append(qrel)
    if beyond:
        reason = f"{beyond} judgements on documents that are not among the first {config.max_documents}"
        rejects.append(reject(_STAGE, "max_documents", reason))
    missing = list(dict.fromkeys(qrel.doc_id for qrel in kept if qrel.doc_id not in doc_ids))
    if missing:
        reason = (
            f"judged documents that the corpus lacks: {len(missing)}, {missing[0]!r} first; no search can find them"
        )
        rejects.append(reject(_STAGE, "qrels", reason))
    if qrels and not any(qrel.doc_id in doc_ids for qrel in kept):
        raise InputError(
            f"{config.path or config.type}: expected judgements on the corpus's documents and queries, found "
            f"{len(qrels)} judgements of split {config.split!r}, none of them of a query on one of the "
            f"{len(documents)} documents that were read"
        )
    judged = {qrel.query_id for qrel in kept}
    return Corpus(documents, [query for query in queries if query.query_id in judged], kept, rejects)


# ---- from files to records


def open_input(path: str) -> BinaryIO:
    """Open a file for reading, wherever it is.

    Args:
        path: A local path, or a URL of a filesystem that pyarrow knows. By its ending, a compressed file is
            decompressed.

    Raises:
        InputError: There is no such file, or it cannot be opened.
    """
    filesystem, inner = _filesystem(path)
    if (kind := _file_type(path)) != fs.FileType.File:
        raise InputError(f"{path}: expected a file, found {_KINDS[kind]}")
    try:
        return io.BufferedReader(filesystem.open_input_stream(inner), _BLOCK_BYTES)
    except OSError as error:
        raise InputError(f"{path}: expected a file to read, found that it cannot be opened ({error})") from error


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file that are not blank, with their numbers from 1.

    Raises:
        InputError: The file cannot be read, or a line is not UTF-8.
    """
    number = 0
    with open_input(path) as stream:
        try:
            for number, raw in enumerate(stream, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line.strip():
                    yield number, line
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number}: expected UTF-8, found the byte 0x{error.object[error.start]:02x} at "
                f"byte {error.start} of the line"
            ) from error
        except OSError as error:
            raise InputError(f"{path}, after line {number}: expected more to read, found {error}") from error


def read_json_lines(path: str) -> Iterator[Row]:
    """The JSON objects of a file that has one a line; lone surrogates in them become U+FFFD.

    Raises:
        InputError: The file cannot be read, or a line is not a JSON object.
    """
    for number, line in read_lines(path):
        place = f"{path}, line {number}"
        try:
            values = _parse_json(line)
            # Only an escape can make a lone surrogate: UTF-8 has none.
            values = _clean_all(values) if "\\u" in line else values
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: expected a JSON object, found {line!r:.80} ({error})") from error
        if not isinstance(values, dict):
            raise InputError(f"{place}: expected a JSON object, found {line!r:.80}")
        yield Row(place, values, line)


def _parse_json(text: str) -> Any:
    """What `json.loads` makes of a text."""
    try:
        # A third of the time; but it refuses lone surrogates and deep nesting, and words its errors in its own way.
        return from_json(text, cache_strings="keys")
    except ValueError:
        return json.loads(text)


def _clean_all(value: Any) -> Any:
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, dict):
        return {_clean_all(key): _clean_all(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean_all(inner) for inner in value]
    return value


def _clean(text: str) -> str:
    return _LONE_SURROGATE.sub("\ufffd", text)


def _parquet_files(path: str) -> list[str]:
    if _file_type(path) == fs.FileType.File:
        return [path]
    files = sorted(name for name in _list_files(path) if name.endswith(".parquet"))
    if not files:
        raise InputError(f"corpus.path: expected a Parquet file or a folder of such, found none at {path}")
    return files


def _parquet_rows(path: str, fields: FieldNames) -> Iterator[Row]:
    filesystem, inner = _filesystem(path)
    number = 0
    try:
        with filesystem.open_input_file(inner) as stream:
            table = pq.ParquetFile(stream)
            columns = table.schema_arrow.names
            for field in (fields.id, fields.text):
                if field not in columns:
                    raise InputError(f"{path}: expected a column {field!r}, found the columns {sorted(columns)}")
            for batch in table.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", values, "")
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}, after row {number}: expected Parquet, found {error}") from error


def _list_files(folder: str) -> list[str]:
    """All files below a folder, as paths that `open_input` takes; none where there is no such folder."""
    filesystem, inner = _filesystem(folder)
    selector = fs.FileSelector(inner, recursive=True, allow_not_found=True)
    found = [info.path for info in filesystem.get_file_info(selector) if info.type == fs.FileType.File]
    return [folder.rstrip("/") + name.removeprefix(inner.rstrip("/")) for name in found]


def _file_type(path: str) -> fs.FileType:
    filesystem, inner = _filesystem(path)
    try:
        return filesystem.get_file_info(inner).type
    except OSError as error:
        raise InputError(f"{path}: expected a path to read, found that it cannot be reached ({error})") from error


def _filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """The filesystem that a path is on, and the path within it."""
    if "://" not in path:
        return fs.LocalFileSystem(), str(Path(path).expanduser())
    try:
        return fs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: expected a local path or a URL that can be read, found {error}") from error
