import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.corpus.chunking import _ASCII_TOKEN, _TOKEN, LONGEST_WORD, chunk_text, count_tokens, tokenize_words

ANY_TEXT = st.text(
    st.characters(exclude_categories=()) | st.sampled_from(" .\nabcdeABCDE,字かहि\u0301\0\ud800"),
    max_size=400,
)


def without_space(text: str) -> str:
    return "".join(text.split())


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in tokenize_words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.50, Mr. X!", ["It", "'", "s", "3", ".", "50", ",", "Mr", ".", "X", "!"]),
        ("__init__ x_1", ["__init__", "x_1"]),
        ("naïve Übergröße", ["naïve", "Übergröße"]),
        ("nai\u0308ve e\u0301", ["nai\u0308ve", "e\u0301"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("مرحبا، عالم", ["مرحبا", "،", "عالم"]),
        ("日本語のABC処理", ["日", "本", "語", "の", "ABC", "処", "理"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("a" * (LONGEST_WORD + 1), ["a" * LONGEST_WORD, "a"]),
        ("é" * (2 * LONGEST_WORD), ["é" * LONGEST_WORD] * 2),
        (" \n\u3000", []),
        ("", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text(st.characters(max_codepoint=0x7F) | st.sampled_from("aZ0_ .\n"), max_size=200))
def test_the_quick_pattern_finds_the_same_in_ascii(text: str) -> None:
    for some in (text, text * LONGEST_WORD):
        assert _ASCII_TOKEN.findall(some) == _TOKEN.findall(some)


@given(ANY_TEXT | st.text(st.characters(max_codepoint=0x7F) | st.sampled_from("aZ0_ .\n"), max_size=200))
def test_tokens_are_counted_as_they_are_found(text: str) -> None:
    for some in (text, text * LONGEST_WORD):
        assert count_tokens(some) == len(tokenize_words(some))


@given(ANY_TEXT)
def test_tokens_cover_all_but_white_space(text: str) -> None:
    assert "".join(words(text)) == without_space(text)
    assert not any(character.isspace() for word in words(text) for character in word)


@given(ANY_TEXT, st.integers(1, 40))
def test_chunks_keep_every_character_and_the_limit(text: str, max_tokens: int) -> None:
    chunks = chunk_text(text, max_tokens)
    assert without_space("".join(chunks)) == without_space(text)
    assert all(0 < len(tokenize_words(chunk)) <= max_tokens for chunk in chunks)
    assert all(chunk == chunk.strip() for chunk in chunks)


@given(ANY_TEXT)
def test_a_text_that_fits_is_one_chunk(text: str) -> None:
    assert chunk_text(text, max(len(words(text)), 1)) == ([text.strip()] if text.strip() else [])


def test_chunks_end_at_sentence_ends() -> None:
    text = "One two three. Four five six. Seven eight nine."
    assert chunk_text(text, 9) == ["One two three. Four five six.", "Seven eight nine."]
    assert chunk_text(text, 7) == ["One two three.", "Four five six.", "Seven eight nine."]
    assert chunk_text(text, 12) == [text]


def test_a_sentence_that_is_too_long_is_cut_and_its_rest_goes_on() -> None:
    text = "Short one. This has a b c d e f g. End."
    assert chunk_text(text, 4) == ["Short one.", "This has a b", "c d e f", "g. End."]
    assert chunk_text(text, 9) == ["Short one.", "This has a b c d e f g", ". End."]


def test_white_space_within_a_chunk_stays() -> None:
    assert chunk_text("  First.\n\n    code here\n", 50) == ["First.\n\n    code here"]


def test_no_text_has_no_chunks() -> None:
    assert chunk_text(" \n ", 16) == []


@pytest.mark.parametrize("unit", ["word ", "x", "字", "Nine words are in this sentence, as it is. "])
def test_a_million_characters(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    chunks = chunk_text(text, 256)
    assert len(chunks) >= len(tokenize_words(text)) / 256
    assert len(without_space("".join(chunks))) == len(without_space(text))
