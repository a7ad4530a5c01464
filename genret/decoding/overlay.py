"""A trie with identifiers added and removed: a small overlay on one that stays as it is, until both are merged."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genret.decoding.arrays import IntArray, Ints, compact, ranges, read_arrays, write_arrays
from genret.decoding.building import LEAVES_PER_BLOCK, checked_input, prefix_error, same_error
from genret.decoding.trie import Trie
from genret.errors import InputError

FORMAT = "genret-overlay"
VERSION = 1
HEADER = "overlay.json"
ARRAYS = ("added_tokens", "added_offsets", "removed")

# What errors call the identifier at a position.
Name = Callable[[int], str]


@dataclass(frozen=True, eq=False)
class _Passed:
    """The ways of the base on which added identifiers walk, and which of them do, in sorted order.

    Attributes:
        child: `[p]`, ascending: the children of the base (positions in `Trie.child`) that the ways lead to; -1, the
            first, stands for the way to the root.
        lo: `[p]`, the first added leaf on each way.
        hi: `[p]`, one past the last.
    """

    child: Ints
    lo: Ints
    hi: Ints

    def leaves(self, child: IntArray) -> tuple[Ints, Ints]:
        """First and one past the last of the added leaves on the ways to children; 0 and 0 where there are none."""
        lo, hi = np.zeros((2, *child.shape), dtype=np.int64)
        found, entry = _find(self.child, child)
        lo[found], hi[found] = self.lo[entry], self.hi[entry]
        return lo, hi


@dataclass(frozen=True, eq=False)
class _Overlay:
    """What stands behind the base's nodes and children, as if the arrays went on here.

    Attributes:
        root: The first node of every path, or `~leaf`.
        depth: `[s]`, how many tokens stand before the choice at each new node. New nodes are places where an added
            identifier leaves a stretch of the base that had no choice, and those where added ones part.
        node: `[l]`, ascending: the nodes that have their children here, which are those of the base with other
            children than before, and all new ones.
        indptr: `[l + 1]`, where the children of each begin in the next arrays.
        token: `[c]`, the token that leads to each child; ascending within a node.
        target: `[c]`, the next node below each child, or `~leaf`.
        base_lo: `[c]`, the first of the base's leaves below each child.
        base_hi: `[c]`, one past the last of them; equal to `base_lo` where there is none.
        added_lo: `[c]`, the first of the added leaves below each child.
        added_hi: `[c]`, one past the last of them; equal to `added_lo` where there is none.
        passed: The added leaves below children that still stand in the arrays of the base.
    """

    root: int
    depth: IntArray
    node: IntArray
    indptr: IntArray
    token: IntArray
    target: IntArray
    base_lo: IntArray
    base_hi: IntArray
    added_lo: IntArray
    added_hi: IntArray
    passed: _Passed

    def list_of(self, node: IntArray) -> tuple[npt.NDArray[np.bool_], Ints]:
        """Which nodes have their children here, and the entry in `node` of those that do."""
        return _find(self.node, node)


@dataclass(frozen=True, eq=False)
class GrownTrie:
    """A trie, identifiers that were added to it, and a mask of those that were removed.

    A view that never changes: `with_added` and `with_removed` make another one, which shares the base, so that a
    search that is under way goes on over the view that it began with. `TrieSearch` takes a view as it takes a `Trie`,
    and finds what it would find in a trie that was built of all identifiers; only identifiers with equal scores come
    in another order, the base's first.

    Positions: the base's identifiers keep theirs, `0 .. n - 1`; added ones follow, in the order of addition. They
    never change, until `merged` makes a new trie. So a removed identifier keeps its position, and an identifier that
    is the same or a prefix may not be added before the merge. A search never returns a removed one and does not
    spend a place in the beam on it; but with trie scoring its tokens still take their share of the probability,
    until the merge.

    What an addition costs depends on all identifiers added so far, and on the children of the nodes that get another
    child, not on the rest of the base: merge before many thousands are added one by one.

    Attributes:
        base: The trie that was there before.
        added: The added identifiers, as a trie of their own.
        alive: bool `[n + m]` by position, or None if none was removed.
    """

    base: Trie
    added: Trie
    alive: npt.NDArray[np.bool_] | None
    _overlay: _Overlay

    @classmethod
    def grow(
        cls,
        base: Trie,
        tokens: npt.ArrayLike = (),
        offsets: npt.ArrayLike = (0,),
        removed: npt.ArrayLike = (),
    ) -> "GrownTrie":
        """A view of a trie, with identifiers added and removed from the start.

        Args:
            base: The trie.
            tokens: Integers `[total]`, the tokens of the added identifiers; see `with_added`.
            offsets: Integers `[m + 1]`.
            removed: Integers, positions of removed identifiers; see `with_removed`.

        Returns:
            The view.

        Raises:
            InputError: As `with_added` and `with_removed`.
        """
        nothing = _no_identifiers()
        bare = cls(base, nothing, None, _lay_over(base, nothing, "identifier {}".format))
        return bare.with_added(tokens, offsets).with_removed(removed)

    def with_added(self, tokens: npt.ArrayLike, offsets: npt.ArrayLike) -> "GrownTrie":
        """This view with further identifiers, at the positions `len(self)` and on.

        Args:
            tokens: Integers `[total]`, the tokens of the added identifiers, one after the other; see
                `building.flattened` for identifiers given as sequences.
            offsets: Integers `[m + 1]`, from 0 to `total`; none are added if it is `[0]`.

        Returns:
            Another view; this one stays as it is.

        Raises:
            InputError: Malformed offsets, a token out of range, an empty identifier, one that is the same as another,
                old or new, or a prefix of it, even if that was removed; names the positions.
        """
        if np.size(tokens) == 0 and np.size(offsets) == 1:
            return self
        first = len(self)
        new_tokens, new_offsets = checked_input(
            np.asarray(tokens), np.asarray(offsets), lambda number: f"identifier {first + number}"
        )
        old_tokens, old_offsets = _in_input_order(self.added)
        name = partial(_name, self.alive)
        added = Trie.build(
            np.concatenate((old_tokens, new_tokens)),
            np.concatenate((old_offsets, old_offsets[-1] + new_offsets[1:])),
            name=lambda number: name(len(self.base) + number),
        )
        alive = None if self.alive is None else np.append(self.alive, np.ones(len(new_offsets) - 1, dtype=bool))
        return GrownTrie(self.base, added, _read_only(alive), _lay_over(self.base, added, name))

    def with_removed(self, positions: npt.ArrayLike) -> "GrownTrie":
        """This view without some identifiers; those that were removed before stay so.

        Args:
            positions: Integers, positions of identifiers, of the base or added.

        Returns:
            Another view; this one stays as it is.

        Raises:
            InputError: Positions that are no integers or out of range.
        """
        removed = np.asarray(positions)
        if removed.size == 0:
            return self
        if not np.issubdtype(removed.dtype, np.integer):
            raise InputError(f"removed: expected integer positions, found {removed.dtype}")
        if removed.min() < 0 or removed.max() >= len(self):
            wrong = removed.min() if removed.min() < 0 else removed.max()
            raise InputError(f"removed: expected positions from 0 to {len(self) - 1}, found {wrong}")
        alive = np.ones(len(self), dtype=bool) if self.alive is None else self.alive.copy()
        alive[removed] = False
        return replace(self, alive=_read_only(alive))

    def merged(self) -> tuple[Trie, Ints]:
        """A trie of what is there, built anew; in positions that were removed the others move up.

        It takes the memory of two tries of all identifiers, beside this one.

        Returns:
            The trie, and int64 `[its size]`, ascending: the position here of each of its positions.

        Raises:
            InputError: All identifiers were removed.
        """
        kept = np.arange(len(self)) if self.alive is None else np.flatnonzero(self.alive)
        if not len(kept):
            raise InputError("identifiers: expected at least one to merge, but all were removed")
        leaf = np.concatenate((self.base.leaf_of, len(self.base) + self.added.leaf_of))[kept]
        lengths = self.lengths(leaf)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        tokens = np.empty(offsets[-1], dtype=np.int32)
        for start in range(0, len(leaf), LEAVES_PER_BLOCK):
            stop = min(start + LEAVES_PER_BLOCK, len(leaf))
            block = slice(start, stop)
            tokens[offsets[start] : offsets[stop]] = self.read(leaf[block], np.zeros_like(leaf[block]), lengths[block])
        return Trie.build(tokens, offsets), kept

    def save(self, folder: str | Path) -> None:
        """Write what was added and removed, with the base's fingerprint; the base itself is saved on its own.

        As with `Trie.save`, the header comes last, and a folder without it holds nothing. It may be the base's folder.

        Args:
            folder: A local folder; it is made if it is not there.
        """
        tokens, offsets = _in_input_order(self.added)
        removed = np.flatnonzero(~self.alive) if self.alive is not None else np.empty(0, dtype=np.int64)
        arrays = dict(zip(ARRAYS, (tokens, compact(offsets), compact(removed)), strict=True))
        facts = {"format": FORMAT, "version": VERSION, "base": self.base.fingerprint, "identifiers": len(self)}
        write_arrays(Path(folder), HEADER, facts, arrays)

    @classmethod
    def load(cls, folder: str | Path, base: Trie, *, verify: bool | None = None) -> "GrownTrie":
        """Open a saved view.

        Args:
            folder: A folder that `save` wrote.
            base: The trie that the view was grown from.
            verify: Compare the checksums of the files. By default only up to 64 MiB; sizes are always compared.

        Returns:
            The view.

        Raises:
            InputError: Another base, or a file is missing, truncated, altered, of another format or of a later
                version; names it.
        """
        folder = Path(folder)
        header, arrays = read_arrays(folder, HEADER, FORMAT, VERSION, ARRAYS, verify=verify)
        if header.get("base") != base.fingerprint:
            raise InputError(
                f"{folder / HEADER}: expected the trie that this overlay was grown from, found another one of "
                f"{len(base)} identifiers"
            )
        return cls.grow(base, *(arrays[name] for name in ARRAYS))

    def __len__(self) -> int:
        """How many identifiers there are, removed ones with them."""
        return len(self.base) + len(self.added)

    @property
    def has_choice(self) -> bool:
        """Whether there is a node at all: more than one identifier."""
        return len(self) > 1

    @property
    def root(self) -> int:
        """The first node of every path, or `~leaf` if there is a single identifier."""
        return self._overlay.root

    @property
    def max_length(self) -> int:
        """The length of the longest identifier."""
        return max(self.base.max_length, self.added.max_length if len(self.added) else 0)

    @property
    def max_token(self) -> int:
        """The largest token of any identifier."""
        return max(self.base.max_token, self.added.max_token if len(self.added) else 0)

    def identifier(self, position: int) -> IntArray:
        """The tokens of the identifier at a position."""
        old = position < len(self.base)
        return self.base.identifier(position) if old else self.added.identifier(position - len(self.base))

    def children(self, node: int) -> tuple[IntArray, IntArray]:
        """The tokens that may follow a node, ascending, and what they lead to."""
        (listed,), entry = self._overlay.list_of(np.array([node]))
        if not listed:
            return self.base.children(node)
        here = slice(self._overlay.indptr[entry[0]], self._overlay.indptr[entry[0] + 1])
        return self._overlay.token[here], self._overlay.target[here]

    def child_span(self, node: IntArray) -> tuple[Ints, Ints]:
        """The position of each node's first child, and how many children it has; int64 `[a]`."""
        node = np.asarray(node)
        start, count = np.empty((2, *node.shape), dtype=np.int64)
        listed, entry = self._overlay.list_of(node)
        start[listed] = len(self.base.child) + self._overlay.indptr[entry].astype(np.int64)
        count[listed] = self._overlay.indptr[entry + 1] - self._overlay.indptr[entry]
        start[~listed], count[~listed] = self.base.child_span(node[~listed])
        return start, count

    def child_tokens(self, position: IntArray) -> Ints:
        """The tokens that lead to the children at positions, int64."""
        return _joined(position, len(self.base.child), self.base.child_tokens, self._overlay.token.__getitem__)

    def child_targets(self, position: IntArray) -> Ints:
        """What children at positions lead to, int64: a node, or `~leaf`."""
        return _joined(position, len(self.base.child), self.base.child_targets, self._overlay.target.__getitem__)

    def leaf_intervals(self, position: IntArray) -> tuple[tuple[Ints, Ints], ...]:
        """The leaves below children: the base's, whose numbers stay, and the added ones, sorted, behind them.

        Args:
            position: Integers of any shape, positions of children.

        Returns:
            Two pairs of first leaf and one past the last leaf, int64, in the shape of `position`. The second one is
            empty where only one kind is below; the first leaf of the first pair is always a leaf below.
        """
        position = np.asarray(position)
        old = position < len(self.base.child)
        place = position[~old] - len(self.base.child)
        lo, hi, added_lo, added_hi = np.empty((4, *position.shape), dtype=np.int64)
        ((lo[old], hi[old]),) = self.base.leaf_intervals(position[old])
        lo[~old], hi[~old] = self._overlay.base_lo[place], self._overlay.base_hi[place]
        added_lo[old], added_hi[old] = self._overlay.passed.leaves(position[old])
        added_lo[~old], added_hi[~old] = self._overlay.added_lo[place], self._overlay.added_hi[place]
        added_lo += len(self.base)
        added_hi += len(self.base)
        none = lo == hi
        first = np.where(none, added_lo, lo), np.where(none, added_hi, hi)
        return first, (np.where(none, added_hi, added_lo), added_hi)

    def depths(self, node: IntArray) -> Ints:
        """How many tokens stand before the choice at nodes, int64."""
        return _joined(node, len(self.base.node_depth), self.base.depths, self._overlay.depth.__getitem__)

    def lengths(self, leaf: IntArray) -> Ints:
        """How many tokens the identifiers at leaves have, int64."""
        return _joined(leaf, len(self.base), self.base.lengths, self.added.lengths)

    def read(self, leaf: IntArray, start: IntArray, length: IntArray) -> Ints:
        """Stretches of the identifiers at leaves, one after the other, int64; see `Trie.read`."""
        n_tokens = len(self.base.tokens)
        offset = _joined(
            leaf,
            len(self.base),
            self.base.token_offsets.__getitem__,
            lambda rank: n_tokens + self.added.token_offsets[rank].astype(np.int64),
        )
        places = ranges(offset + start, length)
        return _joined(places, n_tokens, self.base.tokens.__getitem__, self.added.tokens.__getitem__)

    def positions(self, leaf: IntArray) -> Ints:
        """The positions of the identifiers at leaves, int64."""
        return _joined(
            leaf, len(self.base), self.base.positions, lambda rank: len(self.base) + self.added.positions(rank)
        )


@dataclass(frozen=True)
class _Departures:
    """Where each added identifier, in sorted order, leaves the paths of the base.

    Attributes:
        place: `[m]`, how many tokens it shares with the base.
        node: `[m]`, the base's node where it chooses another token, or -1 if it leaves between nodes.
        child: `[m]`, the last child of the base that it passed or began to pass (a position in `Trie.child`); -1 on
            the way to the root.
        passed: Who walked on which way, all of it or a part.
    """

    place: Ints
    node: Ints
    child: Ints
    passed: _Passed


def _walk(base: Trie, added: Trie, name: Name) -> _Departures:
    """Follow all added identifiers into the base at once, from node to node."""
    walker = np.arange(len(added))
    place, node, child = np.zeros_like(walker), np.full_like(walker, -1), np.full_like(walker, -1)
    passed, passers = [child.copy()], [walker]
    target, start = np.full_like(walker, base.root), np.zeros_like(walker)
    while len(walker):
        place[walker], stop = _follow(base, added, walker, target, start, name)
        arrived = place[walker] == stop
        walker, target, stop = walker[arrived], target[arrived], stop[arrived]
        position = _child_at(base, target, added.read(walker, stop, np.ones_like(stop)))
        goes_on = position >= 0
        node[walker[~goes_on]] = target[~goes_on]
        walker, position, start = walker[goes_on], position[goes_on], stop[goes_on] + 1
        child[walker] = position
        passed.append(position)
        passers.append(walker)
        target = base.child_targets(position)
    # Those that pass a child share a prefix, so that they are neighbours; and all pass it in the same step.
    way, first, count = np.unique(np.concatenate(passed), return_index=True, return_counts=True)
    lo = np.concatenate(passers)[first]
    return _Departures(place, node, child, _Passed(way, lo, lo + count))


def _follow(base: Trie, added: Trie, walker: Ints, target: Ints, start: Ints, name: Name) -> tuple[Ints, Ints]:
    """Compare added identifiers with the tokens that lead to the base's next nodes or leaves.

    Args:
        base: The base.
        added: The added identifiers.
        walker: `[a]`, leaves of `added`.
        target: `[a]`, nodes, or `~leaf`.
        start: `[a]`, how many tokens are known to be shared.
        name: For errors.

    Returns:
        How many tokens are shared up to the target, and how many stand before it.

    Raises:
        InputError: An identifier that ends on the way, or that goes on where one of the base ends.
    """
    at_leaf = target < 0
    leaf, stop = ~target, np.empty_like(target)
    leaf[~at_leaf] = base.node_lo[target[~at_leaf]]
    stop[at_leaf], stop[~at_leaf] = base.lengths(leaf[at_leaf]), base.depths(target[~at_leaf])
    length = added.lengths(walker)
    count = np.minimum(stop, length) - start
    differing = np.flatnonzero(added.read(walker, start, count) != base.read(leaf, start, count))
    which, first = np.unique(np.repeat(np.arange(len(count)), count)[differing], return_index=True)
    shared = count.copy()
    shared[which] = differing[first] - (np.cumsum(count) - count)[which]
    clashing = np.flatnonzero((shared == count) & (at_leaf | (length <= stop)))
    if len(clashing):
        which = clashing[0]
        new, old = name(len(base) + int(added.order[walker[which]])), name(int(base.order[leaf[which]]))
        if at_leaf[which] and length[which] == stop[which]:
            raise same_error(old, new)
        raise prefix_error(new, old) if length[which] <= stop[which] else prefix_error(old, new)
    return start + shared, stop


def _child_at(base: Trie, node: Ints, token: Ints) -> Ints:
    """The position of the child of each node that a token leads to, or -1: a binary search for all at once."""
    low, count = base.child_span(node)
    stop = low + count
    high = stop.copy()
    while (low < high).any():
        middle = (low + high) // 2
        # A search that has ended may look one past the children, which may be past the array.
        below = base.child_tokens(np.minimum(middle, stop - 1)) < token
        low, high = np.where((low < high) & below, middle + 1, low), np.where(below, high, middle)
    low = np.minimum(low, stop - 1)
    return np.where(base.child_tokens(low) == token, low, -1)


@dataclass(frozen=True)
class _Entries:
    """Children of nodes, `[c]` each: the node, and what `_Overlay` keeps of them."""

    parent: IntArray
    token: IntArray
    target: IntArray
    base_lo: IntArray
    base_hi: IntArray
    added_lo: IntArray
    added_hi: IntArray

    @classmethod
    def joined(cls, *parts: "_Entries") -> "_Entries":
        """One after the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def sorted(self) -> "_Entries":
        """By parent, and then by token."""
        # Not lexsort: a stable sort of one key is quick where, as here, most stand in order already.
        sequence = np.argsort(self.parent * 2**31 + self.token, kind="stable")
        return _Entries(*(getattr(self, field.name)[sequence] for field in fields(self)))


@dataclass(frozen=True)
class _Splits:
    """New nodes on the way to a node or leaf of the base, where there was no choice, in the order of way and place.

    Attributes:
        first: The number of the first one.
        child: `[s]`, the child of the base (a position) that the way leads to, -1 for the root.
        place: `[s]`, how many tokens stand before the choice.
        head: `[h]`, the first one on each way.
    """

    first: int
    child: Ints
    place: Ints
    head: Ints

    def __len__(self) -> int:
        """How many there are."""
        return len(self.child)


def _lay_over(base: Trie, added: Trie, name: Name) -> _Overlay:
    """Join the paths of added identifiers to those of the base.

    New nodes are numbered from the base's on: first those where the base is left between two of its nodes, and then
    all nodes of `added`. Of these no way leads to the ones at and above the places where the base is left.
    """
    departures = _walk(base, added, name)
    splits, parent = _split(base, departures)
    n_before = splits.first + len(splits)
    entries = _Entries.joined(
        _changed_children(base, departures, splits),
        _ways_on(base, added, departures, splits, parent),
        _new_children(base, added, departures, parent, n_before),
    ).sorted()
    entries = _Entries.joined(entries, _children_within(added, n_before, len(base)))
    first = np.flatnonzero(np.diff(entries.parent, prepend=-1))
    kept = {field.name: compact(getattr(entries, field.name)) for field in fields(entries) if field.name != "parent"}
    return _Overlay(
        root=splits.first if -1 in splits.child[:1] else base.root,
        depth=compact(np.concatenate((splits.place, added.node_depth))),
        node=entries.parent[first],
        indptr=np.append(first, len(entries.parent)),
        **kept,
        passed=departures.passed,
    )


def _split(base: Trie, departures: _Departures) -> tuple[_Splits, Ints]:
    """The new nodes between the base's, and `[m]`, the node where each added identifier leaves the base."""
    between = departures.node < 0
    child, place = departures.child[between], departures.place[between]
    stride = int(place.max(initial=0)) + 1
    key, which = np.unique(child * stride + place, return_inverse=True)
    first = len(base.node_lo)
    parent = departures.node.copy()
    parent[between] = first + which
    # Floor division: a child of -1 comes back as -1.
    child, place = key // stride, key % stride
    head = np.flatnonzero(np.diff(child, prepend=-2))
    return _Splits(first, child, place, head), parent


def _changed_children(base: Trie, departures: _Departures, splits: _Splits) -> _Entries:
    """The children that the base's nodes have already, of nodes that get others."""
    led_to = splits.head[splits.child[splits.head] >= 0]
    owner = np.searchsorted(base.child_indptr, splits.child[led_to], side="right") - 1
    changed = np.unique(np.concatenate((departures.node[departures.node >= 0], owner)))
    start, count = base.child_span(changed)
    position = ranges(start, count)
    target = base.child_targets(position)
    target[np.searchsorted(position, splits.child[led_to])] = splits.first + led_to
    added_lo, added_hi = departures.passed.leaves(position)
    ((lo, hi),) = base.leaf_intervals(position)
    return _Entries(np.repeat(changed, count), base.child_tokens(position), target, lo, hi, added_lo, added_hi)


def _ways_on(base: Trie, added: Trie, departures: _Departures, splits: _Splits, parent: Ints) -> _Entries:
    """The child of each new node on a way of the base with which the way goes on."""
    to_root = splits.child < 0
    target, lo, hi = np.full(len(splits), base.root), np.zeros(len(splits), np.int64), np.full(len(splits), len(base))
    target[~to_root] = base.child_targets(splits.child[~to_root])
    ((lo[~to_root], hi[~to_root]),) = base.leaf_intervals(splits.child[~to_root])
    token = base.read(lo, splits.place, np.ones_like(lo))
    inner = np.flatnonzero(splits.child[1:] == splits.child[:-1])
    target[inner] = splits.first + inner + 1

    # Of the added leaves that began the way, those that left with a smaller token stand before those that go on, and
    # those that left with a greater one behind them.
    leaver = np.flatnonzero(departures.node < 0)
    at = parent[leaver] - splits.first
    smaller = added.read(leaver, departures.place[leaver], np.ones_like(leaver)) < token[at]
    ahead = _running_count(at[smaller], splits)
    behind = _running_count(at[~smaller], splits)
    added_lo, added_hi = departures.passed.leaves(splits.child)
    number = splits.first + np.arange(len(splits))
    return _Entries(number, token, target, lo, hi, added_lo + ahead, added_hi - behind)


def _running_count(at: Ints, splits: _Splits) -> Ints:
    """`[s]`, how many of some departures are at each split or at one before it on the same way."""
    count = np.concatenate(([0], np.cumsum(np.bincount(at, minlength=len(splits)))))
    n_on_way = np.diff(np.append(splits.head, len(splits)))
    return count[1:] - np.repeat(count[splits.head], n_on_way)


def _new_children(base: Trie, added: Trie, departures: _Departures, parent: Ints, n_before: int) -> _Entries:
    """The children with which added identifiers leave the base: neighbours that share the token share the child."""
    token = added.read(np.arange(len(added)), departures.place, np.ones_like(parent))
    first = np.flatnonzero((np.diff(parent, prepend=-1) != 0) | (np.diff(token, prepend=-1) != 0))
    stop = np.append(first, len(added))[1:]
    # Nodes stand by rising first leaf, and on the same first leaf by falling size: no two have the same leaves.
    stride = len(added) + 1
    lo, hi = added.node_lo.astype(np.int64), added.node_hi
    node = np.searchsorted(lo * stride - hi, first * stride - stop)
    target = _renumbered(np.where(stop - first == 1, ~first, node), n_before, len(base))
    none = np.zeros_like(first)
    return _Entries(parent[first], token[first], target, none, none, first, stop)


def _children_within(added: Trie, n_before: int, n_leaves: int) -> _Entries:
    """The children of the nodes at which added identifiers part from each other."""
    n_children = np.diff(added.child_indptr)
    node = np.repeat(n_before + np.arange(len(n_children)), n_children)
    position = np.arange(len(added.child))
    none = np.zeros_like(position)
    ((lo, hi),) = added.leaf_intervals(position)
    target = _renumbered(added.child_targets(position), n_before, n_leaves)
    return _Entries(node, added.child_token, target, none, none, lo, hi)


def _renumbered(target: Ints, n_nodes: int, n_leaves: int) -> Ints:
    """Nodes and `~leaf` of the added identifiers, as numbered behind those that are there already."""
    return np.where(target < 0, target - n_leaves, target + n_nodes)


def _no_identifiers() -> Trie:
    """A trie of nothing, for a base without additions."""
    arrays = {field.name: np.empty(0, dtype=np.int32) for field in fields(Trie)}
    return Trie(**arrays | {name: np.zeros(1, dtype=np.int32) for name in ("token_offsets", "child_indptr")})


def _in_input_order(trie: Trie) -> tuple[npt.NDArray[np.int32], Ints]:
    """The tokens of all identifiers by position, and offsets, as they were when the trie was built."""
    lengths = trie.lengths(trie.leaf_of)
    tokens = trie.read(trie.leaf_of, np.zeros_like(lengths), lengths).astype(np.int32)
    return tokens, np.concatenate(([0], np.cumsum(lengths)))


def _name(alive: npt.NDArray[np.bool_] | None, position: int) -> str:
    removed = alive is not None and position < len(alive) and not alive[position]
    return f"identifier {position}" + (", which was removed but stays until a merge," if removed else "")


def _find(ascending: IntArray, wanted: IntArray) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Which numbers stand in an ascending array, and the places of those that do."""
    place = np.searchsorted(ascending, wanted)
    found = place < len(ascending)
    found[found] = ascending[place[found]] == wanted[found]
    return found, place[found]


def _joined(
    index: IntArray, limit: int, first: Callable[[IntArray], IntArray], second: Callable[[IntArray], IntArray]
) -> Ints:
    """What `first` says of numbers below a limit, and `second` of the others, which it counts from the limit on."""
    index = np.asarray(index)
    below = index < limit
    found = np.empty(index.shape, dtype=np.int64)
    found[below], found[~below] = first(index[below]), second(index[~below] - limit)
    return found


def _read_only(mask: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
    if mask is not None:
        mask.flags.writeable = False
    return mask
