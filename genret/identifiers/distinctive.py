"""Putting a distinctive keyword first, so that identifiers part at their first choice."""

from collections import Counter
from collections.abc import Iterable, Sequence


def lead_with_distinctive(keywords: Sequence[Sequence[str]], pool: int, leading: Iterable[str] = ()) -> list[list[str]]:
    """Reorder each passage's keywords: one that few other identifiers begin with comes first.

    Greedy: the passage takes, of its best `pool` keywords, the one that the fewest passages before it have taken,
    the better one where several are equal. Passages with few keywords choose first. A small decoder then
    decides nearly everything at the root of the trie, with the whole query before it, where it is best at it.

    Args:
        keywords: Each passage's keywords, best first.
        pool: How many of the best may lead.
        leading: Keywords that other identifiers begin with already.

    Returns:
        The same keywords a passage, in the same order but for the one that leads.
    """
    taken = Counter(keyword.casefold() for keyword in leading)
    ordered: list[list[str]] = [[] for _ in keywords]
    for number in sorted(range(len(keywords)), key=lambda index: (len(keywords[index]), index)):
        words = list(keywords[number])
        if words:
            # min() keeps the first of equals, and the words are best first.
            first = min(range(min(pool, len(words))), key=lambda place: taken[words[place].casefold()])
            words.insert(0, words.pop(first))
            taken[words[0].casefold()] += 1
        ordered[number] = words
    return ordered
