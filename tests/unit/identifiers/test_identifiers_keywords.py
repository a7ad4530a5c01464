import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.identifiers import keywords as module
from genret.identifiers.keywords import KeywordLists, join_keywords

LISTS = st.lists(st.lists(st.sampled_from(["a", "b c", "B", "ß", "日本", "\x00"]), max_size=4), max_size=12)


def lists_of(*chunks):
    arrays = [pa.array([join_keywords(words) for words in chunk], pa.string()) for chunk in chunks]
    return KeywordLists(pa.chunked_array(arrays, pa.string()))


@given(LISTS, LISTS)
def test_lists_come_back_in_both_orders(first, second):
    kept, whole = lists_of(first, second), first + second
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_READ_ROWS", 3)
        assert list(kept) == whole and len(kept) == len(whole)
        folded = [[word.casefold() for word in words] for words in whole]
        assert list(kept.folded_shortest_first()) == sorted(enumerate(folded), key=lambda entry: len(entry[1]))
    assert kept.have_phrases() == any("b c" in words for words in whole)


@given(st.lists(st.text(st.characters(exclude_categories=("Zs", "Zl", "Zp", "Cc", "Cs"))).filter(bool), max_size=6))
def test_keywords_are_folded_each_by_itself(words):
    assert list(lists_of([words]).folded_shortest_first()) == [(0, [word.casefold() for word in words])]
