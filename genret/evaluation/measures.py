"""Retrieval measures a query and over all queries, on documents."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ir_measures
import numpy as np
import pyarrow as pa

from genret.config import EvaluationConfig
from genret.errors import InputError
from genret.evaluation.intervals import bootstrap_intervals
from genret.tables import check_table, reject, table_from_rows

# The cut-off of MRR is missing on purpose: rankings are cut before they are scored, and trec_eval's
# reciprocal rank, unlike its other measures, knows none.
_KINDS = {
    "HIT": lambda depth: ir_measures.Success @ depth,
    "MAP": lambda depth: ir_measures.AP @ depth,
    "MRR": lambda depth: ir_measures.RR,
    "NDCG": lambda depth: ir_measures.nDCG @ depth,
    "P": lambda depth: ir_measures.P @ depth,
    "R": lambda depth: ir_measures.R @ depth,
}
_NAME = re.compile(r"([A-Z]+)@([1-9][0-9]{0,5})")

Qrels = dict[str, dict[str, int]]
"""Relevance by query id and document id."""

Rankings = dict[str, list[str]]
"""Document ids, best first, by query id."""


@dataclass(frozen=True)
class Measure:
    """A measure with its cut-off.

    Attributes:
        name: As the paper writes it, such as `HIT@4`.
        kind: The part before the @.
        depth: How many documents of a ranking count.
    """

    name: str
    kind: str
    depth: int


def parse_measure(name: str) -> Measure:
    """Read a measure's name.

    `HIT@k`: 1 where a relevant document is among the first k, else 0 (trec_eval's success).
    `MRR@k`: 1 / rank of the first relevant document, 0 if it is not among the first k.
    `MAP@k`: the precision at each relevant document among the first k, summed and divided by the number of
    *all* relevant documents of the query (trec_eval's map_cut), not by the smaller of it and k as some
    libraries do.
    `NDCG@k`: the gain is the relevance, the discount log2(rank + 1) (trec_eval's ndcg_cut).
    `P@k`: relevant documents among the first k, divided by k. `R@k`: divided by all relevant documents.

    Raises:
        InputError: The name is none of these.
    """
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in _KINDS:
        known = ", ".join(f"{kind}@k" for kind in _KINDS)
        raise InputError(f"measure: expected one of {known} with a whole number k of at least 1, found {name!r}")
    return Measure(name, match[1], int(match[2]))


def evaluate(
    config: EvaluationConfig,
    run: pa.Table,
    qrels: pa.Table,
    test_queries: pa.Table,
    passages: pa.Table,
    *,
    retrievers: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, pa.Table]:
    """Score retrievers against judgements.

    Passages are first collapsed to their documents, the best passage of each counting, and then cut at the
    depth of each measure; so a run of chunks should be deeper than its measures. What counts as relevant is a
    relevance of at least 1. Documents that are judged relevant count also where the corpus lacks them.

    All test queries with a relevant judgement are scored; one for which a retriever found nothing counts 0.
    The other queries, and judgements of queries that are not in the table, are left out and named in
    `rejects`.

    Args:
        config: Measures, number of resamplings and coverage of the intervals.
        run: Table `run`, of one or more retrievers.
        qrels: Table `qrels`; of several judgements of one document for one query the highest counts.
        test_queries: Table `test_queries`.
        passages: Table `passages`, which says to which document a passage belongs.
        retrievers: Retrievers that get rows also if they found nothing at all. The others follow in the order
            of the run.
        seed: Seed of the bootstrap.

    Returns:
        Tables `measures` (retrievers in their order, measures in the order of the configuration, with
        percentile bootstrap intervals over queries), `query_measures` and `rejects`. The first two are empty
        where no query can be scored.

    Raises:
        InputError: An unknown measure, a table that does not fit its schema, a passage that is not in
            `passages`, a query of the run that is not in `test_queries`, or two passages at the same rank.
    """
    measures = [parse_measure(name) for name in dict.fromkeys(config.measures)]
    query_ids = check_table("test_queries", test_queries).column("query_id").to_pylist()
    judged = judgements(qrels)
    scored = {query_id: judged[query_id] for query_id in query_ids if is_answerable(judged.get(query_id, {}))}
    rankings = document_rankings(run, passages)
    _check_queries(rankings, query_ids)

    rows: list[dict[str, Any]] = []
    query_rows: list[dict[str, Any]] = []
    for retriever in dict.fromkeys([*retrievers, *rankings]) if scored else ():
        values = query_values(measures, scored, rankings.get(retriever, {}))
        low, high = bootstrap_intervals(values, config.bootstrap_samples, config.confidence, seed)
        for column, measure in enumerate(measures):
            rows.append(
                {
                    "retriever": retriever,
                    "measure": measure.name,
                    "value": values[:, column].mean(),
                    "n_queries": len(scored),
                    "ci_low": low[column],
                    "ci_high": high[column],
                }
            )
            query_rows.extend(
                {"retriever": retriever, "measure": measure.name, "query_id": query_id, "value": value}
                for query_id, value in zip(scored, values[:, column].tolist(), strict=True)
            )
    return {
        "measures": table_from_rows("measures", rows),
        "query_measures": table_from_rows("query_measures", query_rows),
        "rejects": table_from_rows("rejects", _left_out(query_ids, judged)),
    }


def query_values(measures: Sequence[Measure], qrels: Qrels, rankings: Rankings) -> np.ndarray:
    """Score rankings with trec_eval's measures.

    Args:
        measures: What to compute.
        qrels: The queries to score; each needs a relevant document.
        rankings: Of one retriever; a query that is missing scores 0, one that is not in `qrels` is left out.

    Returns:
        Values between 0 and 1, shape (queries in the order of `qrels`, measures), float64.
    """
    row_of = {query_id: row for row, query_id in enumerate(qrels)}
    values = np.zeros((len(qrels), len(measures)))
    for depth in {measure.depth for measure in measures}:
        column_of = {
            _KINDS[measure.kind](depth): column for column, measure in enumerate(measures) if measure.depth == depth
        }
        # trec_eval sorts by score, in single precision, and breaks ties by document id: with minus the rank
        # as score there is no tie, whatever the retriever's own scores are.
        cut = {
            query_id: {doc_id: -float(rank) for rank, doc_id in enumerate(ranking[:depth])}
            for query_id, ranking in rankings.items()
            if query_id in row_of and ranking
        }
        for metric in ir_measures.pytrec_eval.iter_calc(list(column_of), qrels, cut):
            values[row_of[metric.query_id], column_of[metric.measure]] = metric.value
    return values


def is_answerable(relevance: Mapping[str, int]) -> bool:
    """Whether a query's judgements name a relevant document."""
    return max(relevance.values(), default=0) > 0


def first_relevant_rank(ranking: Sequence[str], relevance: Mapping[str, int]) -> int:
    """The rank of the first relevant document, from 1; 0 where there is none in the ranking."""
    return next((rank for rank, doc_id in enumerate(ranking, 1) if relevance.get(doc_id, 0) > 0), 0)


def judgements(qrels: pa.Table) -> Qrels:
    """The judgements of a `qrels` table by query and document: the highest of several, and at least 0."""
    result: Qrels = {}
    for row in check_table("qrels", qrels).to_pylist():
        documents = result.setdefault(row["query_id"], {})
        documents[row["doc_id"]] = max(row["relevance"], documents.get(row["doc_id"], 0))
    return result


def rank_documents(run: pa.Table, passages: pa.Table) -> pa.Table:
    """Collapse rankings of passages to rankings of documents, the best passage of each document counting.

    Args:
        run: Table `run`.
        passages: Table `passages`.

    Returns:
        Columns query_id, doc_id, rank (int32, from 1 without gaps), score (float64, the best passage's) and
        retriever; retrievers and queries in the order of the run.

    Raises:
        InputError: A passage is not in `passages`, or two passages of a query share a rank.
    """
    run, passages = check_table("run", run), check_table("passages", passages)
    document_of = dict(
        zip(passages.column("passage_id").to_pylist(), passages.column("doc_id").to_pylist(), strict=True)
    )
    ranked: dict[tuple[str, str], list[tuple[int, str, float]]] = {}
    for row in run.to_pylist():
        if row["passage_id"] not in document_of:
            raise InputError(
                f"table run: expected passages of the table passages, found {row['passage_id']!r} "
                f"(retriever {row['retriever']}, query {row['query_id']!r})"
            )
        ranking = ranked.setdefault((row["retriever"], row["query_id"]), [])
        ranking.append((row["rank"], document_of[row["passage_id"]], row["score"]))
    rows: list[tuple[str, str, int, float, str]] = []
    for (retriever, query_id), ranking in ranked.items():
        ranks = [rank for rank, _, _ in ranking]
        if len(set(ranks)) != len(ranks):
            raise InputError(
                f"table run: expected one passage a rank, found rank {max(ranks, key=ranks.count)} twice "
                f"(retriever {retriever}, query {query_id!r})"
            )
        best: dict[str, float] = {}
        for _, doc_id, score in sorted(ranking):
            best.setdefault(doc_id, score)
        rows.extend(
            (query_id, doc_id, rank, score, retriever) for rank, (doc_id, score) in enumerate(best.items(), start=1)
        )
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    types = [pa.string(), pa.string(), pa.int32(), pa.float64(), pa.string()]
    names = ["query_id", "doc_id", "rank", "score", "retriever"]
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, types, strict=True)], names=names)


def document_rankings(run: pa.Table, passages: pa.Table) -> dict[str, Rankings]:
    """`rank_documents` as document ids by retriever and query, best first."""
    rankings: dict[str, Rankings] = {}
    for row in rank_documents(run, passages).to_pylist():
        rankings.setdefault(row["retriever"], {}).setdefault(row["query_id"], []).append(row["doc_id"])
    return rankings


def _check_queries(rankings: Mapping[str, Rankings], query_ids: Sequence[str]) -> None:
    known = set(query_ids)
    for retriever, by_query in rankings.items():
        for query_id in by_query:
            if query_id not in known:
                raise InputError(
                    f"table run: expected queries of the table test_queries, found {query_id!r} (retriever {retriever})"
                )


def _left_out(query_ids: Sequence[str], judged: Qrels) -> Iterator[dict[str, str]]:
    for query_id in query_ids:
        if query_id not in judged:
            yield reject("evaluation", query_id, "the query has no judgement")
        elif not is_answerable(judged[query_id]):
            yield reject("evaluation", query_id, "the query has no relevant document")
    known = set(query_ids)
    for query_id in judged:
        if query_id not in known:
            yield reject("evaluation", query_id, "judged, but not among the test queries")
