"""Search for the most probable identifiers of a trie: beam search, and best-first search that is exact.

The score of an identifier is its log-probability given the prompt, a sum over its tokens. "vocabulary"
scoring normalises each token over the whole vocabulary (the P(d|q) of arXiv 2502.17957, section 3); "trie"
scoring over the children of the trie's node only, so that a forced token scores 0.

Beam mode is token-synchronous, and equal to transformers' `generate` with `num_beams` set to the width,
`length_penalty=0.0` and a `prefix_allowed_tokens_fn` for the trie (with `renormalize_logits=True` for trie
scoring): hypotheses of the same number of tokens compete for the width, of the best 2 * width candidates
those that are complete and among the first `width` are results, and the first `width` others go on. What
differs is the work: a pass reads a hypothesis and all forced tokens up to its next choice, passes happen only
where a choice needs one, the end of an identifier that trie scoring forces is never read, and a query ends as
soon as its k results are better than every open hypothesis. Equal scores come in the order of the sorted
identifiers.

Exact mode expands the best open hypotheses, several at once. Scores only fall along a path, so that when the
k-th result is at least as good as the best open hypothesis the results are the true top k.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from genret.decoding.attention import TreeDecoder
from genret.decoding.scoring import Floats, Ints, LeafFilter, Scorer, Scores, Scoring
from genret.decoding.trie import Trie, ranges
from genret.errors import InputError

Mode: TypeAlias = Literal["beam", "exact"]

# A way into the trie whose last token is chosen and whose forced tokens, up to `target`, follow.
HYPOTHESIS = np.dtype(
    [
        ("query", np.int64),
        ("score", np.float64),  # up to and with the chosen token
        ("start", np.int64),  # the place of the chosen token in the identifier; -1 before the first
        ("leaf", np.int64),  # a leaf below, to read tokens from
        ("target", np.int64),  # the next node, or ~leaf if there is no choice left
        ("parent", np.int64),  # the expansion that it came from
        ("expansion", np.int64),  # its own, or -1 if it was not expanded
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
        expansions: Hypotheses that were read by the model, the prompt not counted.
    """

    indices: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    exact: bool
    expansions: int


class TrieSearch:
    """A model and a trie, ready for queries. Made anew when the model's weights change."""

    def __init__(self, model: Any, trie: Trie, scoring: Scoring, *, pad_token_id: int = 0) -> None:
        """Check that the model and the trie fit each other.

        Args:
            model: A Hugging Face causal language model on any device, in any floating type, loaded with
                `attn_implementation` "sdpa" or "eager".
            trie: The identifiers.
            scoring: "trie" or "vocabulary".
            pad_token_id: A token to fill rows with; its value has no influence.

        Raises:
            InputError: The model cannot be used for tree attention, or lacks tokens of the trie.
        """
        self.trie = trie
        self.decoder = TreeDecoder(model)
        self.scorer = Scorer(self.decoder, trie, scoring)
        self.pad_token_id = pad_token_id

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        k: int,
        mode: Mode = "beam",
        beam: int = 10,
        allowed: npt.NDArray[np.bool_] | None = None,
        max_expansions: int | None = None,
        deadline_seconds: float | None = None,
    ) -> list[SearchResult]:
        """Find the k most probable identifiers for each prompt, all prompts in one batch.

        Args:
            prompts: Token ids, at least one a prompt.
            k: How many identifiers a prompt.
            mode: "beam" or "exact".
            beam: Width of the beam, `k` if that is more; in exact mode, how many hypotheses of a query are
                expanded in one pass.
            allowed: bool `[n]` by position of the identifier in the trie's input, such as `filters.leaf_mask`
                gives: others are not returned. Scores are the same with and without.
            max_expansions: Exact mode: stop a query after so many expansions.
            deadline_seconds: Begin no pass later than this after the call (the prompts' own excepted):
                queries that are still open get what was found, which may be less than k, and `exact=False`.

        Returns:
            A result a prompt. Fewer than k identifiers where fewer are allowed or have any probability, or
            the search was stopped. A prompt's result does not depend on the other prompts, but for rounding.

        Raises:
            InputError: An argument out of range, or an empty or too long prompt; names it.
            FloatingPointError: The model's logits are not numbers.
        """
        arrays = self._check(prompts, k, mode, beam, max_expansions)
        leaf_filter = None if allowed is None else self._filter(allowed)
        k = min(k, len(self.trie) if leaf_filter is None else leaf_filter.count)
        if not arrays or k == 0:
            return [SearchResult(np.empty(0, np.int64), np.empty(0), True, 0) for _ in arrays]
        if len(self.trie) == 1 and not self.scorer.over_vocabulary:
            return [SearchResult(np.zeros(1, np.int64), np.zeros(1), True, 0) for _ in arrays]
        deadline = None if deadline_seconds is None else time.monotonic() + deadline_seconds
        with self.decoder.evaluating():
            if mode == "beam":
                width = max(beam, k)
                return _beam_search(_Batch(self, arrays, leaf_filter, 2 * width, deadline), k, width)
            return _best_first(_Batch(self, arrays, leaf_filter, None, deadline), k, beam, max_expansions)

    def _filter(self, allowed: npt.NDArray[np.bool_]) -> LeafFilter:
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
    trie: Trie,
    prompts: Sequence[Sequence[int]],
    *,
    k: int,
    mode: Mode = "beam",
    scoring: Scoring = "trie",
    beam: int = 10,
    allowed: npt.NDArray[np.bool_] | None = None,
    max_expansions: int | None = None,
    deadline_seconds: float | None = None,
    pad_token_id: int = 0,
) -> list[SearchResult]:
    """One search; see `TrieSearch` and its `search`. For more than one batch, keep a `TrieSearch`."""
    return TrieSearch(model, trie, scoring, pad_token_id=pad_token_id).search(
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
    """What passes found out about hypotheses, numbered in the order of expansion.

    Attributes:
        chain: float64 `[e, c]`, cumulative log-probabilities of forced tokens: `chain[i, j]` is that of the
            first `j`.
        child_indptr: `[e + 1]`, into `child` and `logprob`.
        child: Positions in `Trie.child` of the children of the node that was reached.
        logprob: Their log-probabilities given the node.
        dropped: float64 `[e]`, a bound on the children that were left out.
    """

    chain: Floats
    child_indptr: Ints
    child: Ints
    logprob: Floats
    dropped: Floats

    @classmethod
    def of(cls, scores: Scores, states: Ints, n_states: Ints, columns: int) -> "_Expansions":
        """From the scores of each expansion's states, which stand one after the other, the last at its
        node.
        """
        chain = np.zeros((len(states), columns))
        expansion = np.repeat(np.arange(len(states)), n_states)
        chain[expansion, 1 + ranges(np.zeros_like(n_states), n_states)] = scores.target
        last = states + n_states - 1
        per_state = np.bincount(scores.owner, minlength=len(expansion))
        indptr = np.concatenate(([0], np.cumsum(per_state[last])))
        return cls(np.cumsum(chain, axis=1), indptr, scores.child, scores.logprob, scores.dropped[last])

    def extended(self, other: "_Expansions") -> "_Expansions":
        """These, followed by others."""
        return _Expansions(
            np.concatenate((self.chain, other.chain)),
            np.concatenate((self.child_indptr, other.child_indptr[1:] + self.child_indptr[-1])),
            np.concatenate((self.child, other.child)),
            np.concatenate((self.logprob, other.logprob)),
            np.concatenate((self.dropped, other.dropped)),
        )


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
        self.size = len(prompts)
        import os
        self.lookahead = int(os.environ["LOOK"]) if "LOOK" in os.environ and limit else None
        self.expanded = np.zeros(self.size, dtype=np.int64)
        # Columns of each expansion's tokens in the cache, by place in the identifier.
        depth = self.trie.max_length
        self.paths = np.full((self.size, depth), -1, dtype=np.int32)
        self.chain_columns = depth + 1 if self.scorer.over_vocabulary else 2
        self._decoder, self._prompts, self._pad = search.decoder, prompts, search.pad_token_id

    def late(self) -> bool:
        """Whether no further pass may begin."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def hypotheses(self, query: Ints, score: Floats, start: Ints, child: Ints, parent: Ints) -> Hypotheses:
        """Hypotheses that have just chosen children (positions in `Trie.child`)."""
        made = np.empty(len(query), dtype=HYPOTHESIS)
        made["query"], made["score"], made["start"], made["parent"] = query, score, start, parent
        made["leaf"] = self.trie.child_interval(child)[0]
        made["target"] = self.trie.child[child]
        made["expansion"] = -1
        return made

    def length(self, leaf: Ints) -> Ints:
        """How many tokens the identifiers at leaves have."""
        return self.trie.token_offsets[leaf + 1].astype(np.int64) - self.trie.token_offsets[leaf]

    def next_event(self, hypotheses: Hypotheses) -> Ints:
        """How many tokens stand before each hypothesis's next choice, or else before its last token."""
        choice = self.next_choice(hypotheses)
        if not self.scorer.over_vocabulary or self.lookahead is None:
            return choice
        return np.where(hypotheses["start"] < 0, choice, np.minimum(choice, hypotheses["start"] + self.lookahead))

    def next_choice(self, hypotheses: Hypotheses) -> Ints:
        target = hypotheses["target"]
        last = self.length(hypotheses["leaf"]) - 1
        if not len(self.trie.node_depth):
            return last
        return np.where(target >= 0, self.trie.node_depth[np.maximum(target, 0)], last)

    def begin(self) -> tuple[Hypotheses, _Expansions]:
        """Read the prompts and the tokens that all identifiers share: one hypothesis a query, expanded."""
        roots = np.zeros(self.size, dtype=HYPOTHESIS)
        roots["query"] = roots["expansion"] = np.arange(self.size)
        roots["start"] = roots["parent"] = -1
        roots["target"] = 0 if len(self.trie.node_depth) else ~0
        prefix = self.trie.tokens[: int(self.next_event(roots)[0])]
        self._session, states = self._decoder.begin(self._prompts, prefix, self._pad)
        n_states = np.full(self.size, states.shape[1])
        return roots, self._score(roots, states.reshape(-1, states.shape[-1]), n_states)

    def expand(self, hypotheses: Hypotheses) -> _Expansions:
        """Read the chosen tokens of hypotheses and the forced ones after them, in one pass.

        Sets `expansion`, the numbers under which `parent` of later hypotheses refers to these.

        Args:
            hypotheses: By ascending query; each has something to find out.
        """
        hypotheses["expansion"] = len(self.paths) + np.arange(len(hypotheses))
        paths = self.paths[hypotheses["parent"]]
        length = self.next_event(hypotheses) - hypotheses["start"]
        first = self.trie.token_offsets[hypotheses["leaf"]] + hypotheses["start"]
        tokens = self.trie.tokens[ranges(first, length)].astype(np.int64)
        states = self._session.append(hypotheses["query"], hypotheses["start"], length, tokens, paths)
        self.paths = np.concatenate((self.paths, paths))
        self.expanded += np.bincount(hypotheses["query"], minlength=self.size)
        return self._score(hypotheses, states, length)

    def _score(self, hypotheses: Hypotheses, states: torch.Tensor, n_states: Ints) -> _Expansions:
        last = np.cumsum(n_states) - 1
        if not self.scorer.over_vocabulary:
            # Forced tokens score 0: only the states at nodes count.
            states, n_states, last = (
                states[self._decoder.tensor(last)],
                np.ones_like(n_states),
                np.arange(len(last)),
            )
        node = np.full(len(states), -1)
        reached = self.next_event(hypotheses) == self.next_choice(hypotheses)
        node[last] = np.where((hypotheses["target"] >= 0) & reached, hypotheses["target"], -1)
        target = np.full(len(states), -1)
        if self.scorer.over_vocabulary:
            following = self.trie.token_offsets[hypotheses["leaf"]] + hypotheses["start"] + 1
            target = np.where(node >= 0, -1, self.trie.tokens[ranges(following, n_states)])
        scores = self.scorer.score(states, target, node, self.leaf_filter, self.limit)
        return _Expansions.of(scores, last + 1 - n_states, n_states, self.chain_columns)


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
        possible = score > -np.inf
        self.query = np.concatenate((self.query, query[possible]))
        self.leaf = np.concatenate((self.leaf, leaf[possible]))
        self.score = np.concatenate((self.score, score[possible]))
        sequence, rank = _ranking(self.query, self.score, self.leaf)
        best = sequence[rank < self.k]
        self.query, self.leaf, self.score = self.query[best], self.leaf[best], self.score[best]

    def threshold(self) -> Floats:
        """`[size]`, the k-th score of each query, or -inf where there are fewer."""
        _, rank = _ranking(self.query, self.score, self.leaf)
        threshold = np.full(self.size, -np.inf)
        threshold[self.query[rank == self.k - 1]] = self.score[rank == self.k - 1]
        return threshold

    def results(self, trie: Trie, exact: npt.NDArray[np.bool_], expansions: Ints) -> list[SearchResult]:
        """As the caller wants them."""
        bounds = np.searchsorted(self.query, np.arange(self.size + 1))
        indices = trie.order[self.leaf].astype(np.int64)
        return [
            SearchResult(indices[a:b], self.score[a:b], bool(exact[number]), int(expansions[number]))
            for number, (a, b) in enumerate(pairwise(bounds))
        ]


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
    while len(running):
        event = batch.next_event(running)
        now = np.full(batch.size, np.iinfo(np.int64).max)
        np.minimum.at(now, running["query"], event)
        unknown = _unknown(batch, running, event == now[running["query"]])
        waiting = np.bincount(running["query"], weights=unknown, minlength=batch.size)[running["query"]] > 0
        if waiting.all():
            if batch.late():
                np.maximum.at(lost, running["query"], running["score"])
                break
            running, found = _expand_running(batch, running, found)
            continue
        ready = running[~waiting]
        survivors = _step(batch, ready, now[ready["query"]], found, results, lost, width)
        running = np.concatenate((running[waiting], survivors))
        running = running[np.argsort(running["query"], kind="stable")]
    return results.results(batch.trie, results.threshold() >= lost, batch.expanded)


def _unknown(batch: _Batch, running: Hypotheses, due: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Hypotheses that must be expanded before their query's next step."""
    if batch.scorer.over_vocabulary:
        return running["expansion"] < 0
    return (running["expansion"] < 0) & (running["target"] >= 0) & due


def _expand_running(batch: _Batch, running: Hypotheses, found: _Expansions) -> tuple[Hypotheses, _Expansions]:
    useful = running["expansion"] < 0
    if not batch.scorer.over_vocabulary:
        useful &= running["target"] >= 0
    expanding = running[useful]
    found = found.extended(batch.expand(expanding))
    running[useful] = expanding
    return running, found


def _step(
    batch: _Batch,
    ready: Hypotheses,
    now: Ints,
    found: _Expansions,
    results: _Results,
    lost: Floats,
    width: int,
) -> Hypotheses:
    """Move the hypotheses of some queries on to the token after their next choice or end, and prune.

    Until `now` there is no choice in any hypothesis of a query, so none was pruned meanwhile.

    Returns:
        The hypotheses that go on. `results` and `lost` are brought up to date.
    """
    due = batch.next_event(ready) == now
    choice = batch.next_choice(ready)
    choosing = (ready["target"] >= 0) & due & (choice == now)
    moving = due & (choice > now)
    ready["score"][moving] = _score_after(batch, ready[moving], now[moving] + 1, found)
    ready["start"][moving] = now[moving]
    ready["parent"][moving] = ready["expansion"][moving]
    ready["expansion"][moving] = -1
    staying = ready[~choosing]
    parents = ready[choosing]
    chosen = _children(batch, parents, now[choosing], found)
    candidates = np.concatenate((staying, chosen))
    # Candidates are compared at one length, that of `now` and one more token.
    stay_score = _score_after(batch, staying, now[~choosing] + 1, found)
    moved = moving[~choosing]
    stay_score[moved] = staying["score"][moved]
    score = np.concatenate((stay_score, chosen["score"]))
    length = np.concatenate((now[~choosing] + 1, chosen["start"] + 1))
    complete = (candidates["target"] < 0) & (batch.length(candidates["leaf"]) == length)

    possible = np.flatnonzero(score > -np.inf)
    candidates, score, complete = candidates[possible], score[possible], complete[possible]
    sequence, rank = _ranking(candidates["query"], score, candidates["leaf"])
    candidates, score, complete = candidates[sequence], score[sequence], complete[sequence]
    result = complete & (rank < width)
    results.add(candidates["query"][result], candidates["leaf"][result], score[result])
    running = ~complete & (rank < 2 * width)
    running[running] = _rank_in_run(candidates["query"][running]) < width
    gone = ~result & ~running
    np.maximum.at(lost, candidates["query"][gone], score[gone])
    np.maximum.at(
        lost,
        parents["query"],
        _score_after(batch, parents, now[choosing], found) + found.dropped[parents["expansion"]],
    )

    best = np.full(batch.size, -np.inf)
    np.maximum.at(best, candidates["query"][running], score[running])
    open_queries = best > results.threshold()
    return candidates[running & open_queries[candidates["query"]]]


def _children(batch: _Batch, parents: Hypotheses, now: Ints, found: _Expansions) -> Hypotheses:
    expansion = parents["expansion"]
    first = found.child_indptr[expansion]
    count = found.child_indptr[expansion + 1] - first
    parent = np.repeat(np.arange(len(parents)), count)
    entry = ranges(first, count)
    score = _score_after(batch, parents, now, found)[parent] + found.logprob[entry]
    return batch.hypotheses(
        parents["query"][parent], score, now[parent], found.child[entry], expansion[parent]
    )


def _score_after(batch: _Batch, hypotheses: Hypotheses, length: Ints, found: _Expansions) -> Floats:
    """Scores of expanded hypotheses after `length` tokens, before their next choice."""
    if not batch.scorer.over_vocabulary:
        return hypotheses["score"]
    return hypotheses["score"] + found.chain[hypotheses["expansion"], length - hypotheses["start"] - 1]


class _Frontier:
    """The open hypotheses of each query: `[queries, places]`, a score of -inf marking a free place."""

    def __init__(self, size: int) -> None:
        self.score = np.full((size, 0), -np.inf)
        self.child = np.zeros((size, 0), dtype=np.int64)
        self.parent = np.zeros((size, 0), dtype=np.int64)

    def push(self, query: Ints, score: Floats, child: Ints, parent: Ints) -> None:
        """Add hypotheses, by ascending query."""
        place = _rank_in_run(query)
        width = int(place.max()) + 1 if len(place) else 0
        size = len(self.score)
        added = (
            np.full((size, width), -np.inf),
            np.zeros((size, width), np.int64),
            np.zeros((size, width), np.int64),
        )
        for block, values in zip(added, (score, child, parent), strict=True):
            block[query, place] = values
        self.score = np.concatenate((self.score, added[0]), axis=1)
        self.child = np.concatenate((self.child, added[1]), axis=1)
        self.parent = np.concatenate((self.parent, added[2]), axis=1)

    def prune(self, threshold: Floats) -> None:
        """Forget hypotheses that are no better than their query's threshold."""
        self.score[self.score <= threshold[:, None]] = -np.inf
        live = int((self.score > -np.inf).sum(axis=1).max(initial=0))
        if live < self.score.shape[1]:
            places = np.argpartition(-self.score, live, axis=1)[:, :live]
            self.score = np.take_along_axis(self.score, places, axis=1)
            self.child = np.take_along_axis(self.child, places, axis=1)
            self.parent = np.take_along_axis(self.parent, places, axis=1)

    def pop(self, count: Ints) -> tuple[Ints, Floats, Ints, Ints]:
        """Take the best `count` hypotheses of each query: query (ascending), score, child, parent."""
        most = min(int(count.max(initial=0)), self.score.shape[1])
        places = (
            np.argpartition(-self.score, most - 1, axis=1)[:, :most]
            if most
            else np.zeros((len(count), 0), int)
        )
        score = np.take_along_axis(self.score, places, axis=1)
        child = np.take_along_axis(self.child, places, axis=1)
        query, column = np.nonzero(score > -np.inf)
        sequence, rank = _ranking(query, score[query, column], child[query, column])
        taken = sequence[rank < count[query[sequence]]]
        query, column = query[taken], places[query[taken], column[taken]]
        popped = (query, self.score[query, column], self.child[query, column], self.parent[query, column])
        self.score[query, column] = -np.inf
        return popped

    def best(self) -> Floats:
        """`[queries]`, the best open score, -inf where there is none."""
        return self.score.max(axis=1, initial=-np.inf)


def _best_first(batch: _Batch, k: int, at_once: int, max_expansions: int | None) -> list[SearchResult]:
    results, frontier = _Results(batch.size, k), _Frontier(batch.size)
    # The depth of the node that each expansion reached.
    hypotheses, found = batch.begin()
    depth = batch.next_event(hypotheses)
    while True:
        _absorb(batch, hypotheses, found, depth, results, frontier)
        frontier.prune(results.threshold())
        count = np.full(batch.size, at_once)
        if max_expansions is not None:
            count = np.minimum(count, max_expansions - batch.expanded)
        if batch.late():
            break
        query, score, child, parent = frontier.pop(count)
        if not len(query):
            break
        hypotheses = batch.hypotheses(query, score, depth[parent], child, parent)
        found = batch.expand(hypotheses)
        depth = np.concatenate((depth, batch.next_event(hypotheses)))
    return results.results(batch.trie, results.threshold() >= frontier.best(), batch.expanded)


def _absorb(
    batch: _Batch,
    hypotheses: Hypotheses,
    found: _Expansions,
    depth: Ints,
    results: _Results,
    frontier: _Frontier,
) -> None:
    """Put what a pass found into results and frontier."""
    # At the end of the forced tokens, which is the last column for all: it repeats the sum where there are
    # fewer.
    score = hypotheses["score"] + found.chain[:, -1]
    ended = hypotheses["target"] < 0
    results.add(hypotheses["query"][ended], hypotheses["leaf"][ended], score[ended])
    owner = np.repeat(np.arange(len(hypotheses)), np.diff(found.child_indptr))
    query, parent = hypotheses["query"][owner], hypotheses["expansion"][owner]
    child, score = found.child, score[owner] + found.logprob
    leaf = batch.trie.child_interval(child)[0].astype(np.int64)
    complete = batch.trie.child[child] < 0
    if batch.scorer.over_vocabulary:
        complete &= batch.length(leaf) == depth[parent] + 1
    results.add(query[complete], leaf[complete], score[complete])
    going_on = ~complete & (score > -np.inf)
    frontier.push(query[going_on], score[going_on], child[going_on], parent[going_on])
