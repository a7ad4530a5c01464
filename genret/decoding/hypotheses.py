"""Hypotheses of a search, which are paths into the trie, and what the model finds out about them."""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from genret.decoding.arrays import Rows, ranges
from genret.decoding.attention import FIRST_ROOM
from genret.decoding.scoring import CHUNK_ELEMENTS, Floats, Ints, LeafFilter, Scorer, Scores

# About how many tokens a model reads in one pass for the price of one, bound by reading its weights: forced tokens
# are read ahead as far as this allows. Beyond it, tokens that pruning makes useless cost more than passes.
TOKENS_PER_PASS = {"cpu": 32, "cuda": 256}
OTHER_TOKENS_PER_PASS = 256
# Whether a beam over the vocabulary reads ahead too. After the choice of one hypothesis there is another pass nearly
# always, with which the others can be read on, so that reading ahead hardly ever spares one, and costs tokens that
# pruning makes useless. A GPU reads those for nothing.
BEAMS_READ_AHEAD = {"cpu": False}
# How many more tokens a pass of a beam over the vocabulary may read where that spares another one: about what a pass
# costs beyond its tokens (a guess where it is no CPU). Queries share it, as a pass is spared only if every one of them
# can do without it.
TOKENS_FOR_A_PASS = {"cpu": 12}
OTHER_TOKENS_FOR_A_PASS = 128
# So many hypotheses are expanded in one pass before it is known that all of them are needed: more than tokens, since
# most hypotheses are needed in the end.
HYPOTHESES_PER_PASS = {"cpu": 64, "cuda": 256}
OTHER_HYPOTHESES_PER_PASS = 256
# So many times as many at most in a search that has expanded many: masks and states of a pass grow with them.
MORE_HYPOTHESES = 16
# Tokens that a search over the vocabulary appends to a prompt, about, where forced ones are read too: those of ten
# hypotheses at each place, up to as many as a beam of ten over keywords needs.
APPENDED_AT_A_PLACE, MOST_APPENDED = 10, 160

# A path into the trie: up to a token whose score is known, and from there a stretch without a choice.
HYPOTHESIS = np.dtype(
    [
        ("score", np.float64),  # up to and with the token at `start`
        ("leaf", np.int64),  # a leaf below, to read tokens from
        ("target", np.int64),  # the next node with a choice that the filter leaves, or ~leaf if there is none left
        ("query", np.int32),
        ("start", np.int32),  # the place of the last token with a known score; -1 before the first
        ("stop", np.int32),  # how far it is read: tokens before this place; before that, where it must be read to
        ("choice", np.int32),  # the place of the next choice, or else of the identifier's last token
        ("parent", np.int32),  # the expansion that read the tokens before `start`; -1 for none
        ("expansion", np.int32),  # its own, or -1 if it was not expanded
        ("forced", np.int32),  # over the trie: how many forced nodes stand up to `choice` and have no score yet
        ("forced_end", np.int32),  # one past the last of them in the batch's list
    ]
)

Hypotheses = npt.NDArray[np.void]


def joined(*parts: Hypotheses) -> Hypotheses:
    """Hypotheses, one part after the other."""
    # Of arrays with fields numpy finds out their common type in Python, unless it is told.
    return np.concatenate(parts, dtype=HYPOTHESIS)


@dataclass
class Expansions:
    """What passes found out about hypotheses, in the order of expansion.

    Attributes:
        chain: float64 `[e, c]`, cumulative log-probabilities of the tokens after `start`: `chain[i, j]` is that
            of the first `j`; the last column holds the sum of all that have a score.
        child_indptr: `[e + 1]`, into `child` and `logprob`.
        child: Positions in `Trie.child` of the children of the node that was reached.
        logprob: Their log-probabilities given the node.
    """

    chain: Floats
    child_indptr: Ints
    child: Ints
    logprob: Floats

    @classmethod
    def of(cls, scores: Scores, states: "States", size: int, columns: int) -> "Expansions":
        """From the scores of the states of `size` expansions, of which the longest reads less than `columns` tokens."""
        chain = np.zeros((size, columns))
        chain[states.expansion, states.place] = np.where(states.forced, -np.inf, scores.target)
        forced = states.forced[scores.owner]
        owner = scores.owner[forced]
        chain[states.expansion[owner], states.place[owner]] = scores.logprob[forced]
        n_children = np.bincount(states.expansion[scores.owner[~forced]], minlength=size)
        indptr = np.concatenate(([0], np.cumsum(n_children)))
        return cls(np.cumsum(chain, axis=1), indptr, scores.child[~forced], scores.logprob[~forced])

    def extended(self, other: "Expansions") -> "Expansions":
        """These, followed by others."""
        return Expansions(
            np.concatenate((self.chain, other.chain)),
            np.concatenate((self.child_indptr, other.child_indptr[1:] + self.child_indptr[-1])),
            np.concatenate((self.child, other.child)),
            np.concatenate((self.logprob, other.logprob)),
        )


@dataclass(frozen=True)
class States:
    """The states of expansions of which something is asked, `[s]`.

    Attributes:
        row: Their place among the tokens that are read.
        expansion: Ascending: whose they are.
        place: How many tokens stand from the expansion's `start`, without it, to the token that follows the state.
        node: The node that the state stands at, or -1 if its children are not asked for.
        target: The token that follows, or -1 if it is not asked for.
        forced: Whether the filter leaves only one child of the node: its score belongs to the stretch.
    """

    row: Ints
    expansion: Ints
    place: Ints
    node: Ints
    target: Ints
    forced: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Choices:
    """Children of nodes that hypotheses reached, of which there may be thousands: what it takes to leave most of them.

    Attributes:
        parent: `[c]`, ascending: which hypothesis reached the node.
        child: `[c]`, positions in `Trie.child`.
        target: `[c]`, what they lead to, a node or `~leaf`.
        score: `[c]`, with the child's token.
    """

    parent: Ints
    child: Ints
    target: Ints
    score: Floats


class Batch:
    """A batch of queries in the model: expands hypotheses, and keeps account of them.

    Attributes:
        trie: The identifiers.
        size: How many queries.
        over_vocabulary: Whether tokens are scored over the whole vocabulary.
        expanded: int64 `[size]`, how many hypotheses of each query were expanded.
        hypotheses_per_pass: About how many a pass expands for little more than one.
        most_hypotheses: How many a pass of a long search expands at most.
        tokens_for_a_pass: How many more tokens a beam over the vocabulary may read to spare a pass.
    """

    def __init__(
        self,
        scorer: Scorer,
        prompts: list[Ints],
        leaf_filter: LeafFilter | None,
        limit: int | None,
        deadline: float | None,
    ) -> None:
        """Begin with queries that were not read yet.

        Args:
            scorer: The model, the trie, and how tokens are scored.
            prompts: `[tokens]` each.
            leaf_filter: Which identifiers may be returned; None for all.
            limit: How many children of one node at most can matter; None for all.
            deadline: By the monotonic clock, in seconds: no pass begins later.
        """
        self.trie, self.scorer, self.leaf_filter = scorer.trie, scorer, leaf_filter
        self.limit, self.deadline = limit, deadline
        self.over_vocabulary = self.scorer.over_vocabulary
        self.size = len(prompts)
        self.expanded = np.zeros(self.size, dtype=np.int64)
        # Nodes over the trie at which a filter leaves one child, and how many tokens stand before them; those that one
        # hypothesis passes stand together, by rising place.
        self.forced_node, self.forced_place = np.empty((2, 0), dtype=np.int64)
        # Columns of each expansion's tokens in the cache, by place in the identifier.
        self.paths = Rows(np.full((self.size, self.trie.max_length), -1, dtype=np.int32))
        self._decoder, self._prompts = scorer.decoder, prompts
        device = self._decoder.device.type
        self.tokens_per_pass = TOKENS_PER_PASS.get(device, OTHER_TOKENS_PER_PASS)
        self.hypotheses_per_pass = HYPOTHESES_PER_PASS.get(device, OTHER_HYPOTHESES_PER_PASS)
        self.most_hypotheses = MORE_HYPOTHESES * self.hypotheses_per_pass
        if scorer.dense:
            # All logits of a pass are made at once, of one state a hypothesis and more.
            chunk = max(self.hypotheses_per_pass, CHUNK_ELEMENTS // self._decoder.vocabulary_size)
            self.most_hypotheses = min(self.most_hypotheses, chunk)
        self.beams_read_ahead = BEAMS_READ_AHEAD.get(device, True)
        self.tokens_for_a_pass = TOKENS_FOR_A_PASS.get(device, OTHER_TOKENS_FOR_A_PASS)

    def late(self) -> bool:
        """Whether no further pass may begin."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def begin(self) -> tuple[Hypotheses, Expansions]:
        """Read the prompts and the tokens that all identifiers share: one hypothesis a query, expanded."""
        roots = np.zeros(self.size, dtype=HYPOTHESIS)
        roots["query"] = roots["expansion"] = np.arange(self.size)
        roots["start"] = roots["parent"] = -1
        roots["target"] = self.trie.root
        self._look_ahead(roots)
        prefix = self.trie.read(roots["leaf"][:1], np.zeros(1, np.int64), roots["stop"][:1])
        room = min(APPENDED_AT_A_PLACE * self.trie.max_length, MOST_APPENDED) if self.over_vocabulary else FIRST_ROOM
        self._session, states = self._decoder.begin(self._prompts, prefix, room)
        asked = self._asked(roots)
        states = states.flatten(0, 1)
        if len(asked.row) < len(states):
            states = states.index_select(0, self._decoder.tensor(asked.row))
        return roots, self._score(roots, asked, states)

    def choices(self, parents: Hypotheses, found: Expansions, entry: Ints) -> Choices:
        """What there is to choose from at the nodes that parents reached: children that are possible and allowed.

        Args:
            parents: Expanded hypotheses.
            found: Holds what was found out about them, at `entry`.
            entry: `[len(parents)]`.

        Returns:
            The children, parent by parent.
        """
        first = found.child_indptr[entry]
        count = found.child_indptr[entry + 1] - first
        position = ranges(first, count)
        parent = np.repeat(np.arange(len(parents)), count)
        child = found.child[position]
        score = (parents["score"] + found.chain[entry, -1])[parent] + found.logprob[position]
        return Choices(parent, child, self.trie.child_targets(child), score)

    def children(self, moved: Hypotheses, child: Ints, score: Floats) -> Hypotheses:
        """Hypotheses that go on with choices.

        Args:
            moved: `[h]`, what each goes on from: as of `moved_on`, at a node. Changed in place.
            child: `[h]`, positions in `Trie.child`.
            score: `[h]`, with the child's token.
        """
        moved["score"], moved["target"] = score, self.trie.child_targets(child)
        moved["leaf"] = self.trie.leaf_intervals(child)[0][0]
        self._look_ahead(moved)
        return moved

    def parted(self, hypotheses: Hypotheses) -> Hypotheses:
        """What unread hypotheses over the vocabulary become if they are to be read beyond their next choice.

        Args:
            hypotheses: `[h]`, each with a node ahead (`target`).

        Returns:
            Parent by parent a hypothesis for each child that the filter allows, which is read from where its parent
            would be.
        """
        first, count = self.trie.child_span(hypotheses["target"])
        child, parent = ranges(first, count), np.arange(len(hypotheses)).repeat(count)
        if self.leaf_filter is not None:
            allowed = self.leaf_filter.children(child)
            child, parent = child[allowed], parent[allowed]
        made = hypotheses[parent]
        made["target"], made["leaf"] = self.trie.child_targets(child), self.trie.leaf_intervals(child)[0][0]
        self._look_ahead(made)
        self.pass_forced_nodes(made)
        return made

    def pass_forced_nodes(self, hypotheses: Hypotheses) -> None:
        """Lead hypotheses that are about to be read on to the next node with a choice that the filter leaves.

        Changes them in place; without a filter nothing happens.
        """
        if self.leaf_filter is None:
            return
        member = np.flatnonzero(
            (hypotheses["target"] >= 0) & (hypotheses["expansion"] < 0) & (hypotheses["forced"] == 0)
        )
        members, nodes = [member[:0]], [member[:0]]
        while len(member):
            node = hypotheses["target"][member]
            child = self.leaf_filter.only_children(node)
            member, node, child = member[child >= 0], node[child >= 0], child[child >= 0]
            hypotheses["target"][member] = self.trie.child_targets(child)
            hypotheses["leaf"][member] = self.trie.leaf_intervals(child)[0][0]
            members.append(member)
            nodes.append(node)
            member = member[hypotheses["target"][member] >= 0]
        passing, passed = np.concatenate(members), np.concatenate(nodes)
        if not len(passing):
            return
        led_on = np.unique(passing)
        if not self.over_vocabulary:
            self._list_forced_nodes(hypotheses, passing, passed)
        changed = hypotheses[led_on]
        self._look_ahead(changed)
        hypotheses[led_on] = changed

    def _list_forced_nodes(self, hypotheses: Hypotheses, passing: Ints, passed: Ints) -> None:
        """Note which nodes hypotheses (places among them) pass, level by level."""
        sequence = np.argsort(passing, kind="stable")
        count = np.bincount(passing, minlength=len(hypotheses))
        end = len(self.forced_node) + np.cumsum(count)
        hypotheses["forced"][count > 0], hypotheses["forced_end"][count > 0] = count[count > 0], end[count > 0]
        self.forced_node = np.concatenate((self.forced_node, passed[sequence]))
        self.forced_place = np.concatenate((self.forced_place, self.trie.depths(passed[sequence])))

    def moved_on(self, parents: Hypotheses, found: Expansions, entry: Ints) -> Hypotheses:
        """Hypotheses that begin where expanded ones were read to, with the score up to there; as `choices` has it.

        At a node they still lack the child's own token, whose score `children` puts in.
        """
        made = parents.copy()
        made["score"] += found.chain[entry, -1]
        made["start"], made["parent"], made["expansion"] = parents["stop"], parents["expansion"], -1
        self._set_stop(made)
        return made

    def expand(self, hypotheses: Hypotheses, needed: Ints | None = None) -> Expansions:
        """Read hypotheses from `start` to their next choice, in one pass, or perhaps less far.

        Less far only where that may spare work: over the vocabulary, and where a filter forces nodes on the way. In a
        beam over the vocabulary it may be just as far as is needed.

        Sets `stop`, and `expansion`, the numbers under which `parent` of later hypotheses refers to these.

        Args:
            hypotheses: By ascending query; none is complete.
            needed: `[len(hypotheses)]`, tokens before this place are read in any case.

        Returns:
            What was found out about them, in their order.
        """
        hypotheses["expansion"] = len(self.paths) + np.arange(len(hypotheses))
        if self.over_vocabulary or self.leaf_filter is not None:
            hypotheses["stop"] = self._reading_ahead(hypotheses, needed)
        start = hypotheses["start"].astype(np.int64)
        length = hypotheses["stop"] - start
        tokens = self.trie.read(hypotheses["leaf"], start, length)
        paths = self.paths[hypotheses["parent"]]
        asked = self._asked(hypotheses)
        wanted = None if len(asked.row) == len(tokens) else asked.row
        states = self._session.append(hypotheses["query"], start, length, tokens, paths, wanted)
        self.paths.add(paths)
        self.expanded += np.bincount(hypotheses["query"], minlength=self.size)
        return self._score(hypotheses, asked, states)

    def _reading_ahead(self, hypotheses: Hypotheses, needed: Ints | None) -> Ints:
        """How far to read: the most probable stretches to their ends while a pass has room, the others as needed.

        A part of a stretch beyond that would spare no pass: the rest takes one too.
        """
        most = hypotheses["choice"].astype(np.int64)
        if self.over_vocabulary:
            least = hypotheses["start"].astype(np.int64) + 1
        else:
            least = hypotheses["stop"].astype(np.int64)
            # Behind the last forced node nothing is left to find out where a single leaf is below.
            ending = hypotheses["target"] < 0
            most[ending] = self.forced_place[hypotheses["forced_end"][ending] - 1]
        if needed is not None:
            least = np.maximum(least, needed)
        least = np.minimum(most, least)
        if self.over_vocabulary and needed is not None and not self.beams_read_ahead:
            return least
        more = most - least
        sequence = np.argsort(-hypotheses["score"], kind="stable")
        room = self.tokens_per_pass - (least - hypotheses["start"]).sum()
        fits = np.empty(len(more), dtype=bool)
        fits[sequence] = np.cumsum(more[sequence]) <= room
        return np.where(fits, most, least)

    def _look_ahead(self, hypotheses: Hypotheses) -> None:
        """Set `choice`, and `stop` with it."""
        choice = self.trie.lengths(hypotheses["leaf"]) - 1
        inner = hypotheses["target"] >= 0
        choice[inner] = self.trie.depths(hypotheses["target"][inner])
        hypotheses["choice"] = choice
        self._set_stop(hypotheses)

    def _set_stop(self, hypotheses: Hypotheses) -> None:
        """Set `stop` to where something is found out that the next hypotheses depend on: a forced node or `choice`."""
        hypotheses["stop"] = hypotheses["choice"]
        forced = hypotheses["forced"].nonzero()[0]
        if len(forced):
            first = hypotheses["forced_end"][forced] - hypotheses["forced"][forced]
            hypotheses["stop"][forced] = self.forced_place[first]

    def _asked(self, hypotheses: Hypotheses) -> States:
        """Of which states of hypotheses that are being read something is asked; once a reading (`_states_at_nodes`)."""
        n_states = (hypotheses["stop"] - hypotheses["start"]).astype(np.int64)
        return (self._states_of_tokens if self.over_vocabulary else self._states_at_nodes)(hypotheses, n_states)

    def _score(self, hypotheses: Hypotheses, asked: States, states: torch.Tensor) -> Expansions:
        """What is asked of states `[len(asked.row), width]`."""
        scores = self.scorer.score(states, asked.target, asked.node, self.leaf_filter, self.limit)
        return Expansions.of(scores, asked, len(hypotheses), self.trie.max_length + 1)

    def _states_of_tokens(self, hypotheses: Hypotheses, n_states: Ints) -> States:
        """All states: each is asked for the token that follows, or at a node for the children."""
        expansion = np.arange(len(hypotheses)).repeat(n_states)
        node = np.full(len(expansion), -1)
        at_node = (hypotheses["target"] >= 0) & (hypotheses["stop"] == hypotheses["choice"])
        node[n_states.cumsum()[at_node] - 1] = hypotheses["target"][at_node]
        place = 1 + ranges(np.zeros_like(n_states), n_states)
        following = self.trie.read(hypotheses["leaf"], hypotheses["start"] + 1, n_states)
        target = np.where(node >= 0, -1, following)
        return States(np.arange(len(expansion)), expansion, place, node, target, np.zeros(len(expansion), dtype=bool))

    def _states_at_nodes(self, hypotheses: Hypotheses, n_states: Ints) -> States:
        """The states at nodes that were reached, forced ones among them: over the trie other tokens score 0.

        Brings `forced` up to date.
        """
        at_node = np.flatnonzero((hypotheses["target"] >= 0) & (hypotheses["stop"] == hypotheses["choice"]))
        count = hypotheses["forced"].astype(np.int64)
        entry = ranges(hypotheses["forced_end"] - count, count)
        owner = np.repeat(np.arange(len(hypotheses)), count)
        reached = self.forced_place[entry] <= hypotheses["stop"][owner]
        entry, owner = entry[reached], owner[reached]
        hypotheses["forced"] -= np.bincount(owner, minlength=len(hypotheses)).astype(np.int32)

        expansion = np.concatenate((owner, at_node))
        sequence = np.argsort(expansion, kind="stable")
        expansion = expansion[sequence]
        node = np.concatenate((self.forced_node[entry], hypotheses["target"][at_node]))[sequence]
        stop = np.concatenate((self.forced_place[entry], hypotheses["choice"][at_node]))[sequence]
        place = stop - hypotheses["start"][expansion]
        first = np.cumsum(n_states) - n_states
        return States(
            first[expansion] + place - 1, expansion, place, node, np.full(len(node), -1), sequence < len(owner)
        )
