"""Putting a distinctive keyword first, so that identifiers part at their first choice."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from genret.identifiers.keywords import KeywordLists


def lead_with_distinctive(keywords: KeywordLists, pool: int, leading: Iterable[str] = ()) -> Iterator[list[str]]:
    """Reorder each passage's keywords: one that few other identifiers begin with comes first.

    Greedy: the passage takes, of its best `pool` keywords, the one that the fewest passages before it have taken,
    the better one where several are equal. Passages with few keywords choose first. A small decoder then
    decides nearly everything at the root of the trie, with the whole query before it, where it is best at it.

    Args:
        keywords: Each passage's keywords, best first.
        pool: How many of the best may lead.
        leading: Keywords that other identifiers begin with already.

    Yields:
        The same keywords a passage, in the same order but for the one that leads.
    """
    for words, first in zip(keywords, _choices(keywords, pool, leading), strict=True):
        if first:
            words.insert(0, words.pop(first))
        yield words


def _choices(keywords: KeywordLists, pool: int, leading: Iterable[str]) -> np.ndarray:
    """The place of the keyword that leads, for each passage; int32."""
    taken: dict[str, int] = Counter(keyword.casefold() for keyword in leading)
    choices = np.zeros(len(keywords), dtype=np.int32)
    for number, folded in keywords.folded_shortest_first():
        if folded:
            counts = [taken.get(word, 0) for word in folded[:pool]]
            # index() finds the first of equals, and the words are best first.
            fewest = min(counts)
            first = counts.index(fewest)
            taken[folded[first]] = fewest + 1
            choices[number] = first
    return choices
