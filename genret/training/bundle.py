"""A generative retriever on disk: a Hugging Face folder with the trie and all that decoding needs."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from genret.decoding.trie import Trie
from genret.errors import InputError
from genret.training.batches import IdentifierTokens
from genret.training.machine import ATTENTION

_FORMAT = 1
_SETTINGS = "genret.json"
_TOKENS = "identifier_tokens.npy"
_OFFSETS = "identifier_offsets.npy"
_PASSAGES = "identifiers.parquet"


@dataclass(frozen=True)
class BundleSettings:
    """What a saved retriever must remember beside its weights.

    Attributes:
        identifier_type: `semantic` or `atomic`.
        scoring: `trie` or `vocabulary`: how the model was trained and must be decoded.
        suffix: Token ids between query and identifier.
        first_row: `atomic`: the embedding row of ordinal 0.
        max_tokens: Most tokens of a prompt.
        stage: The training stage that made it: `base`, `sft` or `rpo`.
    """

    identifier_type: str
    scoring: str
    suffix: tuple[int, ...]
    first_row: int
    max_tokens: int
    stage: str


@dataclass
class Bundle:
    """A model with its tokenizer, its trie and the passages that the trie's identifiers stand for.

    Attributes:
        model: The causal language model; None in the folder that a pretrained model starts from, whose weights
            come from the hub.
        tokenizer: The model's tokenizer.
        trie: Over `identifiers`, in their order.
        identifiers: Token sequences.
        passages: The `identifiers` table, in the same order.
        settings: What decoding must know.
    """

    model: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    trie: Trie
    identifiers: IdentifierTokens
    passages: pa.Table
    settings: BundleSettings

    def save(self, folder: Path) -> None:
        """Write everything into a folder, which is made if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.model is not None:
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.trie.save(folder / "trie")
        np.save(folder / _TOKENS, self.identifiers.tokens, allow_pickle=False)
        np.save(folder / _OFFSETS, self.identifiers.offsets, allow_pickle=False)
        pq.write_table(self.passages, folder / _PASSAGES, compression="zstd")
        settings = {"format": _FORMAT, **asdict(self.settings)}
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype = torch.float32, attention: str = ATTENTION) -> "Bundle":
        """Read a folder that `save` wrote.

        Args:
            folder: The folder.
            dtype: Number format of the weights.
            attention: Transformers' `attn_implementation`.

        Returns:
            The retriever, its model in evaluation mode on the CPU; without a model where none was saved.

        Raises:
            InputError: The folder is no saved retriever, or one of another format.
        """
        settings = read_settings(folder)
        for file in (_TOKENS, _OFFSETS, _PASSAGES):
            if not (folder / file).is_file():
                raise InputError(f"{folder}: expected the file {file}, found none")
        model = None
        if (folder / "config.json").is_file():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation=attention, trust_remote_code=False, use_safetensors=True
            ).eval()
        return cls(
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
            trie=Trie.load(folder / "trie"),
            identifiers=load_identifier_tokens(folder),
            passages=pq.read_table(folder / _PASSAGES),
            settings=settings,
        )


def load_identifier_tokens(folder: Path) -> IdentifierTokens:
    """The token sequences of the identifiers of a saved retriever, without the rest of it."""
    return IdentifierTokens(
        np.load(folder / _TOKENS, allow_pickle=False), np.load(folder / _OFFSETS, allow_pickle=False)
    )


def read_settings(folder: Path) -> BundleSettings:
    """What a saved retriever remembers beside its weights.

    Raises:
        InputError: The folder is no saved retriever, or one of another format.
    """
    path = folder / _SETTINGS
    if not path.is_file():
        raise InputError(f"{folder}: no saved retriever here; expected the file {_SETTINGS}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, found something else ({error})") from error
    if not isinstance(settings, dict) or settings.get("format") != _FORMAT:
        raise InputError(f"{path}: expected a JSON object of format {_FORMAT}, found {settings!r:.80}")
    del settings["format"]
    expected = sorted(field.name for field in fields(BundleSettings))
    if sorted(settings) != expected:
        raise InputError(f"{path}: expected the fields {expected}, found {sorted(settings)}")
    return BundleSettings(**(settings | {"suffix": tuple(settings["suffix"])}))
