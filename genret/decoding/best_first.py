"""Best-first search, which is exact: it ends when no open hypothesis can be better than what was found."""

import numpy as np

from genret.decoding.hypotheses import HYPOTHESIS, Batch, Expansions, Hypotheses, joined
from genret.decoding.results import Results, SearchResult, rank_in_run, ranking
from genret.decoding.scoring import Floats, Ints


class _Frontier:
    """The open hypotheses of each query, `[queries, places]`; a score of -inf marks a free place."""

    def __init__(self, size: int) -> None:
        self.score = np.full((size, 0), -np.inf)
        self.hypotheses = np.zeros((size, 0), dtype=HYPOTHESIS)

    def push(self, hypotheses: Hypotheses) -> None:
        """Add hypotheses; those without any probability stay out."""
        possible = hypotheses[hypotheses["score"] > -np.inf]
        possible = possible[np.argsort(possible["query"], kind="stable")]
        place = rank_in_run(possible["query"])
        added = np.zeros((len(self.score), int(place.max(initial=-1)) + 1), dtype=HYPOTHESIS)
        added["score"] = -np.inf
        added[possible["query"], place] = possible
        self.score = np.concatenate((self.score, added["score"]), axis=1)
        self.hypotheses = np.concatenate((self.hypotheses, added), axis=1)

    def prune(self, threshold: Floats) -> None:
        """Forget hypotheses that are no better than their query's threshold."""
        self.score[self.score <= threshold[:, None]] = -np.inf
        live = int((self.score > -np.inf).sum(axis=1).max(initial=0))
        if live < self.score.shape[1]:
            place = np.argpartition(-self.score, live, axis=1)[:, :live]
            self.score = np.take_along_axis(self.score, place, axis=1)
            self.hypotheses = np.take_along_axis(self.hypotheses, place, axis=1)

    def pop(self, count: Ints) -> Hypotheses:
        """Take out the best `count[i]` hypotheses of query `i`; they come by ascending query."""
        most = min(int(count.max(initial=0)), self.score.shape[1])
        if most == 0:
            return np.empty(0, dtype=HYPOTHESIS)
        place = np.argpartition(-self.score, most - 1, axis=1)[:, :most]
        score = np.take_along_axis(self.score, place, axis=1)
        query, column = np.nonzero(score > -np.inf)
        place = place[query, column]
        sequence, rank = ranking(query, score[query, column], self.hypotheses["leaf"][query, place])
        taken = sequence[rank < count[query[sequence]]]
        self.score[query[taken], place[taken]] = -np.inf
        return self.hypotheses[query[taken], place[taken]]

    def best(self) -> Floats:
        """`[queries]`, the best open score, -inf where there is none."""
        return self.score.max(axis=1, initial=-np.inf)


def best_first(batch: Batch, k: int, at_once: int, max_expansions: int | None) -> list[SearchResult]:
    """The k best identifiers of each query.

    Args:
        batch: The queries.
        k: How many.
        at_once: How many hypotheses of a query the first pass expands, and at least each later one.
        max_expansions: After how many expansions a query ends; None for as many as it takes.

    Returns:
        A result a query, in their order; not `exact` where the bound or the deadline ended its search.
    """
    results, frontier = Results(batch.size, k), _Frontier(batch.size)
    hypotheses, found = batch.begin()
    # Room is shared by the batch, and more at once may take more expansions: what a search finds until its bound on
    # them ends it must not depend on that.
    doubling = max_expansions is None
    most = at_once
    while len(hypotheses):
        _absorb(batch, hypotheses, found, results, frontier)
        frontier.prune(results.threshold())
        count = np.full(batch.size, max(at_once, min(most, _room(batch, frontier))))
        most = min(2 * most, max(at_once, batch.hypotheses_per_pass)) if doubling else at_once
        if max_expansions is not None:
            count = np.minimum(count, max_expansions - batch.expanded)
        if batch.late():
            break
        hypotheses = frontier.pop(count)
        if len(hypotheses):
            batch.pass_forced_nodes(hypotheses)
            # Over the trie to their ends: there is little to read, and how much must not depend on the batch.
            to_end = None if batch.over_vocabulary else hypotheses["choice"].astype(np.int64)
            found = batch.expand(hypotheses, to_end)
    return results.results(batch.trie, results.threshold() >= frontier.best(), batch.expanded)


def _room(batch: Batch, frontier: _Frontier) -> int:
    """How many hypotheses of each query a pass has room for.

    Where few identifiers are allowed, or no hypothesis stands out, many must be expanded before k results are better
    than the rest, and passes for a few of them cost as much as full ones.
    """
    return batch.hypotheses_per_pass // max(1, int(np.count_nonzero(frontier.best() > -np.inf)))


def _absorb(batch: Batch, hypotheses: Hypotheses, found: Expansions, results: Results, frontier: _Frontier) -> None:
    """Put what a pass found into results and frontier."""
    entry = np.arange(len(hypotheses))
    at_node = (hypotheses["target"] >= 0) & (hypotheses["stop"] == hypotheses["choice"])
    moved = batch.moved_on(hypotheses[~at_node], found, entry[~at_node])
    done = (moved["target"] < 0) & (moved["start"] == moved["choice"])
    if not batch.over_vocabulary:
        done |= (moved["target"] < 0) & (moved["forced"] == 0)
    results.add(moved["query"][done], moved["leaf"][done], moved["score"][done])
    parents, entry = hypotheses[at_node], entry[at_node]
    choices = batch.choices(parents, found, entry)
    # Over the trie nothing is left to find out once a single leaf is below.
    complete = choices.target < 0
    if batch.over_vocabulary:
        last = batch.trie.lengths(~choices.target[complete]) - 1
        complete[complete] = parents["stop"][choices.parent[complete]] == last
    leaves = choices.where(complete)
    results.add(parents["query"][leaves.parent], ~leaves.target, leaves.score)
    choices = choices.where(~complete)
    worth = choices.score > results.threshold()[parents["query"][choices.parent]]
    chosen = batch.children(parents, found, entry, choices.where(worth))
    frontier.push(joined(moved[~done], chosen))
