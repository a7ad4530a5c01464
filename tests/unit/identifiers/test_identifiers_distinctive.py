"""Which keyword leads an identifier."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from genret.identifiers.distinctive import lead_with_distinctive
from genret.identifiers.keywords import KeywordLists, join_keywords


def lead(keywords: list[list[str]], pool: int) -> list[list[str]]:
    joined = pa.chunked_array([[join_keywords(words) for words in keywords]], pa.string())
    return list(lead_with_distinctive(KeywordLists(joined), pool))


def test_a_taken_keyword_gives_way_to_the_next_best() -> None:
    found = lead([["cell", "mouse", "gene"], ["cell", "gene", "mouse"]], pool=2)
    assert found == [["cell", "mouse", "gene"], ["gene", "cell", "mouse"]]


def test_a_passage_with_few_keywords_chooses_first() -> None:
    assert lead([["cell", "mouse"], ["cell"]], pool=10) == [["mouse", "cell"], ["cell"]]


def test_only_the_pool_may_lead() -> None:
    assert lead([["a"], ["a", "b"]], pool=1) == [["a"], ["a", "b"]]


@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True)), st.integers(1, 6))
def test_keywords_are_kept(keywords: list[list[str]], pool: int) -> None:
    found = lead(keywords, pool)
    for before, after in zip(keywords, found, strict=True):
        assert sorted(before) == sorted(after)
        if after:
            assert [word for word in before if word != after[0]] == after[1:]
            assert before.index(after[0]) < pool
