"""Packing, and the choices on identifiers' paths."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from genret.decoding.trie import Trie
from genret.training.batches import IdentifierTokens, find_branchings, pack, share_beginnings


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_packed_sequences_do_not_overlap(lengths: list[int]) -> None:
    rows, columns, (height, width) = pack(lengths)
    taken = np.zeros((height, width), dtype=int)
    for row, column, length in zip(rows, columns, lengths, strict=True):
        assert column + length <= width
        taken[row, column : column + length] += 1
    assert taken.max() == 1
    assert taken.sum() == sum(lengths)
    assert width <= max(128, max(lengths))


@given(st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=12))
def test_only_the_beginnings_of_others_are_left_out(lists: list[list[int]]) -> None:
    left, owner = share_beginnings([np.array(numbers, dtype=np.int64) for numbers in lists])
    assert len(owner) == len(lists)
    for numbers, place in zip(lists, owner, strict=True):
        assert left[place][: len(numbers)].tolist() == numbers
    expected = {
        tuple(numbers)
        for numbers in lists
        if not any(other[: len(numbers)] == numbers and len(other) > len(numbers) for other in lists)
    }
    assert sorted(tuple(sequence.tolist()) for sequence in left) == sorted(expected)


identifier_sets = st.sets(
    st.lists(st.integers(1, 5), min_size=1, max_size=5).map(lambda tokens: (*tokens, 0)), min_size=1, max_size=30
).map(sorted)


@given(identifier_sets, st.randoms())
def test_branchings_are_the_choices_of_a_plain_dictionary(sequences: list[tuple[int, ...]], random) -> None:
    random.shuffle(sequences)
    trie = Trie.from_sequences(sequences)
    offsets = np.cumsum([0, *map(len, sequences)])
    tokens = IdentifierTokens(np.concatenate([np.array(s, dtype=np.int64) for s in sequences]), offsets)
    branchings = find_branchings(trie, tokens)
    for number, sequence in enumerate(sequences):
        choices = []
        for depth in range(len(sequence)):
            same = [other for other in sequences if other[:depth] == sequence[:depth] and len(other) > depth]
            if len({other[depth] for other in same}) > 1:
                choices.append(depth)
        entries = slice(branchings.indptr[number], branchings.indptr[number + 1])
        assert branchings.depth[entries].tolist() == choices
        assert trie.child_token[branchings.target[entries]].tolist() == [sequence[depth] for depth in choices]
        for node, target in zip(branchings.node[entries], branchings.target[entries], strict=True):
            assert trie.child_indptr[node] <= target < trie.child_indptr[node + 1]
