"""Training rows of supervised fine-tuning: Query2ID and Context2ID (arXiv 2502.17957, sections 3.2 and
3.3)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genret.config import ExamplesConfig
from genret.corpus.chunking import chunk_text
from genret.corpus.sentences import split_sentences
from genret.errors import InputError
from genret.parts import Counted, cut_table
from genret.spools import Spool, take_rows
from genret.tables import SCHEMAS, reject, text_array, text_table

QUERY, CONTEXT = "query2id", "context2id"
"""Kinds of rows."""

_ANNOTATED = "annotated"

_ROWS_A_BLOCK = 16_384
# A row group of the run's files (`genret.runs`): each part becomes one.
_ROWS_A_PART = 65_536
_CONTEXTS = pa.schema({"text": pa.string()})


Apply = Callable[[Callable[[pa.Table], "Contexts"], Counted[pa.Table]], Iterable["Contexts"]]
"""Applies a function to parts of a table and gives what it returns, in their order: `map`, or something that has other
processes do it."""


@dataclass(frozen=True)
class SftExamples:
    """Training rows.

    Attributes:
        rows: How many.
        parts: The table `sft_examples` part by part, made as they are drawn, which they can be once; none is empty.
        rejects: The table `rejects`: passages without text, which have no Context2ID rows.
    """

    rows: int
    parts: Iterator[pa.Table]
    rejects: pa.Table


def build_sft_examples(
    config: ExamplesConfig,
    passages: pa.Table,
    identifiers: pa.Table,
    queries: pa.Table,
    seed: int,
    apply: Apply = map,
) -> SftExamples:
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
        apply: Has the texts of passages cut.

    Returns:
        The rows, and the passages without text.

    Raises:
        InputError: A query or a passage has no identifier.
    """
    contexts, rejects = _contexts_of(config, passages, identifiers, apply)
    rng = np.random.default_rng(seed)
    asked = _Prompts(queries.column("text"), _places(queries.column("passage_id"), identifiers, "queries"), QUERY)
    repeated = _with_repeats(config, queries, rng)
    order = _order(config, len(repeated), len(contexts.owners), rng)
    blocks = _mixed((asked, repeated), contexts, identifiers, order)
    return SftExamples(len(order), _combined(blocks), rejects)


def _mixed(
    queries: tuple["_Prompts", np.ndarray], contexts: "_Prompts", identifiers: pa.Table, order: np.ndarray
) -> Iterator[pa.Table]:
    """Training rows in an order of queries, whose prompts are given with which row is which, and contexts."""
    asked, repeated = queries
    for start in range(0, len(order), _ROWS_A_BLOCK):
        block = order[start : start + _ROWS_A_BLOCK]
        is_query = block < len(repeated)
        sides = [(asked, repeated[block[is_query]]), (contexts, block[~is_query] - len(repeated))]
        yield _merged([_rows(side, rows, identifiers) for side, rows in sides], is_query)


def _combined(blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in fewer parts."""
    pending: list[pa.Table] = []
    rows = 0
    for block in blocks:
        pending.append(block)
        rows += block.num_rows
        if rows >= _ROWS_A_PART:
            yield pa.concat_tables(pending)
            pending, rows = [], 0
    if pending:
        yield pa.concat_tables(pending)


@dataclass(frozen=True)
class _Prompts:
    """Prompts of a kind of rows, each once.

    Attributes:
        texts: string.
        owners: int32, aligned: the row of `identifiers` that each leads to.
        kind: The kind.
    """

    texts: pa.ChunkedArray
    owners: np.ndarray
    kind: str


def _rows(prompts: _Prompts, rows: np.ndarray, identifiers: pa.Table) -> pa.Table:
    """Training rows of some of the prompts."""
    completions = take_rows(identifiers.column("identifier"), prompts.owners[rows])
    columns = [take_rows(prompts.texts, rows), completions, pa.repeat(prompts.kind, len(rows))]
    return pa.table(columns, schema=SCHEMAS["sft_examples"])


def _merged(sides: list[pa.Table], is_first: np.ndarray) -> pa.Table:
    """The rows of two tables in turns: those of the first where it is said so."""
    order = np.empty(len(is_first), dtype=np.int64)
    order[is_first] = np.arange(sides[0].num_rows)
    order[~is_first] = sides[0].num_rows + np.arange(sides[1].num_rows)
    return pa.concat_tables(sides).combine_chunks().take(pa.array(order))


def _with_repeats(config: ExamplesConfig, queries: pa.Table, rng: np.random.Generator) -> np.ndarray:
    """The rows of the queries, and behind them the repetitions of those that people wrote; int32."""
    rows = np.arange(queries.num_rows, dtype=np.int32)
    annotated = rows[pc.equal(queries.column("kind"), _ANNOTATED).to_numpy()]
    more = annotated_rows(config, queries.num_rows - len(annotated), len(annotated)) - len(annotated)
    if not more:
        return rows
    return np.concatenate([rows, annotated[_passes(len(annotated), more, rng)]])


def annotated_rows(config: ExamplesConfig, n_synthetic: int, n_annotated: int) -> int:
    """How many Query2ID rows there will be of queries that people wrote, of so many different ones."""
    wanted = round(n_synthetic * config.annotated_share / (1 - config.annotated_share))
    return max(n_annotated, wanted) if n_annotated else 0


def _contexts_of(
    config: ExamplesConfig, passages: pa.Table, identifiers: pa.Table, apply: Apply
) -> tuple[_Prompts, pa.Table]:
    """The prompts of Context2ID, and the rejects."""
    texts, rejects = Spool(_CONTEXTS), Spool(SCHEMAS["rejects"])
    owners = _places(passages.column("passage_id"), identifiers, "passages")
    columns = passages.select(["passage_id", "title", "text"])
    counts: list[np.ndarray] = []
    for contexts in apply(partial(cut_contexts, config), [] if config.context2id == "none" else cut_table(columns)):
        texts.append(contexts.texts)
        counts.append(contexts.counts.copy())  # it may lie in the object store, with all of the part
        rejects.append(contexts.rejects)
    repeats = np.concatenate(counts) if counts else np.zeros(len(owners), dtype=np.int32)
    prompts = _Prompts(texts.table().column("text"), np.repeat(owners, repeats), CONTEXT)
    return prompts, rejects.table()


@dataclass(frozen=True)
class Contexts:
    """The prompts of Context2ID of some passages.

    Attributes:
        texts: One column, `text`.
        counts: int32: how many of them each passage has, in the order of the passages.
        rejects: Rows of the table `rejects`: passages without text.
    """

    texts: pa.Table
    counts: np.ndarray
    rejects: pa.Table


def cut_contexts(config: ExamplesConfig, passages: pa.Table) -> Contexts:
    """Cut passages into the prompts of Context2ID.

    Args:
        config: The `examples` section.
        passages: Columns passage_id, title and text.

    Returns:
        The prompts, and the passages without text.
    """
    texts: list[str] = []
    counts: list[int] = []
    rejected: dict[str, list[str]] = {column: [] for column in SCHEMAS["rejects"].names}
    for passage_id, title, text in zip(*(column.to_pylist() for column in passages.columns), strict=True):
        own = _contexts(config, title, text)
        if not own:
            for column, value in reject("examples", passage_id, "no text to learn the identifier from").items():
                rejected[column].append(value)
        counts.append(len(own))
        texts += own
    return Contexts(
        pa.table([text_array(texts)], schema=_CONTEXTS),
        np.array(counts, dtype=np.int32),
        text_table("rejects", rejected),
    )


def _contexts(config: ExamplesConfig, title: str, text: str) -> list[str]:
    if config.context2id == "sentence":
        return [*([title] if title.strip() else []), *split_sentences(text)]
    return chunk_text(f"{title}\n{text}" if title else text, config.context_tokens)


def _places(passage_ids: pa.ChunkedArray, identifiers: pa.Table, table: str) -> np.ndarray:
    """The row of `identifiers` for each passage id; int32."""
    places = pc.index_in(passage_ids, identifiers.column("passage_id").combine_chunks())
    if places.null_count:
        row = pc.index(places.is_null(), True).as_py()
        raise InputError(
            f"table {table}, row {row}: expected a passage of the identifiers table, found {passage_ids[row].as_py()!r}"
        )
    return places.to_numpy()


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
    """Which row comes when: queries are rows from 0, contexts the rows after them; int32."""
    if config.mix == "concat" or not n_queries or not n_contexts:
        return rng.permutation(n_queries + n_contexts).astype(np.int32)
    n_queries_out, n_contexts_out = row_counts(config, n_queries, n_contexts)
    is_context = _spread(n_queries_out + n_contexts_out, n_contexts_out)
    order = np.empty(len(is_context), dtype=np.int32)
    order[~is_context] = _passes(n_queries, n_queries_out, rng)
    order[is_context] = n_queries + _passes(n_contexts, n_contexts_out, rng)
    return order


def _spread(total: int, contexts: int) -> np.ndarray:
    """Which of so many rows are contexts; bool. In blocks, as the numbers behind it take sixteen times the room."""
    is_context = np.empty(total, dtype=bool)
    for start in range(0, total, _ROWS_A_BLOCK):
        # Row i is a context where the number of contexts due after it is one more than before it.
        due = np.arange(start, min(start + _ROWS_A_BLOCK, total) + 1, dtype=np.int64) * contexts // total
        is_context[start : start + _ROWS_A_BLOCK] = np.diff(due) > 0
    return is_context


def _passes(n: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """`total` of the numbers below `n`: permutation after permutation, the last one cut; int32."""
    passes = np.empty(total, dtype=np.int32)
    for start in range(0, total, n):
        passes[start : start + n] = rng.permutation(n)[: total - start]
    return passes
