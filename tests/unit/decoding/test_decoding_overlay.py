import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_decoding_search import END, SCORINGS, SHAPE, build, some_identifiers, some_prompts
from transformers import MistralConfig

from genret.decoding import scoring, search
from genret.decoding.building import flattened
from genret.decoding.overlay import ARRAYS, GrownTrie
from genret.decoding.results import SearchResult
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Paths, Trie
from genret.errors import InputError

Identifiers: TypeAlias = list[list[int]]


def ended(found: list[list[int]]) -> Identifiers:
    return [[*tokens, END] for tokens in found]


# Over few tokens, so that identifiers leave each other at all kinds of places; the end stands nowhere else.
unique_lists = st.lists(st.lists(st.integers(3, 6), max_size=6), min_size=1, max_size=30, unique_by=tuple).map(ended)


@st.composite
def parted(draw: st.DrawFn) -> tuple[Identifiers, Identifiers]:
    """Identifiers of a base, and added ones."""
    identifiers = draw(unique_lists)
    n_base = draw(st.integers(1, len(identifiers)))
    return identifiers[:n_base], identifiers[n_base:]


def grown(base: Identifiers, added: Identifiers, removed: list[int] | None = None) -> GrownTrie:
    return GrownTrie.grow(Trie.from_sequences(base), *flattened(added), removed or [])


def read(trie: Paths, leaf: int, stop: int) -> tuple[int, ...]:
    return tuple(trie.read(np.array([leaf]), np.array([0]), np.array([stop])).tolist())


def walked(trie: Paths) -> dict[tuple[int, ...], dict[int, set[int]]]:
    """The positions of the identifiers below each token that may follow each prefix, where there is a choice."""
    choices: dict[tuple[int, ...], dict[int, set[int]]] = {}
    open_targets = [(trie.root, 0)]
    while open_targets:
        target, leaf = open_targets.pop()
        if target < 0:
            assert ~target == leaf
            continue
        prefix = read(trie, leaf, int(trie.depths(np.array([target]))[0]))
        start, count = trie.child_span(np.array([target]))
        position = np.arange(start[0], start[0] + count[0])
        tokens, targets = trie.child_tokens(position).tolist(), trie.child_targets(position).tolist()
        assert [array.tolist() for array in trie.children(target)] == [tokens, targets]
        assert tokens == sorted(set(tokens))
        intervals = trie.leaf_intervals(position)
        assert prefix not in choices
        choices[prefix] = {}
        for place, token in enumerate(tokens):
            leaves = [leaf for lo, hi in intervals for leaf in range(lo[place], hi[place])]
            below = trie.positions(np.array(leaves)).tolist()
            choices[prefix][token] = set(below)
            assert leaves[0] == intervals[0][0][place] and len(set(below)) == len(below)
            assert all(read(trie, leaf, len(prefix) + 1) == (*prefix, token) for leaf in leaves)
            assert (targets[place] < 0) == (len(leaves) == 1)
        open_targets += zip(targets, intervals[0][0].tolist(), strict=True)
    return choices


def dictionary(identifiers: Identifiers) -> dict[tuple[int, ...], dict[int, set[int]]]:
    """What `walked` should find, from a dictionary of prefixes."""
    following: dict[tuple[int, ...], dict[int, set[int]]] = {}
    for position, tokens in enumerate(identifiers):
        for depth, token in enumerate(tokens):
            following.setdefault(tuple(tokens[:depth]), {}).setdefault(token, set()).add(position)
    return {prefix: tokens for prefix, tokens in following.items() if len(tokens) > 1}


def assert_spells(trie: GrownTrie, identifiers: Identifiers) -> None:
    leaf = np.arange(len(trie))
    positions = trie.positions(leaf)
    assert sorted(positions.tolist()) == leaf.tolist() == list(range(len(identifiers)))
    lengths = trie.lengths(leaf)
    assert lengths.tolist() == [len(identifiers[position]) for position in positions]
    tokens = trie.read(leaf, np.zeros_like(leaf), lengths)
    assert tokens.tolist() == [token for position in positions for token in identifiers[position]]
    # Backwards, without the first token of each.
    tokens = trie.read(leaf[::-1], np.ones_like(leaf), lengths[::-1] - 1)
    assert tokens.tolist() == [token for position in positions[::-1] for token in identifiers[position][1:]]
    assert [trie.identifier(position).tolist() for position in range(len(trie))] == identifiers


@settings(max_examples=300)
@given(parted())
# A single identifier of the base, which is left before its end.
@example(([[3, 4, 5, END]], [[3, 4, 6, END]]))
# The first node of the base is left, at two places before it.
@example(([[3, 4, 5, END], [3, 4, 6, END]], [[4, END], [3, 3, END], [3, 3, 3, END]]))
# Two new nodes on one way, and added ones that go on behind both.
@example(([[3, 3, 3, 3, END], [4, END]], [[3, 3, END], [3, 5, END], [3, 3, 3, 4, END], [3, 3, 3, 3, 4, END]]))
# Depth one.
@example(([[5], [3]], [[4], [6]]))
def test_a_grown_trie_is_the_trie_of_all_identifiers(parts: tuple[Identifiers, Identifiers]) -> None:
    base, added = parts
    view = grown(base, added)
    built = Trie.from_sequences(base + added)
    assert walked(view) == dictionary(base + added) == walked(built)
    assert_spells(view, base + added)
    assert (len(view), view.has_choice) == (len(built), built.has_choice)
    assert (view.max_length, view.max_token) == (built.max_length, built.max_token)
    assert view.alive is None


@given(parted(), st.randoms(use_true_random=False))
def test_several_additions_and_removals_are_one(parts: tuple[Identifiers, Identifiers], random: Any) -> None:
    base, added = parts
    view = grown(base, [])
    removed: set[int] = set()
    left = list(added)
    while left:
        size = random.randint(1, len(left))
        before, walk_before = view, walked(view)
        alive_before = view.alive if view.alive is None else view.alive.tolist()
        gone = random.randrange(len(view))
        view = view.with_added(*flattened(left[:size])).with_removed([gone, gone])
        removed.add(gone)
        left = left[size:]
        # The view that was there stays as it is.
        assert walked(before) == walk_before
        assert (before.alive if before.alive is None else before.alive.tolist()) == alive_before
    once = grown(base, added, sorted(removed))
    assert walked(view) == walked(once)
    assert_spells(view, base + added)
    if removed:
        assert view.alive is not None and once.alive is not None
        assert view.alive.tolist() == once.alive.tolist() == [place not in removed for place in range(len(view))]
    else:
        assert view.alive is once.alive is None


@given(parted(), st.data())
def test_a_merge_builds_the_trie_of_what_is_left(parts: tuple[Identifiers, Identifiers], data: st.DataObject) -> None:
    everything = parts[0] + parts[1]
    removed = data.draw(st.sets(st.integers(0, len(everything) - 1), max_size=len(everything) - 1))
    merged, old = grown(*parts, sorted(removed)).merged()
    assert old.tolist() == [position for position in range(len(everything)) if position not in removed]
    expected = Trie.from_sequences([everything[position] for position in old])
    for name in Trie.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(merged, name), getattr(expected, name))


def test_a_merge_frees_what_was_removed() -> None:
    view = grown([[3, END], [4, END]], [[5, END]], [1])
    with pytest.raises(InputError, match="identifier 1, which was removed but stays until a merge, and identifier 3 "):
        view.with_added([4, END], [0, 2])
    merged, _ = view.merged()
    assert walked(GrownTrie.grow(merged, [4, END], [0, 2])) == dictionary([[3, END], [5, END], [4, END]])
    with pytest.raises(InputError, match="at least one to merge, but all were removed"):
        view.with_removed(np.arange(3)).merged()


def test_nothing_added_or_removed_is_the_same_view() -> None:
    view = grown([[3, END], [4, END]], [[5, END]])
    assert view.with_added([], [0]) is view and view.with_removed([]) is view


def test_a_mask_cannot_be_changed() -> None:
    view = grown([[3, END], [4, END]], [[5, END]], [0])
    for other in (view, view.with_added([6, END], [0, 2])):
        with pytest.raises(ValueError, match="read-only"):
            other.alive[0] = True  # type: ignore[index]


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([[6], [9], []], "identifier 6 is empty"),
        ([[6], [7, -1]], "identifier 5: expected tokens from 0 to 2[*][*]31 - 1, found -1"),
        ([[2**31]], "identifier 4: expected tokens"),
        # With one of the base: under a node, at the end of a leaf, before the first node of a way.
        ([[9], [1, 2, 5]], "identifier 0 and identifier 5 are the same"),
        ([[1, 2, 5, 7]], "identifier 0 is a prefix of identifier 4; end every identifier"),
        ([[1, 2]], "identifier 4 is a prefix of identifier [01]; end"),
        ([[1]], "identifier 4 is a prefix of identifier [01]; end"),
        ([[3, 4]], "identifier 4 is a prefix of identifier 2; end"),
        # With an added one, of before or of now.
        ([[8, 9]], "identifier 3 and identifier 4 are the same"),
        ([[8]], "identifier 4 is a prefix of identifier 3"),
        ([[8, 9, 9]], "identifier 3 is a prefix of identifier 4"),
        ([[7, 7], [6], [7, 7]], "identifier 4 and identifier 6 are the same"),
        ([[7, 7], [7]], "identifier 5 is a prefix of identifier 4"),
    ],
)
def test_bad_additions_are_named_by_position(added: Identifiers, message: str) -> None:
    view = grown([[1, 2, 5], [1, 2, 6], [3, 4, 4]], [[8, 9]])
    with pytest.raises(InputError, match=message):
        view.with_added(*flattened(added))
    assert len(view) == 4


def test_a_clash_with_a_removed_addition_says_so() -> None:
    view = grown([[3, END]], [[4, END]], [1])
    with pytest.raises(InputError, match=r"identifier 2 is a prefix of identifier 1, which was removed but stays"):
        view.with_added([4], [0, 1])


@given(parted(), st.lists(st.lists(st.integers(2, 6), max_size=5), min_size=1, max_size=4))
def test_only_what_may_be_built_may_be_added(parts: tuple[Identifiers, Identifiers], more: Identifiers) -> None:
    def accepted(make: Any) -> bool:
        try:
            make()
        except InputError:
            return False
        return True

    view = grown(*parts)
    assert accepted(lambda: view.with_added(*flattened(more))) == accepted(
        lambda: Trie.from_sequences([*parts[0], *parts[1], *more])
    )


@pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [0, 2, 1, 3], [[0, 3]], [0], []])
def test_malformed_offsets_are_refused(offsets: list[int]) -> None:
    with pytest.raises(InputError, match="offsets"):
        grown([[1, END]], [[3, END]]).with_added([4, 5, 6], offsets)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([0, 3], "removed: expected positions from 0 to 2, found 3"),
        ([-1], "removed: expected positions from 0 to 2, found -1"),
        ([0.5], "removed: expected integer positions, found float64"),
        ([True, False, True], "removed: expected integer positions, found bool"),
    ],
)
def test_bad_removals_are_named(positions: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        grown([[1, END], [3, END]], [[4, END]]).with_removed(positions)


@pytest.fixture(scope="module")
def model() -> Any:
    return build(MistralConfig(**SHAPE, sliding_window=None))


def assert_same(found: list[SearchResult], expected: list[SearchResult]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-9)
        # No two identifiers have equal scores under these models.
        assert one.indices.tolist() == other.indices.tolist()
        assert one.exact == other.exact


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
@settings(max_examples=20, deadline=None)
@given(parts=parted(), k=st.integers(1, 8), beam=st.integers(1, 4), data=st.data())
def test_a_search_finds_what_it_finds_in_a_trie_of_all_identifiers(
    model: Any,
    how: scoring.Scoring,
    mode: search.Mode,
    parts: tuple[Identifiers, Identifiers],
    k: int,
    beam: int,
    data: st.DataObject,
) -> None:
    everything = parts[0] + parts[1]
    masks = st.lists(st.booleans(), min_size=len(everything), max_size=len(everything))
    removed, allowed = np.array(data.draw(masks)), np.array(data.draw(masks))
    view = grown(*parts)
    less = view.with_removed(np.flatnonzero(removed))
    whole, ours, theirs = (TrieSearch(model, trie, how) for trie in (view, less, Trie.from_sequences(everything)))
    prompts = some_prompts(3, 6, 1)
    arguments: dict[str, Any] = {"k": k, "mode": mode, "beam": beam}
    assert_same(whole.search(prompts, **arguments), theirs.search(prompts, **arguments))
    assert_same(
        whole.search(prompts, **arguments, allowed=allowed), theirs.search(prompts, **arguments, allowed=allowed)
    )
    expected = theirs.search(prompts, **arguments, allowed=~removed)
    assert_same(ours.search(prompts, **arguments), expected)
    expected = theirs.search(prompts, **arguments, allowed=allowed & ~removed)
    assert_same(ours.search(prompts, **arguments, allowed=allowed), expected)
    prepared = scoring.LeafFilter(less, allowed)
    assert_same(ours.search(prompts, **arguments, allowed=prepared), expected)


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
def test_many_identifiers_and_many_additions(model: Any, how: scoring.Scoring, mode: search.Mode) -> None:
    identifiers, prompts = some_identifiers(400), some_prompts(3, 9, 5)
    view = grown(identifiers[:250], identifiers[250:], list(range(0, 400, 3)))
    found = TrieSearch(model, view, how).search(prompts, k=10, mode=mode)
    union = TrieSearch(model, Trie.from_sequences(identifiers), how)
    assert_same(found, union.search(prompts, k=10, mode=mode, allowed=np.arange(400) % 3 > 0))
    assert any(index < 250 for index in found[0].indices) and any(index >= 250 for index in found[0].indices)


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
def test_a_merged_trie_gives_up_the_share_of_what_was_removed(
    model: Any, how: scoring.Scoring, mode: search.Mode
) -> None:
    identifiers, prompts = some_identifiers(60), some_prompts(3, 6)
    view = grown(identifiers[:40], identifiers[40:], list(range(0, 60, 2)))
    merged, old = view.merged()
    before = TrieSearch(model, view, how).search(prompts, k=5, mode=mode, beam=60)
    after = TrieSearch(model, merged, how).search(prompts, k=5, mode=mode, beam=60)
    for one, other in zip(before, after, strict=True):
        if how == "vocabulary":
            assert one.indices.tolist() == old[other.indices].tolist()
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-9)
        else:
            assert (one.scores < other.scores).all()


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
@pytest.mark.parametrize(
    ("base", "added"),
    [
        # The root is the base's first node, with more children.
        ([[token] for token in range(50, 350)], [[token] for token in range(350, 360)]),
        # The root is new, above a wide node of the base.
        ([[7, token] for token in range(50, 350)], [[7, 360], [8]]),
        # A wide node and a wide root, all of them new.
        ([[7, 7]], [[7, token] for token in range(50, 350)] + [[token] for token in range(50, 350)]),
    ],
)
def test_nodes_with_many_children(
    base: Identifiers, added: Identifiers, how: scoring.Scoring, mode: search.Mode
) -> None:
    model = build(MistralConfig(**SHAPE | {"vocab_size": 400}, sliding_window=None))
    assert scoring.WIDE < 300
    prompts, removed = some_prompts(3, 6), list(range(0, len(base + added), 2))
    union = TrieSearch(model, Trie.from_sequences(base + added), how)
    expected = union.search(prompts, k=8, mode=mode)
    assert_same(TrieSearch(model, grown(base, added), how).search(prompts, k=8, mode=mode), expected)
    expected = union.search(prompts, k=8, mode=mode, allowed=~np.isin(np.arange(len(base + added)), removed))
    assert_same(TrieSearch(model, grown(base, added, removed), how).search(prompts, k=8, mode=mode), expected)


@pytest.mark.parametrize("mode", ["beam", "exact"])
@pytest.mark.parametrize("how", SCORINGS)
def test_removed_identifiers_are_never_returned(model: Any, how: scoring.Scoring, mode: search.Mode) -> None:
    prompts = some_prompts(3, 5)
    for view in (grown([[3, 4, END]], []), grown([[3, 4, END]], [[3, 5, END], [4, END]])):
        for left in (*range(len(view)), None):
            gone = view.with_removed([position for position in range(len(view)) if position != left])
            gone = gone if left is not None else view.with_removed(np.arange(len(view)))
            finder = TrieSearch(model, gone, how)
            for allowed in (None, np.ones(len(view), dtype=bool)):
                for result in finder.search(prompts, k=5, mode=mode, allowed=allowed):
                    assert result.indices.tolist() == ([left] if left is not None else [])
                    assert result.exact


@pytest.mark.parametrize("how", SCORINGS)
def test_a_search_moves_to_another_view(model: Any, how: scoring.Scoring) -> None:
    identifiers, prompts = some_identifiers(60), some_prompts(3, 6)
    before = TrieSearch(model, Trie.from_sequences(identifiers[:40]), how)
    expected = before.search(prompts, k=5)
    after = before.over(grown(identifiers[:40], identifiers[40:], [3]))
    assert after.decoder is before.decoder
    assert_same(after.search(prompts, k=5), TrieSearch(model, after.trie, how).search(prompts, k=5))
    assert_same(before.search(prompts, k=5), expected)
    with pytest.raises(InputError, match="expected tokens below 64"):
        before.over(Trie.from_sequences([[64], [1]]))


def test_a_filter_for_another_view_is_refused(model: Any) -> None:
    view = grown([[3, END], [4, END]], [[5, END]])
    with pytest.raises(InputError, match="expected a filter made for this trie"):
        TrieSearch(model, view.with_removed([0]), "trie").search(
            [[3]], k=1, allowed=scoring.LeafFilter(view, np.ones(3, dtype=bool))
        )


@pytest.fixture
def base() -> Trie:
    return Trie.from_sequences([[1, 2, END], [1, 3, END], [4, END]])


@pytest.fixture
def saved(base: Trie, tmp_path: Path) -> Path:
    # The base lies in the same folder.
    base.save(tmp_path)
    GrownTrie.grow(base, [1, 1, END, 5, END], [0, 3, 5], [0, 4]).save(tmp_path)
    return tmp_path


def test_a_saved_view_comes_back(saved: Path, base: Trie) -> None:
    for trie in (base, Trie.load(saved)):
        view = GrownTrie.load(saved, trie)
        assert walked(view) == dictionary([[1, 2, END], [1, 3, END], [4, END], [1, 1, END], [5, END]])
        assert view.alive is not None and view.alive.tolist() == [False, True, True, True, False]
        more = view.with_added([6, END], [0, 2])
        assert more.identifier(5).tolist() == [6, END] and more.alive is not None and more.alive[5]
    assert not list(saved.glob("*.partial"))


def test_a_view_without_changes_comes_back(base: Trie, tmp_path: Path) -> None:
    GrownTrie.grow(base).save(tmp_path)
    view = GrownTrie.load(tmp_path, base)
    assert walked(view) == walked(base) and view.alive is None and len(view) == 3


def test_saving_again_replaces_the_view(saved: Path, base: Trie) -> None:
    view = GrownTrie.load(saved, base)
    view.with_removed([3]).save(saved)
    again = GrownTrie.load(saved, base)
    assert again.alive is not None and again.alive.tolist() == [False, True, True, False, False]


def test_another_base_is_refused(saved: Path) -> None:
    other = Trie.from_sequences([[1, 2, END], [1, 3, END], [5, END]])
    with pytest.raises(InputError, match=r"overlay\.json: expected the trie that this overlay was grown from, found"):
        GrownTrie.load(saved, other)


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in ARRAYS), "overlay.json"])
def test_a_truncated_or_missing_file_is_refused(saved: Path, base: Trie, name: str) -> None:
    path = saved / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=name):
        GrownTrie.load(saved, base)
    path.unlink()
    with pytest.raises(InputError, match=name):
        GrownTrie.load(saved, base)


def test_an_altered_file_is_found_by_its_checksum(saved: Path, base: Trie) -> None:
    path = saved / "added_tokens.npy"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"added_tokens\.npy: expected the checksum"):
        GrownTrie.load(saved, base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "genret-trie"}, "expected the format 'genret-overlay'"),
        ({"version": 2}, "expected version 1, found 2"),
        ({"arrays": {}}, "expected the arrays"),
        ({"base": None}, "expected the trie that this overlay was grown from"),
    ],
)
def test_a_foreign_header_is_refused(saved: Path, base: Trie, change: dict, message: str) -> None:
    header = saved / "overlay.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | change))
    with pytest.raises(InputError, match=message):
        GrownTrie.load(saved, base)
