from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.corpus.sentences import sentence_spans, split_sentences

ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.sampled_from(" .\n\r\t!?。\0\ud800\u200b\u0301"))


def without_space(text: str) -> str:
    return "".join(text.split())


@given(ANY_TEXT)
def test_keeps_every_character_and_returns_no_blanks(text: str) -> None:
    sentences = split_sentences(text)
    assert without_space("".join(sentences)) == without_space(text)
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


@given(ANY_TEXT)
def test_spans_are_in_order_and_do_not_overlap(text: str) -> None:
    spans = sentence_spans(text)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert [text[start:end] for start, end in spans] == split_sentences(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It rains. Is it\ncold? No!", ["It rains.", "Is it\ncold?", "No!"]),
        ("Mr. Smith paid 3.50 dollars. He left.", ["Mr. Smith paid 3.50 dollars.", "He left."]),
        ("A heading\n\nIts text", ["A heading", "Its text"]),
        ("A heading\r\n \r\nIts text", ["A heading", "Its text"]),
        ("日本語です。これは文です。", ["日本語です。", "これは文です。"]),
        ("Zero\0in it. And after.", ["Zero\0in it.", "And after."]),
        ("Half a pair \ud83d here. And after.", ["Half a pair \ud83d here.", "And after."]),
        ("The same. The same. The same.", ["The same."] * 3),
        ("", []),
        (" \n\n\t\0"[:3], []),
    ],
)
def test_splits(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@pytest.mark.parametrize("unit", ["A short one. ", "word ", "x", "\n", ". ", "字", "\n\n", "\0", "("])
def test_a_million_characters(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    assert sum(map(len, map(without_space, split_sentences(text)))) == len(without_space(text))
