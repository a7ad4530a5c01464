import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from genret.identifiers.uniqueness import EXTENDED, LLM, ORDINAL, make_unique, normalisation_key


def fine_key(text):
    """NFKC, case and white space only: what `normalisation_key` must at least make equal."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


# Few different words, so that collisions are the rule.
WORDS = st.sampled_from(
    ["a", "A", "ä", "a\u0308", "ａ", "b", "a b", "2", "3", "1", "ﬁ", "fi", "c-d", "c - d", "ß", "SS"]
)
LISTS = st.lists(st.lists(WORDS, max_size=6), max_size=40)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cell  Wall", "cell wall"),
        ("ﬁbre", "fibre"),
        ("STRASSE", "straße"),
        ("ｆｕｌｌ", "full"),
        ("résumé", "re\u0301sume\u0301"),
        ("résumé", "resume"),
        ("x-ray", "x - ray"),
        ("a\u200bb", "ab"),
        ("a\x00b", "ab"),
        ("tab\tbed", "tab\nbed"),
        ("İ", "i"),
    ],
)
def test_what_a_tokenizer_may_drop_makes_no_difference(one, other):
    assert normalisation_key(one) == normalisation_key(other)


@pytest.mark.parametrize(("one", "other"), [("c++", "c#"), ("日本", "本日"), ("😀", "😁"), ("il 10", "il 1")])
def test_what_tokens_tell_apart_is_different(one, other):
    assert normalisation_key(one) != normalisation_key(other)


@pytest.mark.parametrize("text", ["", " \n", "\u0301", "\u200b", "\x00"])
def test_nothing_is_left_of_nothing(text):
    assert normalisation_key(text) == ""


@given(st.text(), st.text())
@example("ᾳ", "αι")
def test_the_key_is_coarser_than_nfkc_case_and_white_space(one, other):
    for text in (unicodedata.normalize("NFKC", one), one.casefold(), one.upper().casefold(), f" {one}\t"):
        if fine_key(text) == fine_key(one):
            assert normalisation_key(text) == normalisation_key(one)
    if fine_key(one) == fine_key(other):
        assert normalisation_key(one) == normalisation_key(other)


@given(st.text())
def test_the_key_of_a_key_is_itself(text):
    key = normalisation_key(text)
    assert normalisation_key(key) == key


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [
        (
            normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
            pre_tokenizers.Whitespace(),
        ),
        (normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    ],
)
# The replacement character, which BERT drops and the key keeps; the iota subscript, also within a letter, which is both
# an accent (BERT) and a letter (case folding).
@given(
    text=st.text(
        st.characters(codec="utf-8", exclude_characters="\ufffd").filter(
            lambda character: "\u0345" not in unicodedata.normalize("NFD", character)
        )
    )
)
@example(text="a౸ Ⅻ x² İı ſ")
def test_the_key_keeps_no_more_than_tokenizers_do(normalizer, pre_tokenizer, text):
    """Texts with the same pieces have the same key: the pieces alone decide it."""
    pieces = [piece for piece, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))]
    assert normalisation_key(" ".join(pieces)) == normalisation_key(text)


@given(LISTS, st.integers(1, 4), st.integers(0, 4), st.sampled_from([" ", ", "]))
def test_no_two_identifiers_are_the_same(keywords, first, more, separator):
    unique = make_unique(keywords, first, first + more, separator)
    assert len(unique.identifiers) == len(unique.sources) == len(keywords)
    keys = [normalisation_key(identifier) for identifier in unique.identifiers]
    assert len(set(keys)) == len(keys)
    assert "" not in keys


@given(LISTS, st.integers(1, 4), st.integers(0, 4))
def test_identifiers_are_the_shortest_that_are_free(keywords, first, more):
    """Against a naive version that looks at every identifier given so far."""
    most = first + more
    unique = make_unique(keywords, first, most, " ")
    taken = []
    for words, identifier, source in zip(keywords, unique.identifiers, unique.sources, strict=True):
        options = [(" ".join(words[:count]), EXTENDED) for count in range(min(first, len(words)), most + 1)]
        options[0] = (options[0][0], LLM)
        stem = " ".join(words[:most])
        options += [(f"{stem} {number}".strip(), ORDINAL) for number in range(2 if stem else 1, len(keywords) + 50)]
        free = next(
            option for option in options if normalisation_key(option[0]) and normalisation_key(option[0]) not in taken
        )
        assert (identifier, source) == free
        taken.append(normalisation_key(identifier))


def test_a_collision_takes_the_next_keyword_then_a_number():
    keywords = [["a", "b", "c"], ["A", "b", "d"], ["a", "B"], ["a", "b"], ["a", "b", "d", "e"]]
    unique = make_unique(keywords, 2, 3, " ")
    assert unique.identifiers == ["a b", "A b d", "a B 2", "a b 3", "a b d 2"]
    assert unique.sources == [LLM, EXTENDED, ORDINAL, ORDINAL, ORDINAL]


def test_a_number_that_is_taken_as_a_keyword_is_left_out():
    keywords = [["a", "2"], ["a", "3"], ["a"], ["a"], ["a"], []]
    unique = make_unique(keywords, 2, 2, " ")
    assert unique.identifiers == ["a 2", "a 3", "a", "a 4", "a 5", "1"]


def test_many_passages_with_the_same_keywords():
    unique = make_unique([["same", "words"]] * 50_000, 2, 2, " ")
    assert unique.identifiers[0] == "same words"
    assert unique.identifiers[-1] == "same words 50000"
    assert len(set(unique.identifiers)) == 50_000


def test_many_passages_without_keywords():
    assert make_unique([[]] * 3, 4, 10, " ").identifiers == ["1", "2", "3"]
