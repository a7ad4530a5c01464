"""Log-probabilities of the children of trie nodes, and of forced tokens, from a model's states."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from genret.decoding.attention import TreeDecoder
from genret.decoding.trie import IntArray, Trie, ranges
from genret.errors import InputError

Scoring: TypeAlias = Literal["trie", "vocabulary"]

# Nodes with more children are scored one at a time by a matrix product, those with fewer all at once by dot
# products.
WIDE = 256
# Elements of the largest temporary tensor: logits over the vocabulary, or gathered rows of the output layer.
CHUNK_ELEMENTS = 1 << 24

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What was asked of some states.

    Attributes:
        target: float64 `[s]`, the log-probability of each state's target token, 0 where there was none.
        owner: int64 `[c]`, ascending: the state of each child.
        child: int64 `[c]`, its position in `Trie.child`.
        logprob: float64 `[c]`, its log-probability; children without any (-inf) are left out.
        dropped: float64 `[s]`, no child that a limit left out has more than this; -inf where none was.
    """

    target: Floats
    owner: Ints
    child: Ints
    logprob: Floats
    dropped: Floats


class LeafFilter:
    """Which leaves may be returned, and so which children lead anywhere."""

    def __init__(self, trie: Trie, allowed: npt.NDArray[np.bool_]) -> None:
        """Count the allowed leaves before each leaf.

        Args:
            trie: The trie.
            allowed: bool `[n]`, by position of the identifier in the input.
        """
        self.trie = trie
        self.count = int(np.count_nonzero(allowed))
        self._before = np.concatenate(([0], np.cumsum(allowed[trie.order])))

    def children(self, child: IntArray) -> npt.NDArray[np.bool_]:
        """Which children (positions in `Trie.child`) have an allowed leaf below them."""
        lo, hi = self.trie.child_interval(child)
        return self._before[hi] > self._before[lo]


class Scorer:
    """Scores under one model, trie and scoring. Reads the model's weights when it is made: make it anew after
    training."""

    def __init__(self, decoder: TreeDecoder, trie: Trie, scoring: Scoring) -> None:
        """Prepare the rows of the output layer for the children of the root.

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
                f"identifiers: expected tokens below the model's {decoder.vocabulary_size}, found {trie.max_token}"
            )
        self.decoder, self.trie = decoder, trie
        self.over_vocabulary = scoring == "vocabulary"
        # Whether states are turned into logits of all tokens (or are such logits).
        self.dense = self.over_vocabulary or decoder.head is None
        # Sums of exponentials want single precision at least.
        self.dtype = torch.promote_types(decoder.dtype, torch.float32)
        self._child_count = np.diff(trie.child_indptr)
        self._root_rows = None
        if not self.dense and len(self._child_count) and self._child_count[0] > WIDE:
            self._root_rows = self._rows(0)

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
            self._score(
                states[at : at + step], target[at : at + step], node[at : at + step], leaf_filter, limit
            )
            for at in range(0, len(states), step)
        ]
        if len(parts) == 1:
            return parts[0]
        return Scores(
            target=np.concatenate([part.target for part in parts]),
            owner=np.concatenate([part.owner + number * step for number, part in enumerate(parts)]),
            child=np.concatenate([part.child for part in parts]),
            logprob=np.concatenate([part.logprob for part in parts]),
            dropped=np.concatenate([part.dropped for part in parts]),
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
            states = self._logits(states)
        normaliser = torch.logsumexp(states, dim=-1) if self.over_vocabulary else None
        target_logprob = np.zeros(len(target))
        asked = np.flatnonzero(target >= 0)
        if len(asked):
            index = self.decoder.tensor(asked)
            following = states[index, self.decoder.tensor(target[asked])]
            assert normaliser is not None
            target_logprob[asked] = _normalised(_numpy(following), _numpy(normaliser[index]))

        count = (
            np.where(node >= 0, self._child_count[np.maximum(node, 0)], 0)
            if len(self._child_count)
            else node * 0
        )
        owners, children, logprobs = [], [], []
        dropped = np.full(len(node), -np.inf)
        narrow = np.flatnonzero((count > 0) & (count <= WIDE))
        if len(narrow):
            owner = np.repeat(narrow, count[narrow])
            child = ranges(self.trie.child_indptr[node[narrow]], count[narrow])
            raw = self._narrow(states, owner, self.trie.child_token[child])
            owners.append(owner)
            children.append(child)
            logprobs.append(self._narrow_logprobs(raw, normaliser, narrow, count[narrow]))
        wide = np.flatnonzero(count > WIDE)
        for number in np.unique(node[wide]):
            member = wide[node[wide] == number]
            top, position, dropped[member] = self._wide(
                states, normaliser, member, int(number), leaf_filter, limit
            )
            owners.append(np.repeat(member, top.shape[1]))
            children.append((self.trie.child_indptr[number] + position).ravel())
            logprobs.append(top.ravel())
        return _collect(target_logprob, owners, children, logprobs, dropped, leaf_filter)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        head = self.decoder.head
        return (states if head is None else head(states)).to(self.dtype)

    def _rows(self, node: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rows (and biases) of the output layer for a node's children: a view where they are
        contiguous."""
        head = self.decoder.head
        assert head is not None
        token = self.trie.children(node)[0]
        if token[-1] - token[0] == len(token) - 1:
            span = slice(int(token[0]), int(token[-1]) + 1)
            return head.weight.detach()[span], None if head.bias is None else head.bias.detach()[span]
        index = self.decoder.tensor(token)
        return head.weight.detach()[index], None if head.bias is None else head.bias.detach()[index]

    def _narrow(self, states: torch.Tensor, owner: Ints, token: IntArray) -> Floats:
        """Logits of `token[i]` after state `owner[i]`."""
        owner_index, token_index = self.decoder.tensor(owner), self.decoder.tensor(token.astype(np.int64))
        if self.dense:
            return _numpy(states[owner_index, token_index])
        head = self.decoder.head
        assert head is not None
        step = max(1, CHUNK_ELEMENTS // states.shape[1])
        parts = []
        for at in range(0, len(owner), step):
            rows = head.weight[token_index[at : at + step]].to(self.dtype)
            parts.append(torch.linalg.vecdot(rows, states[owner_index[at : at + step]].to(self.dtype)))
        raw = torch.cat(parts)
        return _numpy(raw if head.bias is None else raw + head.bias[token_index])

    def _narrow_logprobs(
        self, raw: Floats, normaliser: torch.Tensor | None, narrow: Ints, count: Ints
    ) -> Floats:
        if normaliser is not None:
            return _normalised(raw, np.repeat(_numpy(normaliser[self.decoder.tensor(narrow)]), count))
        first = np.cumsum(count) - count
        highest = np.maximum.reduceat(raw, first)
        shift = np.where(np.isneginf(highest), 0.0, highest)
        with np.errstate(divide="ignore", invalid="ignore"):
            total = np.log(np.add.reduceat(np.exp(raw - np.repeat(shift, count)), first)) + shift
        return _normalised(raw, np.repeat(total, count))

    def _wide(
        self,
        states: torch.Tensor,
        normaliser: torch.Tensor | None,
        member: Ints,
        node: int,
        leaf_filter: LeafFilter | None,
        limit: int | None,
    ) -> tuple[Floats, Ints, Floats]:
        """Log-probabilities `[members, kept]` of one node's children, their positions, and the bound on the
        others."""
        index = self.decoder.tensor(member)
        if self.dense:
            raw = states[index][:, self.decoder.tensor(self.trie.children(node)[0].astype(np.int64))]
        else:
            rows, bias = self._root_rows if node == 0 and self._root_rows is not None else self._rows(node)
            raw = torch.nn.functional.linear(states[index], rows, bias).to(self.dtype)
        total = torch.logsumexp(raw, dim=-1) if normaliser is None else normaliser[index]
        if not torch.isfinite(total).all() and (torch.isnan(total) | torch.isposinf(total)).any():
            raise FloatingPointError(BROKEN_LOGITS)
        logprob = torch.where(torch.isneginf(raw), raw, raw - total[:, None])
        n_children = raw.shape[1]
        if leaf_filter is not None:
            start = int(self.trie.child_indptr[node])
            useless = ~leaf_filter.children(np.arange(start, start + n_children))
            logprob = logprob.masked_fill(self.decoder.tensor(useless), -torch.inf)
        nothing = np.full(len(member), -np.inf)
        if limit is None or limit >= n_children:
            return _numpy(logprob), np.broadcast_to(np.arange(n_children), (len(member), n_children)), nothing
        top, position = torch.topk(logprob, limit, dim=-1)
        kept = _numpy(top)
        return kept, position.cpu().numpy(), kept[:, -1]


BROKEN_LOGITS = "the model's logits hold NaN or +inf; expected numbers or -inf (was it trained in a type of too small a range?)"


def _normalised(raw: Floats, total: Floats) -> Floats:
    """`raw - total`, -inf where raw is -inf (also if all are); NaN and +inf are errors."""
    if np.isnan(raw).any() or np.isnan(total).any() or np.isposinf(total).any():
        raise FloatingPointError(BROKEN_LOGITS)
    impossible = np.isneginf(raw)
    return np.where(impossible, -np.inf, raw - np.where(impossible, 0.0, total))


def _collect(
    target: Floats,
    owners: list[Ints],
    children: list[Ints],
    logprobs: list[Floats],
    dropped: Floats,
    leaf_filter: LeafFilter | None,
) -> Scores:
    if not owners:
        nothing = np.empty(0, dtype=np.int64)
        return Scores(target, nothing, nothing, np.empty(0), dropped)
    owner, child, logprob = np.concatenate(owners), np.concatenate(children), np.concatenate(logprobs)
    keep = logprob > -np.inf
    if leaf_filter is not None:
        keep &= leaf_filter.children(child)
    kept = np.flatnonzero(keep)
    kept = kept[np.argsort(owner[kept], kind="stable")]
    return Scores(target, owner[kept], child[kept], logprob[kept], dropped)


def _numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    return tensor.double().cpu().numpy()
