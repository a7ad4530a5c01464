"""The dense retriever's encoder: built from the corpus, or any sentence-transformers model; and how it reads texts."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genret.allocator import keep_freed_memory
from genret.config import DenseConfig, PretrainedEncoder, ScratchEncoder
from genret.errors import InputError
from genret.runs import RunStore, StageRecord
from genret.threads import settle_vector_math
from genret.training.machine import choose_device
from genret.training.pickles import LACKS_SAFETENSORS, cannot_load, lacks_safetensors, own_name
from genret.training.scratch import bm25_weights, token_features, train_tokenizer

# No telemetry and no model card made of guesses. Nor is a service on the network given the user's token to convert
# pickled weights, whose answer is a revision that nobody named.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

_WORD = re.compile(r"\w+")
_MODULES = "modules.json"
_SETTINGS = "genret.json"
_FORMAT = 1
_OVERSAMPLING, _POWER_ITERATIONS = 20, 2
# Between 0, the directions of the singular vectors alone, and 1, those of the BM25 rows themselves.
_SINGULAR_POWER = 0.25

_WEB_SEARCH = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


@dataclass(frozen=True)
class Reading:
    """How an encoder reads texts.

    Attributes:
        query_prefix: Text before every query.
        passage_prefix: Text before every passage.
        normalise: Whether vectors have unit length, so that their inner product is the cosine.
        max_tokens: Longest text in tokens.
        distinct_words: Whether each word of a text is read once.
    """

    query_prefix: str
    passage_prefix: str
    normalise: bool
    max_tokens: int
    distinct_words: bool = False


_FAMILIES: dict[str, tuple[str, str, bool]] = {
    "plain": ("", "", True),
    # https://huggingface.co/BAAI/bge-large-en-v1.5
    "bge": ("Represent this sentence for searching relevant passages: ", "", True),
    # https://huggingface.co/facebook/contriever-msmarco: inner products of mean-pooled vectors
    "contriever": ("", "", False),
    # https://huggingface.co/intfloat/e5-base-v2
    "e5": ("query: ", "passage: ", True),
    # https://huggingface.co/intfloat/e5-mistral-7b-instruct
    "e5-mistral": (_WEB_SEARCH, "", True),
    # https://huggingface.co/Alibaba-NLP/gte-Qwen2-7B-instruct. Its card asks for code of the repository, which is not
    # run here: transformers' own Qwen2 is told to do what that does, see below.
    "gte-qwen2": (_WEB_SEARCH, "", True),
}
# Decoders that were trained to read a text as encoders do: every token attends to those behind it too.
_BIDIRECTIONAL = frozenset({"gte-qwen2"})

# Of these the first that a name holds. Rerankers read a query and a passage together; BGE's models of other languages
# have other instructions, or none, and those that are given examples have a prompt of their own.
_NAMES = (
    (r"rerank", "plain"),
    (r"contriever", "contriever"),
    (r"\bgte-qwen2", "gte-qwen2"),
    (r"\be5-(.*-)?instruct\b", "e5-mistral"),
    (r"\be5-", "e5"),
    (r"\bbge-(small|base|large)-en\b", "bge"),
)


def family_of(name: str) -> str:
    """The family that a model's name tells, in any case and behind any owner or folder; `plain` for none.

    Of a path the last folder counts, or, where that is a snapshot in the hub's cache, the one that holds the snapshots.
    """
    own = own_name(name).lower()
    return next((family for pattern, family in _NAMES if re.search(pattern, own)), "plain")


def chosen_family(config: DenseConfig) -> str | None:
    """The family that is configured or that the name tells; None for an encoder from scratch."""
    if isinstance(config.model, ScratchEncoder):
        return None
    return family_of(config.model.name) if config.model.family == "auto" else config.model.family


def reading_of(config: DenseConfig) -> Reading:
    """How the encoder of a configuration reads texts: its own prefixes, else those of its family."""
    if isinstance(config.model, ScratchEncoder):
        return Reading("", "", True, config.max_tokens, config.model.distinct_words)
    query_prefix, passage_prefix, normalise = _FAMILIES[chosen_family(config) or "plain"]
    return Reading(
        config.model.query_prefix or query_prefix,
        config.model.passage_prefix or passage_prefix,
        normalise,
        config.max_tokens,
    )


@dataclass
class Encoder:
    """A sentence-transformers model, and how it reads texts.

    The saved folder is one of sentence-transformers; where words are read once, it is given texts of such words here.

    Attributes:
        model: The model.
        reading: Prefixes, length, and whether vectors are normalised.
    """

    model: SentenceTransformer
    reading: Reading

    def features(self, texts: Sequence[str], *, queries: bool) -> dict[str, Tensor]:
        """Texts as the model's input, on its device."""
        prefix = self.reading.query_prefix if queries else self.reading.passage_prefix
        read = [distinct_words(text) for text in texts] if self.reading.distinct_words else texts
        features = self.model.preprocess([f"{prefix}{text}" for text in read])
        return {
            name: value.to(self.model.device) if isinstance(value, Tensor) else value
            for name, value in features.items()
        }

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], *, queries: bool, batch_size: int = 64) -> Tensor:
        """Vectors of texts.

        Args:
            texts: Any texts, the empty one too.
            queries: Whether they are queries; else passages.
            batch_size: Texts at a time, of similar length.

        Returns:
            float32 `(n, dimensions)` on the CPU. A text of which the model knows no token has a zero vector.
        """
        self.model.eval()
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        rows: Tensor | None = None
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            vectors = self.vectors(self.features([texts[place] for place in places], queries=queries)).float().cpu()
            rows = torch.empty(len(texts), vectors.shape[1]) if rows is None else rows
            rows[torch.tensor(places)] = vectors
        return rows if rows is not None else torch.empty(0, self.model.get_embedding_dimension() or 0)

    def vectors(self, features: dict[str, Tensor]) -> Tensor:
        """What the model makes of features, `(n, dimensions)`, with gradients where they are on."""
        return finish(self.model(features)["sentence_embedding"], self.reading.normalise)

    def save(self, folder: Path) -> None:
        """Write a folder that sentence-transformers opens too: weights in safetensors, and the prefixes as prompts."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.prompts = {"query": self.reading.query_prefix, "document": self.reading.passage_prefix}
        self.model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
        settings = {"format": _FORMAT, **asdict(self.reading)}
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, training: bool = False) -> "Encoder":
        """Open what `save` wrote, on the best device there is.

        Args:
            folder: The folder.
            training: Whether it will be trained, in 32 bits; else 16 on a GPU.

        Raises:
            InputError: The folder is no saved encoder.
        """
        path = folder / _SETTINGS
        if not path.is_file():
            raise InputError(f"{folder}: no saved encoder here; expected the file {_SETTINGS}")
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.pop("format", None) != _FORMAT:
            raise InputError(f"{path}: expected format {_FORMAT}")
        reading = Reading(**settings)
        return cls(_open(str(folder), "main", training), reading)

    @classmethod
    def pretrained(cls, config: DenseConfig, *, training: bool = False) -> "Encoder":
        """Open the model that the `dense` section names.

        Raises:
            InputError: There is no such model, it needs code of its own, or it has no weights in safetensors.
        """
        assert isinstance(config.model, PretrainedEncoder), "a model from scratch has no name"
        model = _open(config.model.name, config.model.revision, training)
        limit = model.max_seq_length
        if limit is not None and limit > config.max_tokens and not isinstance(model[0], StaticEmbedding):
            model.max_seq_length = config.max_tokens
        transformer = model.transformers_model
        if chosen_family(config) in _BIDIRECTIONAL and transformer is not None:
            # Read at every pass, and saved with the model: it stays so when it is trained and opened again.
            transformer.config.is_causal = False
        return cls(model, reading_of(config))


@dataclass(frozen=True)
class EncoderPlace:
    """Where an encoder is: in a run, or, if it is a pretrained one as it is, where its name says.

    Attributes:
        run_url: The run store.
        stage: The stage that wrote it, into a folder of the stage's name; empty for a pretrained one.
        config: The `dense` section.
    """

    run_url: str
    stage: str
    config: DenseConfig

    @classmethod
    def of(cls, run_url: str, config: DenseConfig, *, base: bool) -> "EncoderPlace":
        """Where the encoder of a configuration is; `base`: as it is before training."""
        if config.epochs and not base:
            return cls(run_url, "dense", config)
        return cls(run_url, "encoder" if isinstance(config.model, ScratchEncoder) else "", config)

    def open(self, records: Mapping[str, StageRecord], *, training: bool = False) -> Encoder:
        """The encoder, on the best device there is.

        Args:
            records: The run's current stages.
            training: Whether it will be trained.

        Raises:
            InputError: It is nowhere, or cannot be loaded.
        """
        if not self.stage:
            return Encoder.pretrained(self.config, training=training)
        if self.stage not in records:
            raise InputError(f"dense: expected the encoder of the stage {self.stage}, which the run does not have")
        return Encoder.load(RunStore(self.run_url).local_folder(records[self.stage], self.stage), training=training)


def distinct_words(text: str) -> str:
    """The words of a text in lower case, each where it stands first; punctuation is left out."""
    return " ".join(dict.fromkeys(_WORD.findall(text.lower())))


def finish(vectors: Tensor, normalise: bool) -> Tensor:
    """Vectors `(n, dimensions)` at unit length, if wanted; a zero vector stays one."""
    return F.normalize(vectors, dim=1) if normalise else vectors


def _open(name: str, revision: str, training: bool) -> SentenceTransformer:
    settle_vector_math()
    keep_freed_memory()
    device = choose_device()
    if Path(name).is_dir():
        _check_folder(Path(name))
    dtype = torch.bfloat16 if device.type == "cuda" and not training else torch.float32
    try:
        model = SentenceTransformer(
            name,
            revision=revision,
            device=str(device),
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": dtype},
        )
    except (OSError, ValueError, ImportError) as error:
        if LACKS_SAFETENSORS in str(error):
            raise lacks_safetensors("dense.model", name, f"none at {revision!r}", revision) from error
        raise cannot_load("dense.model", name, revision, error) from error
    return model


def _check_folder(folder: Path) -> None:
    """Refuse weights that are pickles, and modules that are not sentence-transformers' own."""
    pickles = [
        path
        for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
        for path in sorted(folder.rglob(pattern))
        if not list(path.parent.glob("*.safetensors"))
    ]
    if pickles:
        raise lacks_safetensors("dense.model", str(folder), pickles[0].name)
    if (folder / _MODULES).is_file():
        for module in json.loads((folder / _MODULES).read_text(encoding="utf-8")):
            if not str(module["type"]).startswith("sentence_transformers."):
                raise InputError(
                    f"dense.model.name: {folder}: expected modules of sentence_transformers, found {module['type']!r}"
                )


def build_scratch_encoder(config: DenseConfig, texts: Sequence[str], seed: int) -> Encoder:
    """An encoder made from the corpus: a bag of word pieces that already retrieves before training.

    With W ~ U S V' the truncated SVD of the matrix of BM25 weights of token features in passages (see
    `genret.training.scratch`), a token's row is idf U S^0.25, and a text's vector the normalised mean of its tokens'
    rows: latent semantic analysis with queries folded in as passages are (Deerwester et al., 1990), with the singular
    values damped, which favours rare senses over broad topics. Pieces of one stem start alike.

    Args:
        config: The `dense` section.
        texts: Title and text of every passage.
        seed: Seed of the randomised SVD.

    Returns:
        The encoder, with stock modules of sentence-transformers.

    Raises:
        InputError: The model of the section is not from scratch, or its language is unknown.
    """
    assert isinstance(config.model, ScratchEncoder), "a pretrained model is not built"
    tokenizer = train_tokenizer(texts, config.model.vocabulary_size, config.max_tokens)
    rows = latent_rows(
        tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"],
        token_features(tokenizer, config.model.language, "dense.model.language"),
        config.model.dimensions,
        seed,
    )
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(config.max_tokens)
    model = SentenceTransformer(
        modules=[StaticEmbedding(backend, embedding_weights=rows), Normalize()], device=str(choose_device())
    )
    return Encoder(model, reading_of(config))


def latent_rows(encoded: Sequence[Sequence[int]], feature: np.ndarray, dimensions: int, seed: int) -> Tensor:
    """Rows of all tokens, float32 `(vocabulary, dimensions)`, at a mean length of 1; zero for special tokens.

    Args:
        encoded: Token ids of every passage.
        feature: Feature of every token; -1 leaves a token out.
        dimensions: Width; what a small corpus cannot fill is zero.
        seed: Seed of the randomised SVD (Halko et al., 2011).
    """
    matrix, idf = bm25_weights(encoded, feature)
    rank = min(dimensions, *matrix.shape)
    coordinates = matrix.tocoo()
    indices = torch.from_numpy(np.stack([coordinates.row, coordinates.col]).astype(np.int64))
    sparse = torch.sparse_coo_tensor(
        indices, torch.from_numpy(coordinates.data), matrix.shape, check_invariants=False
    ).coalesce()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left, values, _ = torch.svd_lowrank(sparse, q=min(rank + _OVERSAMPLING, *matrix.shape), niter=_POWER_ITERATIONS)
    rows = torch.from_numpy(idf).unsqueeze(1) * left[:, :rank] * values[:rank] ** _SINGULAR_POWER
    padded = torch.zeros(len(rows) + 1, dimensions)
    padded[:-1, :rank] = rows
    taken = padded[torch.from_numpy(feature)]
    length = taken.norm(dim=1)
    return taken / length[length > 0].mean() if bool((length > 0).any()) else taken
