"""The sections of the dense retriever and of the negatives that it learns from.

SyNeg: arXiv 2412.17250.
"""

from typing import Annotated, Literal

from pydantic import Field

from genret.config.section import Section


class NegativesConfig(Section):
    """Passages that look relevant to a query and are not, to train the dense retriever with (SyNeg)."""

    source: Literal["none", "random", "retrieved", "synthetic", "hybrid"] = "hybrid"
    """`none`: only the passages of the other queries of a batch. `random`: any passages. `retrieved`: what a
    retriever finds. `synthetic`: what the engine of the `llm` section writes. `hybrid`: retrieved and synthetic
    mixed (SyNeg's own)."""
    count: int = Field(1, ge=1, le=64)
    """Negatives of a query in a training step."""
    synthetic_share: float = Field(0.5, ge=0.0, le=1.0)
    """`hybrid`: share of the synthetic ones (SyNeg: 50:50), or where it starts."""
    adjust_share: bool = False
    """`hybrid`: move the share during training by what it does to the validation queries."""
    retriever: Literal["bm25", "dense_base"] = "bm25"
    """Who retrieves negatives and the engine's context: BM25, or the dense retriever as it is before training."""
    candidates: int = Field(20, ge=1, le=1000)
    """How many passages are retrieved a query, to choose negatives from."""
    max_score_ratio: float = Field(0.95, gt=0.0, le=1.0)
    """Guard against false negatives: a passage that scores more than this share of the query's own is left out
    (TopK-PercPos of NV-Retriever, arXiv 2407.15831: 0.95). Where the query's own was not found, all are left out."""
    queries_a_passage: int = Field(4, ge=0, le=1000)
    """Train with at most so many synthetic queries of each passage, drawn at random; 0: all."""


class ScratchEncoder(Section):
    """A bag of word pieces, initialised from the corpus: the mean of their vectors, at unit length."""

    type: Literal["scratch"] = "scratch"
    """`scratch`: as below. `pretrained`: by name, with other fields."""
    vocabulary_size: int = Field(16_000, ge=300, le=200_000)
    """Size of the byte-pair vocabulary that is trained on the corpus (at most)."""
    dimensions: int = Field(512, ge=8, le=4096)
    """Width of the vectors."""
    language: str = Field("english", pattern=r"^[a-z]+$")
    """Snowball language in which words of one stem start alike."""
    distinct_words: bool = False
    """Read every word of a text once, however often it stands there: better where passages are long or repeat
    themselves."""


class PretrainedEncoder(Section):
    """Any sentence-transformers model, by name or path, with weights in safetensors and without code of its own."""

    type: Literal["pretrained"] = "pretrained"
    """`pretrained`: as below. `scratch`: a small one, with other fields."""
    name: str = Field(min_length=1)
    """Hub name or local folder. Of a folder the content decides, not where it lies."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    family: Literal["auto", "plain", "bge", "contriever", "e5", "e5-mistral", "gte-qwen2"] = "auto"
    """How queries and passages are presented, as the model's authors do: `bge`: an instruction before queries.
    `e5`: what a text is before queries and passages. `e5-mistral`, `gte-qwen2`: a task description before queries.
    `contriever`: inner products of vectors as they are. `plain`: no instructions, unit length. `auto`: the one that the
    model's name tells, else `plain`."""
    query_prefix: str = Field("", max_length=1000)
    """Text before every query; empty: that of the family."""
    passage_prefix: str = Field("", max_length=1000)
    """Text before every passage; empty: that of the family."""


EncoderConfig = Annotated[ScratchEncoder | PretrainedEncoder, Field(discriminator="type")]


class DenseConfig(Section):
    """The dense retriever: its encoder, its training on the synthetic queries, and its index."""

    INCIDENTAL = frozenset({"embedding_batch", "checkpoints"})

    model: EncoderConfig = ScratchEncoder()
    """What turns texts into vectors."""
    loss: Literal["contrastive", "debiased"] = "contrastive"
    """`contrastive`: InfoNCE over the batch and the explicit negatives. `debiased`: corrected for negatives that are
    positives (Chuang et al., arXiv 2007.00224)."""
    false_negative_rate: float = Field(0.01, ge=0.0, lt=1.0)
    """`debiased`: the share of negatives that are taken to be positives (tau+)."""
    temperature: float = Field(0.05, gt=0.0, le=100.0)
    """What scores are divided by in the loss."""
    epochs: float = Field(1.0, ge=0.0, le=1000.0)
    """Passes over the queries; 0: the encoder stays as it is."""
    batch_size: int = Field(128, ge=1, le=65536)
    """Queries an optimiser step, over all workers. Each worker contrasts its own share."""
    learning_rate: float = Field(1e-3, gt=0.0, le=1.0)
    """Highest learning rate; pretrained models want some 1e-5."""
    warmup_ratio: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the steps in which the rate rises."""
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    """How the rate falls after the warm-up."""
    max_tokens: int = Field(256, ge=8, le=32_768)
    """Longest text in tokens; longer ones are cut at their end."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the computation in training."""
    validation_queries: int = Field(256, ge=0, le=100_000)
    """`negatives.adjust_share`: so many queries are kept out of training (at most a tenth of them)."""
    validations: int = Field(8, ge=1, le=1000)
    """`negatives.adjust_share`: how often the share may move in training."""
    checkpoints: int = Field(2, ge=0, le=1000)
    """How often to save a checkpoint to resume from; 0: never. A change of it trains nothing anew."""
    vectors: Literal["fp16", "int8"] = "fp16"
    """Number format of the index; `int8` has one scale a vector."""
    index: Literal["exact", "lists"] = "exact"
    """`exact`: every query is compared with every vector. `lists`: only with those of the nearest lists
    (`retrieval.probes`), for a million passages and more; needs the extra faiss."""
    embedding_batch: int = Field(64, ge=1, le=65536)
    """Texts that an actor embeds together."""
