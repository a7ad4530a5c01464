"""What a language model wrote, as items: lists in Markdown, JSON, tables, or lines with no form at all.

Models number, quote, embolden and explain what they were told to give as a plain list, begin with "Sure!", end
with "Let me know", and stop in the middle. What is certain not to be an item is left out; where that is not
certain, the line is kept, and `genret.llm.filters` judges it as a text.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from html import unescape

from genret.llm.answers.draft import CUT, Draft
from genret.llm.answers.keywords import read_keywords
from genret.llm.answers.markdown import normalise, strip_markers, strip_markup, strip_quotes
from genret.llm.answers.negatives import final_part, read_negatives
from genret.llm.answers.pairs import read_pairs
from genret.llm.answers.phrases import QUESTION_LABEL, asks, ends_sentence
from genret.llm.answers.queries import read_queries
from genret.llm.base import Item, Request, RequestKind, Response


def parse(request: Request, text: str, *, finished: bool = True) -> Response:
    """Read an answer. Never raises, whatever the text.

    Args:
        request: What was asked.
        text: What the model wrote, with its thinking or without.
        finished: False if the model was stopped (at `max_tokens`). Then the last item is left out unless it is
            clearly complete: a line end follows, its JSON string is closed, or it ends like a sentence.

    Returns:
        The first n items; fewer than n are no error. A question without an answer is an item without an answer
        where others have one. Without any item, the error says why. `raw` is the text.
    """
    try:
        answer = _answer(request.kind, text, finished)
    except _Unreadable as reason:
        return Response(request.request_id, error=str(reason), raw=text)
    drafts = _READERS[request.kind](answer, request.n)
    items = tuple(_items(request.kind, drafts, finished))[: request.n]
    if request.kind == "preference" and items and not any(item.answer for item in items):
        return Response(request.request_id, error="a question without an answer", raw=text)
    missing = "no list item in the answer" if finished else "the answer was cut off within its first item"
    return Response(request.request_id, items, "" if items else missing, text)


class _Unreadable(Exception):
    """Says why there is no item."""


# --- the part of a text that is the answer ---

_THOUGHT = "(?:think|thinking|thought|reasoning|reflection|scratchpad)"
_THINKING = re.compile(rf"\s*<{_THOUGHT}>", re.IGNORECASE)
# At the end of a line or alone on it: a query may name the tag.
_END_OF_THINKING = re.compile(rf"^[ \t]*</{_THOUGHT}>|</{_THOUGHT}>(?=[ \t]*$)", re.IGNORECASE | re.MULTILINE)
_INLINE_THINKING = re.compile(rf"\s*<({_THOUGHT})>.*?</\1>", re.IGNORECASE | re.DOTALL)
_END_OF_TURN = re.compile(r"(?:<\|[^|<>\n]{1,30}\|>|</s>|<(?:end_of_turn|eos)>|\[/?INST\])$")
_MOST_ENDS = 20
_SPEAKER = re.compile(r"\s*(?:assistant|output|response)[ \t]*[:：][ \t]*(?=\S)", re.IGNORECASE)
_HTML_ITEM = re.compile(r"^[ \t]*(?:<[uo]l[^<>\n]*>[ \t]*)?<li[^<>\n]*>", re.IGNORECASE | re.MULTILINE)
_HTML_LI = re.compile(r"<li\b[^<>]*>", re.IGNORECASE)
_HTML_TAG = re.compile(r"</?(?:ul|ol|li|p|br)\b[^<>]*>", re.IGNORECASE)


def _answer(kind: RequestKind, text: str, finished: bool) -> str:
    """What holds the items, with `CUT` at its end if it was cut off there."""
    answer = normalise(text)
    if not finished and not answer.endswith("\n"):
        answer += CUT
    answer = _without_thinking(answer)
    answer = _SPEAKER.sub("", _without_ends(answer), count=1) if _SPEAKER.match(answer) else _without_ends(answer)
    if _HTML_ITEM.search(answer):
        answer = unescape(_HTML_TAG.sub("", _HTML_LI.sub("\n- ", answer)))
    if not answer.strip(f"{CUT} \n\t"):
        raise _Unreadable("empty answer")
    if kind != "negative":
        return answer
    final = final_part(answer)
    if final is None:
        raise _Unreadable("no final part in the answer")
    return final


def _without_thinking(answer: str) -> str:
    """What follows the thinking; a chat template may have opened that before the answer."""
    ends = list(_END_OF_THINKING.finditer(answer))
    if ends:
        return answer[ends[-1].end() :]
    if inline := _INLINE_THINKING.match(answer):
        return answer[inline.end() :]
    if _THINKING.match(answer):
        raise _Unreadable("the answer ends within its thinking")
    return answer


def _without_ends(answer: str) -> str:
    """The answer without the marks at its end with which a chat template closes a turn."""
    for _ in range(_MOST_ENDS):
        end = answer.rstrip(f"{CUT} \n\t")
        match = _END_OF_TURN.search(end, max(0, len(end) - 40))
        if not match:
            break
        answer = end[: match.start()]
    return answer


_READERS: dict[RequestKind, Callable[[str, int], list[Draft]]] = {
    "keywords": read_keywords,
    "chunk": read_queries,
    "sentence": read_queries,
    "constraint": read_queries,
    "multihop": read_queries,
    "preference": read_pairs,
    "negative": read_negatives,
}


# --- items ---


def _items(kind: RequestKind, drafts: Iterable[Draft], finished: bool) -> Iterator[Item]:
    """Clean items, without those that are empty or cut off."""
    everything = list(drafts)
    for place, draft in enumerate(everything, 1):
        if not finished and _is_cut(kind, draft, last=place == len(everything)):
            continue
        text = _clean(kind, draft.text)
        if text:
            yield Item(text, _clean(kind, draft.answer) if kind == "preference" else "")


def _is_cut(kind: RequestKind, draft: Draft, last: bool) -> bool:
    """Whether the answer was cut off within this item."""
    if kind == "preference" and last and not draft.answer.strip(f"{CUT} "):
        return True
    written = draft.text + draft.answer
    if CUT not in written:
        return False
    end = written.replace(CUT, "").rstrip()
    return kind == "keywords" or not (ends_sentence(end) if kind in ("negative", "preference") else asks(end))


def _clean(kind: RequestKind, text: str) -> str:
    """One line without markers, labels, Markdown and quotation marks around it."""
    text = strip_quotes(_one_line(strip_markers(_one_line(text.replace(CUT, "")))))
    if kind == "negative":
        return text.removesuffix("\\").rstrip()
    if kind == "keywords":
        return strip_quotes(text.rstrip(".;,。；，、 ")).removeprefix("#").strip()
    if label := QUESTION_LABEL.match(text):
        text = strip_quotes(_one_line(text[label.end() :]))
    return text.rstrip("\\;,；， ")


def _one_line(text: str) -> str:
    """Text without Markdown, which joined lines may have made anew."""
    return " ".join(strip_markup(" ".join(text.split())).split())
