"""Cutting text into sentences, without losing a character of it."""

import re

import blingfire

_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
# What the splitter does not take as white space, or ends its answer at (NUL).
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b\ufeff]")
# The same for a text of ASCII characters.
_ASCII_BLANKS = dict.fromkeys((*range(0x21), 0x7F), " ")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


def split_sentences(text: str) -> list[str]:
    """Split text into sentences.

    Sentence ends are those that Bling Fire finds (https://github.com/microsoft/BlingFire, its built-in rules,
    for any language); a blank line ends a sentence too.

    Args:
        text: Any string: empty, with control characters, lone surrogates, of any length.

    Returns:
        The sentences in order, without white space around them, none empty. Together they hold every
        character of the text that is not white space.
    """
    return [text[start:end] for start, end in sentence_spans(text)]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where the sentences of `split_sentences` begin and end, in characters."""
    starts: list[int] = []
    paragraph_start = 0
    for gap in _PARAGRAPH_BREAK.finditer(text):
        starts += _sentence_starts(text, paragraph_start, gap.start())
        paragraph_start = gap.end()
    starts += _sentence_starts(text, paragraph_start, len(text))
    ends = [*starts[1:], len(text)]
    spans = (_strip(text, start, end) for start, end in zip(starts, ends, strict=True))
    return [(start, end) for start, end in spans if start < end]


def _sentence_starts(text: str, start: int, end: int) -> list[int]:
    # A copy of the same length, so that places in it are places in the text.
    paragraph = text[start:end]
    if paragraph.isascii():
        paragraph = paragraph.translate(_ASCII_BLANKS)
    else:
        paragraph = _LONE_SURROGATE.sub("\ufffd", _BLANK.sub(" ", paragraph))
    starts = [start]
    position = 0
    for sentence in blingfire.text_to_sentences(paragraph).split("\n"):
        found = paragraph.find(sentence, position)
        if found < 0:
            break
        if found > 0:
            starts.append(start + found)
        position = found + len(sentence)
    return starts


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
