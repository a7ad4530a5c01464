"""Queries of a passage that say the same in nearly the same words."""

import math
from collections import defaultdict

from genret.llm.words import split_words


class NearDuplicates:
    """The queries of one passage so far, to compare further ones with.

    Queries are compared as sets of words (`genret.llm.words.split_words`) by the Jaccard index, |A and B| / |A or B|.
    Case, punctuation and the order of the words make no difference: "did A beat B" and "did B beat A" are
    duplicates, and so are a long query and its negation. Queries whose numbers differ are not, however much they share:
    "in 2022" and "in 2023".

    Only sets that share a word of their prefixes are compared (Bayardo et al., "Scaling up all pairs similarity
    search", WWW 2007): with all sets' words in one order, two that overlap by `threshold` have a word in common among
    their first |A| - ceil(threshold * |A|) + 1. Long words come first, since they are rare.
    """

    def __init__(self, threshold: float) -> None:
        """Start with no queries.

        Args:
            threshold: From which overlap on two queries are duplicates, above 0 and at most 1. Of queries with fewer
                than ten words, 0.9 leaves those with the same words.
        """
        self._threshold = threshold
        self._sets_by_word: defaultdict[str, list[frozenset[str]]] = defaultdict(list)

    def add(self, query: str) -> bool:
        """Take a query in, unless it is a duplicate.

        Args:
            query: Any text. One without words is no duplicate and is not taken in.

        Returns:
            Whether it is a duplicate of one taken in before.
        """
        words = frozenset(split_words(query))
        prefix = self._prefix(words)
        if any(self._alike(words, other) for word in prefix for other in self._sets_by_word[word]):
            return True
        for word in prefix:
            self._sets_by_word[word].append(words)
        return False

    def _prefix(self, words: frozenset[str]) -> list[str]:
        # The small term keeps ceil exact where the product is a whole number but for rounding.
        length = len(words) - math.ceil(self._threshold * len(words) - 1e-9) + 1
        return sorted(words, key=lambda word: (-len(word), word))[: length if words else 0]

    def _alike(self, one: frozenset[str], other: frozenset[str]) -> bool:
        shared = len(one & other)
        if shared < self._threshold * (len(one) + len(other) - shared) - 1e-9:
            return False
        return not any(_has_digit(word) for word in one ^ other)


def _has_digit(word: str) -> bool:
    return any(character.isdecimal() for character in word)
