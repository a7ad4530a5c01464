"""The identifiers that a search has found so far, and those that it returns."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from genret.decoding.scoring import Floats, Ints
from genret.decoding.trie import Paths


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The identifiers found for one prompt, best first.

    Attributes:
        indices: int64, positions of the identifiers in the input of the trie; none twice.
        scores: float64, their log-probabilities in nats, falling.
        exact: Whether no identifier that may be returned is better than these; False where the search cannot
            tell.
        expansions: Stretches of tokens that the model read, the prompt not counted: the work.
    """

    indices: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    exact: bool
    expansions: int


@dataclass
class Results:
    """The best k complete identifiers of each query so far, by ascending query and falling score."""

    size: int
    k: int
    query: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    leaf: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    score: Floats = field(default_factory=lambda: np.empty(0))
    _threshold: Floats | None = field(default=None, init=False)

    def add(self, query: Ints, leaf: Ints, score: Floats) -> None:
        """Take further identifiers in; those without any probability stay out.

        Args:
            query: `[n]`, ascending: whose each is.
            leaf: `[n]`, each one's leaf in the trie.
            score: `[n]`, its log-probability.
        """
        if not len(query):
            return
        possible = (score > -np.inf) & (score >= self.threshold()[query])
        if np.count_nonzero(possible) > self.size * self.k:
            possible[possible] = score[possible] >= self._bound(query[possible], score[possible])[query[possible]]
        self.query = np.concatenate((self.query, query[possible]))
        self.leaf = np.concatenate((self.leaf, leaf[possible]))
        self.score = np.concatenate((self.score, score[possible]))
        sequence, rank = ranking(self.query, self.score, self.leaf)
        best = sequence[rank < self.k]
        self._threshold = None
        self.query, self.leaf, self.score = self.query[best], self.leaf[best], self.score[best]

    def copy(self) -> "Results":
        """Results that can be added to on their own."""
        return replace(self)

    def threshold(self) -> Floats:
        """`[size]`, the k-th score of each query, or -inf where there are fewer."""
        if self._threshold is None:
            last = rank_in_run(self.query) == self.k - 1
            self._threshold = np.full(self.size, -np.inf)
            self._threshold[self.query[last]] = self.score[last]
        return self._threshold

    def _bound(self, query: Ints, score: Floats) -> Floats:
        """`[size]`, the k-th best of each query's scores, or -inf where there are fewer: sorting them all takes longer.

        Queries ascend.
        """
        count = np.bincount(query, minlength=self.size)
        table = np.full((self.size, int(count.max())), -np.inf)
        if table.shape[1] < self.k:
            return np.full(self.size, -np.inf)
        table[query, rank_in_run(query)] = score
        return -np.partition(-table, self.k - 1, axis=1)[:, self.k - 1]

    def results(self, trie: Paths, exact: npt.NDArray[np.bool_], expansions: Ints) -> list[SearchResult]:
        """What a search returns.

        Args:
            trie: Of the leaves.
            exact: bool `[size]`, whether nothing better can be found for a query.
            expansions: `[size]`, what each query cost.

        Returns:
            A result a query, in their order.
        """
        bounds = np.searchsorted(self.query, np.arange(self.size + 1))
        indices = trie.positions(self.leaf)
        return [
            SearchResult(indices[a:b], self.score[a:b], bool(exact[number]), int(expansions[number]))
            for number, (a, b) in enumerate(pairwise(bounds))
        ]


def ranking(query: Ints, score: Floats, leaf: Ints) -> tuple[Ints, Ints]:
    """The order by query, falling score and leaf, and each one's 0-based rank in its query."""
    sequence = np.lexsort((leaf, -score, query))
    return sequence, rank_in_run(query[sequence])


def rank_in_run(query: Ints) -> Ints:
    """`0, 1, 2, ...` within each run of equal numbers, which ascend."""
    counts = np.bincount(query)
    return np.arange(len(query)) - (np.cumsum(counts) - counts)[query]
