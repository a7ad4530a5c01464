"""Facts of a run in numbers: the data, the identifiers, and what preference learning moved."""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genret.evaluation.measures import document_rankings, first_relevant_rank, is_answerable, judgements
from genret.llm.words import split_words
from genret.tables import check_table, table_from_rows

if TYPE_CHECKING:
    from genret.training.batches import IdentifierTokens

MOVES = ("found", "up", "unchanged", "down", "lost")
"""What can happen to a rank: `found` and `lost` are from and to nowhere in the ranking."""


def dataset_statistics(
    passages: pa.Table, test_queries: pa.Table, queries: pa.Table, preference_queries: pa.Table
) -> pa.Table:
    """How much text there is (after arXiv 2502.17957, table 9, which counts contexts and queries by kind).

    Args:
        passages: Table `passages`; only their texts count, not the titles.
        test_queries: Table `test_queries`.
        queries: Table `queries`.
        preference_queries: Table `preference_queries`.

    Returns:
        Table `dataset_statistics`: rows `documents`, `passages`, `KIND queries` for each kind of synthetic query,
        `preference queries` and `test queries`, each with its number and its lengths in words (those of
        `split_words`). What there is none of has no row.

    Raises:
        InputError: A table does not fit its schema.
    """
    passages, queries = check_table("passages", passages), check_table("queries", queries)
    words = _count_words(passages["text"])
    _, document = np.unique(passages["doc_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    lengths = {"documents": np.bincount(document, weights=words).astype(np.int64), "passages": words}
    for kind in queries["kind"].unique().to_pylist():
        lengths[f"{kind} queries"] = _count_words(queries.filter(pc.equal(queries["kind"], kind))["text"])
    lengths["preference queries"] = _count_words(check_table("preference_queries", preference_queries)["text"])
    lengths["test queries"] = _count_words(check_table("test_queries", test_queries)["text"])
    return table_from_rows(
        "dataset_statistics",
        (
            {
                "part": part,
                "count": len(counts),
                "words_mean": float(counts.mean()),
                "words_median": float(np.median(counts)),
                "words_max": int(counts.max()),
            }
            for part, counts in lengths.items()
            if len(counts)
        ),
    )


def identifier_statistics(identifiers: pa.Table, tokens: "IdentifierTokens") -> pa.Table:
    """How many identifiers there are of each source, and how long they are.

    `llm` are those that were unique as the engine wrote them. `extended` (by more keywords) and `ordinal` (by a
    number) are the collisions; atomic identifiers are all `ordinal`.

    Args:
        identifiers: Table `identifiers`.
        tokens: Their token sequences, in the same order.

    Returns:
        Table `identifier_statistics`: a row a source, the most frequent first, and one for `all` where there are
        several. Tokens include the end-of-sequence token of semantic identifiers.

    Raises:
        InputError: The table does not fit its schema.
    """
    sources = check_table("identifiers", identifiers)["source"].to_numpy(zero_copy_only=False)
    lengths = np.diff(tokens.offsets)
    by_source = {name: lengths[sources == name] for name, _ in Counter(sources.tolist()).most_common()}
    if len(by_source) > 1:
        by_source["all"] = lengths
    return table_from_rows(
        "identifier_statistics",
        (
            {
                "source": source,
                "count": len(counts),
                "tokens_mean": float(counts.mean()),
                "tokens_max": int(counts.max()),
            }
            for source, counts in by_source.items()
        ),
    )


def identifier_depths(tokens: "IdentifierTokens") -> pa.Table:
    """How much the first tokens of an identifier tell of which one it is.

    With every identifier equally probable, the entropy of the first t tokens is H(t) = - sum over prefixes of
    n/N log2(n/N), where n of N identifiers begin with the prefix (Shannon, 1948). It rises to log2(N), where every
    prefix belongs to one identifier; H(t) - H(t-1) is what token t adds. Who decodes greedily has to decide so many
    bits there.

    Args:
        tokens: Token sequences, none of which is a prefix of another.

    Returns:
        Table `identifier_depths`: a row a depth from 1 to that at which all are told apart: the number of different
        `prefixes`, of identifiers that are `shared` (others begin the same), and the entropy in `bits`.
    """
    n = len(tokens)
    starts = tokens.offsets[:-1]
    base = int(tokens.tokens.max(initial=0)) + 1
    # Of the identifiers that are not told apart yet: which they are, and the number of what they begin with.
    open_, group = np.arange(n), np.zeros(n, dtype=np.int64)
    alone, depth, rows = 0, 0, []
    while len(open_):
        step = group[open_] * base + tokens.tokens[starts[open_] + depth]
        _, numbers, counts = np.unique(step, return_inverse=True, return_counts=True)
        depth += 1
        shared = counts[counts > 1]
        alone += int((counts == 1).sum())
        rows.append(
            {
                "depth": depth,
                "prefixes": alone + len(shared),
                "shared": int(shared.sum()),
                "bits": float(np.log2(n) - (shared * np.log2(shared)).sum() / n),
            }
        )
        group[open_] = numbers
        open_ = open_[counts[numbers] > 1]
    return table_from_rows("identifier_depths", rows)


def query_moves(
    run: pa.Table, qrels: pa.Table, test_queries: pa.Table, passages: pa.Table, before: str, after: str
) -> pa.Table:
    """What one training stage changed: the rank of the first relevant document with two retrievers.

    Args:
        run: Table `run` with both retrievers.
        qrels: Table `qrels`.
        test_queries: Table `test_queries`; those with a relevant document count.
        passages: Table `passages`.
        before: The first retriever.
        after: The second one.

    Returns:
        Table `query_moves`: a row a query, in the order of `test_queries`; 0 where the run has no relevant document.

    Raises:
        InputError: A table does not fit its schema, or a passage of the run is not in `passages`.
    """
    judged, rankings = judgements(qrels), document_rankings(run, passages)
    query_ids = check_table("test_queries", test_queries)["query_id"].to_pylist()

    def rank(retriever: str, query_id: str) -> int:
        return first_relevant_rank(rankings.get(retriever, {}).get(query_id, []), judged[query_id])

    return table_from_rows(
        "query_moves",
        (
            {"query_id": query_id, "rank_before": rank(before, query_id), "rank_after": rank(after, query_id)}
            for query_id in query_ids
            if is_answerable(judged.get(query_id, {}))
        ),
    )


def rank_moves(moves: pa.Table, before: str, after: str) -> pa.Table:
    """How many ranks changed which way, and what that did to the mean reciprocal rank.

    Args:
        moves: Table `query_moves`.
        before: The retriever of its `rank_before`.
        after: That of its `rank_after`.

    Returns:
        Table `rank_moves`: a row for each of `MOVES`, with the number of queries, and with the sum of their
        differences in reciprocal rank (0 where not found, no cut-off but the depth of the run), after minus before,
        divided by the number of all queries; these add up to the difference in MRR. `unchanged` are also those that
        neither found. Empty where there is no query.

    Raises:
        InputError: The table does not fit its schema.
    """
    moves = check_table("query_moves", moves)
    changes: dict[str, list[float]] = {move: [] for move in MOVES}
    for old, new in zip(moves["rank_before"].to_pylist(), moves["rank_after"].to_pylist(), strict=True):
        changes[_move(old, new)].append(reciprocal_rank(new) - reciprocal_rank(old))
    return table_from_rows(
        "rank_moves",
        (
            {
                "retriever_before": before,
                "retriever_after": after,
                "move": move,
                "n_queries": len(differences),
                "mrr_change": sum(differences) / len(moves),
            }
            for move, differences in (changes.items() if len(moves) else ())
        ),
    )


def _move(old: int, new: int) -> str:
    if old == new:
        return "unchanged"
    if not old or not new:
        return "found" if new else "lost"
    return "up" if new < old else "down"


def reciprocal_rank(rank: int) -> float:
    """1 / rank, or 0 for rank 0: not found."""
    return 1 / rank if rank else 0.0


def _count_words(texts: pa.ChunkedArray) -> np.ndarray:
    """The number of words of each text, shape (n,), int64."""
    return np.array([len(split_words(text)) for text in texts.to_pylist()], dtype=np.int64)
