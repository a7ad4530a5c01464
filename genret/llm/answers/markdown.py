"""The lines of a Markdown answer, and their text without its Markdown.

Not a Markdown parser: it knows lists in all the ways in which language models write them, headings, fences
and tables, and takes everything else for text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ZERO_WIDTH = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufffe\uffff]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_LINE_END = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_ESCAPED_MARKER = re.compile(r"\\(?=[-*+#>])|&(?:bull|middot|#8226);[ \t]*")
_TAG = re.compile(r"\s*</?[A-Za-z][^<>]*>\s*")
_FENCE = re.compile(r"[ \t]*(?:`{3,}|~{3,})[ \t]*[\w+-]*[ \t]*")
_RULE = re.compile(r"[ \t]*([-*_=~—–])[ \t]*(?:\1[ \t]*){2,}")
_HAS_WORD = re.compile(r"[^\W_]")
_HEADING = re.compile(r"\s*#{1,6}(?:\s+|(?=[^\W\d_]))")
_QUOTED = re.compile(r"\s*(?:>\s?)+")

# A space must follow: these begin words, numbers and emphasis too.
_SPACED_BULLET = r"[-*+→➢➤►▶✓✔★☆»＊]\s+"
_BULLET = r"[•‣◦▪▫■□●○∙·・⁃※]\s*|[–—]\s*(?=[^\s\d–—])"
_NUMBER = (
    r"[(（\[【]\s*\d{1,3}\s*[)）\]】][.:]?\s*"  # (1)
    r"|#?\d{1,3}\s*\\?(?:[.)]\)?(?!\d)|[．）、。](?!\d)|：(?!\d)|:(?=\s))\s*"  # 1.  1)  1\.  1、
    r"|\d{1,3}\s+[-–—]\s+(?=[^\W\d])|\d{1,3}\t+"  # 1 - one
    r"|(?:\d\ufe0f?\u20e3|\U0001f51f)+[.:)]?\s*"  # keycaps
    r"|[\u2460-\u2473\u2776-\u277f\u2780-\u2793]\s*"  # 1 in a circle
    r"|[一二三四五六七八九十]{1,3}[、．.]\s*"
    r"|\(?[a-z]\)\s+"  # a)
)
_CHECKBOX = r"\[[ xX]?\]\s+"
_MARKER = re.compile(rf"(?:{_SPACED_BULLET}|{_BULLET}|{_NUMBER}|{_CHECKBOX})")
# Only at the head of a line: items may begin with a dash or an emoji.
_LINE_MARKER = re.compile(r"-(?=[^\s\d\->=])|[\u2600-\u27bf\u2b00-\u2bff\U0001f300-\U0001faff]\ufe0f?\s+(?=\S)")
_LETTERED = re.compile(r"^[ \t]*([A-Za-z])[.:][ \t]+(?=\S)", re.MULTILINE)
_MOST_MARKERS = 4

_BOLD = re.compile(r"\*\*(?=[^\s*])(.*?[^\s*])\*\*")
_UNDERLINED = re.compile(r"(?<!\w)__(?=\S)([^_]*[\s:：?？][^_]*?)__(?!\w)")
_ITALIC = re.compile(r"(?<![\w*])\*([^\s*](?:[^*\n]*[^\s*])?)\*(?![\w*])")
_ITALIC_LINE = re.compile(r"_([^_\s][^_]*[^_\s])_")
_CODE = re.compile(r"(`{1,3})(?=[^`])([^`]+?)\1")
_LINK = re.compile(r"(?<!\w)\[([^\[\]]+)\]\((?:https?:|/|#|www\.)[^\s()]*\)")
_QUOTES = {
    '"': '"', "“": "”", "”": "”", "„": "“", "«": "»", "»": "«", "「": "」", "『": "』", "‘": "’", "‚": "‘",
    "'": "'", "`": "`", "＂": "＂", "‹": "›",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """A line with something in it.

    Attributes:
        text: Without its marker and Markdown.
        indent: Columns of white space before it.
        marked: It is an item of a list.
        heading: It is a heading.
        gap: It is the first, or blank lines stand before it.
    """

    text: str
    indent: int = 0
    marked: bool = False
    heading: bool = False
    gap: bool = False


def normalise(text: str) -> str:
    """Text with line feeds as its line ends, without controls, invisible characters and noncharacters.

    Joiners and variation selectors stay: scripts and emoji need them.
    """
    return _CONTROLS.sub("", _ZERO_WIDTH.sub("", _LINE_END.sub("\n", text)))


def open_fences(text: str) -> str:
    """What stands in code fences or what stands around them, whichever is the list.

    The fences' content is it if it has items or the text around has none. A fence that is not closed goes to the
    end.
    """
    parts: tuple[list[str], list[str]] = ([], [])
    fenced = False
    for line in text.split("\n"):
        if _FENCE.fullmatch(line):
            fenced = not fenced
        else:
            parts[fenced].append(line)
    outside, inside = ("\n".join(part) for part in parts)
    if inside.strip() and (_has_items(inside) or not _has_items(outside)):
        return inside
    return outside


def _has_items(text: str) -> bool:
    return any(line.marked for line in read_lines(text))


def read_lines(text: str) -> list[Line]:
    """The lines that have a letter or a digit in them and are not one tag; all others count as blank."""
    lettered = _is_lettered(text)
    lines: list[Line] = []
    gap = True
    for raw in text.split("\n"):
        if not _HAS_WORD.search(raw) or _RULE.fullmatch(raw) or _TAG.fullmatch(raw):
            gap = True
        else:
            lines.append(_read_line(raw, gap, lettered))
            gap = False
    return lines


def _is_lettered(text: str) -> bool:
    """Whether lines begin with A. B. and so on; a single "A. Smith" is no list."""
    letters = "".join(_LETTERED.findall(text)).upper()
    return len(letters) > 1 and "ABCDEFGHIJKLMNOPQRSTUVWXYZ".startswith(letters)


def _read_line(raw: str, gap: bool, lettered: bool) -> Line:
    raw = _QUOTED.sub("", raw, count=1) if _QUOTED.match(raw) else raw
    heading = _HEADING.match(raw)
    body = raw[heading.end() :] if heading else raw.lstrip()
    if escaped := _ESCAPED_MARKER.match(body):
        body = f"• {body[escaped.end() :].lstrip('-*+#> ')}"
    indent = len(raw.expandtabs(4)) - len(raw.expandtabs(4).lstrip())
    text = strip_markup(body)
    if not heading and (marker := _LINE_MARKER.match(text)):
        return Line(text[marker.end() :].strip(), indent, True, False, gap)
    if lettered and (letter := _LETTERED.match(text)):
        return Line(text[letter.end() :].strip(), indent, True, False, gap)
    rest = strip_markers(text)
    return Line(rest, indent, rest != text, bool(heading), gap)


def strip_markers(text: str) -> str:
    """An item without its bullets, numbers and boxes; models write "1. - one" too."""
    for _ in range(_MOST_MARKERS):
        match = _MARKER.match(text)
        if not match:
            break
        text = text[match.end() :]
    return text.strip()


def strip_markup(text: str) -> str:
    """One line of text without emphasis, code marks and links; names like `__init__` and `*args` stay."""
    text = _LINK.sub(r"\1", text.strip())
    text = _CODE.sub(r"\2", text)
    text = _BOLD.sub(r"\1", text)
    text = _UNDERLINED.sub(r"\1", text)
    text = _ITALIC.sub(r"\1", text)
    if whole := _ITALIC_LINE.fullmatch(text):
        text = whole[1]
    # What is left of bold that spans more than the line.
    return text.removeprefix("**").removesuffix("**").strip()


def strip_quotes(text: str) -> str:
    """Text without the quotation marks around all of it, and the comma behind them."""
    text = text.strip()
    bare = text.rstrip(",;，；") if text[:1] in _QUOTES else text
    closing = _QUOTES.get(bare[:1])
    if closing and len(bare) > 2 and bare.endswith(closing):
        inner = bare[1:-1]
        if closing not in inner and bare[0] not in inner:
            return inner.strip()
    return text


# --- tables ---

_CELL_END = re.compile(r"(?<!\\)\|")
_SEPARATOR = re.compile(r"\s*\|?\s*:?-{2,}:?\s*(?:\|\s*:?-{2,}:?\s*)*\|?\s*")


def read_table(text: str) -> tuple[list[str], list[list[str]]] | None:
    """The first table with a header.

    Args:
        text: Any text.

    Returns:
        The header's cells, and those of each row that has as many; None where there is no table.
    """
    lines = text.split("\n")
    for number, line in enumerate(lines[1:], 1):
        if _SEPARATOR.fullmatch(line) and "|" in line and "|" in lines[number - 1]:
            header = _cells(lines[number - 1])
            rows = [_cells(row) for row in _table_rows(lines[number + 1 :])]
            return header, [row for row in rows if len(row) == len(header)]
    return None


def _table_rows(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if "|" not in line:
            return
        yield line


def _cells(row: str) -> list[str]:
    row = row.strip().removeprefix("|")
    row = row[:-1] if row.endswith("|") and not row.endswith("\\|") else row
    return [strip_markup(cell.replace("\\|", "|")) for cell in _CELL_END.split(row)]
