"""Lists of keywords."""

import re

from genret.llm.answers.draft import Draft
from genret.llm.answers.markdown import Line, open_fences, read_lines, strip_markers
from genret.llm.answers.phrases import ends_sentence, introduces, is_chatter, relabelled
from genret.llm.answers.queries import before_a_list, inline_items
from genret.llm.answers.structured import read_structured

_SEMICOLONS = re.compile(r"[;；\n]")
_COMMAS = re.compile(r"[、，،|·•\t\n]|,(?!\d{3}(?!\d))")
_SPACED_SIGNS = re.compile(r"\s+[-–—*/]\s+")
# "The keywords are: one, two".
_INTRODUCTION = re.compile(
    r"(?:here|the|these|below|following)\b[^:：]{0,60}\b(?:keywords?|keyphrases?|terms?)\b[^:：]{0,40}[:：]\s*(?=\S)",
    re.IGNORECASE,
)
_CONJUNCTION = re.compile(r"(?:and|und|et|y|e|en)\s+", re.IGNORECASE)
_DEFINITION = re.compile(r"(.{2,60}?)(?:\s*[:：]\s+|\s+[-–—]\s+)(.+)", re.DOTALL)
# Longer lines without a marker, and longer parts of a line, are no keywords.
_MOST_WORDS = 6
_MOST_CHARACTERS = 80
# `Term: ...` with more words than these behind it is a definition.
_MOST_QUALIFYING_WORDS = 4


def read_keywords(answer: str, n: int) -> list[Draft]:
    """Keywords from a list, JSON, a table, lines, or one line with commas.

    Of `Category: one, two` the keywords are one and two, of `Term: what it means in a sentence` it is the term.
    """
    structured = read_structured("keywords", answer)
    if structured is None:
        lines = [relabelled(line) for line in read_lines(open_fences(answer))]
        texts = _marked(lines) if any(line.marked for line in lines) else _unmarked(lines)
    else:
        texts = [draft.text for draft in structured]
    if n > 1 and len(texts) == 1:
        texts = _split(texts[0])
    return [Draft(part) for text in texts for part in _category(text, n)]


def _marked(lines: list[Line]) -> list[str]:
    texts: list[str] = []
    inside = False
    for place, line in enumerate(lines):
        if line.marked:
            inside = not introduces(line.text)
            if inside:
                texts.append(line.text)
        elif line.heading or is_chatter(line.text) or introduces(line.text):
            inside = False
        elif before_a_list(lines, place) or (inside and not line.gap and not line.indent):
            texts += [line.text] if _is_short(line.text) else []
        elif inside and not line.gap:
            texts[-1] = f"{texts[-1]} {line.text}"
        else:
            inside = False
    return texts


def _unmarked(lines: list[Line]) -> list[str]:
    texts = []
    for line in lines:
        text = _INTRODUCTION.sub("", line.text, count=1)
        if not (line.heading or introduces(text) or is_chatter(text)):
            parts = _split(text)
            if all(map(_is_short, parts)) and (len(parts) > 1 or not ends_sentence(text)):
                texts += parts
    return texts


def _is_short(text: str) -> bool:
    return len(text.split()) <= _MOST_WORDS and len(text) <= _MOST_CHARACTERS


def _split(text: str) -> list[str]:
    """Keywords on one line; "1,252 yards" is one."""
    if inline := inline_items(text):
        return inline
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts = (_SEMICOLONS if _SEMICOLONS.search(text) else _COMMAS).split(text)
    if len(parts) == 1:
        parts = _SPACED_SIGNS.split(text)
    parts = [part.strip() for part in parts]
    if len(parts) > 2:
        parts[-1] = _CONJUNCTION.sub("", parts[-1], count=1) if _CONJUNCTION.match(parts[-1]) else parts[-1]
    return [part for part in map(strip_markers, parts) if part]


def _category(text: str, n: int) -> list[str]:
    match = _DEFINITION.fullmatch(text)
    if not match:
        return [text]
    parts = _split(match[2])
    if n > 1 and len(parts) > 1 and all(map(_is_short, parts)):
        return parts
    return [match[1]] if len(match[2].split()) > _MOST_QUALIFYING_WORDS else [text]
