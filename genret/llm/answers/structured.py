"""Items in JSON and in tables."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from genret.llm.answers.draft import CUT, Draft
from genret.llm.answers.lenient_json import read_json
from genret.llm.answers.markdown import read_table
from genret.llm.answers.phrases import ANSWER_NAMES, QUESTION_NAMES
from genret.llm.base import RequestKind


def read_structured(kind: RequestKind, answer: str) -> list[Draft] | None:
    """The items of all JSON values that stand on lines of their own, or of the first table.

    Args:
        kind: What was asked for: of an object with a question and an answer, `preference` takes both.
        answer: Text of a model.

    Returns:
        The items; none where the JSON holds none. None if there is neither JSON nor a table.
    """
    drafts = _read_values(kind, answer)
    return _read_rows(kind, answer) if drafts is None else drafts


# --- JSON ---

_START = re.compile(
    r"^[ \t]*(?P<marker>(?:[-*•]|\d{1,3}[.)])[ \t]+)?(?:[\w ]{1,20}[:：=][ \t]*)?(?=[\[{])", re.MULTILINE
)
# Several values may stand on one line.
_NEXT = re.compile(r"[ \t,;]*(?=[\[{])")
_AFTER = re.compile(rf"[ \t,;`{CUT}]*(?:\n|$|(?=[\[{{]))")
_MOST_FAILURES = 8
_LIST_KEYS = frozenset(
    {
        "items", "queries", "questions", "keywords", "negatives", "hardnegatives", "passages", "pairs", "results",
        "output", "list", "data", "final", "finalnegatives", "questionanswerpairs", "qapairs", "queryanswerpairs",
    }
)  # fmt: skip
_TEXT_KEYS = (
    "question",
    "query",
    "keyword",
    "negative",
    "hardnegative",
    "passage",
    "text",
    "q",
    "term",
    "name",
    "item",
)
_ANSWER_KEYS = frozenset({"answer", "a", "response", "ans"})
# Of a negative's answer; these lists are no result.
_REFLECTION_KEYS = frozenset({"attributes", "plan", "draft", "drafts", "check", "reflection", "explanation"})


def _read_values(kind: RequestKind, answer: str) -> list[Draft] | None:
    drafts: list[Draft] | None = None
    text = answer.rstrip(f"{CUT} \n`")
    place = failures = 0
    while failures < _MOST_FAILURES:
        start = (_NEXT.match(text, place) if drafts else None) or _START.search(text, place)
        if not start:
            break
        found = read_json(text, start.end())
        if found and not found[0] and start.groupdict().get("marker"):
            # "- []" is an item of a list like the ones beside it.
            place = found[1]
        elif found and _holds_more_than_numbers(found[0]) and _AFTER.match(text, found[1]):
            drafts = (drafts or []) + list(_items(kind, found[0]))
            place = found[1]
        else:
            failures += 1
            place = start.end() + 1
    return drafts


def _holds_more_than_numbers(value: Any) -> bool:
    """Whether this is an answer; "[1]" may stand before one."""
    return (
        not isinstance(value, list)
        or not value
        or any(_is_text(part) or isinstance(part, list | dict) for part in value)
    )


def _is_text(value: Any) -> bool:
    return type(value) is str


def _items(kind: RequestKind, value: Any) -> Iterator[Draft]:
    if isinstance(value, str):
        yield Draft(str(value))
    elif isinstance(value, list):
        if kind == "preference" and len(value) == 2 and all(map(_is_text, value)):
            yield Draft(value[0], value[1])
        elif _holds_more_than_numbers(value):
            for part in value:
                yield from _items(kind, part)
    elif isinstance(value, dict):
        yield from _object_items(kind, value)


def _object_items(kind: RequestKind, value: Mapping[str, Any]) -> Iterator[Draft]:
    """The texts of an object with their answers, or else the items of its parts."""
    parts = [(_key(name), part) for name, part in value.items()]
    lists = [(key, part) for key, part in parts if isinstance(part, list | dict)]
    if kind == "negative":
        lists = [(key, part) for key, part in lists if key not in _REFLECTION_KEYS]
    chosen = [part for key, part in lists if key in _LIST_KEYS]
    texts = _texts(parts)
    if texts and not chosen:
        answers = [part for key, part in parts if key in _ANSWER_KEYS and isinstance(part, str)]
        for number, text in enumerate(texts):
            yield Draft(text, answers[number] if number < len(answers) else "")
    elif lists:
        for part in chosen or (part for _, part in lists):
            yield from _items(kind, part)
    else:
        yield from _named_strings(kind, value)


def _texts(parts: list[tuple[str, Any]]) -> list[str]:
    """All strings under the first of the text keys that there is: `q1`, `q2` have the same key."""
    for wanted in _TEXT_KEYS:
        found = [part for key, part in parts if key == wanted and _is_text(part)]
        if found:
            return found
    return []


def _named_strings(kind: RequestKind, value: Mapping[str, Any]) -> Iterator[Draft]:
    """`{"1": "one"}`, `{"keywords": "one, two"}`, and for pairs `{"question?": "answer"}`."""
    for name, part in value.items():
        if isinstance(part, str):
            if not _key(name) or _key(name) in _LIST_KEYS:
                yield Draft(part)
            elif kind == "preference":
                yield Draft(name, part)


def _key(name: str) -> str:
    """`Question 1`, `question_1` and `question` are one."""
    return re.sub(r"[\W\d_]", "", name.casefold())


# --- tables ---

_QUESTION_COLUMN = re.compile(rf"(?:{QUESTION_NAMES.replace(' ', '')})s?|queries")
_ANSWER_COLUMN = re.compile(rf"(?:{ANSWER_NAMES.replace(' ', '')})s?")


def _read_rows(kind: RequestKind, answer: str) -> list[Draft] | None:
    table = read_table(answer)
    if table is None:
        return None
    header, rows = table
    places = [place for place in range(len(header)) if not all(_is_number(row[place]) for row in rows)]
    answers = [place for place in places if _ANSWER_COLUMN.fullmatch(_key(header[place]))] or places[1:][-1:]
    texts = [place for place in places if _QUESTION_COLUMN.fullmatch(_key(header[place]))]
    text = next((place for place in [*texts, *places] if place not in answers), None)
    if text is None:
        return []
    paired = kind == "preference" and answers
    return [Draft(row[text], row[answers[0]] if paired else "") for row in rows]


def _is_number(cell: str) -> bool:
    return cell.strip("#.()").isdecimal()
