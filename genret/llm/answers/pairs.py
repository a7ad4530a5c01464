"""Questions with their answers."""

import re

from genret.llm.answers.draft import Draft
from genret.llm.answers.markdown import Line, open_fences, read_lines, strip_markers, strip_markup
from genret.llm.answers.phrases import (
    ANSWER_HEADING,
    ANSWER_LABEL,
    ANSWERS_HEADING,
    INLINE_ANSWER,
    QUESTION_HEADING,
    QUESTION_LABEL,
    asks,
    ends_sentence,
    introduces,
    is_chatter,
)
from genret.llm.answers.structured import read_structured

_SEPARATOR = re.compile(r"\s*(?:->|=>|→|⇒|\|)\s*|\s+[-–—:]\s+|\t+|[:：]\s+")
_QUESTION_THEN_ANSWER = re.compile(r"(.*[?？؟])[\s\"”»]*[-–—:：|→=>(]*\s*(\S.*)", re.DOTALL)
_ANSWER_LETTER = re.compile(r"A\.\s+")


def read_pairs(answer: str, _n: int) -> list[Draft]:
    """Questions with answers, on one line or on several, labelled or not; all questions may come first."""
    drafts = read_structured("preference", answer)
    if drafts is None:
        reader = _PairReader()
        for line in read_lines(open_fences(answer)):
            reader.read(line)
        drafts = reader.drafts
    return [_split(draft) for draft in drafts]


class _PairReader:
    """Puts lines together to questions with their answers.

    Attributes:
        drafts: What there is so far; a question without an answer has none.
    """

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        # What a line without a label may go on with.
        self._open: Draft | None = None
        # Those whose answers come in a list of their own.
        self._awaiting: list[Draft] = []

    def read(self, line: Line) -> None:
        """Take the next line."""
        text = strip_markers(line.text)
        if text.startswith("(") and text.endswith(")"):
            text = text[1:-1]
        current = self._open
        if ANSWERS_HEADING.fullmatch(text) and not (current and ANSWER_LABEL.match(text)):
            self._awaiting = [draft for draft in self.drafts if not draft.answer]
            self._open = None
        elif line.heading and QUESTION_HEADING.fullmatch(text):
            self._ask("", line)
        elif line.heading and ANSWER_HEADING.fullmatch(text):
            self._answer("")
        elif label := QUESTION_LABEL.match(text):
            self._ask(strip_markup(text[label.end() :]), line)
        elif label := ANSWER_LABEL.match(text):
            self._answer(strip_markup(text[label.end() :]))
        elif current and not current.answer and (label := _ANSWER_LETTER.match(text)):
            self._answer(text[label.end() :])
        elif line.marked:
            self._read_marked(text, line)
        else:
            self._read_unmarked(text, line)

    def _ask(self, text: str, line: Line) -> None:
        self._open = Draft(text, indent=line.indent)
        self.drafts.append(self._open)

    def _answer(self, text: str) -> None:
        if self._awaiting:
            self._awaiting.pop(0).answer = text
        elif self.drafts and not self.drafts[-1].answer:
            self._open = self.drafts[-1]
            # The label may stand alone on its line.
            self._open.answer = text or " "

    def _read_marked(self, text: str, line: Line) -> None:
        current = self._open
        nested = current is not None and line.indent > current.indent + 1
        if self._awaiting:
            self._answer(text)
        elif current and nested:
            current.answer = current.answer.strip() or text
        elif not introduces(text):
            self._ask(text, line)

    def _read_unmarked(self, text: str, line: Line) -> None:
        current = self._open
        if line.heading or is_chatter(text) or introduces(text):
            self._open = None
        elif current is None or (line.gap and current.answer.strip()):
            self._open = None
            if asks(text) or INLINE_ANSWER.search(text) or (_SEPARATOR.search(text) and not ends_sentence(text)):
                self._ask(text, line)
        elif current.answer.strip():
            self._go_on_after(current, text, line)
        elif current.answer:
            current.answer = text
        elif not current.text or not (asks(current.text) or line.gap or _is_split(current.text)):
            current.text = f"{current.text} {text}".strip()
        elif asks(text) or _is_split(current.text):
            self._ask(text, line)
        else:
            current.answer = text

    def _go_on_after(self, current: Draft, text: str, line: Line) -> None:
        """A line directly behind an answer."""
        if asks(text):
            self._ask(text, line)
        elif text[:1].islower() or not ends_sentence(current.answer):
            current.answer = f"{current.answer} {text}"


def _is_split(text: str) -> bool:
    """Whether a line holds its answer too."""
    return bool(_split(Draft(text)).answer)


def _split(draft: Draft) -> Draft:
    """A question on one line with its answer, in two."""
    text = draft.text
    if draft.answer.strip():
        return draft
    head, *tail = INLINE_ANSWER.split(text, maxsplit=1)
    if tail and head:
        return Draft(head, tail[0].rstrip(")]") if "(" not in tail[0] else tail[0])
    if match := _QUESTION_THEN_ANSWER.fullmatch(text):
        return Draft(match[1], match[2].removesuffix(")") if "(" not in match[2] else match[2])
    parts = [match for match in _SEPARATOR.finditer(text) if match.start() and match.end() < len(text)]
    if parts and not asks(text):
        return Draft(text[: parts[-1].start()], text[parts[-1].end() :])
    return draft
