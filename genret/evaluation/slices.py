"""The measures on parts of the test queries: short and long ones, those on one topic, those that training was about."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genret.config import EvaluationConfig
from genret.errors import InputError
from genret.evaluation.intervals import bootstrap_intervals
from genret.evaluation.measures import judgements
from genret.llm.words import split_words
from genret.tables import check_table, table_from_rows

QUERY_LENGTH = "query length (words)"
"""How slices by the length of the queries are called."""
TRAINED_ON = "relevant passage has training queries that people wrote"
"""How slices by what training was about are called."""
YES, NO = "yes", "no"
NONE, OTHER = "(none)", "(other)"
"""Slices of the queries without a value, and of those with a rare one."""

Slices = dict[str, list[str]]
"""Query ids by slice."""

_LENGTHS = ((0, 3), (4, 6), (7, 10), (11, 20), (21, 50))
_MOST_VALUES = 20
# A mean over fewer queries says nothing.
_FEWEST_QUERIES = 5


def slice_queries(
    fields: Sequence[str],
    query_ids: Sequence[str],
    test_queries: pa.Table,
    query_metadata: pa.Table,
    qrels: pa.Table,
    passages: pa.Table,
) -> dict[str, Slices]:
    """Cut the test queries into slices: by their length in words, and by metadata.

    The value of a field is the query's own where its metadata has the field (the kind of question, say), and else
    that of the documents that are relevant to it. Where there are several values, in a list or over several
    documents, the query is in the slice of each. Values that are objects or empty count as none.

    Args:
        fields: Names of metadata fields.
        query_ids: The queries to cut up.
        test_queries: Table `test_queries`.
        query_metadata: Table `query_metadata`.
        qrels: Table `qrels`.
        passages: Table `passages`; of a document the metadata of its first passage counts.

    Returns:
        Slices by what was sliced by. Lengths rise. Values stand by falling number of queries: the 20 most frequent
        that have 5 queries or more, the rest together as `OTHER`, then those without a value as `NONE`. No slice
        is empty.

    Raises:
        InputError: Neither a query nor a passage has a field; a table does not fit its schema.
    """
    if not query_ids:
        return {}
    texts = _column_by(check_table("test_queries", test_queries), "query_id", "text")
    slices = {QUERY_LENGTH: _by_length({query_id: texts[query_id] for query_id in query_ids})}
    if not fields:
        return slices
    own = _parsed(_column_by(check_table("query_metadata", query_metadata), "query_id", "metadata"))
    relevant = {
        query_id: [doc_id for doc_id, relevance in judged.items() if relevance > 0]
        for query_id, judged in judgements(qrels).items()
    }
    passages = check_table("passages", passages)
    documents = _document_metadata(passages, {doc_id for name in query_ids for doc_id in relevant.get(name, ())})
    _check_fields(fields, own, documents, passages)
    found = {
        query_id: [documents[name] for name in relevant.get(query_id, ()) if name in documents]
        for query_id in query_ids
    }
    for field in fields:
        slices[field] = _by_value(
            {query_id: _values(field, own.get(query_id, {}), found[query_id]) for query_id in query_ids}
        )
    return slices


def slice_by_training(
    query_ids: Sequence[str], qrels: pa.Table, passages: pa.Table, annotated_queries: pa.Table
) -> Slices:
    """Cut the test queries by whether people wrote training queries for a passage that is relevant to them.

    Where training and test splits judge the same few documents, what is measured over all queries says little of
    documents that nobody has asked for yet.

    Args:
        query_ids: The queries to cut up.
        qrels: Table `qrels`.
        passages: Table `passages`.
        annotated_queries: Table `annotated_queries`.

    Returns:
        Slices `YES` and `NO`; none is empty.

    Raises:
        InputError: A table does not fit its schema.
    """
    document_of = _column_by(check_table("passages", passages), "passage_id", "doc_id")
    annotated = check_table("annotated_queries", annotated_queries)["passage_id"].to_pylist()
    asked_for = {document_of[passage_id] for passage_id in annotated}
    judged = judgements(qrels)
    slices: Slices = {YES: [], NO: []}
    for query_id in query_ids:
        relevant = (doc_id for doc_id, relevance in judged.get(query_id, {}).items() if relevance > 0)
        slices[YES if any(doc_id in asked_for for doc_id in relevant) else NO].append(query_id)
    return {name: found for name, found in slices.items() if found}


def slice_measures(
    config: EvaluationConfig, query_measures: pa.Table, slices: Mapping[str, Slices], seed: int = 0
) -> pa.Table:
    """The measures of each retriever on each slice.

    Args:
        config: Number of resamplings and coverage of the intervals.
        query_measures: Table `query_measures`.
        slices: As `slice_queries` gives them, over queries of that table.
        seed: Seed of the bootstrap.

    Returns:
        Table `slice_measures`: like `measures`, with the same intervals, over the queries of each slice.

    Raises:
        InputError: The table does not fit its schema.
    """
    values: dict[tuple[str, str], dict[str, float]] = {}
    for row in check_table("query_measures", query_measures).to_pylist():
        values.setdefault((row["retriever"], row["measure"]), {})[row["query_id"]] = row["value"]
    rows = []
    for slice_by, parts in slices.items():
        for name, query_ids in parts.items():
            columns = np.array([[column[query_id] for column in values.values()] for query_id in query_ids])
            low, high = bootstrap_intervals(columns, config.bootstrap_samples, config.confidence, seed)
            rows += [
                {
                    "slice_by": slice_by,
                    "slice": name,
                    "retriever": retriever,
                    "measure": measure,
                    "value": columns[:, place].mean(),
                    "n_queries": len(query_ids),
                    "ci_low": low[place],
                    "ci_high": high[place],
                }
                for place, (retriever, measure) in enumerate(values)
            ]
    return table_from_rows("slice_measures", rows)


def _by_length(texts: Mapping[str, str]) -> Slices:
    lengths = {query_id: len(split_words(text)) for query_id, text in texts.items()}
    slices = {
        f"{low}–{high}": [query_id for query_id, length in lengths.items() if low <= length <= high]
        for low, high in _LENGTHS
    }
    longest = _LENGTHS[-1][1]
    slices[f"over {longest}"] = [query_id for query_id, length in lengths.items() if length > longest]
    return {name: query_ids for name, query_ids in slices.items() if query_ids}


def _by_value(values: Mapping[str, Sequence[str]]) -> Slices:
    slices: Slices = {}
    for query_id, found in values.items():
        for value in found:
            slices.setdefault(value, []).append(query_id)
    ordered = sorted(slices, key=lambda value: (-len(slices[value]), value))
    frequent = [value for value in ordered[:_MOST_VALUES] if len(slices[value]) >= _FEWEST_QUERIES]
    rare = set(ordered[len(frequent) :])
    result = {value: slices[value] for value in frequent}
    if rare:
        result[OTHER] = [query_id for query_id, found in values.items() if rare.intersection(found)]
    if without := [query_id for query_id, found in values.items() if not found]:
        result[NONE] = without
    return result


def _values(field: str, own: Mapping[str, Any], documents: Iterable[Mapping[str, Any]]) -> list[str]:
    """The different values of a field, as texts."""
    sources = [own] if field in own else documents
    found = [item for source in sources for item in _items(source.get(field))]
    return list(dict.fromkeys(item for item in found if item))


def _items(value: Any) -> list[str]:
    if isinstance(value, list):
        return [text for item in value for text in _items(item)]
    if value is None or isinstance(value, dict):
        return []
    return [value.strip() if isinstance(value, str) else json.dumps(value)]


def _document_metadata(passages: pa.Table, doc_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    wanted = passages.filter(pc.is_in(passages["doc_id"], pa.array(list(doc_ids), type=pa.string())))
    first: dict[str, str] = {}
    for doc_id, metadata in zip(wanted["doc_id"].to_pylist(), wanted["metadata"].to_pylist(), strict=True):
        first.setdefault(doc_id, metadata)
    return _parsed(first)


def _check_fields(
    fields: Sequence[str],
    own: Mapping[str, Mapping[str, Any]],
    documents: Mapping[str, Mapping[str, Any]],
    passages: pa.Table,
) -> None:
    known = {name for metadata in (*own.values(), *documents.values()) for name in metadata}
    if set(fields) <= known:
        return
    # Parsing every passage's metadata takes a while, and is seldom needed.
    known.update(name for text in passages["metadata"].to_pylist() for name in json.loads(text))
    if unknown := [field for field in fields if field not in known]:
        raise InputError(
            f"evaluation.slice_fields: no query and no passage has the field {unknown[0]!r}; they have {sorted(known)}"
        )


def _parsed(texts: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    return {name: json.loads(text) for name, text in texts.items()}


def _column_by(table: pa.Table, key: str, column: str) -> dict[str, str]:
    return dict(zip(table[key].to_pylist(), table[column].to_pylist(), strict=True))
