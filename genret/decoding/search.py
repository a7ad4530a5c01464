"""Search for the most probable identifiers of a trie: beam search, and best-first search that is exact.

The score of an identifier is its log-probability given the prompt, a sum over its tokens. "vocabulary"
scoring normalises each token over the whole vocabulary (the P(d|q) of arXiv 2502.17957, section 2.2); "trie"
scoring over the children of the trie's node only, so that a forced token scores 0.

Beam mode is token-synchronous, and equal to transformers' `generate` with `num_beams` set to the width,
`length_penalty=0.0` and a `prefix_allowed_tokens_fn` for the trie (with `renormalize_logits=True` for trie
scoring): hypotheses of the same number of tokens compete for the width, of the best 2 * width candidates
those that are complete and among the first `width` are results, and the first `width` others go on. What
differs is the work: passes happen only where one is needed to choose, a pass reads forced tokens ahead, the end of an
identifier that trie scoring forces is never read, nodes at which a filter leaves one child are passed like forced
tokens, and a query ends as soon as its k results are better than every open hypothesis. Equal scores come in the order
of the sorted identifiers.

Exact mode expands the best open hypotheses, several at once. Scores only fall along a path, so that when the k-th
result is at least as good as the best open hypothesis the results are the true top k.
"""

import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from genret.decoding.attention import TreeDecoder
from genret.decoding.scoring import Floats, Ints, LeafFilter, Scorer, Scores, Scoring
from genret.decoding.trie import Paths, ranges
from genret.errors import InputError

Mode: TypeAlias = Literal["beam", "exact"]

# About how many tokens a model reads in one pass for the price of one, bound by reading its weights: forced tokens
# are read ahead as far as this allows. Beyond it, tokens that pruning makes useless cost more than passes.
TOKENS_PER_PASS = {"cpu": 32, "cuda": 256}
OTHER_TOKENS_PER_PASS = 256
# So many hypotheses are expanded in one pass before it is known that all of them are needed: more than tokens, since
# most hypotheses are needed in the end.
HYPOTHESES_PER_PASS = {"cpu": 64, "cuda": 256}
OTHER_HYPOTHESES_PER_PASS = 256

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


class TrieSearch:
    """A model and a trie, ready for queries. Made anew when the model's weights change."""

    def __init__(self, model: Any, trie: Paths, scoring: Scoring) -> None:
        """Check that the model and the trie fit each other.

        Args:
            model: A Hugging Face causal language model on any device, in any floating type.
            trie: The identifiers.
            scoring: "trie" or "vocabulary".

        Raises:
            InputError: The model cannot be used for tree attention, or lacks tokens of the trie.
        """
        self.decoder = TreeDecoder(model)
        self._look_at(trie, scoring)

    def over(self, trie: Paths) -> "TrieSearch":
        """The same model over other identifiers, such as those that an overlay has added to.

        Spares the check of the model. A search that is under way goes on over the identifiers that it began with.

        Raises:
            InputError: The model lacks tokens of the trie.
        """
        other = copy(self)
        other._look_at(trie, "vocabulary" if self.scorer.over_vocabulary else "trie")
        return other

    def _look_at(self, trie: Paths, scoring: Scoring) -> None:
        self.trie = trie
        self.scorer = Scorer(self.decoder, trie, scoring)
        self._alive = None if trie.alive is None else LeafFilter(trie, trie.alive)

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        k: int,
        mode: Mode = "beam",
        beam: int = 10,
        allowed: npt.NDArray[np.bool_] | LeafFilter | None = None,
        max_expansions: int | None = None,
        deadline_seconds: float | None = None,
    ) -> list[SearchResult]:
        """Find the k most probable identifiers for each prompt, all prompts in one batch.

        Args:
            prompts: Token ids, at least one a prompt.
            k: How many identifiers a prompt.
            mode: "beam" or "exact".
            beam: Width of the beam, `k` if that is more; in exact mode, how many hypotheses of a query are
                expanded in the first pass; in each further one twice as many, as far as a pass has room for them,
                but under `max_expansions` always as many.
            allowed: bool `[n]` by position of the identifier in the trie's input, such as `filters.leaf_mask` gives,
                or a `LeafFilter` made of it, which spares counting again: others are not returned. Scores are the
                same with and without.
            max_expansions: Exact mode: stop a query after so many expansions.
            deadline_seconds: Begin no pass later than this after the call (the prompts' own excepted):
                queries that are still open get what was found, which may be less than k, and `exact=False`.

        Returns:
            A result a prompt. Fewer than k identifiers where fewer are allowed or have any probability, or
            the search was stopped. A prompt's result does not depend on the other prompts, but for rounding, and over
            the vocabulary for how far a search comes under `max_expansions`: room to read ahead is shared.

        Raises:
            InputError: An argument out of range, or an empty or too long prompt; names it.
            FloatingPointError: The model's logits are not numbers.
        """
        arrays = self._check(prompts, k, mode, beam, max_expansions)
        leaf_filter = self._alive if allowed is None else self._filter(allowed)
        k = min(k, len(self.trie) if leaf_filter is None else leaf_filter.count)
        if not arrays or k == 0:
            return [SearchResult(np.empty(0, np.int64), np.empty(0), True, 0) for _ in arrays]
        if len(self.trie) == 1 and not self.scorer.over_vocabulary:
            return [SearchResult(np.zeros(1, np.int64), np.zeros(1), True, 0) for _ in arrays]
        deadline = None if deadline_seconds is None else time.monotonic() + deadline_seconds
        with self.decoder.evaluating():
            if mode == "beam":
                width = max(beam, k)
                # A step looks at 2 * width candidates, so that of one node no more children can matter. Those beyond
                # are worse than one that the step counts as lost, or than `width` results.
                return _beam_search(_Batch(self, arrays, leaf_filter, 2 * width, deadline), k, width)
            return _best_first(_Batch(self, arrays, leaf_filter, None, deadline), k, beam, max_expansions)

    def _filter(self, allowed: npt.NDArray[np.bool_] | LeafFilter) -> LeafFilter:
        if isinstance(allowed, LeafFilter):
            if allowed.trie is not self.trie:
                raise InputError("allowed: expected a filter made for this trie, found one for another")
            return allowed
        mask = np.asarray(allowed)
        if mask.shape != (len(self.trie),) or mask.dtype != np.bool_:
            raise InputError(
                f"allowed: expected {len(self.trie)} truth values, found {mask.dtype} of shape {mask.shape}"
            )
        return LeafFilter(self.trie, mask)

    def _check(
        self, prompts: Sequence[Sequence[int]], k: int, mode: str, beam: int, max_expansions: int | None
    ) -> list[Ints]:
        if mode not in ("beam", "exact"):
            raise InputError(f"mode: expected 'beam' or 'exact', found {mode!r}")
        for name, value in (("k", k), ("beam", beam)):
            if value < 1:
                raise InputError(f"{name}: expected at least 1, found {value}")
        if max_expansions is not None and max_expansions < 0:
            raise InputError(f"max_expansions: expected at least 0, found {max_expansions}")
        longest = getattr(self.decoder.config, "max_position_embeddings", None)
        arrays = []
        for number, prompt in enumerate(prompts):
            array = np.asarray(prompt, dtype=np.int64)
            if array.ndim != 1 or not len(array):
                raise InputError(f"prompt {number}: expected at least one token, found shape {array.shape}")
            if array.min() < 0 or array.max() >= self.decoder.vocabulary_size:
                raise InputError(
                    f"prompt {number}: expected tokens from 0 to {self.decoder.vocabulary_size - 1}, found "
                    f"{array.min()} to {array.max()}"
                )
            if longest is not None and len(array) + self.trie.max_length > longest:
                raise InputError(
                    f"prompt {number}: expected at most {longest} tokens with the longest identifier's "
                    f"{self.trie.max_length}, found {len(array)} in the prompt"
                )
            arrays.append(array)
        return arrays


def search(
    model: Any,
    trie: Paths,
    prompts: Sequence[Sequence[int]],
    *,
    k: int,
    mode: Mode = "beam",
    scoring: Scoring = "trie",
    beam: int = 10,
    allowed: npt.NDArray[np.bool_] | LeafFilter | None = None,
    max_expansions: int | None = None,
    deadline_seconds: float | None = None,
) -> list[SearchResult]:
    """One search; see `TrieSearch` and its `search`. For more than one batch, keep a `TrieSearch`."""
    return TrieSearch(model, trie, scoring).search(
        prompts,
        k=k,
        mode=mode,
        beam=beam,
        allowed=allowed,
        max_expansions=max_expansions,
        deadline_seconds=deadline_seconds,
    )


@dataclass
class _Expansions:
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
    def of(cls, scores: Scores, states: "_States", size: int, columns: int) -> "_Expansions":
        """From the scores of the states of `size` expansions."""
        chain = np.zeros((size, columns))
        chain[states.expansion, states.place] = np.where(states.forced, -np.inf, scores.target)
        forced = states.forced[scores.owner]
        owner = scores.owner[forced]
        chain[states.expansion[owner], states.place[owner]] = scores.logprob[forced]
        n_children = np.bincount(states.expansion[scores.owner[~forced]], minlength=size)
        indptr = np.concatenate(([0], np.cumsum(n_children)))
        return cls(np.cumsum(chain, axis=1), indptr, scores.child[~forced], scores.logprob[~forced])

    def extended(self, other: "_Expansions") -> "_Expansions":
        """These, followed by others."""
        return _Expansions(
            np.concatenate((self.chain, other.chain)),
            np.concatenate((self.child_indptr, other.child_indptr[1:] + self.child_indptr[-1])),
            np.concatenate((self.child, other.child)),
            np.concatenate((self.logprob, other.logprob)),
        )


@dataclass(frozen=True)
class _States:
    """The states of expansions of which something is asked, `[s]`.

    Attributes:
        row: Their place among all states that the model gave.
        expansion: Ascending: whose they are.
        place: How many tokens stand from the expansion's `start`, without it, to the token that follows the state.
        node: The node that the state stands at, or -1 if its children are not asked for.
        forced: Whether the filter leaves only one child of the node: its score belongs to the stretch.
    """

    row: Ints
    expansion: Ints
    place: Ints
    node: Ints
    forced: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Choices:
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

    def where(self, kept: npt.NDArray[np.bool_]) -> "_Choices":
        """Some of them."""
        return _Choices(self.parent[kept], self.child[kept], self.target[kept], self.score[kept])


class _Batch:
    """A batch of queries in the model: expands hypotheses, and keeps account of them."""

    def __init__(
        self,
        search: TrieSearch,
        prompts: list[Ints],
        leaf_filter: LeafFilter | None,
        limit: int | None,
        deadline: float | None,
    ) -> None:
        self.trie, self.scorer, self.leaf_filter = search.trie, search.scorer, leaf_filter
        self.limit, self.deadline = limit, deadline
        self.over_vocabulary = self.scorer.over_vocabulary
        self.size = len(prompts)
        self.expanded = np.zeros(self.size, dtype=np.int64)
        # Nodes over the trie at which a filter leaves one child, and how many tokens stand before them; those that one
        # hypothesis passes stand together, by rising place.
        self.forced_node, self.forced_place = np.empty((2, 0), dtype=np.int64)
        # Columns of each expansion's tokens in the cache, by place in the identifier.
        self.paths = np.full((self.size, self.trie.max_length), -1, dtype=np.int32)
        self._decoder, self._prompts = search.decoder, prompts
        device = self._decoder.device.type
        self.tokens_per_pass = TOKENS_PER_PASS.get(device, OTHER_TOKENS_PER_PASS)
        self.hypotheses_per_pass = HYPOTHESES_PER_PASS.get(device, OTHER_HYPOTHESES_PER_PASS)

    def late(self) -> bool:
        """Whether no further pass may begin."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def begin(self) -> tuple[Hypotheses, _Expansions]:
        """Read the prompts and the tokens that all identifiers share: one hypothesis a query, expanded."""
        roots = np.zeros(self.size, dtype=HYPOTHESIS)
        roots["query"] = roots["expansion"] = np.arange(self.size)
        roots["start"] = roots["parent"] = -1
        roots["target"] = self.trie.root
        self._look_ahead(roots)
        prefix = self.trie.read(roots["leaf"][:1], np.zeros(1, np.int64), roots["stop"][:1])
        self._session, states = self._decoder.begin(self._prompts, prefix)
        return roots, self._score(roots, states.reshape(-1, states.shape[-1]))

    def choices(self, parents: Hypotheses, found: _Expansions, entry: Ints) -> _Choices:
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
        return _Choices(parent, child, self.trie.child_targets(child), score)

    def children(self, parents: Hypotheses, found: _Expansions, entry: Ints, choices: _Choices) -> Hypotheses:
        """Hypotheses that go on with choices at the nodes that parents reached; arguments as of `choices`."""
        made = self.moved_on(parents, found, entry)[choices.parent]
        made["score"], made["target"] = choices.score, choices.target
        made["leaf"] = self.trie.leaf_intervals(choices.child)[0][0]
        self._look_ahead(made)
        return made

    def pass_forced_nodes(self, hypotheses: Hypotheses) -> None:
        """Lead hypotheses that are about to be read on to the next node with a choice that the filter leaves."""
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

    def moved_on(self, parents: Hypotheses, found: _Expansions, entry: Ints) -> Hypotheses:
        """Hypotheses from where expanded ones were read to; at a node, for want of the child's own score."""
        made = parents.copy()
        made["score"] += found.chain[entry, -1]
        made["start"], made["parent"], made["expansion"] = parents["stop"], parents["expansion"], -1
        self._set_stop(made)
        return made

    def expand(self, hypotheses: Hypotheses, needed: Ints | None = None) -> _Expansions:
        """Read hypotheses from `start` to their next choice, in one pass, or perhaps less far.

        Less far only where that may spare work: over the vocabulary, and where a filter forces nodes on the way.

        Sets `stop`, and `expansion`, the numbers under which `parent` of later hypotheses refers to these.

        Args:
            hypotheses: By ascending query; none is complete.
            needed: `[len(hypotheses)]`, tokens before this place are read in any case.
        """
        hypotheses["expansion"] = len(self.paths) + np.arange(len(hypotheses))
        if self.over_vocabulary or self.leaf_filter is not None:
            hypotheses["stop"] = self._reading_ahead(hypotheses, needed)
        start = hypotheses["start"].astype(np.int64)
        length = hypotheses["stop"] - start
        tokens = self.trie.read(hypotheses["leaf"], start, length)
        paths = self.paths[hypotheses["parent"]]
        states = self._session.append(hypotheses["query"], start, length, tokens, paths)
        self.paths = np.concatenate((self.paths, paths))
        self.expanded += np.bincount(hypotheses["query"], minlength=self.size)
        return self._score(hypotheses, states)

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
        forced = np.flatnonzero(hypotheses["forced"])
        if len(forced):
            first = hypotheses["forced_end"][forced] - hypotheses["forced"][forced]
            hypotheses["stop"][forced] = self.forced_place[first]

    def _score(self, hypotheses: Hypotheses, states: torch.Tensor) -> _Expansions:
        n_states = (hypotheses["stop"] - hypotheses["start"]).astype(np.int64)
        asked = (
            self._states_of_tokens(hypotheses, n_states)
            if self.over_vocabulary
            else self._states_at_nodes(hypotheses, n_states)
        )
        target = np.full(len(asked.row), -1)
        if self.over_vocabulary:
            following = self.trie.read(hypotheses["leaf"], hypotheses["start"] + 1, n_states)
            target = np.where(asked.node >= 0, -1, following)
        elif len(asked.row) < len(states):
            states = states[self._decoder.tensor(asked.row)]
        scores = self.scorer.score(states, target, asked.node, self.leaf_filter, self.limit)
        return _Expansions.of(scores, asked, len(hypotheses), self.trie.max_length + 1)

    def _states_of_tokens(self, hypotheses: Hypotheses, n_states: Ints) -> _States:
        """All states: each is asked for the token that follows, or at a node for the children."""
        expansion = np.repeat(np.arange(len(hypotheses)), n_states)
        node = np.full(len(expansion), -1)
        at_node = (hypotheses["target"] >= 0) & (hypotheses["stop"] == hypotheses["choice"])
        node[np.cumsum(n_states)[at_node] - 1] = hypotheses["target"][at_node]
        place = 1 + ranges(np.zeros_like(n_states), n_states)
        return _States(np.arange(len(expansion)), expansion, place, node, np.zeros(len(expansion), dtype=bool))

    def _states_at_nodes(self, hypotheses: Hypotheses, n_states: Ints) -> _States:
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
        return _States(first[expansion] + place - 1, expansion, place, node, sequence < len(owner))


@dataclass
class _Results:
    """The best k complete identifiers of each query so far, by ascending query and falling score."""

    size: int
    k: int
    query: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    leaf: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    score: Floats = field(default_factory=lambda: np.empty(0))

    def add(self, query: Ints, leaf: Ints, score: Floats) -> None:
        """Take further identifiers in; those without any probability stay out."""
        possible = (score > -np.inf) & (score >= self.threshold()[query])
        if np.count_nonzero(possible) > self.size * self.k:
            possible[possible] = score[possible] >= self._bound(query[possible], score[possible])[query[possible]]
        self.query = np.concatenate((self.query, query[possible]))
        self.leaf = np.concatenate((self.leaf, leaf[possible]))
        self.score = np.concatenate((self.score, score[possible]))
        sequence, rank = _ranking(self.query, self.score, self.leaf)
        best = sequence[rank < self.k]
        self.query, self.leaf, self.score = self.query[best], self.leaf[best], self.score[best]

    def copy(self) -> "_Results":
        """Results that can be added to on their own."""
        return replace(self)

    def threshold(self) -> Floats:
        """`[size]`, the k-th score of each query, or -inf where there are fewer."""
        last = _rank_in_run(self.query) == self.k - 1
        threshold = np.full(self.size, -np.inf)
        threshold[self.query[last]] = self.score[last]
        return threshold

    def _bound(self, query: Ints, score: Floats) -> Floats:
        """`[size]`, the k-th best of each query's scores, or -inf where there are fewer: sorting them all takes longer.

        Queries ascend.
        """
        count = np.bincount(query, minlength=self.size)
        table = np.full((self.size, int(count.max())), -np.inf)
        if table.shape[1] < self.k:
            return np.full(self.size, -np.inf)
        table[query, _rank_in_run(query)] = score
        return -np.partition(-table, self.k - 1, axis=1)[:, self.k - 1]

    def results(self, trie: Paths, exact: npt.NDArray[np.bool_], expansions: Ints) -> list[SearchResult]:
        """As the caller wants them."""
        bounds = np.searchsorted(self.query, np.arange(self.size + 1))
        indices = trie.positions(self.leaf)
        return [
            SearchResult(indices[a:b], self.score[a:b], bool(exact[number]), int(expansions[number]))
            for number, (a, b) in enumerate(pairwise(bounds))
        ]


def _joined(*parts: Hypotheses) -> Hypotheses:
    # Of arrays with fields numpy finds out their common type in Python, unless it is told.
    return np.concatenate(parts, dtype=HYPOTHESIS)


def _ranking(query: Ints, score: Floats, leaf: Ints) -> tuple[Ints, Ints]:
    """The order by query, falling score and leaf, and each one's 0-based rank in its query."""
    sequence = np.lexsort((leaf, -score, query))
    return sequence, _rank_in_run(query[sequence])


def _rank_in_run(query: Ints) -> Ints:
    """`0, 1, 2, ...` within each run of equal numbers."""
    counts = np.bincount(query)
    return np.arange(len(query)) - (np.cumsum(counts) - counts)[query]


def _beam_search(batch: _Batch, k: int, width: int) -> list[SearchResult]:
    running, found = batch.begin()
    results = _Results(batch.size, k)
    # The best score of any hypothesis that fell out of a query's beam.
    lost = np.full(batch.size, -np.inf)
    while len(running := _finish(batch, running, found, results)):
        # No hypothesis of a query has a choice before this place, so that none would be pruned on the way.
        now = np.full(batch.size, np.iinfo(np.int32).max)
        np.minimum.at(now, running["query"], running["stop"])
        unknown = _unread(batch, running)
        if not batch.over_vocabulary:
            unknown &= running["stop"] == now[running["query"]]
        waiting = np.bincount(running["query"], weights=unknown, minlength=batch.size)[running["query"]] > 0
        if not waiting.all():
            ready = running[~waiting]
            survivors = _step(batch, ready, now[ready["query"]], found, results, lost, width)
            running = _joined(running[waiting], survivors)
            running = running[np.argsort(running["query"], kind="stable")]
        elif batch.late():
            np.maximum.at(lost, running["query"], running["score"])
            break
        else:
            promising = running["score"] >= _sure_threshold(batch, running, results, width)[running["query"]]
            if not promising.all():
                # A query that now waits for nothing would miss the pass, and so lose its place in the cache.
                running = running[promising]
                continue
            unread = np.flatnonzero(_unread(batch, running))
            if len(unread) > batch.hypotheses_per_pass and not batch.over_vocabulary:
                # Those of later places may be pruned before they are needed.
                unread = unread[running["stop"][unread] == now[running["query"][unread]]]
            if len(unread):
                expanding = running[unread]
                found = found.extended(batch.expand(expanding, _next_choice(batch, running)[expanding["query"]]))
                running[unread] = expanding
    return results.results(batch.trie, results.threshold() >= lost, batch.expanded)


def _finish(batch: _Batch, running: Hypotheses, found: _Expansions, results: _Results) -> Hypotheses:
    """Take out the queries whose hypotheses have no choice left and are read to their ends: all are results.

    There are at most as many as the beam is wide, so that none can be pruned any more.
    """
    is_open = _unread(batch, running) | (running["target"] >= 0) | (running["forced"] > 0)
    if batch.over_vocabulary:
        is_open |= running["stop"] < running["choice"]
    goes_on = np.zeros(batch.size, dtype=bool)
    goes_on[running["query"][is_open]] = True
    going_on = goes_on[running["query"]]
    if not going_on.all():
        done = running[~going_on]
        score = _score_with(batch, done, done["choice"].astype(np.int64), found)
        results.add(done["query"].astype(np.int64), done["leaf"], score)
    return running[going_on]


def _sure_threshold(batch: _Batch, running: Hypotheses, results: _Results, width: int) -> Floats:
    """`[queries]`, a score that the k-th result of a beam search will at least have; -inf where that is not known.

    Over the trie the score of a hypothesis with a single leaf is final once no forced node is left. It becomes a result
    if no more than `width - 1` others can ever be ahead of it. Probabilities only part along the trie: an open
    hypothesis with score s has, at any depth, at most exp(s - S) descendants with a score of S or more.
    """
    if batch.over_vocabulary:
        return results.threshold()
    query, place = running["query"], _rank_in_run(running["query"])
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


def _next_choice(batch: _Batch, running: Hypotheses) -> Ints:
    """`[queries]`, the first place where a hypothesis of the query has a choice: nothing can be pruned before it."""
    place = np.full(batch.size, np.iinfo(np.int32).max, dtype=np.int64)
    choosing = running["target"] >= 0
    np.minimum.at(place, running["query"][choosing], running["choice"][choosing])
    return place


def _unread(batch: _Batch, running: Hypotheses) -> npt.NDArray[np.bool_]:
    """Hypotheses that the model has something to say about and was not asked: over the trie, not on forced ends."""
    unread = running["expansion"] < 0
    return unread if batch.over_vocabulary else unread & ((running["target"] >= 0) | (running["forced"] > 0))


def _step(
    batch: _Batch,
    ready: Hypotheses,
    now: Ints,
    found: _Expansions,
    results: _Results,
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
    chosen = batch.children(parents, found, parents["expansion"], choices)
    moved = batch.moved_on(movers, found, movers["expansion"])
    candidates = _joined(others, chosen, moved)
    # Candidates are compared with the token at `now`, whatever else is known of them.
    score = np.concatenate((_score_with(batch, others, now[staying], found), chosen["score"], moved["score"]))
    place = np.concatenate((now[staying], chosen["start"], moved["start"]))
    complete = (candidates["target"] < 0) & (candidates["choice"] == place)

    possible = np.flatnonzero(score > -np.inf)
    sequence, rank = _ranking(candidates["query"][possible], score[possible], candidates["leaf"][possible])
    sequence = possible[sequence]
    candidates, score, complete = candidates[sequence], score[sequence], complete[sequence]
    result = complete & (rank < width)
    results.add(candidates["query"][result], candidates["leaf"][result], score[result])
    running = ~complete & (rank < 2 * width)
    running[running] = _rank_in_run(candidates["query"][running]) < width
    gone = ~result & ~running
    np.maximum.at(lost, candidates["query"][gone], score[gone])

    survivors = candidates[running & (score > results.threshold()[candidates["query"]])]
    batch.pass_forced_nodes(survivors)
    return survivors


def _score_with(batch: _Batch, hypotheses: Hypotheses, place: Ints, found: _Expansions) -> Floats:
    """Scores of hypotheses up to and with the token at `place`, a forced one."""
    expansion = hypotheses["expansion"]
    return hypotheses["score"] + np.where(expansion >= 0, found.chain[expansion, place - hypotheses["start"]], 0.0)


class _Frontier:
    """The open hypotheses of each query, `[queries, places]`; a score of -inf marks a free place."""

    def __init__(self, size: int) -> None:
        self.score = np.full((size, 0), -np.inf)
        self.hypotheses = np.zeros((size, 0), dtype=HYPOTHESIS)

    def push(self, hypotheses: Hypotheses) -> None:
        """Add hypotheses; those without any probability stay out."""
        possible = hypotheses[hypotheses["score"] > -np.inf]
        possible = possible[np.argsort(possible["query"], kind="stable")]
        place = _rank_in_run(possible["query"])
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
        sequence, rank = _ranking(query, score[query, column], self.hypotheses["leaf"][query, place])
        taken = sequence[rank < count[query[sequence]]]
        self.score[query[taken], place[taken]] = -np.inf
        return self.hypotheses[query[taken], place[taken]]

    def best(self) -> Floats:
        """`[queries]`, the best open score, -inf where there is none."""
        return self.score.max(axis=1, initial=-np.inf)


def _best_first(batch: _Batch, k: int, at_once: int, max_expansions: int | None) -> list[SearchResult]:
    results, frontier = _Results(batch.size, k), _Frontier(batch.size)
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


def _room(batch: _Batch, frontier: _Frontier) -> int:
    """How many hypotheses of each query a pass has room for.

    Where few identifiers are allowed, or no hypothesis stands out, many must be expanded before k results are better
    than the rest, and passes for a few of them cost as much as full ones.
    """
    return batch.hypotheses_per_pass // max(1, int(np.count_nonzero(frontier.best() > -np.inf)))


def _absorb(batch: _Batch, hypotheses: Hypotheses, found: _Expansions, results: _Results, frontier: _Frontier) -> None:
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
    frontier.push(_joined(moved[~done], chosen))
