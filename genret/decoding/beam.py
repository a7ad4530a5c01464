"""Beam search: hypotheses of the same number of tokens compete for the width."""

import numpy as np
import numpy.typing as npt

from genret.decoding.hypotheses import Batch, Expansions, Hypotheses, joined
from genret.decoding.results import Results, SearchResult, rank_in_run, ranking
from genret.decoding.scoring import Floats, Ints

# A place beyond all identifiers.
BEYOND = int(np.iinfo(np.int32).max)


def beam_search(batch: Batch, k: int, width: int) -> list[SearchResult]:
    """The k best identifiers of each query by beam search, as `generate` of transformers would find them.

    Args:
        batch: The queries.
        k: How many, at most `width`.
        width: Hypotheses of a query that go on after each token.

    Returns:
        A result a query, in their order; `exact` where no hypothesis that was pruned could have been better.
    """
    running, found = batch.begin()
    results = Results(batch.size, k)
    # The best score of any hypothesis that fell out of a query's beam.
    lost = np.full(batch.size, -np.inf)
    # By query, the place where hypotheses parted before it was known which of them go on; BEYOND where there is none.
    contested = np.full(batch.size, BEYOND)
    while len(running := _finish(batch, running, found, results, contested)):
        # No hypothesis of a query has a choice before this place, and none parted, so that none would be pruned on the
        # way.
        now = contested.copy()
        np.minimum.at(now, running["query"], running["stop"])
        unknown = _unread(batch, running)
        if not batch.over_vocabulary:
            unknown &= running["stop"] == now[running["query"]]
        waiting = np.bincount(running["query"], weights=unknown, minlength=batch.size)[running["query"]] > 0
        if not waiting.all():
            ready, resting = running[~waiting], running[waiting]
            survivors = _step(batch, ready, now[ready["query"]], found, results, lost, width)
            contested[ready["query"]] = BEYOND
            running = survivors
            if waiting.any():
                running = _by_query(resting, survivors)
        elif batch.late():
            is_open = _is_open(batch, running)
            _add(batch, running[~is_open], found, results)
            np.maximum.at(lost, running["query"][is_open], running["score"][is_open])
            break
        else:
            promising = running["score"] >= _sure_threshold(batch, running, results, width)[running["query"]]
            if not promising.all():
                # A query that now waits for nothing would miss the pass, and so lose its place in the cache.
                running = running[promising]
                continue
            if batch.over_vocabulary:
                running = _part_early(batch, running, contested, width)
            unread = _unread(batch, running).nonzero()[0]
            if len(unread) > batch.hypotheses_per_pass and not batch.over_vocabulary:
                # Those of later places may be pruned before they are needed.
                unread = unread[running["stop"][unread] == now[running["query"][unread]]]
            if len(unread):
                expanding = running[unread]
                found = found.extended(batch.expand(expanding, _next_choice(batch, running)[expanding["query"]]))
                running[unread] = expanding
    return results.results(batch.trie, results.threshold() >= lost, batch.expanded)


def _finish(batch: Batch, running: Hypotheses, found: Expansions, results: Results, contested: Ints) -> Hypotheses:
    """Take out the queries whose hypotheses have no choice left and are read to their ends: all are results.

    Where nothing is `contested` there are at most as many as the beam is wide, so that none can be pruned any more.
    """
    goes_on = contested < BEYOND
    goes_on[running["query"][_is_open(batch, running)]] = True
    going_on = goes_on[running["query"]]
    if going_on.all():
        return running
    _add(batch, running[~going_on], found, results)
    return running[going_on]


def _is_open(batch: Batch, running: Hypotheses) -> npt.NDArray[np.bool_]:
    """Whether hypotheses have a choice left, or tokens whose score is not known."""
    is_open = _unread(batch, running) | (running["target"] >= 0) | (running["forced"] > 0)
    return is_open | (running["stop"] < running["choice"]) if batch.over_vocabulary else is_open


def _add(batch: Batch, ended: Hypotheses, found: Expansions, results: Results) -> None:
    """Take in identifiers that are read to their ends."""
    score = _score_with(batch, ended, ended["choice"].astype(np.int64), found)
    results.add(ended["query"].astype(np.int64), ended["leaf"], score)


def _sure_threshold(batch: Batch, running: Hypotheses, results: Results, width: int) -> Floats:
    """`[queries]`, a score that the k-th result of a beam search will at least have; -inf where that is not known.

    Over the trie the score of a hypothesis with a single leaf is final once no forced node is left. It becomes a result
    if no more than `width - 1` others can ever be ahead of it. Probabilities only part along the trie: an open
    hypothesis with score s has, at any depth, at most exp(s - S) descendants with a score of S or more.
    """
    if batch.over_vocabulary:
        return results.threshold()
    query, place = running["query"], rank_in_run(running["query"])
    score = np.full((batch.size, int(place.max(initial=0)) + 1), -np.inf)
    parts, is_open = np.zeros((2, *score.shape), dtype=bool)
    score[query, place] = running["score"]
    parts[query, place] = running["target"] >= 0
    # At nodes that the filter forces a hypothesis loses score too, though it does not part.
    is_open[query, place] = (running["target"] >= 0) | (running["forced"] > 0) | (running["expansion"] >= 0)
    with np.errstate(invalid="ignore"):
        # The margin is for rounding; beyond e^50 the number does not matter.
        ahead = np.floor(np.exp(np.minimum(score[:, None] - score[:, :, None], 50)) * (1 + 1e-9))
    ahead = np.where(parts[:, None], ahead, np.minimum(ahead, 1))
    # Every hypothesis counts itself, and free places, with a score of -inf, are nobody's rivals.
    sure = ~is_open & (np.nansum(ahead, axis=2) <= width) & (score > -np.inf)
    certain = results.copy()
    owner, column = np.nonzero(sure)
    certain.add(owner, np.zeros_like(owner), score[owner, column])
    return certain.threshold()


def _next_choice(batch: Batch, running: Hypotheses) -> Ints:
    """`[queries]`, the first place where a hypothesis of the query has a choice: nothing can be pruned before it."""
    place = np.full(batch.size, BEYOND)
    choosing = running["target"] >= 0
    np.minimum.at(place, running["query"][choosing], running["choice"][choosing])
    return place


def _part_early(batch: Batch, running: Hypotheses, contested: Ints, width: int) -> Hypotheses:
    """Let hypotheses that are about to be read part at their next choice, where that spares a pass for few more tokens.

    Otherwise one pass would end at that choice, and the next begin with those that go on: where few part, nearly all
    do. Which of them do is found out when all were read.

    Args:
        batch: The queries.
        running: Their hypotheses, at most `width` a query.
        contested: `[queries]`, BEYOND for each of these; becomes the place of the choice where hypotheses part.
        width: Of the beam.

    Returns:
        The hypotheses, with children instead of those that parted.
    """
    room = batch.tokens_for_a_pass // len(np.unique(running["query"]))
    if room == 0:
        return running
    place = _next_choice(batch, running)
    parting = _parting(batch, running, place, room)
    if not len(parting):
        return running
    parted = _by_query(np.delete(running, parting), batch.parted(running[parting]))
    more = _more_tokens(batch, running, parted, place, width)
    worth = (np.bincount(running["query"][parting], minlength=batch.size) > 0) & (more <= room)
    contested[worth] = place[worth]
    return _by_query(running[~worth[running["query"]]], parted[worth[parted["query"]]])


def _parting(batch: Batch, running: Hypotheses, place: Ints, room: int) -> Ints:
    """Which hypotheses have a choice at their query's `place`, of queries with room for what they would become."""
    query = running["query"]
    # Until its place is compared, each child counts as a hypothesis, so that nothing may be compared earlier: none ends
    # before it. And where one that was read has the same choice, its children want a pass of their own.
    compared = query[
        (running["choice"] < place[query]) | ((running["expansion"] >= 0) & (running["stop"] <= place[query]))
    ]
    member = np.flatnonzero((running["target"] >= 0) & (running["choice"] == place[query]))
    more = batch.trie.child_span(running["target"][member])[1] - 1
    fits = np.bincount(query[member], weights=more, minlength=batch.size) <= room
    fits[compared] = False
    return member[fits[query[member]]]


def _more_tokens(batch: Batch, running: Hypotheses, parted: Hypotheses, place: Ints, width: int) -> Floats:
    """`[queries]`, how many more tokens two passes read as one: up to the choice at `place`, and on to the next one."""
    up_to_place = _tokens_up_to(parted, place, batch.size)
    beyond = _tokens_up_to(parted, _next_choice(batch, parted), batch.size) - up_to_place
    count = np.bincount(parted["query"], minlength=batch.size)
    # What leads to the choice is read once a child, and what lies behind it also for those that are pruned.
    useless = np.maximum(0, 1 - width / np.maximum(count, 1))
    return up_to_place - _tokens_up_to(running, place, batch.size) + beyond * useless


def _tokens_up_to(hypotheses: Hypotheses, place: Ints, size: int) -> Floats:
    """`[queries]`, the tokens of unread hypotheses up to their own next choice or the query's `place`."""
    query = hypotheses["query"]
    length = np.minimum(hypotheses["choice"], place[query]) - hypotheses["start"]
    tokens = np.zeros(size)
    np.add.at(tokens, query, np.where(hypotheses["expansion"] < 0, length, 0))
    return tokens


def _by_query(*parts: Hypotheses) -> Hypotheses:
    hypotheses = joined(*parts)
    return hypotheses[np.argsort(hypotheses["query"], kind="stable")]


def _unread(batch: Batch, running: Hypotheses) -> npt.NDArray[np.bool_]:
    """Hypotheses that the model has something to say about and was not asked: over the trie, not on forced ends."""
    unread = running["expansion"] < 0
    return unread if batch.over_vocabulary else unread & ((running["target"] >= 0) | (running["forced"] > 0))


def _step(
    batch: Batch,
    ready: Hypotheses,
    now: Ints,
    found: Expansions,
    results: Results,
    lost: Floats,
    width: int,
) -> Hypotheses:
    """Move the hypotheses of some queries on to the token at `now`, and prune.

    Returns:
        The hypotheses that go on. `results` and `lost` are brought up to date.
    """
    due = ready["stop"] == now
    choosing = due & (ready["choice"] == now) & (ready["target"] >= 0)
    moving = due & (ready["choice"] > now)
    staying = ~choosing & ~moving
    parents, movers, others = ready[choosing], ready[moving], ready[staying]
    choices = batch.choices(parents, found, parents["expansion"])
    reached, moved = (batch.moved_on(some, found, some["expansion"]) for some in (parents, movers))
    chosen = batch.children(reached[choices.parent], choices.child, choices.score)
    candidates = joined(others, chosen, moved)
    # Candidates are compared with the token at `now`, whatever else is known of them.
    score = np.concatenate((_score_with(batch, others, now[staying], found), chosen["score"], moved["score"]))
    place = np.concatenate((now[staying], chosen["start"], moved["start"]))
    complete = (candidates["target"] < 0) & (candidates["choice"] == place)

    possible = (score > -np.inf).nonzero()[0]
    sequence, rank = ranking(candidates["query"][possible], score[possible], candidates["leaf"][possible])
    sequence = possible[sequence]
    candidates, score, complete = candidates[sequence], score[sequence], complete[sequence]
    result = complete & (rank < width)
    results.add(candidates["query"][result], candidates["leaf"][result], score[result])
    running = ~complete & (rank < 2 * width)
    running[running] = rank_in_run(candidates["query"][running]) < width
    gone = ~result & ~running
    np.maximum.at(lost, candidates["query"][gone], score[gone])

    survivors = candidates[running & (score > results.threshold()[candidates["query"]])]
    batch.pass_forced_nodes(survivors)
    return survivors


def _score_with(batch: Batch, hypotheses: Hypotheses, place: Ints, found: Expansions) -> Floats:
    """Scores of hypotheses up to and with the token at `place`, a forced one."""
    expansion = hypotheses["expansion"]
    return hypotheses["score"] + np.where(expansion >= 0, found.chain[expansion, place - hypotheses["start"]], 0.0)
