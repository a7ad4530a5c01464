"""Tokens of a prompt: by the model's own tokenizer, or estimated."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genret.config import HttpConfig, VllmConfig
from genret.errors import InputError
from genret.llm.prompts import Prompt

BYTES_A_TOKEN = 4
"""Bytes of a text in UTF-8 for one token, roughly, in any language: what is reckoned with where nothing can count.
English has about this (https://help.openai.com/en/articles/4936856); scripts that a tokenizer knows little of have
less, code has less too."""

ESTIMATED = f"estimated, {BYTES_A_TOKEN} bytes a token"
"""What is said of tokens that nothing counted."""

_MESSAGE_TOKENS = 8
"""Beside a prompt's texts: what a chat template puts around two messages, roughly."""


def estimated_tokens(prompt: Prompt) -> int:
    """About how many tokens a prompt has, for any model."""
    return (len(prompt.system.encode()) + len(prompt.user.encode())) // BYTES_A_TOKEN + _MESSAGE_TOKENS


def prompt_tokens(config: VllmConfig, tokenizer: Any, system: str, user: str) -> list[int]:
    """A prompt as tokens.

    Args:
        config: The `llm` section.
        tokenizer: The model's, as transformers has it.
        system: What the model is.
        user: The task.

    Returns:
        The prompt in the model's chat template, up to where the answer begins. For a model without a template: both
        texts as they are, each followed by an empty line.
    """
    return _templated(tokenizer, system, user, config.system_role, config.chat_template_arguments)


def _templated(tokenizer: Any, system: str, user: str, system_role: bool, arguments: dict[str, Any]) -> list[int]:
    if getattr(tokenizer, "chat_template", "built in") is None:
        return list(tokenizer(f"{system}\n\n{user}\n\n")["input_ids"])
    messages = [{"role": "user", "content": user if system_role else f"{system}\n\n{user}"}]
    if system_role:
        messages.insert(0, {"role": "system", "content": system})
    # Tokens at once: as text, they would get a second token for their beginning.
    return list(
        tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, add_generation_prompt=True, **arguments
        )
    )


def token_counter(config: HttpConfig | VllmConfig) -> tuple[Callable[[Prompt], int], str]:
    """What counts the tokens of prompts for a model.

    A `vllm` model has its tokenizer beside it; an `http` model has the one that `llm.tokenizer` names, if any. The
    hub is asked unless HF_HUB_OFFLINE forbids it.

    Args:
        config: The `llm` section.

    Returns:
        The function, and how it counts, to be shown: with which tokenizer, or `ESTIMATED` where a `vllm` model's
        cannot be loaded here (the model may lie on other nodes) or no tokenizer is named.

    Raises:
        InputError: `llm.tokenizer` names one that cannot be loaded.
    """
    named = config.tokenizer if isinstance(config, HttpConfig) else config.model
    if not named:
        return estimated_tokens, ESTIMATED
    try:
        tokenizer = _load(named, "main" if isinstance(config, HttpConfig) else config.revision)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(config, HttpConfig):
            message = " ".join(str(error).split())[:300]
            raise InputError(f"llm.tokenizer: expected a tokenizer, found none at {named!r} ({message})") from error
        return estimated_tokens, f"{ESTIMATED}: no tokenizer at {named}"
    arguments = {} if isinstance(config, HttpConfig) else config.chat_template_arguments
    return (
        lambda prompt: len(_templated(tokenizer, prompt.system, prompt.user, config.system_role, arguments)),
        f"counted with the tokenizer of {named}",
    )


def _load(name: str, revision: str) -> Any:
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    if folder.is_dir():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if folder.is_absolute() or "://" in name:
        raise OSError(f"no such folder: {os.fspath(folder)}")
    return AutoTokenizer.from_pretrained(name, revision=revision)
