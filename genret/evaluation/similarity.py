"""How close synthetic queries are to those that people ask: Jaccard similarity and win rates."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genret.evaluation.measures import judgements
from genret.llm.words import split_words
from genret.tables import check_table, table_from_rows

ALL = "all"
"""The set of all synthetic queries."""


def query_sets(queries: pa.Table) -> dict[str, pa.Table]:
    """Synthetic queries by kind, and all of them where there are several kinds.

    Args:
        queries: Table `queries`.

    Returns:
        Tables with `passage_id` and `text` by the set's name, kinds in the order in which they first appear.
    """
    queries = check_table("queries", queries)
    kinds = queries.column("kind").unique().to_pylist()
    columns = ["passage_id", "text"]
    sets = {kind: queries.filter(pc.equal(queries["kind"], kind)).select(columns) for kind in kinds}
    return sets | {ALL: queries.select(columns)} if len(kinds) > 1 else sets


def win_rates(sets: Mapping[str, pa.Table], test_queries: pa.Table, qrels: pa.Table, passages: pa.Table) -> pa.Table:
    """The win rate of each set of synthetic queries over each other (arXiv 2502.17957, section 5.3.1, "Different
    query generation models", and figure 2).

    Win Rate(S, T) = 1/|Q| sum over q in Q of [max over s in S(q) of J(q, s) > max over t in T(q) of J(q, t)], with
    J as in `jaccard`. Q are the test queries with a relevant document in the corpus. S(q) are the queries of the chunk
    that q is about; as judgements are of documents, here those of all passages of all of q's relevant documents. Where
    S(q) is empty, its maximum is 0.

    Args:
        sets: Tables with `passage_id` and `text` by the set's name: of one run as `query_sets` gives them, or of
            several runs over the same passages.
        test_queries: Table `test_queries`.
        qrels: Table `qrels`.
        passages: Table `passages`.

    Returns:
        Table `win_rates`: a row an ordered pair of sets, with the share of ties and with the mean over Q of each
        set's maximum. Empty where there are fewer than two sets or Q is empty.

    Raises:
        InputError: A table does not fit its schema.
    """
    texts = check_table("test_queries", test_queries)
    passages_of = _relevant_passages(qrels, passages)
    asked = [
        (frozenset(split_words(row["text"])), passages_of[row["query_id"]])
        for row in texts.to_pylist()
        if row["query_id"] in passages_of
    ]
    if not asked or len(sets) < 2:
        return table_from_rows("win_rates", [])
    closest = {name: _closest(asked, table) for name, table in sets.items()}
    return table_from_rows(
        "win_rates",
        (
            {
                "set_a": a,
                "set_b": b,
                "win_rate": float(np.mean(closest[a] > closest[b])),
                "tie_rate": float(np.mean(closest[a] == closest[b])),
                "similarity_a": float(np.mean(closest[a])),
                "similarity_b": float(np.mean(closest[b])),
                "n_queries": len(asked),
            }
            for a, b in permutations(closest, 2)
        ),
    )


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """The share of the words of two texts that they have in common (Jaccard, 1901); 0 where there is no word."""
    common = len(a & b)
    return common / (len(a) + len(b) - common) if common else 0.0


def _closest(asked: Sequence[tuple[frozenset[str], Sequence[str]]], synthetic: pa.Table) -> np.ndarray:
    """The highest similarity that any query of the same passages has to each test query, shape (n_queries,)."""
    wanted = {passage_id for _, passage_ids in asked for passage_id in passage_ids}
    words_of = _words_by_passage(synthetic, wanted)
    return np.array(
        [
            max((jaccard(words, other) for name in passage_ids for other in words_of.get(name, ())), default=0.0)
            for words, passage_ids in asked
        ]
    )


def _words_by_passage(synthetic: pa.Table, passage_ids: Iterable[str]) -> dict[str, set[frozenset[str]]]:
    wanted = pc.is_in(synthetic["passage_id"], pa.array(list(passage_ids), type=pa.string()))
    chosen = synthetic.filter(wanted)
    found: dict[str, set[frozenset[str]]] = {}
    for passage_id, text in zip(chosen["passage_id"].to_pylist(), chosen["text"].to_pylist(), strict=True):
        found.setdefault(passage_id, set()).add(frozenset(split_words(text)))
    return found


def _relevant_passages(qrels: pa.Table, passages: pa.Table) -> dict[str, list[str]]:
    """The passages of the relevant documents by query; queries without any are left out."""
    relevant = {
        query_id: [doc_id for doc_id, relevance in documents.items() if relevance > 0]
        for query_id, documents in judgements(qrels).items()
    }
    passages = check_table("passages", passages)
    passages_of: dict[str, list[str]] = {doc_id: [] for documents in relevant.values() for doc_id in documents}
    for passage_id, doc_id in zip(passages["passage_id"].to_pylist(), passages["doc_id"].to_pylist(), strict=True):
        if doc_id in passages_of:
            passages_of[doc_id].append(passage_id)
    found = {
        query_id: [passage_id for doc_id in documents for passage_id in passages_of[doc_id]]
        for query_id, documents in relevant.items()
    }
    return {query_id: passage_ids for query_id, passage_ids in found.items() if passage_ids}
