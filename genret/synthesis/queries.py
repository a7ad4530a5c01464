"""Requests for the queries of supervised fine-tuning: chunk, sentence and constraint level, multi-hop among them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from genret.config import SynthesisConfig
from genret.corpus.sentences import split_sentences
from genret.errors import InputError
from genret.llm.base import Request
from genret.llm.words import split_words

_READ_ROWS = 1024


def query_requests(config: SynthesisConfig, passages: pa.Table, multihop: Iterable[Request] = ()) -> Iterator[Request]:
    """Ask for queries on every passage (arXiv 2502.17957, section 3.3).

    One request a passage at chunk level, one for each of its sentences, one with its metadata; each only
    where the configuration wants queries of the kind. A passage with none of `constraint_fields` gets no
    request with metadata.

    Args:
        config: The `synthesis` section.
        passages: The `passages` table.
        multihop: Requests over several passages, at most one a passage, in the order of `passages`; each is yielded
            behind the others of its passage.

    Yields:
        Requests, those of a passage one after another. A request's id is `PASSAGE|chunk`,
        `PASSAGE|constraint`, or `PASSAGE|sentence|NUMBER` with the sentence's place from 0.

    Raises:
        ValueError: `multihop` is not in the order of the passages.
    """
    remaining = iter(multihop)
    pending = next(remaining, None)
    for row in passage_rows(passages):
        passage_id, title, text = row["passage_id"], row["title"], row["text"]
        if config.chunk_queries:
            yield Request(f"{passage_id}|chunk", "chunk", config.chunk_queries, title, text)
        if config.sentence_queries:
            for number, sentence in _sentences(config, text):
                request_id = f"{passage_id}|sentence|{number}"
                yield Request(request_id, "sentence", config.sentence_queries, "", sentence)
        constraints = _constraints(config, row["metadata"]) if config.constraint_queries else {}
        if constraints:
            count = config.constraint_queries
            yield Request(f"{passage_id}|constraint", "constraint", count, title, text, constraints)
        if pending and passage_of(pending) == passage_id:
            yield pending
            pending = next(remaining, None)
    if pending:
        raise ValueError(f"multi-hop requests: {pending.request_id!r} is not in the order of the passages")


def passage_of(request: Request) -> str:
    """The id of the passage that a request of this room is about."""
    return request.request_id.rsplit("|", 2 if request.kind == "sentence" else 1)[0]


def check_constraint_fields(config: SynthesisConfig, passages: pa.Table) -> None:
    """See that constraint queries, if any are wanted, have metadata to name.

    Args:
        config: The `synthesis` section.
        passages: The `passages` table.

    Raises:
        InputError: No field is named, or no passage has a value in a field that is.
    """
    if not config.constraint_queries or not passages.num_rows:
        return
    fields: set[str] = set()
    for row in passage_rows(passages):
        fields.update(name for name, value in json.loads(row["metadata"]).items() if constraint_value(value))
    found = f"the passages have {sorted(fields) or 'no metadata'}"
    if not config.constraint_fields:
        raise InputError(
            "synthesis.constraint_fields: expected the metadata fields for constraint queries to name, "
            f"found none; {found}"
        )
    for name in config.constraint_fields:
        if name not in fields:
            raise InputError(f"synthesis.constraint_fields: no passage has the field {name!r}; {found}")


def constraint_value(value: Any) -> str:
    """A metadata value as a query can name it.

    Args:
        value: Any JSON value. The parts of a list are joined by commas.

    Returns:
        The value as text with single spaces; empty for null, the empty string or list, and objects, which no
        query can name.
    """
    if isinstance(value, list):
        return ", ".join(filter(None, map(constraint_value, value)))
    if value is None or isinstance(value, Mapping):
        return ""
    return " ".join(str(value).split())


def _constraints(config: SynthesisConfig, metadata: str) -> dict[str, str]:
    values = json.loads(metadata)
    named = {name: constraint_value(values.get(name)) for name in config.constraint_fields}
    return {name: value for name, value in named.items() if value}


def _sentences(config: SynthesisConfig, text: str) -> Iterator[tuple[int, str]]:
    """The sentences that get queries of their own, with their places."""
    sentences = split_sentences(text)
    for number, sentence in enumerate(sentences[: config.max_sentences or None]):
        if len(split_words(sentence)) >= config.min_sentence_words:
            yield number, sentence


def passage_rows(passages: pa.Table) -> Iterator[dict[str, str]]:
    """The rows of a `passages` table, read a block at a time."""
    for batch in passages.to_batches(max_chunksize=_READ_ROWS):
        yield from batch.to_pylist()
