"""Negative passages, behind the reflection that leads to them."""

import re

from genret.llm.answers.draft import Draft
from genret.llm.answers.markdown import Line, open_fences, read_lines
from genret.llm.answers.phrases import introduces, is_chatter, relabelled
from genret.llm.answers.structured import read_structured

_REFLECTION = re.compile(
    r"^[ \t#*_>\d.()-]{0,30}(?:attributes?|plan|drafts?|check)\b[*_ \t]*[:：]", re.IGNORECASE | re.MULTILINE
)
_FINAL = re.compile(
    r"^[ \t#*_>]{0,20}(?:-\s+)?(?:step\s+)?(?:\d{1,2}\s*[.):]\s*)?[*_]{0,4}(?:final|revised)"
    r"(?:[ \t]+(?:revised|hard|version|versions|negatives?|passages?|answers?|list|output|drafts?))*"
    r"[*_]*[ \t]*(?:[:：][*_]*|$)",
    re.IGNORECASE | re.MULTILINE,
)


def final_part(answer: str) -> str | None:
    """What stands behind the last "Final:", the whole of an answer without reflection, or None: the answer has
    its reflection only.
    """
    ends = list(_FINAL.finditer(answer))
    if ends:
        return answer[ends[-1].end() :]
    return None if _REFLECTION.search(answer) else answer


def read_negatives(answer: str, n: int) -> list[Draft]:
    """Passages from the final part of an answer: items of a list with what stands below them, paragraphs where there
    is no list, or JSON.
    """
    structured = read_structured("negative", answer)
    if structured is not None:
        return structured
    lines = [relabelled(line) for line in read_lines(open_fences(answer))]
    if any(line.marked for line in lines):
        return _marked(lines)
    paragraphs = _paragraphs(lines)
    return [Draft(" ".join(paragraphs))] if n == 1 else [Draft(paragraph) for paragraph in paragraphs]


def _marked(lines: list[Line]) -> list[Draft]:
    drafts: list[Draft] = []
    inside = False
    for line in lines:
        # A list within a passage is a part of it.
        if line.marked and (not drafts or line.indent <= drafts[0].indent + 1):
            drafts.append(Draft(line.text, indent=line.indent))
            inside = True
        elif line.heading or (line.gap and drafts and drafts[-1].text and not line.indent):
            inside = False
        elif inside:
            drafts[-1].text = f"{drafts[-1].text} {line.text}".strip()
    return drafts


def _paragraphs(lines: list[Line]) -> list[str]:
    paragraphs: list[str] = []
    for line in lines:
        if line.heading or introduces(line.text) or (line.gap and is_chatter(line.text)):
            continue
        if line.gap or not paragraphs:
            paragraphs.append(line.text)
        else:
            paragraphs[-1] = f"{paragraphs[-1]} {line.text}"
    return paragraphs
