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
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from genret.config import PretrainedModel, ScratchModel, SftConfig
from genret.decoding.limits import longest_sequence
from genret.decoding.trie import Trie
from genret.errors import InputError
from genret.training.batches import Collator, find_branchings, trie_children
from genret.training.bundle import Bundle, BundleSettings
from genret.training.encoding import encode_identifiers
from genret.training.machine import ATTENTION
from genret.training.pickles import LACKS_SAFETENSORS, cannot_load, lacks_safetensors
from genret.training.scratch import SEPARATOR, build_scratch_model, calibrate, train_tokenizer
from genret.training.sft import build_sft_dataset

# Identifiers count so many times in the tokenizer's training: their words shall be few tokens.
_IDENTIFIER_REPEATS = 100
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

    Raises:
        InputError: The pretrained model cannot be loaded, or its tokenizer or its number of positions does not
            fit the section; two identifiers have the same tokens; the stemmer's language is unknown.
    """
    texts = passage_texts(passages)
    names = identifiers.column("identifier").to_pylist()
    if isinstance(config.model, PretrainedModel):
        tokenizer, architecture = _load_tokenizer(config.model)
        first_row = max(architecture.vocab_size, len(tokenizer))
        suffix = _encode_suffix(config, config.model.prompt_suffix, tokenizer)
    else:
        # Atomic ones are numbers that no one reads as text: they would only take the place of words.
        written = names * _IDENTIFIER_REPEATS if identifier_type == "semantic" else []
        tokenizer = train_tokenizer([*texts, *written], config.model.vocabulary_size, config.max_tokens)
        first_row = len(tokenizer)
        suffix = (tokenizer.convert_tokens_to_ids(SEPARATOR),)
    tokens = encode_identifiers(names, identifier_type, tokenizer, first_row)
    trie = Trie.build(tokens.tokens, tokens.offsets)
    model: PreTrainedModel | None = None
    if isinstance(config.model, ScratchModel):
        model = build_scratch_model(config.model, tokenizer, texts, tokens, trie, identifier_type, seed)
    else:
        _check_positions(config, architecture, trie)
    settings = BundleSettings(
        identifier_type=identifier_type,
        scoring=config.scoring,
        suffix=suffix,
        first_row=first_row,
        max_tokens=config.max_tokens,
        stage="base",
    )
    bundle = Bundle(model, tokenizer, trie, tokens, identifiers, settings)
    if isinstance(config.model, ScratchModel) and config.model.initialisation == "svd":
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


def _load_tokenizer(model: PretrainedModel) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    """The tokenizer of a pretrained model, and the settings of its text part."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.name, revision=model.revision, trust_remote_code=False)
        settings = AutoConfig.from_pretrained(model.name, revision=model.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise cannot_load("sft.model", model.name, model.revision, error) from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"sft.model.name: the tokenizer of {model.name!r} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.truncation_side = "right"
    return tokenizer, settings.get_text_config()


def _encode_suffix(config: SftConfig, text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    suffix = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not 0 < len(suffix) < config.max_tokens:
        raise InputError(
            f"sft.model.prompt_suffix: expected text of at least one token and fewer than sft.max_tokens "
            f"({config.max_tokens}), found {text!r} with {len(suffix)}"
        )
    return suffix


def _check_positions(config: SftConfig, architecture: PretrainedConfig, trie: Trie) -> None:
    positions = longest_sequence(architecture)
    if positions is not None and config.max_tokens + trie.max_length > positions:
        raise InputError(
            f"sft.max_tokens: expected at most {positions - trie.max_length}, as the model has {positions} positions "
            f"and the longest identifier {trie.max_length} tokens, found {config.max_tokens}"
        )


def load_for_training(
    folder: Path,
    pretrained: PretrainedModel | None,
    stage: Literal["sft", "rpo"],
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = ATTENTION,
) -> Bundle:
    """A bundle whose model can be trained.

    Args:
        folder: A saved bundle.
        pretrained: Where the weights come from if the bundle has none.
        stage: The stage that is about to train it.
        dtype: Number format of the weights; `precision` decides what the model computes in.
        attention: Transformers' `attn_implementation`.

    Returns:
        The bundle, its model in training mode.

    Raises:
        InputError: The bundle has no weights and no pretrained model is named, or its weights cannot be loaded.
    """
    bundle = Bundle.load(folder, dtype=dtype, attention=attention)
    if bundle.model is None:
        if pretrained is None:
            raise InputError(f"{folder}: this bundle has no weights; expected a pretrained model beside it")
        bundle.model = _load_weights(pretrained, dtype, attention)
        if bundle.settings.identifier_type == "atomic":
            add_rows(bundle.model, bundle.settings.first_row, bundle.passages.num_rows)
    bundle.settings = replace(bundle.settings, stage=stage)
    bundle.model.train()
    return bundle


def _load_weights(pretrained: PretrainedModel, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_pretrained(
            pretrained.name,
            revision=pretrained.revision,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        folder = Path(pretrained.name)
        pickles = [] if any(folder.glob("*.safetensors")) else sorted(folder.glob("pytorch_model*.bin"))
        if pickles or LACKS_SAFETENSORS in str(error):
            found = pickles[0].name if pickles else f"none at {pretrained.revision!r}"
            raise lacks_safetensors("sft.model", pretrained.name, found, pretrained.revision) from error
        raise cannot_load("sft.model", pretrained.name, pretrained.revision, error) from error


def add_rows(model: PreTrainedModel, first_row: int, count: int) -> None:
    """Give a model one new row an atomic identifier, beyond its vocabulary.

    The new rows start at the mean of the old ones, with a small random part, so that no identifier is likelier
    than another before training. The tokenizer does not know them.
    """
    model.resize_token_embeddings(first_row + count, mean_resizing=False)
    with torch.no_grad():
        for weight in _distinct([model.get_input_embeddings().weight, model.get_output_embeddings().weight]):
            mean, spread = weight[:first_row].mean(0), weight[:first_row].std()
            noise = torch.randn(count, weight.shape[1], generator=torch.Generator().manual_seed(0))
            weight[first_row:] = mean + 0.1 * spread * noise.to(weight)


def _distinct(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return list({id(weight): weight for weight in weights}.values())
