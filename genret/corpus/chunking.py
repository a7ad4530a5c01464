"""Counting the tokens of a text, and cutting it into chunks of at most so many."""

import re
import unicodedata

from genret.corpus.sentences import sentence_spans

LONGEST_WORD = 64
"""A longer word (characters; mostly encoded data) counts as several tokens: every chunk is bounded."""

# Scripts that are written without spaces: each of their letters counts. Thai, Lao, Myanmar, Khmer; kana and
# bopomofo; Chinese characters, all planes.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9d\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
# Marks (vowel signs, accents) are part of the word they stand in, but \w does not hold them. All are in the
# first two planes.
_MARKS = "".join(
    chr(code)
    for code in range(0x300, 0x20000)
    if unicodedata.category(chr(code)).startswith("M") and not re.match(f"[{_UNSPACED}]", chr(code))
)
_TOKEN = re.compile(
    # Most words; what follows would find the same, more slowly.
    f"[0-9A-Z_a-z]{{1,{LONGEST_WORD}}}+(?![^\\x00-\\x7f])"
    f"|[{_UNSPACED}]"
    f"|(?:[^\\W{_UNSPACED}]|[{_MARKS}]){{1,{LONGEST_WORD}}}"
    f"|\\S"
)
# The same tokens of a text without other characters, twelve times as fast.
_ASCII_TOKEN = re.compile(f"[0-9A-Z_a-z]{{1,{LONGEST_WORD}}}+|\\S")
# What kind of character each byte of such a text is. Marks part words as white space does.
_WORD, _SPACE, _MARK = b"w \n"
_KINDS = bytes(
    _WORD if re.match("[0-9A-Z_a-z]", chr(code)) else _SPACE if chr(code).isspace() else _MARK for code in range(256)
)
_TOO_LONG = bytes([_WORD]) * (LONGEST_WORD + 1)


def tokenize_words(text: str) -> list[tuple[int, int]]:
    """Find the words and punctuation marks of a text, in linear time.

    A run of letters, digits and underscores is a word; in scripts that are written without spaces each letter
    is one; any other character that is not white space counts by itself. This is a count to measure length
    with, not a linguistic segmentation, nor any model's tokenizer.

    Args:
        text: Any string.

    Returns:
        Where each token begins and ends, in characters. The tokens cover all that is not white space.
    """
    pattern = _ASCII_TOKEN if text.isascii() else _TOKEN
    return [match.span() for match in pattern.finditer(text)]


def count_tokens(text: str) -> int:
    """How many tokens `tokenize_words` finds."""
    if not text.isascii():
        return len(_TOKEN.findall(text))
    kinds = text.encode("ascii").translate(_KINDS)
    if _TOO_LONG in kinds:
        return len(_ASCII_TOKEN.findall(text))
    # Without a search through the text, at a third of the time.
    return kinds.count(_MARK) + len(kinds.split())


def chunk_text(text: str, max_tokens: int) -> list[str]:
    """Cut a text into consecutive chunks without overlap.

    A chunk ends at the end of a sentence where that is possible; a sentence that is too long is cut between
    tokens.

    Args:
        text: Any string.
        max_tokens: Most tokens a chunk, as `tokenize_words` counts them; at least 1.

    Returns:
        The chunks in order, without white space around them; none for a text of nothing but white space.
        Together they hold every character of the text that is not white space.
    """
    if len(text) <= max_tokens or count_tokens(text) <= max_tokens:
        # Most passages are one chunk, wherever their sentences end, and to count is quicker than to find these.
        whole = text.strip()
        return [whole] if whole else []
    chunks: list[str] = []
    chunk_start = chunk_end = used = 0
    for start, end, tokens in _pieces(text, max_tokens):
        if used and used + tokens > max_tokens:
            chunks.append(text[chunk_start:chunk_end])
            used = 0
        if not used:
            chunk_start = start
        chunk_end = end
        used += tokens
    if used:
        chunks.append(text[chunk_start:chunk_end])
    return chunks


def _pieces(text: str, max_tokens: int) -> list[tuple[int, int, int]]:
    """Start, end and tokens of each sentence, or of the parts of a sentence that is too long."""
    pieces = []
    for start, end in sentence_spans(text):
        sentence = text[start:end]
        count = count_tokens(sentence)
        if count <= max_tokens:
            # Without white space around it, a sentence begins and ends with a token.
            pieces.append((start, end, count))
            continue
        tokens = tokenize_words(sentence)
        for first in range(0, count, max_tokens):
            part = tokens[first : first + max_tokens]
            pieces.append((start + part[0][0], start + part[-1][1], len(part)))
    return pieces
