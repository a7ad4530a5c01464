"""The model that training starts from: built from the corpus, or pretrained with new identifiers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from genret.config import PretrainedModel, SftConfig
from genret.decoding.trie import Trie
from genret.errors import InputError
from genret.training.batches import Collator, find_branchings, trie_children
from genret.training.bundle import Bundle, BundleSettings
from genret.training.encoding import encode_identifiers
from genret.training.machine import choose_attention
from genret.training.scratch import SEPARATOR, build_scratch_model, calibrate, train_tokenizer
from genret.training.sft import build_sft_dataset

# Identifiers count so many times in the tokenizer's training: their words shall be few tokens.
_IDENTIFIER_REPEATS = 5
_CALIBRATION_EXAMPLES = 768


def build_base(
    config: SftConfig,
    passages: pa.Table,
    identifiers: pa.Table,
    examples: pa.Table,
    identifier_type: Literal["semantic", "atomic"],
    seed: int,
) -> Bundle:
    """Tokenizer, trie and, from scratch, the initialised model.

    Args:
        config: The `sft` section: model, scoring, max_tokens.
        passages: The `passages` table.
        identifiers: The `identifiers` table, one row a passage in the same order.
        examples: The `sft_examples` table, by some of which the initial scores are scaled.
        identifier_type: How identifiers become tokens.
        seed: Seed of the initialisation.

    Returns:
        A bundle; without a model where a pretrained one is fine-tuned, whose weights every training worker loads
        by itself.
    """
    texts = passage_texts(passages)
    names = identifiers.column("identifier").to_pylist()
    model: PreTrainedModel | None = None
    if isinstance(config.model, PretrainedModel):
        tokenizer, first_row = _load_tokenizer(config.model)
        suffix = tuple(tokenizer(config.model.prompt_suffix, add_special_tokens=False)["input_ids"])
        if not suffix:
            raise InputError(
                f"sft.model.prompt_suffix: expected text with at least one token, found {config.model.prompt_suffix!r}"
            )
    else:
        tokenizer = train_tokenizer(
            [*texts, *names * _IDENTIFIER_REPEATS], config.model.vocabulary_size, config.max_tokens
        )
        first_row = len(tokenizer)
        suffix = (tokenizer.convert_tokens_to_ids(SEPARATOR),)
    tokens = encode_identifiers(names, identifier_type, tokenizer, first_row)
    trie = Trie.build(tokens.tokens, tokens.offsets)
    if not isinstance(config.model, PretrainedModel):
        model = build_scratch_model(config.model, tokenizer, texts, tokens, trie, identifier_type, seed)
    settings = BundleSettings(
        identifier_type=identifier_type,
        scoring=config.scoring,
        suffix=suffix,
        first_row=first_row,
        max_tokens=config.max_tokens,
        stage="base",
    )
    bundle = Bundle(model, tokenizer, trie, tokens, identifiers, settings)
    if model is not None and config.model.initialisation == "svd":
        _calibrate(bundle, examples.slice(0, _CALIBRATION_EXAMPLES))
    return bundle


def _calibrate(bundle: Bundle, examples: pa.Table) -> None:
    dataset = build_sft_dataset(bundle, examples)
    if len(dataset):
        collator = Collator(bundle.identifiers, find_branchings(bundle.trie, bundle.identifiers), "trie")
        batch = collator.collate(list(dataset["prompt"]), list(dataset["identifier"]))
        calibrate(bundle.model, batch, trie_children(bundle.trie))


def passage_texts(passages: pa.Table) -> list[str]:
    """Title and text of every passage, as a model reads them."""
    titles, texts = passages.column("title").to_pylist(), passages.column("text").to_pylist()
    return [f"{title}\n{text}" if title else text for title, text in zip(titles, texts, strict=True)]


def _load_tokenizer(model: PretrainedModel) -> tuple[PreTrainedTokenizerBase, int]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.name, revision=model.revision, trust_remote_code=False)
        settings = AutoConfig.from_pretrained(model.name, revision=model.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"sft.model.name: cannot load {model.name!r} at {model.revision!r}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"sft.model.name: the tokenizer of {model.name!r} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, max(settings.get_text_config().vocab_size, len(tokenizer))


def load_for_training(
    folder: Path, pretrained: PretrainedModel | None, stage: Literal["sft", "rpo"]
) -> Bundle:
    """A bundle whose model can be trained, in 32 bits; `precision` decides what it computes in.

    Args:
        folder: A saved bundle.
        pretrained: Where the weights come from if the bundle has none.
        stage: The stage that is about to train it.

    Returns:
        The bundle, its model in training mode.

    Raises:
        InputError: The bundle has no weights and no pretrained model is named.
    """
    bundle = Bundle.load(folder, attention=choose_attention())
    if bundle.model is None:
        if pretrained is None:
            raise InputError(f"{folder}: this bundle has no weights; expected a pretrained model beside it")
        bundle.model = AutoModelForCausalLM.from_pretrained(
            pretrained.name,
            revision=pretrained.revision,
            dtype=torch.float32,
            attn_implementation=choose_attention(),
            trust_remote_code=False,
        )
        if bundle.settings.identifier_type == "atomic":
            add_rows(bundle.model, bundle.settings.first_row, bundle.passages.num_rows)
    bundle.settings = replace(bundle.settings, stage=stage)
    bundle.model.train()
    return bundle


def add_rows(model: PreTrainedModel, first_row: int, count: int) -> None:
    """Give a model one new row an atomic identifier, beyond its vocabulary.

    The new rows start at the mean of the old ones, with a small random part, so that no identifier is likelier
    than another before training. The tokenizer does not know them.
    """
    model.resize_token_embeddings(first_row + count, mean_resizing=False)
    with torch.no_grad():
        for weight in _distinct(
            [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
        ):
            mean, spread = weight[:first_row].mean(0), weight[:first_row].std()
            noise = torch.randn(count, weight.shape[1], generator=torch.Generator().manual_seed(0))
            weight[first_row:] = mean + 0.1 * spread * noise.to(weight)


def _distinct(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return list({id(weight): weight for weight in weights}.values())
