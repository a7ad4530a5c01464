"""Words of a text in any script."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

# Scripts written without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han (with its iteration mark,
# zero, extensions and compatibility forms), half-width katakana.
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)


# The planes that have marks: the first two, and the variation selectors far behind them. All 17 take a while.
_MARK_PLANES = (*range(0x20000), *range(0xE0100, 0xE01F0))


def _mark_ranges() -> str:
    """All combining marks as ranges of a character class: `\\w` leaves them out, and with them the vowels of
    Devanagari, Thai and others.
    """
    points = [point for point in _MARK_PLANES if unicodedata.category(chr(point))[0] == "M"]
    starts = [point for before, point in zip([-2, *points], points, strict=False) if point != before + 1]
    ends = [point for point, after in zip(points, [*points[1:], -2], strict=True) if after != point + 1]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


_MARKS = _mark_ranges()
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_WORD = re.compile(rf"[^\W_](?:[^\W_]+|[{_MARKS}]+)*")
_SPACELESS_RUN = re.compile(rf"((?=\w)[{_SPACELESS}][{_SPACELESS}{_MARKS}]*)")
_UNIT = re.compile(rf"[{_SPACELESS}][{_MARKS}]*")
_GAP = re.compile(rf"(?<=[{_SPACELESS}{_MARKS}]) (?=[{_SPACELESS}])")


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, as broken JSON may: such a text cannot be written."""
    return not text.isascii() and _LONE_SURROGATE.search(text) is not None


def split_words(text: str) -> list[str]:
    """The case-folded words of a text, in its order.

    A word is a run of letters, digits and their combining marks; an underscore separates words, so that
    `read_text` is two. Where a script has no spaces, overlapping pairs of characters stand for words, as in
    Lucene's CJKAnalyzer; a character that stands alone is a word.

    Args:
        text: Any text.

    Returns:
        The words; none where the text has no letter and no digit.
    """
    folded = text.casefold()
    if folded.isascii():
        return _ASCII_WORD.findall(folded)
    words: list[str] = _WORD.findall(folded)
    if not _SPACELESS_RUN.search(folded):
        return words
    return [part for word in words for part in _split_scripts(word)]


def _split_scripts(word: str) -> Iterable[str]:
    # Splitting at a captured group leaves the runs of the group at the odd places.
    for place, run in enumerate(_SPACELESS_RUN.split(word)):
        if place % 2:
            units = _UNIT.findall(run)
            yield from map("".join, pairwise(units)) if len(units) > 1 else units
        elif run:
            yield run


def replace_words(text: str, replace: Callable[[str], str | None]) -> str:
    """A text with others in the place of some of its words.

    Args:
        text: Any text.
        replace: Called with the words of `split_words`, in their order and as they are written; what stands for one, or
            None where it stays. Of overlapping pairs, the next after one that was replaced is the one behind it.

    Returns:
        The text, with all that is between its words.
    """

    def other(word: str) -> str:
        found = replace(word)
        return word if found is None else found

    if not _SPACELESS_RUN.search(text):
        return _WORD.sub(lambda match: other(match[0]), text)
    return _WORD.sub(lambda match: "".join(_replace_parts(match[0], replace)), text)


def _replace_parts(word: str, replace: Callable[[str], str | None]) -> Iterator[str]:
    for place, run in enumerate(_SPACELESS_RUN.split(word)):
        units = _UNIT.findall(run) if place % 2 else [run] if run else []
        pair = min(len(units), 2)
        start = 0
        while start < len(units):
            whole = start + pair <= len(units)  # else the last character, whose pair begins before it
            found = replace("".join(units[start : start + pair])) if whole else None
            yield units[start] if found is None else found
            start += 1 if found is None else pair


def join_words(words: Iterable[str]) -> str:
    """Words as a text: with spaces between them, but for scripts that have none."""
    text = " ".join(words)
    return text if text.isascii() else _GAP.sub("", text)
