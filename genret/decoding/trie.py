"""A trie of identifiers as arrays: built by sorting, saved as files, memory-mapped when it is opened."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from genret.decoding.arrays import IntArray, Ints, checksum, joint_checksum, ranges, read_arrays, write_arrays
from genret.decoding.building import checked_input, flattened, sorted_arrays
from genret.errors import InputError

FORMAT = "genret-trie"
VERSION = 1
HEADER = "trie.json"


class Paths(Protocol):
    """What a search reads of a trie: `Trie`, and `overlay.GrownTrie`, which has more identifiers and fewer.

    The positions of a node's children are a range of whole numbers, in ascending order of their tokens. `Trie`
    says what each method returns.
    """

    @property
    def alive(self) -> npt.NDArray[np.bool_] | None:
        """Bool `[n]` by position of the identifier in the input: those that were not removed. None: all of them."""

    @property
    def has_choice(self) -> bool:
        """Whether there is a node at all: more than one identifier."""

    @property
    def root(self) -> int:
        """The first node of every path, or `~leaf` if there is a single identifier."""

    @property
    def max_length(self) -> int:
        """The length of the longest identifier."""

    @property
    def max_token(self) -> int:
        """The largest token of any identifier."""

    def __len__(self) -> int:
        """How many identifiers there are, removed ones with them."""

    def identifier(self, position: int) -> IntArray:
        """The tokens of the identifier at a position."""

    def children(self, node: int) -> tuple[IntArray, IntArray]:
        """The tokens that may follow a node, ascending, and what they lead to."""

    def child_span(self, node: IntArray) -> tuple[Ints, Ints]:
        """The position of each node's first child, and how many children it has."""

    def child_tokens(self, position: IntArray) -> Ints:
        """The tokens that lead to the children at positions."""

    def child_targets(self, position: IntArray) -> Ints:
        """What children at positions lead to: a node, or `~leaf`."""

    def leaf_intervals(self, position: IntArray) -> tuple[tuple[Ints, Ints], ...]:
        """The leaves below children, as intervals; the first leaf of the first one is always a leaf below."""

    def depths(self, node: IntArray) -> Ints:
        """How many tokens stand before the choice at nodes."""

    def lengths(self, leaf: IntArray) -> Ints:
        """How many tokens the identifiers at leaves have."""

    def read(self, leaf: IntArray, start: IntArray, length: IntArray) -> Ints:
        """Stretches of the identifiers at leaves, one after the other."""

    def positions(self, leaf: IntArray) -> Ints:
        """The positions in the input of the identifiers at leaves."""


@dataclass(frozen=True, eq=False)
class Trie:
    """Identifiers in lexicographic order, and the nodes at which they part.

    A *leaf* is an identifier's place in the sorted order. A *node* is a branching node: a prefix that at
    least two different tokens follow. Nodes are numbered depth first, so that node 0 is the first node of
    every path and the nodes on a path have rising numbers; the leaves below a node are the interval
    `[node_lo, node_hi)`. Stretches without a choice are not nodes: they are read from `tokens`. A single
    identifier makes a trie without nodes.

    No identifier is a prefix of another; callers see to that by ending each one with an end-of-sequence
    token. All arrays are read-only.

    Attributes:
        tokens: int32 `[total]`, the tokens of all leaves, one leaf after the other.
        token_offsets: `[n + 1]`, where each leaf's tokens begin in `tokens`.
        order: `[n]`, the position in the input of each leaf's identifier.
        node_lo: `[m]`, first leaf below each node.
        node_hi: `[m]`, one past the last leaf below each node.
        node_depth: `[m]`, how many tokens stand before the choice at each node.
        child_indptr: `[m + 1]`, where each node's children begin in `child_token` and `child`.
        child_token: int32 `[c]`, the token that leads to each child; ascending within a node.
        child: `[c]`, the next node below each child, or `~leaf` where a single leaf is below it.
    """

    tokens: IntArray
    token_offsets: IntArray
    order: IntArray
    node_lo: IntArray
    node_hi: IntArray
    node_depth: IntArray
    child_indptr: IntArray
    child_token: IntArray
    child: IntArray

    def __post_init__(self) -> None:
        for field in fields(self):
            getattr(self, field.name).flags.writeable = False

    @classmethod
    def build(
        cls, tokens: npt.ArrayLike, offsets: npt.ArrayLike, *, name: Callable[[int], str] = "identifier {}".format
    ) -> "Trie":
        """Sort identifiers and find the nodes at which they part.

        The work is a sort of the identifiers that share a prefix, once a depth: identifiers that are told
        apart leave it, so that the depth of the last choice counts and not the length of the identifiers.

        Args:
            tokens: Integers `[total]`, the tokens of all identifiers, one after the other; each in `[0,
                2**31)`.
            offsets: Integers `[n + 1]`, from 0 to `total`: identifier `i` is `tokens[offsets[i]:offsets[i +
                1]]`.
            name: What errors call the identifier at a position.

        Returns:
            The trie; the identifiers keep their positions `0 .. n - 1` in `order`.

        Raises:
            InputError: No identifier at all, malformed offsets, a token out of range, an empty identifier,
                two equal ones, or one that is a prefix of another; names the positions.
        """
        token_array, offset_array = checked_input(np.asarray(tokens), np.asarray(offsets), name)
        return cls(**sorted_arrays(token_array, offset_array, name))

    @classmethod
    def from_sequences(cls, identifiers: Sequence[Sequence[int]]) -> "Trie":
        """The trie of identifiers given as sequences of tokens; see `build`."""
        return cls.build(*flattened(identifiers))

    @property
    def alive(self) -> npt.NDArray[np.bool_] | None:
        """None: nothing is ever removed from this trie. `overlay.GrownTrie` removes."""
        return None

    @property
    def has_choice(self) -> bool:
        """Whether there is a node at all: more than one identifier."""
        return len(self.node_depth) > 0

    @property
    def root(self) -> int:
        """The first node of every path, or `~leaf` if there is a single identifier."""
        return 0 if self.has_choice else ~0

    def __len__(self) -> int:
        """How many identifiers there are."""
        return len(self.order)

    @cached_property
    def leaf_of(self) -> IntArray:
        """`[n]`, the leaf of each identifier, in input order: the inverse of `order`."""
        leaf = np.empty_like(self.order)
        leaf[self.order] = np.arange(len(self), dtype=self.order.dtype)
        leaf.flags.writeable = False
        return leaf

    # The header of a saved trie holds the next two and the checksums, so that opening one reads no array for them.
    @cached_property
    def max_length(self) -> int:
        """The length of the longest identifier."""
        return int(np.diff(self.token_offsets).max())

    @cached_property
    def max_token(self) -> int:
        """The largest token of any identifier."""
        return int(self.tokens.max())

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of all arrays, the same in memory and on disk: two tries with one fingerprint are equal."""
        return joint_checksum({field.name: checksum(getattr(self, field.name)) for field in fields(self)})

    def identifier(self, position: int) -> IntArray:
        """The tokens of the identifier at a position of the input."""
        leaf = self.leaf_of[position]
        return self.tokens[self.token_offsets[leaf] : self.token_offsets[leaf + 1]]

    def children(self, node: int) -> tuple[IntArray, IntArray]:
        """The tokens that may follow a node, and what they lead to: slices of `child_token` and `child`."""
        start, stop = self.child_indptr[node], self.child_indptr[node + 1]
        return self.child_token[start:stop], self.child[start:stop]

    def child_span(self, node: IntArray) -> tuple[Ints, Ints]:
        """Where the children of nodes stand.

        Args:
            node: Integers `[a]`, nodes.

        Returns:
            The position of each node's first child, and how many children it has; int64 `[a]`.
        """
        start = self.child_indptr[node].astype(np.int64)
        return start, self.child_indptr[np.asarray(node) + 1] - start

    def child_tokens(self, position: IntArray) -> Ints:
        """The tokens that lead to the children at positions, int64."""
        return self.child_token[position].astype(np.int64)

    def child_targets(self, position: IntArray) -> Ints:
        """What children at positions lead to, int64: a node, or `~leaf`."""
        return self.child[position].astype(np.int64)

    def leaf_intervals(self, position: IntArray) -> tuple[tuple[Ints, Ints], ...]:
        """The leaves below children.

        Args:
            position: Integers of any shape, positions of children.

        Returns:
            Pairs of first leaf and one past the last leaf, int64, in the shape of `position`: one pair here, as leaves
            stand in sorted order. The first leaf of the first pair is always a leaf below.
        """
        child = self.child_targets(position)
        if len(self.node_lo) == 0:
            return ((~child, ~child + 1),)
        is_leaf = child < 0
        node = np.where(is_leaf, 0, child)
        return ((np.where(is_leaf, ~child, self.node_lo[node]), np.where(is_leaf, ~child + 1, self.node_hi[node])),)

    def depths(self, node: IntArray) -> Ints:
        """How many tokens stand before the choice at nodes, int64."""
        return self.node_depth[node].astype(np.int64)

    def lengths(self, leaf: IntArray) -> Ints:
        """How many tokens the identifiers at leaves have, int64."""
        return self.token_offsets[np.asarray(leaf) + 1].astype(np.int64) - self.token_offsets[leaf]

    def read(self, leaf: IntArray, start: IntArray, length: IntArray) -> Ints:
        """Stretches of the identifiers at leaves.

        Args:
            leaf: Integers `[a]`.
            start: Integers `[a]`, how many tokens stand before each stretch.
            length: Integers `[a]`, how many tokens each stretch has.

        Returns:
            int64 `[length.sum()]`, one stretch after the other.
        """
        return self.tokens[ranges(self.token_offsets[leaf] + start, length)].astype(np.int64)

    def positions(self, leaf: IntArray) -> Ints:
        """The positions in the input of the identifiers at leaves, int64."""
        return self.order[leaf].astype(np.int64)

    def branches(self) -> tuple[IntArray, IntArray, IntArray]:
        """The choices on the path of each identifier, in input order.

        A likelihood that is normalised over the trie is a product over these places: elsewhere the token is
        forced.

        Returns:
            `indptr` int64 `[n + 1]`, and for the entries `indptr[i]:indptr[i + 1]` of identifier `i`, by
            rising depth: `depth`, the 0-based position of the token that is chosen, and `node`, the node
            whose children (`child_token[child_indptr[node]:child_indptr[node + 1]]`) it is chosen from.
        """
        size = self.node_hi - self.node_lo
        node = np.repeat(np.arange(len(size)), size)
        identifier = self.order[ranges(self.node_lo, size)]
        # Stable, and nodes on a path have rising numbers: so depths rise within an identifier.
        by_identifier = np.argsort(identifier, kind="stable")
        counts = np.bincount(identifier, minlength=len(self))
        node = node[by_identifier]
        return np.concatenate(([0], np.cumsum(counts))), self.node_depth[node], node

    def save(self, folder: str | Path) -> None:
        """Write the arrays as .npy files, and last of all the header with their sizes and checksums.

        A folder without a header is no trie: a process that dies half-way leaves nothing that can be loaded.
        A trie that was there before is replaced; those who have it open keep what they read.

        Args:
            folder: A local folder; it is made if it is not there.
        """
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        facts = {"identifiers": len(self), "max_length": self.max_length, "max_token": self.max_token}
        write_arrays(Path(folder), HEADER, {"format": FORMAT, "version": VERSION, **facts}, arrays)

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool | None = None) -> "Trie":
        """Open a saved trie; its arrays stay on disk and are read as they are needed.

        Args:
            folder: A folder that `save` wrote.
            verify: Compare the checksums of all files. By default only those of an index of up to 64 MiB;
                sizes are always compared.

        Returns:
            The trie, memory-mapped.

        Raises:
            InputError: A file is missing, truncated, altered, of another format or of a later version; names
                it.
        """
        folder = Path(folder)
        names = [field.name for field in fields(cls)]
        header, arrays = read_arrays(folder, HEADER, FORMAT, VERSION, names, verify=verify)
        trie = cls(**arrays)
        _check_shapes(folder, trie)
        known = {name: header[name] for name in ("max_length", "max_token") if isinstance(header.get(name), int)}
        checksums = {name: header["arrays"][name]["sha256"] for name in names}
        # Where cached properties keep their values.
        vars(trie).update(known, fingerprint=joint_checksum(checksums))
        return trie


def _check_shapes(folder: Path, trie: Trie) -> None:
    n, m, c = len(trie.order), len(trie.node_lo), len(trie.child)
    found = [
        len(trie.token_offsets),
        len(trie.node_hi),
        len(trie.node_depth),
        len(trie.child_indptr),
        len(trie.child_token),
    ]
    if (
        n == 0
        or found != [n + 1, m, m, m + 1, c]
        or trie.token_offsets[-1] != len(trie.tokens)
        or trie.child_indptr[-1] != c
    ):
        raise InputError(f"{folder}: the arrays of the trie do not fit each other")
