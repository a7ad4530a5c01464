"""The Arrow schema of every table that passes between stages, and the check that a table fits its schema."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from genret.errors import InputError
from genret.types import Passage

_STRING = pa.string()
_ROWS_A_BLOCK = 65_536
# Of an array of strings: its offsets are int32.
_MOST_BYTES = 2**31 - 1


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


SCHEMAS: dict[str, pa.Schema] = {
    # metadata is a JSON object as a string: its fields differ from corpus to corpus.
    "passages": _schema(passage_id=_STRING, doc_id=_STRING, title=_STRING, text=_STRING, metadata=_STRING),
    # What the corpus brings to evaluate with: its own queries and judgements, on documents.
    "test_queries": _schema(query_id=_STRING, text=_STRING),
    "qrels": _schema(query_id=_STRING, doc_id=_STRING, relevance=pa.int32()),
    # Of the test queries that have some; a JSON object as in passages.
    "query_metadata": _schema(query_id=_STRING, metadata=_STRING),
    "identifiers": _schema(passage_id=_STRING, identifier=_STRING, source=_STRING),
    "queries": _schema(query_id=_STRING, passage_id=_STRING, text=_STRING, kind=_STRING, generator=_STRING),
    # Queries that people wrote and judged for training; columns as in queries.
    "annotated_queries": _schema(query_id=_STRING, passage_id=_STRING, text=_STRING, kind=_STRING, generator=_STRING),
    "preference_queries": _schema(query_id=_STRING, passage_id=_STRING, text=_STRING, answer=_STRING),
    "sft_examples": _schema(prompt=_STRING, completion=_STRING, kind=_STRING),
    "preference_pairs": _schema(
        query_id=_STRING,
        prompt=_STRING,
        chosen=_STRING,
        rejected=_STRING,
        # Ranks count from 1; positive_rank 0 says that the positive was not among the candidates.
        positive_rank=pa.int32(),
        negative_rank=pa.int32(),
    ),
    # Written for a query of its passage, to look as if it answered it.
    "negatives": _schema(query_id=_STRING, passage_id=_STRING, text=_STRING, generator=_STRING),
    # A row a query and negative: negative_id or negative_text is empty, both where the source is none.
    "contrastive_examples": _schema(
        query_id=_STRING,
        query=_STRING,
        positive_id=_STRING,
        negative_id=_STRING,
        negative_text=_STRING,
        negative_source=_STRING,
    ),
    # The share of synthetic negatives before each validation in training, and what was measured then.
    "share_log": _schema(validation=pa.int32(), synthetic_share=pa.float64(), value=pa.float64()),
    "training_log": _schema(
        stage=_STRING,
        step=pa.int64(),
        epoch=pa.float64(),
        loss=pa.float64(),
        learning_rate=pa.float64(),
        seconds=pa.float64(),
        # Since the row before, over all workers: tokens without padding; the share of the measured rate of matrix
        # products that went into the model (MFU); and the most memory of the first worker's device so far.
        tokens=pa.int64(),
        tokens_a_second=pa.float64(),
        mfu=pa.float64(),
        memory_gib=pa.float64(),
    ),
    # The loss on queries that are not trained on, as it was before some step.
    "validation_log": _schema(stage=_STRING, step=pa.int64(), loss=pa.float64(), seconds=pa.float64()),
    "run": _schema(query_id=_STRING, passage_id=_STRING, rank=pa.int32(), score=pa.float64(), retriever=_STRING),
    "latencies": _schema(
        retriever=_STRING,
        n_queries=pa.int32(),
        seconds=pa.float64(),
        milliseconds_a_query=pa.float64(),
        # What the retriever reads, on disk: its index, and its model where it has one.
        index_bytes=pa.int64(),
    ),
    "measures": _schema(
        retriever=_STRING,
        measure=_STRING,
        value=pa.float64(),
        n_queries=pa.int32(),
        ci_low=pa.float64(),
        ci_high=pa.float64(),
    ),
    "query_measures": _schema(retriever=_STRING, measure=_STRING, query_id=_STRING, value=pa.float64()),
    # A row a measure and pair of retrievers; the difference is that of the means, a minus b.
    "significance": _schema(
        measure=_STRING,
        retriever_a=_STRING,
        retriever_b=_STRING,
        difference=pa.float64(),
        p=pa.float64(),
        p_holm=pa.float64(),
        n_queries=pa.int32(),
    ),
    "slice_measures": _schema(
        slice_by=_STRING,
        slice=_STRING,
        retriever=_STRING,
        measure=_STRING,
        value=pa.float64(),
        n_queries=pa.int32(),
        ci_low=pa.float64(),
        ci_high=pa.float64(),
    ),
    # How the rank of the first relevant document changed, and what it adds to the difference in MRR.
    "rank_moves": _schema(
        retriever_before=_STRING,
        retriever_after=_STRING,
        move=_STRING,
        n_queries=pa.int32(),
        mrr_change=pa.float64(),
    ),
    # What rank_moves counts, query by query; rank 0 says that no relevant document was found.
    "query_moves": _schema(query_id=_STRING, rank_before=pa.int32(), rank_after=pa.int32()),
    # A row an ordered pair of sets of synthetic queries.
    "win_rates": _schema(
        set_a=_STRING,
        set_b=_STRING,
        win_rate=pa.float64(),
        tie_rate=pa.float64(),
        similarity_a=pa.float64(),
        similarity_b=pa.float64(),
        n_queries=pa.int32(),
    ),
    "dataset_statistics": _schema(
        part=_STRING,
        count=pa.int64(),
        words_mean=pa.float64(),
        words_median=pa.float64(),
        words_max=pa.int64(),
    ),
    "identifier_statistics": _schema(source=_STRING, count=pa.int64(), tokens_mean=pa.float64(), tokens_max=pa.int64()),
    # What the first tokens of an identifier tell: how many different beginnings, how many identifiers share theirs.
    "identifier_depths": _schema(depth=pa.int32(), prefixes=pa.int64(), shared=pa.int64(), bits=pa.float64()),
    "rejects": _schema(stage=_STRING, input_id=_STRING, reason=_STRING, raw=_STRING),
}
"""Schema by table name. No column may hold a null."""


def text_table(name: str, columns: Mapping[str, Sequence[str]]) -> pa.Table:
    """Build a table whose columns are all texts, in a process that may be new.

    Arrow imports pandas before it looks at the first list, which takes longer than a thousand texts do; this does not.

    Args:
        name: A key of `SCHEMAS`.
        columns: The texts of every column; less than 2 GiB in each.

    Returns:
        The table, with the schema's columns in the schema's order.

    Raises:
        UnicodeEncodeError: A text has a lone surrogate.
        OverflowError: A column has too much text.
    """
    schema = SCHEMAS[name]
    return pa.table([text_array(columns[column]) for column in schema.names], schema=schema)


def text_array(texts: Sequence[str]) -> pa.StringArray:
    """The array of some texts, made as `text_table` makes its columns; raises what it raises."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)])
    if ends[-1] > _MOST_BYTES:
        raise OverflowError(f"expected at most {_MOST_BYTES:,} bytes of text in a column, found {ends[-1]:,}")
    offsets = pa.py_buffer(ends.astype(np.int32))
    return pa.StringArray.from_buffers(len(encoded), offsets, pa.py_buffer(b"".join(encoded)))


def table_from_rows(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Build a table from rows, checked against its schema.

    Args:
        name: A key of `SCHEMAS`.
        rows: One mapping a row, with every column of the schema.

    Returns:
        The table, with the schema's columns in the schema's order.

    Raises:
        InputError: A row lacks a column or holds a value of another type; names table, row, column, expected
            and found.
    """
    schema = SCHEMAS[name]
    remaining = iter(rows)
    blocks: list[pa.Table] = []
    # Block by block: as Python objects, a million rows take gigabytes.
    while block := list(islice(remaining, _ROWS_A_BLOCK)):
        first = len(blocks) * _ROWS_A_BLOCK
        blocks.append(pa.table([_column(name, field, block, first) for field in schema], schema=schema))
    return check_table(name, pa.concat_tables(blocks) if blocks else schema.empty_table())


def _column(name: str, field: pa.Field, rows: list[Mapping[str, Any]], first: int) -> pa.Array:
    try:
        return pa.array([row[field.name] for row in rows], type=field.type)
    except (KeyError, pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        for number, row in enumerate(rows, first):
            if field.name not in row:
                raise InputError(
                    f"table {name}, row {number}: column {field.name!r} is missing; "
                    f"expected {SCHEMAS[name].names}, found {sorted(row)}"
                ) from error
            try:
                pa.array([row[field.name]], type=field.type)
            except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError):
                raise InputError(
                    f"table {name}, row {number}, column {field.name!r}: expected {field.type}, "
                    f"found {row[field.name]!r:.80}"
                ) from error
        raise


def check_table(name: str, table: pa.Table) -> pa.Table:
    """Return the table with its schema's columns, or say which column does not fit.

    Args:
        name: A key of `SCHEMAS`.
        table: Any table; extra columns are an error too.

    Returns:
        The table cast to the schema.

    Raises:
        InputError: A column is missing, unexpected, of another type, or holds a null.
    """
    schema = SCHEMAS[name]
    if set(table.column_names) != set(schema.names):
        raise InputError(f"table {name}: expected the columns {schema.names}, found {table.column_names}")
    columns = []
    for field in schema:
        column = table.column(field.name)
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise InputError(f"table {name}, row {row}, column {field.name!r}: expected {field.type}, found null")
        try:
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputError(
                f"table {name}, column {field.name!r}: expected {field.type}, found {column.type} ({error})"
            ) from error
    return pa.table(columns, schema=schema)


def metadata_to_json(metadata: Mapping[str, Any]) -> str:
    """Metadata as the tables hold it: a JSON object; what JSON has no form for becomes its `str`."""
    if not metadata:  # most documents have none, and the encoder takes its time
        return "{}"
    return json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True, default=str)


def passages_to_table(passages: Iterable[Passage]) -> pa.Table:
    """The `passages` table of these passages."""
    return table_from_rows(
        "passages",
        (
            {
                "passage_id": passage.passage_id,
                "doc_id": passage.doc_id,
                "title": passage.title,
                "text": passage.text,
                "metadata": metadata_to_json(passage.metadata),
            }
            for passage in passages
        ),
    )


def passages_from_table(table: pa.Table) -> list[Passage]:
    """The passages of a `passages` table, in its order."""
    return list(iterate_passages(table))


def iterate_passages(table: pa.Table) -> Iterator[Passage]:
    """The passages of a `passages` table, in its order, made as they are asked for."""
    for batch in table.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            yield Passage(
                passage_id=row["passage_id"],
                doc_id=row["doc_id"],
                title=row["title"],
                text=row["text"],
                metadata=json.loads(row["metadata"]),
            )


def reject(stage: str, input_id: str, reason: str, raw: str = "") -> dict[str, str]:
    """A row of the `rejects` table. `raw` is cut to 500 characters, and lone surrogates are replaced."""

    def clean(text: str) -> str:
        return text.encode("utf-8", "replace").decode("utf-8")

    return {
        "stage": stage,
        "input_id": clean(input_id),
        "reason": clean(reason),
        "raw": clean(raw[:500]),
    }
