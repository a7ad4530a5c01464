"""Training rows of supervised fine-tuning: Query2ID and Context2ID (arXiv 2502.17957, sections 3.2 and
3.3)."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genret.config import ExamplesConfig
from genret.corpus.chunking import chunk_text
from genret.corpus.sentences import split_sentences
from genret.errors import InputError
from genret.tables import SCHEMAS, check_table, reject, table_from_rows

QUERY, CONTEXT = "query2id", "context2id"
"""Kinds of rows."""

_ANNOTATED = "annotated"

_READ_ROWS = 1024
_ROWS_A_BLOCK = 65_536


def build_sft_examples(
    config: ExamplesConfig, passages: pa.Table, identifiers: pa.Table, queries: pa.Table, seed: int
) -> dict[str, pa.Table]:
    """Pair queries and passage texts with identifiers.

    Query2ID rows are the queries; those that people wrote are repeated, in full passes and the last one cut, until
    they are `annotated_share` of them. Context2ID rows are the chunks (or the sentences) of title and text. They are
    combined in one of two ways.

    * `concat`: every row once, shuffled together.
    * `interleave`: every row at least once, in the smallest number of rows whose share of Context2ID is
      `context_share`, to the nearest row. The side that is too small, usually Context2ID, is repeated in full
      passes, each in an order of its own, the last one cut; so its rows differ in number by at most one. Both
      sides are spread evenly: with a share of 0.5 they alternate. Where one side has no rows, the other is
      given once.

    Args:
        config: The `examples` section.
        passages: The `passages` table.
        identifiers: The `identifiers` table.
        queries: The `queries` table.
        seed: Seed of the order.

    Returns:
        The tables `sft_examples`, and `rejects`: passages without text, which have no Context2ID rows.

    Raises:
        InputError: A query or a passage has no identifier.
    """
    contexts, rejects = _context_rows(config, passages, identifiers)
    rng = np.random.default_rng(seed)
    asked = _query_rows(_with_repeats(config, queries, rng), identifiers)
    order = _order(config, asked.num_rows, contexts.num_rows, rng)
    return {
        "sft_examples": _take(pa.concat_tables([asked, contexts]), order),
        "rejects": rejects,
    }


def _with_repeats(config: ExamplesConfig, queries: pa.Table, rng: np.random.Generator) -> pa.Table:
    """The queries, and behind them the repetitions of those that people wrote."""
    annotated = np.flatnonzero(pc.equal(queries.column("kind"), _ANNOTATED).to_numpy())
    more = annotated_rows(config, queries.num_rows - len(annotated), len(annotated)) - len(annotated)
    if not more:
        return queries
    return pa.concat_tables([queries, queries.take(pa.array(annotated[_passes(len(annotated), more, rng)]))])


def annotated_rows(config: ExamplesConfig, n_synthetic: int, n_annotated: int) -> int:
    """How many Query2ID rows there will be of queries that people wrote, of so many different ones."""
    wanted = round(n_synthetic * config.annotated_share / (1 - config.annotated_share))
    return max(n_annotated, wanted) if n_annotated else 0


def _query_rows(queries: pa.Table, identifiers: pa.Table) -> pa.Table:
    places = _places(queries.column("passage_id"), identifiers, "queries")
    return _rows(queries.column("text"), places, identifiers, QUERY)


def _context_rows(config: ExamplesConfig, passages: pa.Table, identifiers: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Context2ID rows, each once, and the rejects."""
    contexts: list[pa.Array] = []
    counts: list[int] = []
    rejects = []
    if config.context2id != "none":
        for batch in passages.select(["passage_id", "title", "text"]).to_batches(max_chunksize=_READ_ROWS):
            texts: list[str] = []
            for row in batch.to_pylist():
                own = _contexts(config, row["title"], row["text"])
                if not own:
                    rejects.append(reject("examples", row["passage_id"], "no text to learn the identifier from"))
                counts.append(len(own))
                texts += own
            contexts.append(pa.array(texts, pa.string()))
    places = _places(passages.column("passage_id"), identifiers, "passages").to_numpy()[: len(counts)]
    repeated = pa.array(np.repeat(places, np.array(counts, dtype=np.int64)), pa.int64())
    rows = _rows(pa.chunked_array(contexts, pa.string()), repeated, identifiers, CONTEXT)
    return rows, table_from_rows("rejects", rejects)


def _contexts(config: ExamplesConfig, title: str, text: str) -> list[str]:
    if config.context2id == "sentence":
        return [*([title] if title.strip() else []), *split_sentences(text)]
    return chunk_text(f"{title}\n{text}" if title else text, config.context_tokens)


def _places(passage_ids: pa.ChunkedArray, identifiers: pa.Table, table: str) -> pa.ChunkedArray:
    """The row of `identifiers` for each passage id."""
    places = pc.index_in(passage_ids, identifiers.column("passage_id").combine_chunks())
    if places.null_count:
        row = pc.index(places.is_null(), True).as_py()
        raise InputError(
            f"table {table}, row {row}: expected a passage of the identifiers table, found {passage_ids[row].as_py()!r}"
        )
    return places.cast(pa.int64())


def _rows(prompts: pa.ChunkedArray, places: pa.Array | pa.ChunkedArray, identifiers: pa.Table, kind: str) -> pa.Table:
    completions = identifiers.column("identifier").take(places)
    return pa.table([prompts, completions, pa.repeat(kind, len(prompts))], schema=SCHEMAS["sft_examples"])


def row_counts(config: ExamplesConfig, n_queries: int, n_contexts: int) -> tuple[int, int]:
    """How many Query2ID and Context2ID rows there will be of so many different ones."""
    if config.mix == "concat" or not n_queries or not n_contexts:
        return n_queries, n_contexts
    share = config.context_share
    return (
        max(n_queries, round(n_contexts * (1 - share) / share)),
        max(n_contexts, round(n_queries * share / (1 - share))),
    )


def _order(config: ExamplesConfig, n_queries: int, n_contexts: int, rng: np.random.Generator) -> np.ndarray:
    """Which row comes when: queries are rows from 0, contexts the rows after them."""
    if config.mix == "concat" or not n_queries or not n_contexts:
        return rng.permutation(n_queries + n_contexts)
    n_queries_out, n_contexts_out = row_counts(config, n_queries, n_contexts)
    total = n_queries_out + n_contexts_out
    # Row i is a context where the number of contexts due after it is one more than before it.
    due = np.arange(total + 1, dtype=np.int64) * n_contexts_out // total
    is_context = np.diff(due) > 0
    order = np.empty(total, dtype=np.int64)
    order[~is_context] = _passes(n_queries, n_queries_out, rng)
    order[is_context] = n_queries + _passes(n_contexts, n_contexts_out, rng)
    return order


def _passes(n: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """`total` of the numbers below `n`: permutation after permutation, the last one cut."""
    return np.concatenate([rng.permutation(n) for _ in range(-(-total // n))])[:total]


def _take(rows: pa.Table, order: np.ndarray) -> pa.Table:
    """Rows in an order. In blocks: a string array holds no more than two gigabytes."""
    blocks = [
        rows.take(pa.array(order[start : start + _ROWS_A_BLOCK])) for start in range(0, len(order), _ROWS_A_BLOCK)
    ]
    return check_table("sft_examples", pa.concat_tables(blocks) if blocks else rows.slice(0, 0))
