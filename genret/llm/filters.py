"""Which texts of an engine are fit to train on.

What an item must be whoever wrote it, and what language models get wrong: they mention the passage that a
searcher has never seen, repeat their instructions, speak as assistants, or write a sentence for a keyword. That
a query is answered by its passage is not seen here: `genret.synthesis.round_trip` looks at that.
"""

import re
from dataclasses import dataclass

from genret.llm.base import Item, RequestKind
from genret.llm.leaks import mentions_the_passage, speaks_of_being_a_negative, speaks_of_itself
from genret.llm.words import has_lone_surrogate, split_words


@dataclass(frozen=True, slots=True)
class Limits:
    """What a language model's texts must keep to.

    The defaults are ours; arXiv 2502.17957 (appendix C, figure 5) asks for answers that are "a short phrase", and
    has no other bounds.

    Attributes:
        min_query_words: Shorter queries name hardly anything; in scripts without spaces, pairs of characters
            count.
        max_query_characters: Longer queries are prose, or an explanation that was taken for a query. (The longest of
            MultiHop-RAG's own have 500.)
        max_keyword_words: Longer keywords are sentences; white space parts them.
        max_keyword_characters: The same for scripts without spaces.
        max_answer_words: Longer answers are no phrases.
        min_negative_words: Shorter negatives are no passages.
        max_negative_characters: Longer negatives are no passages.
        max_overlap: Queries of one passage that share more of their words than this are duplicates (Jaccard index,
            0 to 1).
    """

    min_query_words: int = 2
    max_query_characters: int = 600
    max_keyword_words: int = 6
    max_keyword_characters: int = 60
    max_answer_words: int = 24
    min_negative_words: int = 5
    max_negative_characters: int = 5_000
    max_overlap: float = 0.9


def broken_reason(kind: RequestKind, item: Item) -> str:
    """Why an item is none, whoever wrote it; empty if it is one."""
    if not item.text.strip():
        return f"empty {_NOUNS.get(kind, 'query')}"
    if kind == "preference" and not item.answer.strip():
        return "query without an answer"
    if has_lone_surrogate(item.text + item.answer):
        return "not valid Unicode"
    return ""


def unfit_reason(kind: RequestKind, item: Item, limits: Limits) -> str:
    """Why an item of a language model is not fit to train on.

    Args:
        kind: What was asked for.
        item: What was written.
        limits: Bounds on lengths.

    Returns:
        The reason, one of a few, so that they can be counted; empty if the item is fit.
    """
    if broken := broken_reason(kind, item):
        return broken
    if speaks_of_itself(item.text) or speaks_of_itself(item.answer):
        return "speaks of the task or as an assistant"
    if kind == "keywords":
        return _unfit_keyword(item.text, limits)
    if kind == "negative":
        return _unfit_negative(item.text, limits)
    return _unfit_query(item, limits)


_NOUNS: dict[RequestKind, str] = {"keywords": "keyword", "negative": "passage"}
_SENTENCE_END = re.compile(r"[.!?。！？؟।]$")
_FEWEST_SENTENCE_WORDS = 4


def _unfit_keyword(text: str, limits: Limits) -> str:
    words = text.split()
    if not split_words(text):
        return "no word in it"
    if len(words) > limits.max_keyword_words or len(text) > limits.max_keyword_characters:
        return "keyword too long"
    if len(words) >= _FEWEST_SENTENCE_WORDS and _SENTENCE_END.search(text):
        return "a sentence, not a keyword"
    return ""


def _unfit_negative(text: str, limits: Limits) -> str:
    if len(split_words(text)) < limits.min_negative_words:
        return "passage too short"
    if len(text) > limits.max_negative_characters:
        return "passage too long"
    return "speaks of being a negative" if speaks_of_being_a_negative(text) else ""


def _unfit_query(item: Item, limits: Limits) -> str:
    if len(split_words(item.text)) < limits.min_query_words:
        return "query too short"
    if len(item.text) > limits.max_query_characters:
        return "query too long"
    if mentions_the_passage(item.text) or mentions_the_passage(item.answer):
        return "mentions the passage"
    if len(split_words(item.answer)) > limits.max_answer_words:
        return "answer too long"
    return ""
