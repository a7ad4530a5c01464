"""Lists of queries."""

import re

from genret.llm.answers.draft import Draft
from genret.llm.answers.markdown import Line, open_fences, read_lines, strip_markers
from genret.llm.answers.phrases import (
    ANSWER_LABEL,
    INLINE_ANSWER,
    asks,
    continues,
    ends_sentence,
    introduces,
    is_chatter,
    relabelled,
)
from genret.llm.answers.structured import read_structured

_INLINE_NUMBER = re.compile(r"(?:^|(?<=\s))[(（]?(\d{1,2})[.)）:]\s+(?=\S)")
_INLINE_BULLET = re.compile(r"(?<=[?？؟])\s+[-–—•*;|/]\s+")
_INLINE_QUESTION = re.compile(r"(?<=\?)[,;]?\s+(?=\w)|(?<=[？؟])[，、,]?\s*(?=\w)")
# "What is it? - asks for a definition", "What is it? (easy)".
_NOTE = re.compile(r"(.*[?？؟][\"”]?)\s+(?:[-–—]\s|[(\[])[^?？؟]*", re.DOTALL)
# Longer lines without a marker are prose.
_MOST_WORDS = 40
_MOST_CHARACTERS = 300


def read_queries(answer: str, n: int) -> list[Draft]:
    """Queries from a list, JSON, a table, or lines; answers that come with them are left out."""
    drafts = read_structured("chunk", answer)
    if drafts is None:
        lines = [relabelled(line) for line in read_lines(open_fences(answer))]
        drafts = _marked(lines) if any(line.marked for line in lines) else _unmarked(lines)
    if n > 1 and len(drafts) == 1:
        drafts = _split(drafts[0])
    drafts = [draft for draft in drafts if draft.marked or _may_be_query(draft.text)]
    return [Draft(_without_note(draft.text)) for draft in _without_notes(drafts)]


def before_a_list(lines: list[Line], place: int) -> bool:
    """Whether a line is the first, and the list goes on behind it: the prompt may have had the first marker."""
    return place == 0 and len(lines) > 1 and lines[1].marked and not lines[1].gap


def inline_items(text: str) -> list[str]:
    """The items of "1. one 2. two" on one line; none where the numbers do not count from 1 to 2 at least."""
    starts: list[re.Match[str]] = []
    for match in _INLINE_NUMBER.finditer(text):
        if int(match[1]) == len(starts) + 1:
            starts.append(match)
    if len(starts) < 2:
        return []
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return [text[match.end() : end].strip(" ,;") for match, end in zip(starts, ends, strict=True)]


def _marked(lines: list[Line]) -> list[Draft]:
    drafts: list[Draft] = []
    inside = False
    for place, line in enumerate(lines):
        if ANSWER_LABEL.match(line.text):
            inside = False
        elif line.marked:
            drafts.append(Draft(line.text, indent=line.indent))
            inside = True
        elif inside and not drafts[-1].text:
            # "Question 1" stood alone on its line.
            drafts[-1].text = line.text
        elif line.heading or is_chatter(line.text) or introduces(line.text):
            inside = False
        elif before_a_list(lines, place):
            drafts += [Draft(line.text)] if asks(line.text) else []
        elif line.gap and not (inside and line.indent and not ends_sentence(drafts[-1].text)):
            inside = False
        elif inside and continues(drafts[-1].text, line):
            drafts[-1].text = f"{drafts[-1].text} {line.text}"
        elif inside and asks(line.text) and not line.indent:
            drafts.append(Draft(line.text))
    return [draft for draft in drafts if not introduces(draft.text)]


def _unmarked(lines: list[Line]) -> list[Draft]:
    drafts: list[Draft] = []
    for line in lines:
        if line.heading or introduces(line.text) or is_chatter(line.text) or ANSWER_LABEL.match(line.text):
            continue
        if drafts and not line.gap and line.text[:1].islower() and not ends_sentence(drafts[-1].text):
            drafts[-1].text = f"{drafts[-1].text} {line.text}"
        else:
            drafts.append(Draft(line.text, marked=False))
    return drafts


def _may_be_query(text: str) -> bool:
    """Whether a line with no marker is a query and not prose."""
    short = len(text.split()) <= _MOST_WORDS and len(text) <= _MOST_CHARACTERS
    return short and (asks(text) or not ends_sentence(text))


def _split(draft: Draft) -> list[Draft]:
    """The queries that one line holds: numbered, parted by bullets, or nothing but questions."""
    parts = inline_items(draft.text) or _INLINE_BULLET.split(draft.text)
    if len(parts) == 1:
        parts = _INLINE_QUESTION.split(draft.text)
    if len(parts) == 1 or not all(map(asks, parts[:-1])):
        return [draft]
    return [Draft(strip_markers(part)) for part in parts]


def _without_note(text: str) -> str:
    """A query without the answer or the note behind it."""
    text = INLINE_ANSWER.split(text, maxsplit=1)[0]
    note = _NOTE.fullmatch(text)
    return note[1] if note else text


def _without_notes(drafts: list[Draft]) -> list[Draft]:
    """Items without the notes nested under questions, and without the headings that questions are nested under."""
    kept: list[Draft] = []
    parent: Draft | None = None
    for draft in drafts:
        if parent is None or draft.indent <= parent.indent + 1:
            parent = draft
            kept.append(draft)
        elif asks(draft.text):
            if kept[-1] is parent and not asks(parent.text):
                kept.pop()
            kept.append(draft)
        elif not asks(parent.text):
            kept.append(draft)
    return kept
