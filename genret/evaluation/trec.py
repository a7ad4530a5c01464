"""Runs and judgements in TREC's text format, which trec_eval, ir_measures and the like read."""

import math
import re
from collections.abc import Iterator
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from genret.errors import InputError
from genret.tables import check_table

_UNSAFE = re.compile(r"[\s%\x00-\x1f\x7f]")
_LOWEST = float(np.finfo(np.float32).min)


def write_run(ranking: pa.Table, retriever: str) -> str:
    """One retriever's rankings, six columns a line: query, Q0, document, rank, score, retriever.

    Readers sort by score, in single precision, and each breaks ties in its own way. So a score that is not
    below the one before it is written as the next lower number; all others are written as they are.

    Args:
        ranking: Table `run`, of which the passages are written, or what `measures.rank_documents` makes of
            it, of which the documents are: the one that fits judgements of documents.
        retriever: Whose rankings; the format has no place for several in one file.

    Returns:
        The lines, in the order of the queries and ranks. White space, control characters and % in ids are
        percent-encoded (`urllib.parse.unquote` undoes it). Empty where the retriever found nothing.

    Raises:
        InputError: A score is not a finite number in single precision.
    """
    unit = "doc_id" if "doc_id" in ranking.column_names else "passage_id"
    rows = [row for row in ranking.to_pylist() if row["retriever"] == retriever]
    by_query: dict[str, list[dict]] = {}
    for row in rows:
        by_query.setdefault(row["query_id"], []).append(row)
    return "".join(
        f"{_escape(row['query_id'])} Q0 {_escape(row[unit])} {row['rank']} {score!r} {_escape(retriever)}\n"
        for ranked in by_query.values()
        for row, score in _falling(sorted(ranked, key=lambda row: row["rank"]))
    )


def write_qrels(qrels: pa.Table) -> str:
    """Judgements, four columns a line: query, 0, document, relevance. Ids are escaped as in `write_run`."""
    return "".join(
        f"{_escape(row['query_id'])} 0 {_escape(row['doc_id'])} {row['relevance']}\n"
        for row in check_table("qrels", qrels).to_pylist()
    )


def _escape(identifier: str) -> str:
    return _UNSAFE.sub(lambda match: quote(match[0]), identifier)


def _falling(ranked: list[dict]) -> Iterator[tuple[dict, float]]:
    """The rows with scores that fall strictly, also after rounding to single precision."""
    previous = math.inf
    for row in ranked:
        score = row["score"]
        if not _LOWEST <= score <= -_LOWEST:
            raise InputError(
                f"table run: query {row['query_id']!r}, rank {row['rank']}: expected a finite score, found {score}"
            )
        if float(np.float32(score)) >= previous:
            score = float(np.nextafter(np.float32(previous), np.float32(-math.inf)))
        previous = float(np.float32(score))
        yield row, score
