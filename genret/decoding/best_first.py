"""Best-first search, which is exact: it ends when no open hypothesis can be better than what was found."""

import numpy as np

from genret.decoding.arrays import Rows
from genret.decoding.hypotheses import HYPOTHESIS, Batch, Expansions, Hypotheses
from genret.decoding.results import Results, SearchResult, rank_in_run, ranking
from genret.decoding.scoring import Floats, Ints

# Places of hypotheses are copied into fewer ones where less than this share of them is taken.
KEEP_SHARE = 0.75
# A query that made many expansions is likely to need many more, and a pass takes one for so many of them: of all that
# are needed few are then in vain. Before there are results nothing is pruned, and it takes fewer. For a pass with many
# hypotheses has no room to read on where the next tokens are nearly certain: a long identifier then takes a pass a
# token, and in each of these passes other hypotheses go along that will not be needed.
EXPANDED_A_PASS = 8
EXPANDED_A_PASS_WITHOUT_RESULTS = 32


class _Frontier:
    """The open hypotheses of each query, `[queries, places]`; a score of -inf marks a free place.

    An expansion may find thousands of children, of which few are ever expanded: a hypothesis is made of one when it is
    taken out.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.score = np.full((batch.size, 0), -np.inf)
        # By place: the expanded hypothesis that it goes on from, and the child that it goes on with, -1 for none.
        self._parent, self._child = np.zeros((2, batch.size, 0), dtype=np.int64)
        self._expanded = Rows(np.empty(0, dtype=HYPOTHESIS))

    def push(self, expanded: Hypotheses, parent: Ints, child: Ints, score: Floats) -> None:
        """Add what hypotheses become; what has no probability stays out.

        Args:
            expanded: Hypotheses that were moved on, by ascending query.
            parent: `[h]`, ascending: the place among them of what each added one goes on from.
            child: `[h]`, a position in `Trie.child`, or -1 where it goes on without a choice.
            score: `[h]`.
        """
        possible = score > -np.inf
        parent, child, score = parent[possible], child[possible], score[possible]
        query = expanded["query"][parent]
        place = self.score.shape[1] + rank_in_run(query)
        self._widen(int(place.max(initial=-1)) + 1 - self.score.shape[1])
        self.score[query, place], self._child[query, place] = score, child
        self._parent[query, place] = self._expanded.add(expanded) + parent

    def prune(self, threshold: Floats) -> None:
        """Forget hypotheses that are no better than their query's threshold."""
        self.score[self.score <= threshold[:, None]] = -np.inf
        live = int((self.score > -np.inf).sum(axis=1).max(initial=0))
        # Free places are given up once they are many: it takes long to copy the others.
        if live < KEEP_SHARE * self.score.shape[1]:
            place = np.argpartition(-self.score, live, axis=1)[:, :live]
            self.score, self._parent, self._child = (
                np.take_along_axis(array, place, axis=1) for array in (self.score, self._parent, self._child)
            )

    def pop(self, count: Ints) -> Hypotheses:
        """Take out the best `count[i]` hypotheses of query `i`; they come by ascending query."""
        most = min(int(count.max(initial=0)), self.score.shape[1])
        if most == 0:
            return np.empty(0, dtype=HYPOTHESIS)
        top = -np.sort(np.partition(-self.score, most - 1, axis=1)[:, :most], axis=1)
        last = top[np.arange(len(top)), np.clip(count, 1, most) - 1]
        last[count <= 0] = np.inf
        # With all that are as good as the last one: which of them are taken must not depend on where they stand.
        query, place = np.nonzero((self.score >= last[:, None]) & (self.score > -np.inf))
        made = self._made(query, place)
        sequence, rank = ranking(query, made["score"], made["leaf"])
        taken = sequence[rank < count[query[sequence]]]
        self.score[query[taken], place[taken]] = -np.inf
        return made[taken]

    def best(self) -> Floats:
        """`[queries]`, the best open score, -inf where there is none."""
        return self.score.max(axis=1, initial=-np.inf)

    def _widen(self, more: int) -> None:
        """Make places for as many more hypotheses of each query."""
        if more > 0:
            free = np.zeros((len(self.score), more), dtype=np.int64)
            self.score = np.concatenate((self.score, np.full(free.shape, -np.inf)), axis=1)
            self._parent = np.concatenate((self._parent, free), axis=1)
            self._child = np.concatenate((self._child, free), axis=1)

    def _made(self, query: Ints, place: Ints) -> Hypotheses:
        """The hypotheses at some places."""
        made, child = self._expanded[self._parent[query, place]], self._child[query, place]
        chosen = child >= 0
        made[chosen] = self._batch.children(made[chosen], child[chosen], self.score[query, place][chosen])
        return made


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
    results, frontier = Results(batch.size, k), _Frontier(batch)
    hypotheses, found = batch.begin()
    most = at_once
    while len(hypotheses):
        _absorb(batch, hypotheses, found, results, frontier)
        frontier.prune(results.threshold())
        count = np.full(batch.size, max(at_once, min(most, _room(batch.hypotheses_per_pass, frontier))))
        if max_expansions is None:
            has_results = results.threshold() > -np.inf
            more = batch.expanded // np.where(has_results, EXPANDED_A_PASS, EXPANDED_A_PASS_WITHOUT_RESULTS)
            count = np.maximum(count, np.minimum(more, _room(batch.most_hypotheses, frontier)))
            most = min(2 * most, max(at_once, batch.hypotheses_per_pass))
        else:
            # Room is shared by the batch, and more at once may take more expansions: what a search finds until its
            # bound on them ends it must not depend on that.
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


def _room(hypotheses: int, frontier: _Frontier) -> int:
    """How many hypotheses of each query a pass has room for, given how many of all.

    Where few identifiers are allowed, or no hypothesis stands out, many must be expanded before k results are better
    than the rest, and passes for a few of them cost as much as full ones.
    """
    return hypotheses // max(1, int(np.count_nonzero(frontier.best() > -np.inf)))


def _absorb(batch: Batch, hypotheses: Hypotheses, found: Expansions, results: Results, frontier: _Frontier) -> None:
    """Put what a pass found into results and frontier."""
    entry = np.arange(len(hypotheses))
    at_node = (hypotheses["target"] >= 0) & (hypotheses["stop"] == hypotheses["choice"])
    moved = batch.moved_on(hypotheses, found, entry)
    done = ~at_node & (moved["target"] < 0) & (moved["start"] == moved["choice"])
    if not batch.over_vocabulary:
        done |= ~at_node & (moved["target"] < 0) & (moved["forced"] == 0)
    results.add(moved["query"][done], moved["leaf"][done], moved["score"][done])
    going_on = np.flatnonzero(~at_node & ~done)
    parents = np.flatnonzero(at_node)
    choices = batch.choices(hypotheses[parents], found, parents)
    parent = parents[choices.parent]
    # Over the trie nothing is left to find out once a single leaf is below.
    complete = choices.target < 0
    if batch.over_vocabulary:
        last = batch.trie.lengths(~choices.target[complete]) - 1
        complete[complete] = hypotheses["stop"][parent[complete]] == last
    results.add(hypotheses["query"][parent[complete]], ~choices.target[complete], choices.score[complete])
    worth = ~complete & (choices.score > results.threshold()[hypotheses["query"][parent]])
    parent = np.concatenate((going_on, parent[worth]))
    child = np.concatenate((np.full(len(going_on), -1), choices.child[worth]))
    score = np.concatenate((moved["score"][going_on], choices.score[worth]))
    sequence = np.argsort(parent, kind="stable")
    frontier.push(moved, parent[sequence], child[sequence], score[sequence])
