import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.identifiers import keywords as module
from genret.identifiers.keywords import KeywordLists, join_keywords

LISTS = st.lists(st.lists(st.sampled_from(["a", "b c", "ß", "日本", "\x00"]), max_size=4), max_size=12)


def lists_of(*chunks):
    arrays = [pa.array([join_keywords(words) for words in chunk], pa.string()) for chunk in chunks]
    return KeywordLists(pa.chunked_array(arrays, pa.string()))


@given(LISTS, LISTS)
def test_lists_come_back_in_both_orders(first, second):
    kept, whole = lists_of(first, second), first + second
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_READ_ROWS", 3)
        assert list(kept) == whole and len(kept) == len(whole)
        assert list(kept.shortest_first()) == sorted(enumerate(whole), key=lambda entry: len(entry[1]))
    assert kept.have_phrases() == any("b c" in words for words in whole)
