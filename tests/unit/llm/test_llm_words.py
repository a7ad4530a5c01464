import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.llm.words import has_lone_surrogate, join_words, replace_words, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\t...!? --- ___ 😀", []),
        ("Hello, World-wide IL-10!", ["hello", "world", "wide", "il", "10"]),
        ("json.read_text() __init__", ["json", "read", "text", "init"]),
        ("Straße ΣΊΣΥΦΟΣ", ["strasse", "σίσυφοσ"]),
        ("naïve cafe\u0301", ["naïve", "cafe\u0301"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("اللغة العربية", ["اللغة", "العربية"]),
        ("한국어 검색", ["한국어", "검색"]),
        ("日本語。中 x", ["日本", "本語", "中", "x"]),
        ("GPT模型2", ["gpt", "模型", "2"]),
        ("カタカナ", ["カタ", "タカ", "カナ"]),
        ("ที่ดี", ["ที่ดี"]),
        ("\U00020000\U00020001", ["\U00020000\U00020001"]),
    ],
)
def test_words_of_many_scripts(text, words):
    assert split_words(text) == words


@given(st.text())
def test_words_hold_every_letter_and_digit_and_nothing_else_that_counts(text):
    words = split_words(text)
    expected = {character for character in text.casefold() if character.isalnum()}
    assert {character for word in words for character in word if character.isalnum()} == expected
    assert all(word and not word.isspace() and "_" not in word for word in words)


@given(st.text())
def test_words_of_words_are_the_same(text):
    for word in split_words(text):
        assert split_words(word) == [word]


@given(st.text(), st.text())
def test_words_of_two_lines_are_those_of_each(first, second):
    assert split_words(f"{first}\n{second}") == split_words(first) + split_words(second)


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("Hello, World-wide!", {"world"}, "Hello, #-wide!"),
        ("東京の大学で研究する。", {"東京", "大学", "学で"}, "#の#で研究する。"),
        ("日本語。中 x", {"本語", "中"}, "日#。# x"),
        ("GPT模型2", {"gpt", "2"}, "#模型#"),
        ("ที่ดีมาก", {"ดีม"}, "ที่#าก"),
        ("le cafe\u0301 noir", {"cafe\u0301"}, "le # noir"),
        ("le cafe\u0301 noir", {"cafe"}, "le cafe\u0301 noir"),
    ],
)
def test_words_are_replaced_where_they_stand(text, words, expected):
    assert replace_words(text, lambda word: "#" if word.casefold() in words else None) == expected


@given(st.text() | st.text("日本 語aé\u0301ที่.1"))
def test_replacing_sees_the_words_and_leaves_the_rest(text):
    seen = []
    assert replace_words(text, seen.append) == text
    assert [word.casefold() for word in seen] == split_words(text) or text.casefold() != text
    assert replace_words(text, lambda word: word) == text


def test_joining_puts_spaces_only_where_the_script_has_them():
    assert join_words(["deep", "learning"]) == "deep learning"
    assert join_words(["日本", "経済", "gdp", "成長"]) == "日本経済 gdp 成長"


def test_lone_surrogates_are_seen():
    assert has_lone_surrogate("a\ud83d")
    assert not has_lone_surrogate("plain")
    assert not has_lone_surrogate("😀 é")
