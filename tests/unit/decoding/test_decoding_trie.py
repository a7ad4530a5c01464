import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genret.decoding.trie import Trie
from genret.errors import InputError

END = 0
# Sequences over a small vocabulary, each ended by a token that stands nowhere else: any set of them is prefix-free.
sequences = st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=40, unique_by=tuple).map(
    lambda found: [[*tokens, END] for tokens in found]
)


def dictionary(identifiers: list[list[int]]) -> dict[tuple[int, ...], set[int]]:
    """The tokens that may follow each prefix: the reference."""
    following: dict[tuple[int, ...], set[int]] = {}
    for tokens in identifiers:
        for depth, token in enumerate(tokens):
            following.setdefault(tuple(tokens[:depth]), set()).add(token)
    return following


def prefix(trie: Trie, node: int) -> tuple[int, ...]:
    start = trie.token_offsets[trie.node_lo[node]]
    return tuple(trie.tokens[start : start + trie.node_depth[node]].tolist())


@given(sequences)
def test_leaves_are_the_identifiers_in_lexicographic_order(identifiers: list[list[int]]) -> None:
    trie = Trie.from_sequences(identifiers)
    leaves = [
        trie.tokens[trie.token_offsets[leaf] : trie.token_offsets[leaf + 1]].tolist() for leaf in range(len(trie))
    ]
    assert leaves == sorted(identifiers)
    assert [identifiers[position] for position in trie.order] == leaves
    assert [trie.identifier(position).tolist() for position in range(len(trie))] == identifiers
    assert trie.order[trie.leaf_of].tolist() == list(range(len(identifiers)))
    assert trie.max_length == max(map(len, identifiers))


@given(sequences)
def test_nodes_are_the_choices_of_a_dictionary_trie(identifiers: list[list[int]]) -> None:
    trie = Trie.from_sequences(identifiers)
    choices = {path: tokens for path, tokens in dictionary(identifiers).items() if len(tokens) > 1}
    found = {prefix(trie, node): trie.children(node)[0].tolist() for node in range(len(trie.node_lo))}
    assert found == {path: sorted(tokens) for path, tokens in choices.items()}
    # Depth first: the prefixes come in the order of the sorted identifiers, ancestors first.
    assert list(found) == sorted(found)


@given(sequences)
def test_children_split_the_leaves_of_their_node(identifiers: list[list[int]]) -> None:
    trie = Trie.from_sequences(identifiers)
    for node in range(len(trie.node_lo)):
        start, stop = trie.child_indptr[node], trie.child_indptr[node + 1]
        ((lo, hi),) = trie.leaf_intervals(np.arange(start, stop))
        assert lo[0] == trie.node_lo[node] and hi[-1] == trie.node_hi[node]
        assert (lo[1:] == hi[:-1]).all() and (hi > lo).all()
        for token, child, first, last in zip(*trie.children(node), lo, hi, strict=True):
            for leaf in range(first, last):
                assert trie.tokens[trie.token_offsets[leaf] + trie.node_depth[node]] == token
            assert (child < 0) == (last - first == 1)
            if child >= 0:
                assert (trie.node_lo[child], trie.node_hi[child]) == (first, last)
                assert trie.node_depth[child] > trie.node_depth[node] and child > node


@given(sequences)
def test_branches_are_the_choices_on_each_path(identifiers: list[list[int]]) -> None:
    trie = Trie.from_sequences(identifiers)
    following = dictionary(identifiers)
    indptr, depth, node = trie.branches()
    assert len(indptr) == len(identifiers) + 1
    for position, tokens in enumerate(identifiers):
        here = slice(indptr[position], indptr[position + 1])
        expected = [place for place in range(len(tokens)) if len(following[tuple(tokens[:place])]) > 1]
        assert depth[here].tolist() == expected
        assert [prefix(trie, number) for number in node[here]] == [tuple(tokens[:place]) for place in expected]


@given(st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=8))
def test_only_unique_prefix_free_identifiers_make_a_trie(identifiers: list[list[int]]) -> None:
    bad = any(
        i != j and tokens == other[: len(tokens)]
        for i, tokens in enumerate(identifiers)
        for j, other in enumerate(identifiers)
    )
    if bad or not all(identifiers):
        with pytest.raises(InputError, match="identifier"):
            Trie.from_sequences(identifiers)
    else:
        assert len(Trie.from_sequences(identifiers)) == len(identifiers)


@pytest.mark.parametrize(
    ("identifiers", "message"),
    [
        ([[1, 2], [3], [1, 2]], "identifier 0 and identifier 2 are the same"),
        ([[1, 2, 3], [4], [1, 2]], "identifier 2 is a prefix of identifier 0; end every identifier"),
        ([[1], []], "identifier 1 is empty"),
        ([[1], [2, -3]], "identifier 1: expected tokens from 0 to 2[*][*]31 - 1, found -3"),
        ([[2**31], [2]], "identifier 0: expected tokens"),
        ([], "at least one identifier"),
    ],
)
def test_bad_identifiers_are_named(identifiers: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trie.from_sequences(identifiers)


@pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [0, 2, 1, 3], [[0, 3]], [0, 1.9, 3]])
def test_malformed_offsets_are_refused(offsets: list[int]) -> None:
    with pytest.raises(InputError, match="offsets"):
        Trie.build([1, 2, 3], offsets)


def test_floating_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="integer tokens, found float64"):
        Trie.build([1.0, 2.0], [0, 1, 2])


def test_one_identifier_has_no_choice() -> None:
    trie = Trie.from_sequences([[5, 6, 7]])
    indptr, depth, node = trie.branches()
    assert len(trie.node_lo) == 0 and trie.child_indptr.tolist() == [0]
    assert indptr.tolist() == [0, 0] and len(depth) == len(node) == 0


def test_the_largest_token_fits() -> None:
    trie = Trie.from_sequences([[2**31 - 1, 0], [2**31 - 1, 2**31 - 1], [0]])
    assert trie.children(0)[0].tolist() == [0, 2**31 - 1]
    assert trie.children(1)[0].tolist() == [0, 2**31 - 1]


def test_arrays_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Trie.from_sequences([[1], [2]]).child[0] = 0


@settings(max_examples=20)
@given(sequences)
def test_a_saved_trie_comes_back(tmp_path_factory: pytest.TempPathFactory, identifiers: list[list[int]]) -> None:
    folder = tmp_path_factory.mktemp("trie")
    trie = Trie.from_sequences(identifiers)
    trie.save(folder)
    loaded = Trie.load(folder)
    for name in Trie.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(trie, name))
    assert isinstance(loaded.tokens, np.memmap)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "new" / "trie"
    Trie.from_sequences([[1, 2, END], [1, 3, END], [4, END]]).save(folder)
    return folder


@pytest.mark.parametrize("name", [f"{name}.npy" for name in Trie.__dataclass_fields__] + ["trie.json"])
def test_a_truncated_or_missing_file_is_refused(saved: Path, name: str) -> None:
    path = saved / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=name):
        Trie.load(saved)
    path.unlink()
    with pytest.raises(InputError, match=name):
        Trie.load(saved)


def test_an_altered_file_is_found_by_its_checksum(saved: Path) -> None:
    path = saved / "child.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"child\.npy: expected the checksum"):
        Trie.load(saved)
    assert len(Trie.load(saved, verify=False)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, "expected the format 'genret-trie'"),
        ({"version": 2}, "expected version 1, found 2"),
        ({"arrays": {}}, "expected the arrays"),
        ({"arrays": None}, "expected the arrays"),
    ],
)
def test_a_foreign_header_is_refused(saved: Path, change: dict, message: str) -> None:
    header = saved / "trie.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | change))
    with pytest.raises(InputError, match=message):
        Trie.load(saved)


def test_pickled_arrays_are_refused(saved: Path) -> None:
    path = saved / "order.npy"
    np.save(path, np.array([{}, 1, 2], dtype=object), allow_pickle=True)
    header = json.loads((saved / "trie.json").read_text())
    header["arrays"]["order"] |= {"bytes": path.stat().st_size, "dtype": "|O"}
    (saved / "trie.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match=r"order\.npy"):
        Trie.load(saved, verify=False)


def test_arrays_of_different_tries_are_refused(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    Trie.from_sequences([[1, END], [2, END]]).save(other)
    header = json.loads((saved / "trie.json").read_text())
    header["arrays"]["order"] = json.loads((other / "trie.json").read_text())["arrays"]["order"]
    (saved / "trie.json").write_text(json.dumps(header))
    shutil.copy(other / "order.npy", saved / "order.npy")
    with pytest.raises(InputError, match="do not fit each other"):
        Trie.load(saved)


def test_saving_again_replaces_the_trie_and_leaves_open_ones_alone(saved: Path) -> None:
    before = Trie.load(saved)
    Trie.from_sequences([[7, END]]).save(saved)
    assert before.identifier(2).tolist() == [4, END]
    assert Trie.load(saved).identifier(0).tolist() == [7, END]
    assert not list(saved.glob("*.partial"))


def test_a_save_that_stopped_half_way_is_no_trie(saved: Path) -> None:
    (saved / "trie.json").unlink()
    with pytest.raises(InputError, match="expected the header of a saved index"):
        Trie.load(saved)


def test_the_header_knows_the_longest_identifier_and_the_largest_token(saved: Path) -> None:
    header = json.loads((saved / "trie.json").read_text())
    assert (header["max_length"], header["max_token"]) == (3, 4)
    # Taken from the header, and not counted again.
    (saved / "trie.json").write_text(json.dumps(header | {"max_length": 30, "max_token": 40}))
    loaded = Trie.load(saved)
    assert (loaded.max_length, loaded.max_token) == (30, 40)
    del header["max_length"], header["max_token"]
    (saved / "trie.json").write_text(json.dumps(header))
    loaded = Trie.load(saved)
    assert (loaded.max_length, loaded.max_token) == (3, 4)


def test_a_fingerprint_tells_tries_apart(saved: Path) -> None:
    trie = Trie.from_sequences([[1, 2, END], [1, 3, END], [4, END]])
    assert Trie.load(saved).fingerprint == trie.fingerprint
    assert Trie.from_sequences([[4, END], [1, 2, END], [1, 3, END]]).fingerprint != trie.fingerprint
    assert Trie.from_sequences([[1, 2, END], [1, 3, END], [5, END]]).fingerprint != trie.fingerprint
