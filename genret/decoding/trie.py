"""A trie of identifiers as arrays: built by sorting, saved as files, memory-mapped when it is opened."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from genret.errors import InputError

FORMAT = "genret-trie"
VERSION = 1
HEADER = "trie.json"
# Checksums of an index up to this size are always compared: reading it takes a fraction of a second.
SMALL_INDEX_BYTES = 64 * 2**20
# Tokens are copied into sorted order by blocks of leaves, to bound the memory of the index arrays.
LEAVES_PER_BLOCK = 1 << 20

IntArray = npt.NDArray[np.integer[Any]]
Ints = npt.NDArray[np.int64]


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
        order, nodes, children = _sort_and_branch(token_array, offset_array, name)
        sorted_tokens, sorted_offsets = _in_order(token_array, offset_array, order)
        return cls(
            tokens=sorted_tokens,
            token_offsets=compact(sorted_offsets),
            order=compact(order),
            **_depth_first(nodes, children),
        )

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
        return _fingerprint({field.name: _sha256_in_memory(getattr(self, field.name)) for field in fields(self)})

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
        vars(trie).update(known, fingerprint=_fingerprint(checksums))
        return trie


def flattened(identifiers: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Identifiers given as sequences of tokens, in the form that `Trie.build` takes: all tokens, and offsets."""
    lengths = np.fromiter((len(identifier) for identifier in identifiers), np.int64, len(identifiers))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return np.fromiter(chain.from_iterable(identifiers), np.int64, int(offsets[-1])), offsets


def ranges(starts: IntArray, lengths: IntArray) -> npt.NDArray[np.int64]:
    """The integers `starts[i], starts[i] + 1, ...`, `lengths[i]` of them for each `i`, one run after the
    other.
    """
    # Methods, as numpy's functions take about as long again to get to them.
    lengths = lengths.astype(np.int64, copy=False)
    before = lengths.cumsum() - lengths
    numbers = (starts.astype(np.int64, copy=False) - before).repeat(lengths)
    numbers += np.arange(len(numbers))
    return numbers


def checked_input(
    tokens: IntArray, offsets: IntArray, name: Callable[[int], str]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Tokens and offsets as `Trie.build` takes them, checked: tokens as int32, offsets as int64."""
    if offsets.ndim != 1 or tokens.ndim != 1 or len(offsets) < 2:
        raise InputError(
            f"identifiers: expected flat tokens and at least one identifier, "
            f"found tokens of shape {tokens.shape} and offsets of shape {offsets.shape}"
        )
    if not np.issubdtype(offsets.dtype, np.integer):
        raise InputError(f"identifiers: expected integer offsets, found {offsets.dtype}")
    starts = offsets.astype(np.int64)
    lengths = np.diff(starts)
    if starts[0] != 0 or starts[-1] != len(tokens) or (lengths < 0).any():
        raise InputError(
            f"identifiers: expected offsets that rise from 0 to {len(tokens)}, the number of tokens; "
            f"found offsets from {starts[0]} to {starts[-1]}"
        )
    if not lengths.all():
        raise InputError(f"{name(int(np.argmin(lengths)))} is empty; expected at least one token")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(f"identifiers: expected integer tokens, found {tokens.dtype}")
    if tokens.min() < 0 or tokens.max() >= 2**31:
        wrong = int(np.argmax((tokens < 0) | (tokens >= 2**31)))
        owner = int(np.searchsorted(starts, wrong, side="right")) - 1
        raise InputError(f"{name(owner)}: expected tokens from 0 to 2**31 - 1, found {tokens[wrong]}")
    return tokens.astype(np.int32, copy=False), starts


def _sort_and_branch(
    tokens: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], name: Callable[[int], str]
) -> tuple[npt.NDArray[np.int64], dict[str, IntArray], dict[str, IntArray]]:
    """Sort by one more token at each depth; groups that are still alike go on to the next.

    Returns the sorted order; the nodes (lo, hi, depth) by rising depth; and the children (parent, token, lo,
    node), where `parent` and `node` count nodes in that order and `node` is -1 for a single leaf.
    """
    lengths = np.diff(offsets)
    order = np.arange(len(lengths))
    stride = int(tokens.max()) + 1
    nodes: dict[str, list[IntArray]] = {"lo": [], "hi": [], "depth": []}
    children: dict[str, list[IntArray]] = {"parent": [], "token": [], "lo": []}
    # The node that a group of leaves turns out to be, for the child entry that leads to the group.
    links: list[tuple[IntArray, IntArray]] = []
    n_nodes = n_children = depth = 0
    # The places in the order that are not settled, the group of each place, and the child entry of each
    # group.
    place = np.arange(len(order) if len(order) > 1 else 0)
    group = np.zeros(len(place), dtype=np.int64)
    entry = np.full(1, -1, dtype=np.int64)
    while len(place):
        member = order[place]
        _check_prefixes(member, group, lengths, depth, name)
        token = tokens[offsets[member] + depth].astype(np.int64)
        sequence = np.argsort(group * stride + token)
        order[place], token = member[sequence], token[sequence]
        # A part is a run of one group and one token; `first` is where each begins.
        first = np.flatnonzero(np.concatenate(([True], (np.diff(group) != 0) | (np.diff(token) != 0))))
        size = np.diff(np.append(first, len(place)))
        part_group = group[first]
        branching = np.bincount(part_group, minlength=len(entry)) > 1

        branching_groups = np.flatnonzero(branching)
        group_first = np.searchsorted(group, branching_groups)
        group_stop = np.searchsorted(group, branching_groups, side="right")
        nodes["lo"].append(place[group_first])
        nodes["hi"].append(place[group_stop - 1] + 1)
        nodes["depth"].append(np.full(len(branching_groups), depth))
        node_number = np.full(len(entry), -1)
        node_number[branching_groups] = n_nodes + np.arange(len(branching_groups))
        reached = branching & (entry >= 0)
        links.append((entry[reached], node_number[reached]))

        is_child = branching[part_group]
        children["parent"].append(node_number[part_group[is_child]])
        children["token"].append(token[first[is_child]])
        children["lo"].append(place[first[is_child]])
        part_entry = entry[part_group]
        part_entry[is_child] = n_children + np.arange(int(is_child.sum()))
        n_nodes += len(branching_groups)
        n_children += int(is_child.sum())

        alike = size > 1
        place = place[np.repeat(alike, size)]
        group = np.repeat(np.arange(int(alike.sum())), size[alike])
        entry = part_entry[alike]
        depth += 1
    joined_nodes = {name: _concatenate(parts) for name, parts in nodes.items()}
    joined_children = {name: _concatenate(parts) for name, parts in children.items()}
    joined_children["node"] = np.full(n_children, -1, dtype=np.int64)
    for entries, numbers in links:
        joined_children["node"][entries] = numbers
    return order, joined_nodes, joined_children


def _check_prefixes(
    member: IntArray, group: IntArray, lengths: IntArray, depth: int, name: Callable[[int], str]
) -> None:
    """Every group holds at least two identifiers with the same first `depth` tokens: none of them may end
    here.
    """
    ended = np.flatnonzero(lengths[member] == depth)
    if not len(ended):
        return
    here = member[group == group[ended[0]]]
    same = np.sort(here[lengths[here] == depth])
    if len(same) > 1:
        raise same_error(name(int(same[0])), name(int(same[1])))
    raise prefix_error(name(int(same[0])), name(int(here[lengths[here] > depth].min())))


def same_error(one: str, other: str) -> InputError:
    """The error for two identifiers that are the same, by their names."""
    return InputError(f"{one} and {other} are the same; expected identifiers to be unique")


def prefix_error(short: str, long: str) -> InputError:
    """The error for an identifier that is a prefix of another, by their names."""
    return InputError(
        f"{short} is a prefix of {long}; end every identifier with an end-of-sequence token, so that none is a prefix "
        "of another"
    )


def _depth_first(nodes: dict[str, IntArray], children: dict[str, IntArray]) -> dict[str, IntArray]:
    """Renumber nodes depth first, and put each node's children together."""
    # On the same first leaf the shallower node is the ancestor.
    sequence = np.lexsort((nodes["depth"], nodes["lo"]))
    number = np.empty(len(sequence), dtype=np.int64)
    number[sequence] = np.arange(len(sequence))
    parent = number[children["parent"]]
    by_parent = np.argsort(parent, kind="stable")
    node = children["node"]
    is_leaf = node < 0
    target = np.where(is_leaf, ~children["lo"], number[np.where(is_leaf, 0, node)]) if len(node) else node
    counts = np.bincount(parent, minlength=len(sequence))
    return {
        "node_lo": compact(nodes["lo"][sequence]),
        "node_hi": compact(nodes["hi"][sequence]),
        "node_depth": compact(nodes["depth"][sequence]),
        "child_indptr": compact(np.concatenate(([0], np.cumsum(counts)))),
        "child_token": children["token"][by_parent].astype(np.int32),
        "child": compact(target[by_parent]),
    }


def _in_order(
    tokens: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    lengths = np.diff(offsets)[order]
    sorted_offsets = np.concatenate(([0], np.cumsum(lengths)))
    sorted_tokens = np.empty_like(tokens)
    for start in range(0, len(order), LEAVES_PER_BLOCK):
        block = slice(start, start + LEAVES_PER_BLOCK)
        stop = min(start + LEAVES_PER_BLOCK, len(order))
        sorted_tokens[sorted_offsets[start] : sorted_offsets[stop]] = tokens[
            ranges(offsets[order[block]], lengths[block])
        ]
    return sorted_tokens, sorted_offsets


def _concatenate(parts: list[IntArray]) -> IntArray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def compact(array: IntArray) -> IntArray:
    """The same numbers as int32 where they fit."""
    fits = array.size == 0 or (array.min() >= -(2**31) and array.max() < 2**31)
    return array.astype(np.int32 if fits else np.int64)


def write_arrays(folder: Path, header_name: str, facts: Mapping[str, Any], arrays: Mapping[str, IntArray]) -> None:
    """Write arrays as .npy files, and last of all a header with facts and with the arrays' sizes and checksums.

    Without the header there is nothing to load: what a process that dies half-way leaves behind is refused. Those who
    have memory-mapped the arrays of before keep what they read.

    Args:
        folder: A local folder; it is made if it is not there.
        header_name: The header's file name.
        facts: JSON values to stand in the header, `format` and `version` among them.
        arrays: Arrays by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / header_name).unlink(missing_ok=True)
    entries = {name: _write_array(folder / f"{name}.npy", array) for name, array in arrays.items()}
    partial = folder / f"{header_name}.partial"
    partial.write_text(json.dumps({**facts, "arrays": entries}, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / header_name)


def read_arrays(
    folder: Path, header_name: str, form: str, version: int, names: Collection[str], *, verify: bool | None
) -> tuple[dict[str, Any], dict[str, IntArray]]:
    """Open what `write_arrays` wrote.

    Args:
        folder: The folder.
        header_name: The header's file name.
        form: The expected `format`.
        version: The expected `version`.
        names: The names of the expected arrays.
        verify: Compare checksums; by default if the arrays have up to 64 MiB. Sizes are always compared.

    Returns:
        The header, and the arrays by name, memory-mapped.

    Raises:
        InputError: A file is missing, truncated, altered, of another format or version; names it.
    """
    header = _read_header(folder / header_name, form, version, names)
    entries = header["arrays"]
    check = verify if verify is not None else sum(entry["bytes"] for entry in entries.values()) <= SMALL_INDEX_BYTES
    return header, {name: _read_array(folder / f"{name}.npy", entries[name], check) for name in names}


def _write_array(path: Path, array: IntArray) -> dict[str, Any]:
    # A memory map of the old file stays valid: the new one takes its name, not its place.
    partial = path.with_suffix(".npy.partial")
    with partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    partial.replace(path)
    return {
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "bytes": path.stat().st_size,
        "sha256": _sha256(path),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_in_memory(array: IntArray) -> str:
    """The checksum of the file that `_write_array` would make of an array."""
    digest = hashlib.sha256()
    np.save(SimpleNamespace(write=digest.update), array, allow_pickle=False)
    return digest.hexdigest()


def _fingerprint(checksums: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()


def _read_header(path: Path, form: str, version: int, names: Collection[str]) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: expected the header of a saved trie ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, found something else ({error})") from error
    if not isinstance(header, dict) or header.get("format") != form:
        raise InputError(f"{path}: expected the format {form!r}, found something else")
    if header.get("version") != version:
        raise InputError(f"{path}: expected version {version}, found {header.get('version')!r}")
    entries = header.get("arrays")
    if not isinstance(entries, dict) or sorted(entries) != sorted(names):
        raise InputError(f"{path}: expected the arrays {sorted(names)}, found {sorted(entries or [])}")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or {"dtype", "shape", "bytes", "sha256"} - set(entry):
            raise InputError(f"{path}: array {name!r}: expected dtype, shape, bytes and sha256, found {entry!r:.80}")
    return header


def _read_array(path: Path, entry: dict[str, Any], verify: bool) -> IntArray:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: expected an array of the trie ({error.strerror})") from error
    if size != entry["bytes"]:
        raise InputError(f"{path}: expected {entry['bytes']} bytes, found {size}; the file is truncated or foreign")
    if verify and _sha256(path) != entry["sha256"]:
        raise InputError(f"{path}: expected the checksum {entry['sha256']}, found another; the file was altered")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path}: expected a .npy array ({error})") from error
    if array.dtype.str != entry["dtype"] or list(array.shape) != entry["shape"] or array.dtype.kind != "i":
        raise InputError(
            f"{path}: expected integers {entry['dtype']} of shape {entry['shape']}, "
            f"found {array.dtype.str} of shape {list(array.shape)}"
        )
    return array


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
