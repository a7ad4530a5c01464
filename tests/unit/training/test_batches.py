"""Packing, and the choices on identifiers' paths."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from genret.decoding.trie import Trie
from genret.training.batches import IdentifierTokens, find_branchings, pack


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
