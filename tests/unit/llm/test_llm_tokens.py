"""Tokens of a prompt, by a real tokenizer where there is one."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from genret.config import HttpConfig, VllmConfig
from genret.errors import InputError
from genret.llm.base import Request
from genret.llm.prompts import render
from genret.llm.tokens import ESTIMATED, estimated_tokens, token_counter

PROMPT = render(Request("r", "chunk", 3, "River", "The river floods the fields."))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer whose tokens are words between spaces."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{{ mark }} bot"
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)
    path = tmp_path_factory.mktemp("tokenizer")
    wrapped.save_pretrained(path)
    return str(path)


def words(text: str) -> int:
    return len(text.split())


def test_a_model_of_our_own_is_counted_with_its_tokenizer_and_template(folder: str):
    config = VllmConfig(model=folder, chat_template_arguments={"mark": "one two"})
    count, how = token_counter(config)
    assert count(PROMPT) == words(PROMPT.system) + words(PROMPT.user) + len(["system", "user", "one", "two", "bot"])
    assert how == f"counted with the tokenizer of {folder}"


def test_a_server_is_counted_with_the_tokenizer_that_is_named(folder: str):
    count, _ = token_counter(HttpConfig(base_url="http://h/v1", model="m", tokenizer=folder, system_role=False))
    assert count(PROMPT) == words(PROMPT.system) + words(PROMPT.user) + len(["user", "bot"])


def test_without_a_tokenizer_tokens_are_estimated_and_that_is_said(tmp_path: Path):
    assert token_counter(HttpConfig(base_url="http://h/v1", model="m")) == (estimated_tokens, ESTIMATED)
    count, how = token_counter(VllmConfig(model=str(tmp_path / "none")))
    assert count is estimated_tokens
    assert how == f"estimated, 4 bytes a token: no tokenizer at {tmp_path / 'none'}"
    assert words(PROMPT.user) < estimated_tokens(PROMPT) < 2 * (words(PROMPT.user) + words(PROMPT.system))


def test_a_named_tokenizer_that_is_not_there_is_an_error(tmp_path: Path):
    config = HttpConfig(base_url="http://h/v1", model="m", tokenizer=str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"llm\.tokenizer: expected a tokenizer, found none at .*none"):
        token_counter(config)
