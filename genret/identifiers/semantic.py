"""Semantic identifiers: a list of keywords that describes the passage (arXiv 2502.17957, section 2.1)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice

import pyarrow as pa

from genret.config import IdentifiersConfig
from genret.identifiers.distinctive import lead_with_distinctive
from genret.identifiers.keywords import KeywordLists, join_keywords
from genret.identifiers.uniqueness import iterate_unique, make_unique, normalisation_key
from genret.llm.base import (
    Engine,
    Item,
    Pairs,
    Request,
    Requests,
    Response,
    Work,
    work_through,
)
from genret.llm.filters import Limits, unfit_reason
from genret.llm.words import has_lone_surrogate
from genret.parts import Parts, cut_table
from genret.spools import Spool
from genret.tables import SCHEMAS, reject, table_from_rows

WORD_SEPARATOR = " "
"""Between keywords where every keyword of the corpus is one word: hardly any tokenizer spends a token on it,
so that identifiers stay short and every choice in the trie is one between words."""
PHRASE_SEPARATOR = ", "
"""Between keywords where some are phrases, so that it stays visible where one ends."""

_READ_ROWS = 1024
_KEYWORDS = pa.schema({"keywords": pa.string()})


def build_semantic_identifiers(
    config: IdentifiersConfig, passages: pa.Table, engine: Engine, limits: Limits | None = None
) -> dict[str, pa.Table]:
    """Ask an engine for keywords and make unique identifiers of them.

    Args:
        config: The `identifiers` section.
        passages: The `passages` table.
        engine: What writes the keywords.
        limits: What the keywords of a language model must keep to; None for an engine that quotes its passages, whose
            keywords are not judged.

    Returns:
        The tables `identifiers`, one row a passage in the same order, and `rejects`: the passages for which
        the engine had no keywords, and those of which some keywords were left out as unfit. A passage without
        keywords has a number as its identifier and can be retrieved like all others.
    """
    keywords, rejects = _keywords(config, passages, engine, limits)
    separator = PHRASE_SEPARATOR if keywords.have_phrases() else WORD_SEPARATOR
    unique = iterate_unique(_ordered(config, keywords), config.keywords, config.max_keywords, separator)
    identifiers = Spool(SCHEMAS["identifiers"])
    for start in range(0, passages.num_rows, _READ_ROWS):
        names = passages.column("passage_id").slice(start, _READ_ROWS)
        given, sources = zip(*islice(unique, len(names)), strict=True)
        identifiers.append(pa.table([names, list(given), list(sources)], schema=SCHEMAS["identifiers"]))
    return {"identifiers": identifiers.table(), "rejects": rejects}


def extend_semantic_identifiers(
    config: IdentifiersConfig,
    passages: pa.Table,
    engine: Engine,
    existing: Sequence[str],
    limits: Limits | None = None,
) -> list[str]:
    """Identifiers of further passages, made as the first ones were.

    Args:
        config: The `identifiers` section.
        passages: The `passages` table of the further passages.
        engine: What writes the keywords.
        existing: All identifiers that there are or were: they stay as they are, and none is given again.
        limits: As `build_semantic_identifiers` has them.

    Returns:
        One identifier a passage; of a passage without keywords a number.
    """
    separator = PHRASE_SEPARATOR if any(PHRASE_SEPARATOR in identifier for identifier in existing) else WORD_SEPARATOR
    keywords, _ = _keywords(config, passages, engine, limits)
    ordered = _ordered(config, keywords, (identifier.split(separator, 1)[0] for identifier in existing))
    return make_unique(ordered, config.keywords, config.max_keywords, separator, existing).identifiers


def _ordered(config: IdentifiersConfig, keywords: KeywordLists, leading: Iterable[str] = ()) -> Iterable[list[str]]:
    """The keywords of each passage in the order of the configuration; others begin with `leading` already."""
    if config.order == "distinctive":
        return lead_with_distinctive(keywords, config.max_keywords, leading)
    return keywords


def _keywords(
    config: IdentifiersConfig, passages: pa.Table, engine: Engine, limits: Limits | None
) -> tuple[KeywordLists, pa.Table]:
    """The keywords of each passage, and the table `rejects`; both on disk."""
    keywords, rejects = Spool(_KEYWORDS), Spool(SCHEMAS["rejects"])
    work = Work(partial(_ask, config), partial(_collect, limits))
    for joined, rejected in work_through(engine, _parts(passages), work):
        keywords.append(pa.table([joined], schema=_KEYWORDS))
        rejects.append(table_from_rows("rejects", rejected))
    return KeywordLists(keywords.table().column("keywords")), rejects.table()


def keyword_requests(config: IdentifiersConfig, passages: pa.Table) -> Requests:
    """Ask for the keywords of every passage, as many as an identifier may take; a request's id is the passage's."""
    return Requests(lambda: chain.from_iterable(_ask(config, part) for part in _parts(passages)))


def _parts(passages: pa.Table) -> Parts[pa.Table]:
    """Some passages at a time."""
    return cut_table(passages.select(["passage_id", "title", "text"]))


def _ask(config: IdentifiersConfig, part: pa.Table) -> Iterator[Request]:
    for passage_id, title, text in zip(*(column.to_pylist() for column in part.columns), strict=True):
        yield Request(passage_id, "keywords", config.max_keywords, title, text)


def _collect(limits: Limits | None, pairs: Pairs) -> tuple[list[str], list[dict[str, str]]]:
    """The keywords of some passages, joined, and rows of `rejects`."""
    joined: list[str] = []
    rejects: list[dict[str, str]] = []
    for request, response in pairs:
        fit, unfit = _judge(response.items, limits)
        words = list(_clean(fit))
        if unfit:
            rejects.append(_unfit(request, unfit))
        if not words or response.error:
            rejects.append(_rejected(request, response))
        joined.append(join_keywords(words))
    return joined, rejects


def _clean(keywords: Iterable[str]) -> Iterator[str]:
    """Keywords with single spaces; those that say nothing, repeat one before or are broken are left out."""
    seen = {""}
    for keyword in keywords:
        key = normalisation_key(keyword)
        if key not in seen and not has_lone_surrogate(keyword):
            seen.add(key)
            yield " ".join(keyword.split())


def _judge(items: Iterable[Item], limits: Limits | None) -> tuple[list[str], list[tuple[str, str]]]:
    """The fit keywords, and the unfit ones with their reasons."""
    fit: list[str] = []
    unfit: list[tuple[str, str]] = []
    for item in items:
        reason = "" if limits is None else unfit_reason("keywords", item, limits)
        if reason:
            unfit.append((item.text, reason))
        else:
            fit.append(item.text)
    return fit, unfit


def _unfit(request: Request, keywords: list[tuple[str, str]]) -> dict[str, str]:
    counts = Counter(reason for _, reason in keywords)
    listed = "; ".join(f"{count} × {reason}" for reason, count in counts.items())
    return reject(
        "identifiers", request.request_id, f"unfit keywords: {listed}", "; ".join(text for text, _ in keywords)
    )


def _rejected(request: Request, response: Response) -> dict[str, str]:
    reason = response.error or "no keywords"
    return reject("identifiers", request.request_id, reason, response.raw or request.text)
