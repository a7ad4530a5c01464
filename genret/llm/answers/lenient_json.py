"""JSON as language models write it: cut off, with comments, trailing commas, odd quotes or unescaped ones."""

import re
from typing import Any

# Deeper values are no list of items.
_DEEPEST = 16
_GAP = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_BARE = re.compile(r"-?\d[\d.eE+-]*|true|false|null|None|True|False")
_KEY = re.compile(r"[\w-]+")
_CLOSING_QUOTES = {'"': '"', "'": "'", "“": "”", "”": "”", "„": "“", "‘": "’", "「": "」"}
# A quote that anything else follows belongs to the text, whether it is escaped or not. A comma may be missing
# between lines.
_AFTER_STRING = re.compile(r"\s*(?:[,\]}:，]|$)|\s*\n\s*[\"'“]")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class Number(str):
    """A number as it was written: apart from strings, so that a reader can tell `[1]` from `["1"]`."""


def read_json(text: str, start: int) -> tuple[Any, int] | None:
    """Read the JSON value that begins at a place.

    Of a value that is cut off, all complete parts are kept: `{"a": ["x", "y` is `{"a": ["x"]}`. Never raises.

    Args:
        text: Any text.
        start: Where a `[` or a `{` stands.

    Returns:
        The value (lists, dictionaries, strings, `Number`s, None for all other words) and the place behind it;
        None if no such value begins there, or if it is nested deeper than 16.
    """
    reader = _Reader(text, start)
    try:
        return reader.value(0), reader.place
    except _NotJson:
        return None


class _NotJson(Exception):
    """What stands there is not JSON, not even nearly."""


class _Cut:
    """Stands for a value of which only a part was written."""


_CUT = _Cut()


class _Reader:
    """A place in a text, and what reads on from there."""

    def __init__(self, text: str, place: int) -> None:
        self._text = text
        self.place = place

    def value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise _NotJson
        first = self._peek()
        if first == "[":
            return self._list(depth)
        if first == "{":
            return self._object(depth)
        if first in _CLOSING_QUOTES:
            return self._string()
        return self._bare()

    def _peek(self) -> str:
        """The next character that is no gap; empty at the end."""
        match = _GAP.match(self._text, self.place)
        assert match is not None  # It matches nothing too.
        self.place = match.end()
        return self._text[self.place : self.place + 1]

    def _list(self, depth: int) -> list[Any]:
        values: list[Any] = []
        self.place += 1
        while not self._ended("]"):
            value = self.value(depth + 1)
            if value is not _CUT:
                values.append(value)
        return values

    def _object(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        self.place += 1
        while not self._ended("}"):
            key = self._key()
            colon = self._peek()
            if key is _CUT or not colon:
                break
            if colon not in ":：=":
                raise _NotJson
            self.place += 1
            value = self.value(depth + 1) if self._peek() else _CUT
            if value is not _CUT:
                values[key] = value
        return values

    def _ended(self, closing: str) -> bool:
        """Whether a list or object ends here, by its bracket or with the text; commas are passed over."""
        while (character := self._peek()) and character in ",，;":
            self.place += 1
        if character == closing:
            self.place += 1
        return not character or character == closing

    def _key(self) -> Any:
        if self._text[self.place] in _CLOSING_QUOTES:
            return self._string()
        match = _KEY.match(self._text, self.place)
        if not match:
            raise _NotJson
        self.place = match.end()
        return match[0]

    def _string(self) -> Any:
        opening = self._text[self.place]
        ends = re.compile(rf"\\|{_CLOSING_QUOTES[opening]}")
        start = place = self.place + 1
        while match := ends.search(self._text, place):
            place = match.end()
            if match[0] == "\\":
                place += 1
            elif _AFTER_STRING.match(self._text, place):
                self.place = place
                return _unescape(self._text[start : match.start()])
        self.place = len(self._text)
        return _CUT

    def _bare(self) -> Any:
        match = _BARE.match(self._text, self.place)
        if not match:
            raise _NotJson
        self.place = match.end()
        return Number(match[0]) if match[0][0] in "-0123456789" else None


def _unescape(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else _ESCAPED.get(match[2], match[2])

    decoded = _ESCAPE.sub(plain, text)
    if decoded.isascii():
        return decoded
    # Two halves of a pair are one character; a half alone stays as it is.
    return decoded.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
