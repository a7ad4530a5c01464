"""Identifiers sorted into the arrays of a trie."""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from genret.decoding.arrays import IntArray, Ints, compact, ranges
from genret.errors import InputError

# Tokens are copied into sorted order by blocks of leaves, to bound the memory of the index arrays.
LEAVES_PER_BLOCK = 1 << 20


def flattened(identifiers: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Identifiers given as sequences of tokens, in the form that `Trie.build` takes: int64 `[total]` and `[n + 1]`."""
    lengths = np.fromiter((len(identifier) for identifier in identifiers), np.int64, len(identifiers))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return np.fromiter(chain.from_iterable(identifiers), np.int64, int(offsets[-1])), offsets


def checked_input(
    tokens: IntArray, offsets: IntArray, name: Callable[[int], str]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Tokens `[total]` and offsets `[n + 1]` as `Trie.build` takes them, checked: as int32 and int64.

    Raises:
        InputError: What `Trie.build` refuses, but for identifiers that are the same or prefixes; `name` says what
            errors call the identifier at a position.
    """
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


def sorted_arrays(
    tokens: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], name: Callable[[int], str]
) -> dict[str, IntArray]:
    """The arrays of the trie of identifiers.

    Args:
        tokens: int32 `[total]`, as `checked_input` returns them.
        offsets: int64 `[n + 1]`, the same.
        name: What errors call the identifier at a position.

    Returns:
        The arrays under the names that `trie.Trie` has for them.

    Raises:
        InputError: Two identifiers are equal, or one is a prefix of another; names them.
    """
    order, nodes, children = _sort_and_branch(tokens, offsets, name)
    sorted_tokens, sorted_offsets = _in_order(tokens, offsets, order)
    leaves = {"tokens": sorted_tokens, "token_offsets": compact(sorted_offsets), "order": compact(order)}
    return leaves | _depth_first(nodes, children)


def same_error(one: str, other: str) -> InputError:
    """The error for two identifiers that are the same, by their names."""
    return InputError(f"{one} and {other} are the same; expected identifiers to be unique")


def prefix_error(short: str, long: str) -> InputError:
    """The error for an identifier that is a prefix of another, by their names."""
    return InputError(
        f"{short} is a prefix of {long}; end every identifier with an end-of-sequence token, so that none is a prefix "
        "of another"
    )


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
