"""Batches of prompts with their identifiers, packed into few rows without contamination."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genret.decoding.trie import Trie
from genret.training.likelihood import Scoring, TrieChildren

_ROW_TOKENS = 128

Layout = Literal["rows", "line", "single"]
"""How sequences lie in a batch: packed into `rows` of equal length; in one `line` without padding, as FlashAttention
wants them; or each in a row of its own (`single`), which is only there to be compared with."""


@dataclass(frozen=True)
class IdentifierTokens:
    """The token sequences of all identifiers, in the order of the identifiers table.

    Attributes:
        tokens: int64, flat.
        offsets: int64 `(n + 1,)`; identifier `i` is `tokens[offsets[i]:offsets[i + 1]]`.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True)
class Branchings:
    """Where each identifier's path through the trie has a choice.

    Attributes:
        indptr: int64 `(n + 1,)` over identifiers.
        depth: int64; the token position at which the choice is made.
        node: int64; the trie's branching node there.
        target: int64; the child that the identifier takes, as a position in the trie's children.
    """

    indptr: np.ndarray
    depth: np.ndarray
    node: np.ndarray
    target: np.ndarray


def find_branchings(trie: Trie, identifiers: IdentifierTokens) -> Branchings:
    """The choices on every identifier's path, with the child taken. No Python loop over identifiers."""
    indptr, depth, node = (np.asarray(array, dtype=np.int64) for array in trie.branches())
    owner = np.repeat(np.arange(len(identifiers)), np.diff(indptr))
    token = identifiers.tokens[identifiers.offsets[owner] + depth]
    child_indptr = np.asarray(trie.child_indptr, dtype=np.int64)
    child_token = np.asarray(trie.child_token, dtype=np.int64)
    # Children of a node are sorted by token, so (node, token) pairs are sorted too: one search finds all.
    child_node = np.repeat(np.arange(len(child_indptr) - 1), np.diff(child_indptr))
    span = int(child_token.max(initial=0)) + 1
    target = np.searchsorted(child_node * span + child_token, node * span + token)
    return Branchings(indptr, depth, node, target)


def trie_children(trie: Trie) -> TrieChildren:
    """The trie's children as tensors for the likelihood."""
    return TrieChildren(
        torch.from_numpy(np.array(trie.child_indptr, dtype=np.int64)),
        torch.from_numpy(np.array(trie.child_token, dtype=np.int64)),
    )


class Collator:
    """Packs prompts with identifiers into a batch for `identifier_log_probs`.

    Sequences lie side by side in rows; each starts again at position 0, from which Transformers builds a
    block-diagonal attention mask when it is given no mask and no cache (for FlashAttention, the boundaries of the
    sequences of a single row). No sequence sees another.
    """

    def __init__(
        self,
        identifiers: IdentifierTokens,
        branchings: Branchings,
        scoring: Scoring,
        loss: str = "completion",
        pad_token_id: int = 0,
        layout: Layout = "rows",
    ) -> None:
        self.identifiers = identifiers
        self.branchings = branchings
        self.scoring = scoring
        self.loss = loss
        self.pad_token_id = pad_token_id
        self.layout = layout

    def collate(self, prompts: Sequence[Sequence[int]], identifiers: Sequence[int]) -> dict[str, Tensor | int]:
        """One batch from prompts (token ids) and as many identifiers (their indices).

        Returns:
            `input_ids`, `position_ids`: int64 `(rows, length)`; `n_examples`; `n_tokens`, without padding. With
            `trie` scoring `state` (position in the flattened rows), `node`, `target`, `example`: int64, one entry a
            choice, and `labels` int64 `(n_examples, 2)`, which only counts the examples. With `vocabulary` scoring
            `labels` int64 `(rows, length)`, -100 where no loss is taken, and `token_example` alike.
        """
        sequences = [
            np.concatenate([np.asarray(prompt, dtype=np.int64), self._suffix(identifier)])
            for prompt, identifier in zip(prompts, identifiers, strict=True)
        ]
        # Both sides of a pair have the same prompt: what is the beginning of another sequence is read once, there.
        # Under the vocabulary every sequence has labels of its own.
        read, owner = share_beginnings(sequences) if self.scoring == "trie" else (sequences, np.arange(len(sequences)))
        lengths_read = [len(sequence) for sequence in read]
        rows, columns, shape = lay_out(lengths_read, self.layout)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        # Padding counts as sequences of one token each: nothing attends to it.
        position_ids = np.zeros(shape, dtype=np.int64)
        for sequence, row, column in zip(read, rows, columns, strict=True):
            input_ids[row, column : column + len(sequence)] = sequence
            position_ids[row, column : column + len(sequence)] = np.arange(len(sequence))
        starts = (rows * shape[1] + columns)[owner]
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        batch: dict[str, Tensor | int] = {
            "input_ids": torch.from_numpy(input_ids),
            "position_ids": torch.from_numpy(position_ids),
            "n_examples": len(sequences),
            "n_tokens": sum(lengths_read),
        }
        chosen = np.asarray(identifiers, dtype=np.int64)
        if self.scoring == "trie":
            return batch | self._decisions(starts, lengths, chosen)
        return batch | self._labels(input_ids, starts, lengths, sequences)

    def _suffix(self, identifier: int) -> np.ndarray:
        tokens = self.identifiers[identifier]
        if self.scoring == "vocabulary":
            return tokens
        # After the last choice everything is forced, and forced tokens score 0: they need not be read.
        begin, end = self.branchings.indptr[identifier : identifier + 2]
        last = self.branchings.depth[end - 1] if end > begin else 0
        return tokens[:last]

    def _decisions(self, starts: np.ndarray, lengths: np.ndarray, chosen: np.ndarray) -> dict[str, Tensor]:
        begin = self.branchings.indptr[chosen]
        count = self.branchings.indptr[chosen + 1] - begin
        example = np.repeat(np.arange(len(chosen)), count)
        entry = np.arange(len(example)) - np.repeat(count.cumsum() - count, count) + begin[example]
        state = starts[example] + lengths[example] - 1 + self.branchings.depth[entry]
        return {
            "state": torch.from_numpy(state),
            "node": torch.from_numpy(self.branchings.node[entry]),
            "target": torch.from_numpy(self.branchings.target[entry]),
            "example": torch.from_numpy(example),
            # Only counted, to average over examples; the trainer leaves the first column out of its count.
            "labels": torch.zeros(len(chosen), 2, dtype=torch.long),
        }

    def _labels(
        self, input_ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, sequences: list[np.ndarray]
    ) -> dict[str, Tensor]:
        labels = np.full(input_ids.size, -100, dtype=np.int64)
        token_example = np.zeros(input_ids.size, dtype=np.int64)
        flat = input_ids.reshape(-1)
        for number, (start, length, sequence) in enumerate(zip(starts, lengths, sequences, strict=True)):
            # The first token of a sequence has nothing before it to be predicted from.
            low, high = start + (1 if self.loss == "all" else length), start + len(sequence)
            labels[low:high] = flat[low:high]
            token_example[start:high] = number
        return {
            "labels": torch.from_numpy(labels.reshape(input_ids.shape)),
            "token_example": torch.from_numpy(token_example.reshape(input_ids.shape)),
        }


def share_beginnings(sequences: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Leave out sequences that are the beginning of another one, or the same.

    Args:
        sequences: int64, each of any length.

    Returns:
        Those that are left, in their order, and for each sequence which of these begins with it, int64 `(n,)`.
    """
    keys = [sequence.tobytes() for sequence in sequences]
    # In lexicographic order a sequence is followed by those that begin with it.
    order = sorted(range(len(keys)), key=keys.__getitem__)
    owner = np.arange(len(keys))
    for place in range(len(order) - 2, -1, -1):
        if keys[order[place + 1]].startswith(keys[order[place]]):
            owner[order[place]] = owner[order[place + 1]]
    left, places = np.unique(owner, return_inverse=True)
    return [sequences[number] for number in left], places


def lay_out(lengths: Sequence[int], layout: Layout) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Row and first column of each sequence under a layout, int64 `(n,)` each, and the shape (rows, columns)."""
    if layout == "rows":
        return pack(lengths)
    sizes = np.asarray(lengths, dtype=np.int64)
    nowhere = np.zeros_like(sizes)
    if layout == "line":
        return nowhere, sizes.cumsum() - sizes, (1, int(sizes.sum()))
    return np.arange(len(sizes)), nowhere, (len(sizes), int(sizes.max()))


def pack(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Lay sequences into rows of equal length, longest first into the first row with room.

    Args:
        lengths: Length of each sequence, at least 1.

    Returns:
        Row and first column of each sequence, int64 `(n,)` each, and the shape (rows, columns). Columns are
        as many as the longest sequence has, or 128 where all are shorter.
    """
    width = max(_ROW_TOKENS, max(lengths))
    rows, columns = np.zeros((2, len(lengths)), dtype=np.int64)
    free: list[int] = []
    open_rows: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        length = lengths[index]
        row = next((row for row in open_rows if free[row] >= length), None)
        if row is None:
            row = len(free)
            free.append(width)
            open_rows.append(row)
        rows[index], columns[index] = row, width - free[row]
        free[row] -= length
        if free[row] < min(4, length):
            open_rows.remove(row)
    return rows, columns, (len(free), width if len(free) > 1 else int(width - min(free)))
