"""Log-probabilities of the children of trie nodes, and of forced tokens, from a model's states."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from genret.decoding.arrays import IntArray, Ints, ranges
from genret.decoding.attention import TreeDecoder
from genret.decoding.packed import Seen, multiplication, precise_linear
from genret.decoding.trie import Paths
from genret.errors import InputError

Scoring: TypeAlias = Literal["trie", "vocabulary"]

# Nodes with more children are scored one at a time by a matrix product, those with fewer all at once by dot
# products.
WIDE = 256
# Elements of the largest temporary tensor: gathered rows of the output layer, or logits over the vocabulary where a
# model gives nothing else.
CHUNK_ELEMENTS = 1 << 24
# Logits of the whole vocabulary are made on a CPU for so many states at a time, and on a GPU for as many as fit in
# CHUNK_ELEMENTS.
CHUNK_STATES = 128
# Elements of the rows of the output layer that are gathered at a time on a CPU: those stay in its cache.
GATHERED_ELEMENTS = 1 << 18
# Sums of exponentials of at least this are taken as they are: all that matters to them is far from the least number.
LEAST_SUM = 1e-30
LOG2_E = math.log2(math.e)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What was asked of some states.

    Attributes:
        target: float64 `[s]`, the log-probability of each state's target token, 0 where there was none.
        owner: int64 `[c]`, ascending: the state of each child.
        child: int64 `[c]`, its position in `Trie.child`.
        logprob: float64 `[c]`, its log-probability; children without any (-inf) are left out.
    """

    target: Floats
    owner: Ints
    child: Ints
    logprob: Floats


class LeafFilter:
    """Which leaves may be returned, and so which children lead anywhere."""

    def __init__(self, trie: Paths, allowed: npt.NDArray[np.bool_]) -> None:
        """Count the allowed leaves before each leaf.

        Args:
            trie: The trie.
            allowed: bool `[n]`, by position of the identifier in the input. Removed ones are never allowed.
        """
        self.trie = trie
        if trie.alive is not None:
            allowed = allowed & trie.alive
        self.count = int(np.count_nonzero(allowed))
        self._before = np.concatenate(([0], np.cumsum(allowed[trie.positions(np.arange(len(trie)))])))

    def children(self, child: IntArray) -> npt.NDArray[np.bool_]:
        """Which children (positions in `Trie.child`) have an allowed leaf below them."""
        below = [self._before[hi] > self._before[lo] for lo, hi in self.trie.leaf_intervals(child)]
        return below[0] if len(below) == 1 else np.logical_or.reduce(below)

    def only_children(self, node: Ints) -> Ints:
        """`[len(node)]`, the one child of each node with an allowed leaf below it; -1 where there is not just one."""
        first, count = self.trie.child_span(node)
        child, owner = ranges(first, count), np.repeat(np.arange(len(node)), count)
        allowed = self.children(child)
        child, owner = child[allowed], owner[allowed]
        only = np.full(len(node), -1)
        single = (np.bincount(owner, minlength=len(node)) == 1)[owner]
        only[owner[single]] = child[single]
        return only


@dataclass(frozen=True)
class _Wanted:
    """Logits that are wanted of some states, beside the sum over all.

    Attributes:
        owner: `[w]`, the state of each.
        token: `[w]`.
        at_root: `[r]`, ascending: states of which those of all children of the root are wanted, if it has many.
    """

    owner: Ints
    token: Ints
    at_root: Ints

    def within(self, begin: int, end: int) -> tuple[Ints, "_Wanted"]:
        """Those of the states from `begin` to `end`, which count from 0 now, and their places in `owner`."""
        place = np.flatnonzero((self.owner >= begin) & (self.owner < end))
        first, last = np.searchsorted(self.at_root, (begin, end))
        return place, _Wanted(self.owner[place] - begin, self.token[place], self.at_root[first:last] - begin)


class Scorer:
    """Scores under one model, trie and scoring."""

    def __init__(self, decoder: TreeDecoder, trie: Paths, scoring: Scoring) -> None:
        """Lay out the rows of the output layer for the children of the root, over the trie.

        Args:
            decoder: The model.
            trie: The trie; its tokens must be in the model's vocabulary.
            scoring: "vocabulary" normalises over the whole vocabulary, "trie" over the children of the node.

        Raises:
            InputError: Another scoring, or a token that the model does not have.
        """
        if scoring not in ("trie", "vocabulary"):
            raise InputError(f"scoring: expected 'trie' or 'vocabulary', found {scoring!r}")
        if trie.max_token >= decoder.vocabulary_size:
            raise InputError(
                f"identifiers: expected tokens below {decoder.vocabulary_size}, the model's vocabulary; "
                f"found {trie.max_token}"
            )
        self.decoder, self.trie = decoder, trie
        self.over_vocabulary = scoring == "vocabulary"
        # Whether states are logits of all tokens already.
        self.dense = decoder.head is None
        # Sums of exponentials want single precision at least.
        self.dtype = torch.promote_types(decoder.dtype, torch.float32)
        self._root: Callable[[torch.Tensor], torch.Tensor] | None = None
        # Over the vocabulary the whole head is laid out already.
        laid_out = self.dense or self.over_vocabulary
        if not laid_out and trie.has_choice and len(trie.children(trie.root)[0]) > WIDE:
            self._lay_out()

    def follow(self) -> None:
        """Lay out anew what training has changed since the last time."""
        if self._root is not None and not self._seen.are(self._head_tensors()):
            self._lay_out()

    def _lay_out(self) -> None:
        seen = Seen(self._head_tensors())
        self._root = multiplication(*self._rows(self.trie.root))
        self._seen = seen

    def _head_tensors(self) -> list[torch.Tensor]:
        head = self.decoder.head
        assert head is not None
        return [head.weight] if head.bias is None else [head.weight, head.bias]

    def score(
        self,
        states: torch.Tensor,
        target: Ints,
        node: Ints,
        leaf_filter: LeafFilter | None,
        limit: int | None,
    ) -> Scores:
        """Log-probabilities of target tokens and of the children of nodes.

        Args:
            states: `[s, width]`.
            target: `[s]`, the token that follows each state, or -1 if it is not asked for. Only over the
                vocabulary.
            node: `[s]`, the node that each state stands at, or -1 if its children are not asked for.
            leaf_filter: Leaves out children without an allowed leaf; probabilities are those without the
                filter.
            limit: Leave out children of one state beyond this many, the least probable ones, where that
                spares work.

        Returns:
            The scores.

        Raises:
            FloatingPointError: NaN or +inf among the logits.
        """
        step = max(1, CHUNK_ELEMENTS // self.decoder.vocabulary_size) if self.dense else max(1, len(states))
        parts = [
            self._score(states[at : at + step], target[at : at + step], node[at : at + step], leaf_filter, limit)
            for at in range(0, len(states), step)
        ]
        if len(parts) == 1:
            return parts[0]
        return Scores(
            target=np.concatenate([part.target for part in parts]),
            owner=np.concatenate([part.owner + number * step for number, part in enumerate(parts)]),
            child=np.concatenate([part.child for part in parts]),
            logprob=np.concatenate([part.logprob for part in parts]),
        )

    def _score(
        self,
        states: torch.Tensor,
        target: Ints,
        node: Ints,
        leaf_filter: LeafFilter | None,
        limit: int | None,
    ) -> Scores:
        if self.dense:
            states = states.to(self.dtype)
        asked = (target >= 0).nonzero()[0]
        first, count = np.zeros_like(node), np.zeros_like(node)
        standing = (node >= 0).nonzero()[0]
        first[standing], count[standing] = self.trie.child_span(node[standing])
        wide = (count > WIDE).nonzero()[0]
        narrow = ((count > 0) & (count <= WIDE)).nonzero()[0]
        child = ranges(first[narrow], count[narrow])
        owner = narrow.repeat(count[narrow])
        tokens = np.concatenate((target[asked], self.trie.child_tokens(child)))
        wanted = _Wanted(np.concatenate((asked, owner)), tokens, wide[node[wide] == self.trie.root])
        target_logprob, normaliser, root_logits = np.zeros(len(target)), None, None
        if self.over_vocabulary:
            normaliser, logit, root_logits = self._over_vocabulary(states, wanted)
            # Rounding may make a token more than certain, but no score may rise along a path.
            target_logprob[asked] = np.minimum(logit[: len(asked)] - normaliser[asked], 0)
            logprob = np.minimum(logit[len(asked) :] - normaliser[owner], 0)
        else:
            logprob = _log_softmax(self._narrow(states, wanted.owner, tokens)[len(asked) :], count[narrow])
        if leaf_filter is not None:
            logprob[~leaf_filter.children(child)] = -np.inf
        parts = [(owner, child, logprob)]
        for number in np.unique(node[wide]) if len(wide) else ():
            member = wide[node[wide] == number]
            logits = root_logits if number == self.trie.root else None
            if logits is None:
                logits = self._child_logits(states, member, int(number))
            reference = None if normaliser is None else normaliser[member]
            top, place = self._wide(logits, int(number), reference, leaf_filter, limit)
            parts.append((np.repeat(member, top.shape[1]), (first[member[0]] + place).ravel(), top.ravel()))
        return _collect(target_logprob, parts)

    def _over_vocabulary(self, states: torch.Tensor, wanted: _Wanted) -> tuple[Floats, Floats, torch.Tensor | None]:
        """What vocabulary scoring divides by, the logarithm of the sum of exponentials of all logits, and some of them.

        The sum is made part by part of the vocabulary (after the online softmax of arXiv 1805.02867), so that of all
        these logits only those are kept that are wanted.

        Args:
            states: `[s, width]`.
            wanted: Which logits.

        Returns:
            `[s]`, 0 where no token is possible: there is nothing to divide by, and logits of -inf stay what they are;
            logits `[len(wanted.owner)]`; and the logits of the root's children `[len(wanted.at_root), children]`,
            where these are made here and any are wanted.
        """
        if self.dense:
            normaliser, logit = _numpy(states.logsumexp(-1)), self._narrow(states, wanted.owner, wanted.token)
            root_logits: list[torch.Tensor] = []
        else:
            step = CHUNK_ELEMENTS // self.decoder.vocabulary_size
            step = CHUNK_STATES if states.device.type == "cpu" else max(1, step)
            normaliser, logit, root_logits = np.zeros(len(states)), np.zeros(len(wanted.owner)), []
            for at in range(0, len(states), step):
                place, some = (slice(None), wanted) if len(states) <= step else wanted.within(at, at + step)
                normaliser[at : at + step], logit[place], found = self._summed(states[at : at + step], some)
                root_logits.extend(found)
        _numbers(normaliser)
        normaliser[np.isneginf(normaliser)] = 0.0
        return normaliser, logit, torch.cat(root_logits) if root_logits else None

    def _summed(self, states: torch.Tensor, wanted: _Wanted) -> tuple[Floats, Floats, list[torch.Tensor]]:
        """The logarithm of the sum of exponentials of all logits of some states, and what else they are made for.

        Args:
            states: `[s, width]`.
            wanted: Which logits.

        Returns:
            `[s]`; logits `[len(wanted.owner)]`; and, where any state stands at the root, the logits of the root's
            children `[len(wanted.at_root), children]`.
        """
        if states.device.type != "cpu":
            return self._summed_safely(states, wanted)
        found = self._summed_at_once(states, wanted)
        if found is None:
            found = self._summed_in_place(states, wanted)
        total, taken = found
        # False also where something is not a number.
        if not ((total > LEAST_SUM) & (total < np.inf)).all():
            return self._summed_safely(states, wanted)
        return np.log(total), taken.logit, taken.of_root()

    def _summed_at_once(self, states: torch.Tensor, wanted: _Wanted) -> tuple[Floats, "_Taken"] | None:
        """The sums of exponentials, made with the logits; None where products do not make both."""
        reading, sums, taken = states.to(self.dtype), [], _Taken(self, wanted)
        for slab in self.decoder.slabs:
            found = slab.summed(reading)
            if found is None:
                return None
            taken.take(found[0])
            sums.append(found[1])
        return _numpy(sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)), taken

    def _summed_in_place(self, states: torch.Tensor, wanted: _Wanted) -> tuple[Floats, "_Taken"]:
        """The sums of exponentials, which take the place of the logits."""
        # torch makes powers of two faster on a CPU than exponentials, which are MKL's, and here in place. Their
        # exponents are found by the same product, from states that are as much longer; biases come afterwards.
        head = self.decoder.head
        assert head is not None
        longer = head.bias is None
        reading = states.to(self.dtype)
        reading = self.decoder.slabs[0].padded(reading * LOG2_E if longer else reading)
        sums, taken = [], _Taken(self, wanted, 1 / LOG2_E)
        for slab in self.decoder.slabs:
            powers = slab(reading)[: len(states)]
            if not longer:
                powers.mul_(LOG2_E)
            taken.take(powers)
            sums.append(powers.exp2_().sum(-1))
        return _numpy(sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)), taken

    def _summed_safely(self, states: torch.Tensor, wanted: _Wanted) -> tuple[Floats, Floats, list[torch.Tensor]]:
        """As `_summed`, for logits of any size."""
        reading, sums, taken = self.decoder.slabs[0].padded(states), [], _Taken(self, wanted)
        for slab in self.decoder.slabs:
            logits = slab(reading)[: len(states)]
            taken.take(logits)
            sums.append(logits.logsumexp(-1))
        return _numpy(torch.stack(sums).logsumexp(0)), taken.logit, taken.of_root()

    @cached_property
    def root_parts(self) -> list[torch.Tensor]:
        """Places of the root's children in each of the decoder's parts of the vocabulary, int64 `[children]` a part."""
        assert self.decoder.head is not None
        token, count = self.trie.children(self.trie.root)[0], len(self.decoder.slabs)
        size = -(-self.decoder.head.out_features // count)
        bounds = np.searchsorted(token, size * np.arange(count + 1))
        return [self.decoder.tensor(token[a:b] - size * part) for part, (a, b) in enumerate(pairwise(bounds))]

    def _rows(self, node: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The output layer's rows and biases for a node's children: a view where they are contiguous."""
        head = self.decoder.head
        assert head is not None
        token = self.trie.children(node)[0]
        if token[-1] - token[0] == len(token) - 1:
            span = slice(int(token[0]), int(token[-1]) + 1)
            return head.weight.detach()[span], None if head.bias is None else head.bias.detach()[span]
        index = self.decoder.tensor(token)
        rows = head.weight.detach().index_select(0, index)
        return rows, None if head.bias is None else head.bias.detach()[index]

    def _child_logits(self, states: torch.Tensor, row: Ints, node: int) -> torch.Tensor:
        """Logits `[rows, children]` of all children of a node after some of the states."""
        states = states.index_select(0, self.decoder.tensor(row))
        if self.dense:  # states are logits of all tokens
            return states.index_select(1, self.decoder.tensor(self.trie.children(node)[0]))
        if self._root is not None and node == self.trie.root:
            return self._root(states)
        return precise_linear(states, *self._rows(node))

    def _narrow(self, states: torch.Tensor, owner: Ints, token: Ints) -> Floats:
        """Logits of `token[i]` after state `owner[i]`."""
        owner_index, token_index = self.decoder.tensor(owner), self.decoder.tensor(token)
        if self.dense:
            return _numpy(states[owner_index, token_index])
        head = self.decoder.head
        assert head is not None
        raw = torch.empty(len(owner), dtype=self.dtype, device=states.device)
        step = max(1, (GATHERED_ELEMENTS if states.device.type == "cpu" else CHUNK_ELEMENTS) // states.shape[1])
        for at in range(0, len(owner), step):
            rows = head.weight.index_select(0, token_index[at : at + step]).to(self.dtype)
            reading = states.index_select(0, owner_index[at : at + step]).to(self.dtype)
            raw[at : at + step] = torch.linalg.vecdot(rows, reading)
        return _numpy(raw if head.bias is None else raw + head.bias[token_index])

    def _wide(
        self,
        logits: torch.Tensor,
        node: int,
        normaliser: Floats | None,
        leaf_filter: LeafFilter | None,
        limit: int | None,
    ) -> tuple[Floats, Ints]:
        """Of one node's children, from their logits: log-probabilities and places among them, `[states, kept]`."""
        if normaliser is not None:
            logprob = (logits - self.decoder.tensor(normaliser)[:, None].to(logits.dtype)).clamp_(max=0)
        else:
            # A softmax over nothing but -inf is not a number, but here only that no child is possible.
            logprob = torch.where(logits.isneginf(), logits, logits.log_softmax(-1))
        n_children = logits.shape[1]
        if leaf_filter is not None:
            start, count = self.trie.child_span(np.array([node]))
            useless = ~leaf_filter.children(ranges(start, count))
            logprob = logprob.masked_fill(self.decoder.tensor(useless), -torch.inf)
        if limit is None or limit >= n_children:
            return _numpy(logprob), np.broadcast_to(np.arange(n_children), logprob.shape)
        top, place = torch.topk(logprob, limit, dim=-1)
        return _numpy(top), place.cpu().numpy()


class _Taken:
    """Wanted logits, taken out of those of one part of the vocabulary after the other.

    Attributes:
        logit: float64 `[len(wanted.owner)]`.
    """

    def __init__(self, scorer: Scorer, wanted: _Wanted, factor: float = 1.0) -> None:
        """Begin, and tell what logits are still to be multiplied with."""
        self.logit = np.zeros(len(wanted.owner))
        self._of_root: list[torch.Tensor] = []
        self._scorer, self._wanted, self._factor, self._end = scorer, wanted, factor, 0

    def take(self, logits: torch.Tensor) -> None:
        """Go on with the next part: logits `[states, part]`."""
        tensor, wanted = self._scorer.decoder.tensor, self._wanted
        begin, self._end = self._end, self._end + logits.shape[1]
        owner, token = wanted.owner, wanted.token
        here: Ints | slice = slice(None)
        if len(self._scorer.decoder.slabs) > 1:
            here = ((token >= begin) & (token < self._end)).nonzero()[0]
            owner, token = owner[here], token[here] - begin
        if len(owner):
            if logits.device.type == "cpu":  # where numpy's indexing takes less time than torch's
                self.logit[here] = logits.numpy()[owner, token]
            else:
                self.logit[here] = _numpy(logits[tensor(owner), tensor(token)])
            self.logit[here] *= self._factor
        if len(wanted.at_root):
            children = self._scorer.root_parts[len(self._of_root)]
            if len(wanted.at_root) < len(logits):
                logits = logits.index_select(0, tensor(wanted.at_root))
            self._of_root.append(logits.index_select(1, children).mul_(self._factor))

    def of_root(self) -> list[torch.Tensor]:
        """Logits `[len(wanted.at_root), children]` of all children of the root; empty where none are wanted."""
        return [torch.cat(self._of_root, 1)] if self._of_root else []


def _log_softmax(raw: Floats, count: Ints) -> Floats:
    """Log-softmax in each run of `count[i]` logits; -inf stays -inf, also where a run holds nothing else."""
    first = np.cumsum(count) - count
    with np.errstate(divide="ignore", invalid="ignore"):
        shifted = raw - np.repeat(np.maximum.reduceat(raw, first), count) if len(raw) else raw
        total = np.log(np.add.reduceat(np.exp(shifted), first)) if len(raw) else raw
        return np.where(np.isneginf(raw), -np.inf, shifted - np.repeat(total, count))


def _collect(target: Floats, parts: list[tuple[Ints, Ints, Floats]]) -> Scores:
    owner, child, logprob = parts[0]
    if len(parts) > 1:
        owner, child, logprob = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        sequence = np.argsort(owner, kind="stable")
        owner, child, logprob = owner[sequence], child[sequence], logprob[sequence]
    possible = _numbers(logprob) > -np.inf
    if not possible.all():
        owner, child, logprob = owner[possible], child[possible], logprob[possible]
    return Scores(_numbers(target), owner, child, logprob)


def _numbers(found: Floats) -> Floats:
    """What was found, if it was made of numbers."""
    if not (found < np.inf).all():  # False for what is not a number, too
        raise FloatingPointError("the model's logits hold NaN or +inf; expected numbers or -inf")
    return found


def _numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    return tensor.double().cpu().numpy()
