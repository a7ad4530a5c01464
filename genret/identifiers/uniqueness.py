"""Identifiers that differ by construction, whatever tokenizer will read them."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

LLM, EXTENDED, ORDINAL = "llm", "extended", "ordinal"
"""Where an identifier comes from: as the engine gave it, with more of the engine's keywords, with a
number."""

# "a 2" is the second identifier that would have been "a".
_FIRST_ORDINAL = 2
# What some tokenizers drop: accents and enclosing marks; control, format and unassigned characters.
_DROPPED = frozenset({"Mn", "Me", "Cc", "Cf", "Cn", "Co", "Cs"})


def normalisation_key(text: str) -> str:
    """What of a text is sure to reach a model; texts with different keys have different tokens.

    Tokenizers may lower-case, apply NFC or NFKC, strip accents and control characters, and split at white
    space and between scripts or kinds of characters without a trace of it. So the key is without case,
    compatibility forms, accents, invisible characters and white space. It is coarser than NFKC, case folding
    and white space collapsed: some texts with the same key do differ for every tokenizer ("ab c", "a bc").

    Args:
        text: Any text.

    Returns:
        The key; empty where nothing is left.
    """
    folded = text.casefold()
    if not folded.isascii():
        folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", folded).casefold())
    joined = "".join(folded.split())
    if joined.isascii() and joined.isprintable():
        return joined
    return "".join(character for character in joined if unicodedata.category(character) not in _DROPPED)


@dataclass(frozen=True)
class UniqueIdentifiers:
    """Identifiers, no two with the same `normalisation_key`.

    Attributes:
        identifiers: One a passage, in the order of the passages.
        sources: `llm`, `extended` or `ordinal`, aligned.
    """

    identifiers: list[str]
    sources: list[str]


def make_unique(
    keywords: Iterable[Sequence[str]], first: int, most: int, separator: str, existing: Iterable[str] = ()
) -> UniqueIdentifiers:
    """The identifiers that `iterate_unique` gives, all at once."""
    given = list(iterate_unique(keywords, first, most, separator, existing))
    return UniqueIdentifiers([identifier for identifier, _ in given], [source for _, source in given])


def iterate_unique(
    keywords: Iterable[Sequence[str]], first: int, most: int, separator: str, existing: Iterable[str] = ()
) -> Iterator[tuple[str, str]]:
    """Join keywords to identifiers that are unique under `normalisation_key`.

    A passage gets its first `first` keywords. Where an earlier passage has that identifier, its next
    keywords are added one by one, up to `most` in all; where these run out, the smallest number that is
    free. A passage without keywords gets a number alone. Time is linear in the number of keywords, also if
    all passages have the same ones.

    Args:
        keywords: The keywords of each passage, the most important first.
        first: How many keywords to start with, at least 1.
        most: How many keywords to end with, at least `first`.
        separator: Between keywords, and before a number.
        existing: Identifiers that are taken already.

    Yields:
        Each passage's identifier and its source (`UniqueIdentifiers`). They depend on the order of the passages, and
        on nothing else.
    """
    taken = {normalisation_key(identifier) for identifier in existing}
    next_ordinal: dict[str, int] = {}
    for words in keywords:
        yield _free_identifier(words, first, most, separator, taken, next_ordinal)


def _free_identifier(
    words: Sequence[str],
    first: int,
    most: int,
    separator: str,
    taken: set[str],
    next_ordinal: dict[str, int],
) -> tuple[str, str]:
    """The identifier, whose key is taken now, and its source."""
    shortest = min(first, len(words))
    for count in range(shortest, min(most, len(words)) + 1):
        identifier = separator.join(words[:count])
        key = normalisation_key(identifier)
        if key and key not in taken:
            taken.add(key)
            return identifier, LLM if count == shortest else EXTENDED
    return _numbered(separator.join(words[:most]), separator, taken, next_ordinal), ORDINAL


def _numbered(stem: str, separator: str, taken: set[str], next_ordinal: dict[str, int]) -> str:
    # Each number of a stem is looked at once, so that a million equal stems take a million steps.
    stem_key = normalisation_key(stem)
    ordinal = next_ordinal.get(stem_key, _FIRST_ORDINAL if stem_key else 1)
    while True:
        identifier = f"{stem}{separator}{ordinal}" if stem_key else str(ordinal)
        ordinal += 1
        key = normalisation_key(identifier)
        if key not in taken:
            taken.add(key)
            next_ordinal[stem_key] = ordinal
            return identifier
