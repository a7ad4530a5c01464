"""Texts and identifiers as tokens, under tokenizers of several habits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from genret.errors import InputError
from genret.training.encoding import encode_identifiers, encode_prompts

WORDS = "the quick brown fox jumps over the lazy dog and sleeps"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def byte_tokenizer(adds: str = "") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, which knows every text; `adds`: bos, eos or both, around each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet, show_progress=False
        ),
    )
    if adds:
        template = f"{BOS if 'bos' in adds else ''} $A {EOS if 'eos' in adds else ''}".strip()
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(BOS, 0), (EOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


SUFFIX = (7, 8)
TOKENIZERS = {adds: byte_tokenizer(adds) for adds in ("", "bos", "eos", "bos eos")}


# --- prompts ---


def test_a_prompt_is_the_text_and_the_suffix() -> None:
    tokenizer = byte_tokenizer()
    (prompt,) = encode_prompts([WORDS], tokenizer, SUFFIX, 100)
    assert tuple(prompt[-2:]) == SUFFIX
    assert tokenizer.decode(prompt[:-2]) == WORDS


@pytest.mark.parametrize("adds", ["", "bos", "eos", "bos eos"])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_tokens=st.integers(4, 20))
def test_a_prompt_fits_and_loses_only_its_end(adds: str, text: str, max_tokens: int) -> None:
    tokenizer = TOKENIZERS[adds]
    (prompt,) = encode_prompts([text], tokenizer, SUFFIX, max_tokens)
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert len(prompt) <= max_tokens
    assert tuple(prompt[-2:]) == SUFFIX
    begin = [tokenizer.bos_token_id] if "bos" in adds else []
    room = max_tokens - len(SUFFIX) - len(begin) - ("eos" in adds)
    assert prompt[:-2] == begin + plain[:room]


@pytest.mark.parametrize(("adds", "expected"), [("", []), ("bos", [0]), ("eos", []), ("bos eos", [0])])
def test_the_empty_text_is_the_suffix_alone(adds: str, expected: list[int]) -> None:
    assert encode_prompts([""], byte_tokenizer(adds), SUFFIX, 10) == [[*expected, *SUFFIX]]


def test_no_text_no_prompt() -> None:
    assert encode_prompts([], byte_tokenizer(), SUFFIX, 10) == []


def test_special_tokens_in_a_text_are_text() -> None:
    tokenizer = byte_tokenizer("eos")
    (prompt,) = encode_prompts(["say </s>"], tokenizer, SUFFIX, 100)
    assert tokenizer.eos_token_id not in prompt
    assert tokenizer.decode(prompt[:-2]) == "say </s>"


# --- identifiers ---


def test_semantic_identifiers_end_with_the_end_of_sequence() -> None:
    tokenizer = byte_tokenizer("bos eos")
    names = ["quick fox", "fox", "東京 ½", "a</s>", "a"]
    identifiers = encode_identifiers(names, "semantic", tokenizer, 0)
    assert len(identifiers) == 5
    for number, name in enumerate(names):
        tokens = identifiers[number].tolist()
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tokens[:-1]) == name
        assert tokens.count(tokenizer.eos_token_id) == 1, "so that none is a prefix of another"
        assert tokenizer.bos_token_id not in tokens


def test_atomic_identifiers_are_rows_beyond_the_vocabulary() -> None:
    identifiers = encode_identifiers(["2", "0", "1"], "atomic", byte_tokenizer(), 300)
    assert identifiers.tokens.tolist() == [302, 300, 301]
    assert [identifiers[number].tolist() for number in range(3)] == [[302], [300], [301]]


def test_identifiers_with_the_same_tokens_are_named() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match="identifiers 'Fox' and 'fOX' have the same tokens under this tokenizer"):
        encode_identifiers(["dog", "Fox", "fOX"], "semantic", tokenizer, 0)
