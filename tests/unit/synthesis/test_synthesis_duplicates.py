import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genret.llm.words import split_words
from genret.synthesis.duplicates import NearDuplicates


def kept(threshold, *queries):
    seen = NearDuplicates(threshold)
    return [query for query in queries if not seen.add(query)]


@pytest.mark.parametrize(
    "other",
    ["What is a FJORD", "what is a fjord?!", "a fjord: what is?", "What is a   fjord", "what is a fjord, a fjord?"],
)
def test_case_order_punctuation_and_repetition_make_no_difference(other):
    assert kept(0.9, "What is a fjord?", other) == ["What is a fjord?"]


def test_one_word_of_many_may_differ():
    long = "which of the many deep fjords in the far west of Norway is the longest one"
    assert kept(0.9, long, long + " today") == [long]
    assert kept(0.9, "longest fjord", "longest fjord today") == ["longest fjord", "longest fjord today"]
    assert kept(0.6, "longest fjord", "longest fjord today") == ["longest fjord"]


def test_queries_with_other_numbers_are_not_the_same():
    one = "how many people came to see the fjords in the far west of Norway during the summer of 2022"
    assert kept(0.85, one, one.replace("2022", "2023")) == [one, one.replace("2022", "2023")]
    assert kept(0.85, one, one.replace("people", "visitors")) == [one]


def test_scripts_without_spaces():
    assert kept(0.9, "挪威最长的峡湾是哪一个？", "挪威最长的峡湾是哪一个", "峡湾在哪里？") == [
        "挪威最长的峡湾是哪一个？",
        "峡湾在哪里？",
    ]


def test_texts_without_words_are_never_duplicates():
    assert kept(0.9, "?", "?", "") == ["?", "?", ""]


WORDS = st.sampled_from(["ab", "bc", "cd", "de", "ef", "fg", "gh", "hi", "ij", "1", "2"])
QUERIES = st.lists(st.lists(WORDS, max_size=12).map(" ".join), max_size=25)


@settings(max_examples=150, deadline=None)
@given(QUERIES, st.sampled_from([0.25, 0.5, 2 / 3, 0.75, 0.8, 0.9, 1.0]))
def test_the_index_finds_what_comparing_all_pairs_finds(queries, threshold):
    expected, sets = [], []
    for query in queries:
        words = set(split_words(query))
        alike = [
            other
            for other in sets
            if len(words & other) >= threshold * len(words | other) - 1e-9 and not {"1", "2"} & (words ^ other)
        ]
        if not words or not alike:
            expected.append(query)
            sets += [words] if words else []
    assert kept(threshold, *queries) == expected
