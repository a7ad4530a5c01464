"""Which keyword leads an identifier."""

from hypothesis import given
from hypothesis import strategies as st

from genret.identifiers.distinctive import lead_with_distinctive


def test_a_taken_keyword_gives_way_to_the_next_best() -> None:
    found = lead_with_distinctive([["cell", "mouse", "gene"], ["cell", "gene", "mouse"]], pool=2)
    assert found == [["cell", "mouse", "gene"], ["gene", "cell", "mouse"]]


def test_a_passage_with_few_keywords_chooses_first() -> None:
    assert lead_with_distinctive([["cell", "mouse"], ["cell"]], pool=10) == [["mouse", "cell"], ["cell"]]


def test_only_the_pool_may_lead() -> None:
    assert lead_with_distinctive([["a"], ["a", "b"]], pool=1) == [["a"], ["a", "b"]]


@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True)), st.integers(1, 6))
def test_keywords_are_kept(keywords: list[list[str]], pool: int) -> None:
    found = lead_with_distinctive(keywords, pool)
    for before, after in zip(keywords, found, strict=True):
        assert sorted(before) == sorted(after)
        if after:
            assert [word for word in before if word != after[0]] == after[1:]
            assert before.index(after[0]) < pool
