"""The configuration of a run: one section a stage, every field bounded and documented."""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genret.errors import InputError


class Section(BaseModel):
    """What all sections share: unknown keys are errors, values are frozen, docstrings describe fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CorpusConfig(Section):
    """Where the documents come from, and what the unit of retrieval is."""

    type: Literal["beir", "jsonl", "parquet", "ir_datasets", "python_docs"] = "beir"
    """`beir`: a folder with corpus.jsonl[.gz], queries.jsonl[.gz] and qrels/SPLIT.tsv. `jsonl`, `parquet`: one
    file of documents. `ir_datasets`: a dataset id (needs the extra). `python_docs`: the docstrings of the
    standard library of the Python that runs."""
    path: str = ""
    """The folder or file (or ir_datasets id). Empty only for `python_docs`."""
    split: str = Field("test", min_length=1, pattern=r"^[\w.-]+$")
    """Which queries and judgements to evaluate with."""
    id_field: str = "_id"
    """`jsonl` and `parquet`: the field with the document's id."""
    title_field: str = "title"
    """`jsonl` and `parquet`: the field with the title; a document without it has no title."""
    text_field: str = "text"
    """`jsonl` and `parquet`: the field with the text."""
    queries_path: str = ""
    """`jsonl` and `parquet`: a JSONL file of queries (`_id`, `text`); empty: none, and nothing is evaluated."""
    qrels_path: str = ""
    """`jsonl` and `parquet`: a TSV file of judgements (query-id, corpus-id, score)."""
    unit: Literal["document", "chunk"] = "document"
    """What is retrieved: whole documents, or chunks of them without overlap."""
    chunk_tokens: int = Field(256, ge=16, le=8192)
    """Most tokens a chunk (arXiv 2502.17957, appendix A.1: 256), counted as words and punctuation marks."""
    max_documents: int = Field(0, ge=0)
    """Read only the first so many documents; 0: all."""


class ExtractiveConfig(Section):
    """The engine without a model: keywords by tf-idf, queries sampled from the passage's own terms."""

    type: Literal["extractive"] = "extractive"
    background_noise: float = Field(0.6, ge=0.0, le=0.95)
    """Greatest share of a query's terms that is replaced by words drawn from the whole corpus. Plays the part
    of smoothing in a query-likelihood model; without it a small model overfits within a minute."""
    min_terms: int = Field(3, ge=1, le=50)
    """Fewest terms sampled for a query."""
    max_terms: int = Field(12, ge=1, le=100)
    """Most terms sampled for a query."""
    language: str = Field("english", pattern=r"^[a-z]+$")
    """Language of the stop words (those of bm25s; an unknown one is an error); `none` has none. Only English
    queries begin as questions."""


LlmConfig = Annotated[ExtractiveConfig, Field()]


class IdentifiersConfig(Section):
    """How passages get their identifiers (docids)."""

    type: Literal["semantic", "atomic"] = "semantic"
    """`semantic`: a list of keywords, unique in the corpus. `atomic`: one new token a passage."""
    keywords: int = Field(4, ge=1, le=32)
    """Semantic: how many keywords an identifier starts with."""
    max_keywords: int = Field(10, ge=1, le=64)
    """Semantic: how many keywords a collision may extend it to, before an ordinal is added."""


class SynthesisConfig(Section):
    """How many synthetic queries to write, and of which kinds."""

    chunk_queries: int = Field(10, ge=0, le=1000)
    """Queries from a whole passage (m_c; paper: 10, NQ 15)."""
    sentence_queries: int = Field(10, ge=0, le=1000)
    """Queries from each single sentence (m_s; paper: 10)."""
    constraint_queries: int = Field(0, ge=0, le=1000)
    """Queries a passage that name some of its metadata (m_i; paper: 10)."""
    constraint_fields: tuple[str, ...] = ()
    """The metadata fields that constraint queries may name (paper, table 10)."""
    preference_queries: int = Field(4, ge=0, le=1000)
    """Query-answer pairs a passage for preference learning (paper: 10); 0 leaves preference learning out."""
    min_sentence_words: int = Field(4, ge=1, le=100)
    """Shorter sentences get no queries of their own."""
    max_sentences: int = Field(0, ge=0)
    """Use only the first so many sentences of a passage; 0: all."""


class ExamplesConfig(Section):
    """How texts and queries become training rows (paper, sections 3.2 and 3.3)."""

    context2id: Literal["chunk", "sentence", "none"] = "chunk"
    """What Context2ID maps to the identifier: chunks of the passage, its sentences, or nothing."""
    context_tokens: int = Field(256, ge=8, le=8192)
    """Most tokens a Context2ID chunk (paper: 256), counted as words and punctuation marks."""
    mix: Literal["interleave", "concat"] = "interleave"
    """`interleave`: Context2ID rows are repeated until they alternate with the queries (paper, table 5);
    `concat`: each once."""
    context_share: float = Field(0.5, gt=0.0, lt=1.0)
    """With `interleave`: the share of Context2ID among all rows; 0.5 alternates one to one."""


class ScratchModel(Section):
    """A small Mistral-architecture decoder, initialised from the corpus."""

    type: Literal["scratch"] = "scratch"
    vocabulary_size: int = Field(16000, ge=300, le=200_000)
    """Size of the byte-level BPE vocabulary that is trained on the corpus (at most)."""
    hidden_size: int = Field(256, ge=16, le=8192)
    """Width of the model; a multiple of `heads`."""
    intermediate_size: int = Field(512, ge=16, le=65536)
    """Width inside the feed-forward blocks."""
    layers: int = Field(2, ge=1, le=64)
    """Number of decoder layers."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads (each also a key-value head)."""
    initialisation: Literal["svd", "random"] = "svd"
    """`svd`: truncated SVD of the term-passage matrix, so that the untrained model ranks about as latent
    semantic analysis does. `random`: the architecture's own."""
    language: str = Field("english", pattern=r"^[a-z]+$")
    """`svd`: Snowball language in which words of one stem start alike."""
    logit_scale: float = Field(4.0, gt=0.0, le=1000.0)
    """`svd`: what the initial scores are multiplied by; too small and too large both slow training down."""


class PretrainedModel(Section):
    """Any Hugging Face causal language model, by name or path."""

    type: Literal["pretrained"] = "pretrained"
    name: str = Field(min_length=1)
    """Hub name or local folder."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    prompt_suffix: str = Field("\nIdentifier: ", min_length=1)
    """Text between the query and the identifier."""


ModelConfig = Annotated[ScratchModel | PretrainedModel, Field(discriminator="type")]


class SftConfig(Section):
    """Supervised fine-tuning: Context2ID and Query2ID (paper, section 3.1 and appendix A)."""

    model: ModelConfig = ScratchModel()
    """What is trained."""
    scoring: Literal["trie", "vocabulary"] = "trie"
    """How P(identifier | query) is normalised, in training and in decoding: over the children of each trie
    node, or over the whole vocabulary (the paper's)."""
    loss: Literal["completion", "all"] = "completion"
    """Which tokens count with `vocabulary` scoring: the identifier's, or the input's too (paper, 3.1).
    `trie` scoring needs `completion`."""
    epochs: float = Field(2.0, gt=0.0, le=1000.0)
    """Passes over the examples (paper: 2)."""
    batch_size: int = Field(256, ge=1, le=65536)
    """Examples an optimiser step, over all workers (paper: 256). A whole number of micro-batches of every
    worker."""
    micro_batch_size: int = Field(256, ge=1, le=65536)
    """Examples a forward pass of one worker."""
    learning_rate: float = Field(2e-5, gt=0.0, le=1.0)
    """Highest learning rate (paper: 2e-5)."""
    warmup_ratio: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the steps in which the rate rises (paper: 0.1)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    weight_decay: float = Field(0.01, ge=0.0, le=1.0)
    """AdamW's weight decay."""
    max_tokens: int = Field(700, ge=8, le=131072)
    """Longest example (paper: 700; NQ 450); a longer prompt is cut at its end."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the computation (paper: bf16)."""
    checkpoints: int = Field(5, ge=0, le=1000)
    """How often to save a checkpoint to resume from; 0: never."""


class MiningConfig(Section):
    """Which false positives become negatives (paper, section 4.3)."""

    negatives: int = Field(5, ge=1, le=100)
    """At most so many candidates ranked above the positive become negatives (k: 1, 3, 5, 10)."""
    strategy: Literal["top", "random"] = "top"
    """`top`: the model's own false positives. `random`: as many random passages (the paper's ablation)."""
    candidates: int = Field(10, ge=2, le=1000)
    """How many passages the model retrieves a query (paper: 10)."""


class RpoConfig(Section):
    """Regularised preference optimisation (paper, section 4.1 and appendix A)."""

    beta: float = Field(0.5, gt=0.0, le=10.0)
    """Strength of the pull to the reference model (paper: 0.5)."""
    alpha: float = Field(1.0, ge=0.0, le=100.0)
    """Weight of the likelihood term (paper: 1.0); 0 is plain DPO."""
    epochs: float = Field(1.0, gt=0.0, le=100.0)
    """Passes over the pairs (paper: 1)."""
    batch_size: int = Field(64, ge=1, le=65536)
    """Pairs an optimiser step, over all workers (paper: 64)."""
    micro_batch_size: int = Field(64, ge=1, le=65536)
    """Pairs a forward pass of one worker."""
    learning_rate: float = Field(1e-7, gt=0.0, le=1.0)
    """Highest learning rate (paper: 1e-7)."""
    warmup_ratio: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the steps in which the rate rises."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the computation."""
    checkpoints: int = Field(3, ge=0, le=1000)
    """How often to save a checkpoint to resume from; 0: never."""


class RetrievalConfig(Section):
    """The retrievers that are compared, and how they search."""

    retrievers: tuple[Literal["sft", "rpo", "bm25"], ...] = ("sft", "rpo", "bm25")
    """`sft` and `rpo`: the generative retriever after each training stage."""
    search: Literal["beam", "exact"] = "beam"
    """`beam`: constrained beam search. `exact`: best-first search for the true top k."""
    beam: int = Field(10, ge=1, le=1000)
    """Beam width (paper: 10); never less than the number of passages asked for."""
    max_expansions: int = Field(200, ge=1, le=100_000)
    """`exact`: most trie nodes scored a query before the search returns what it has."""
    depth: int = Field(10, ge=1, le=1000)
    """Passages retrieved a query. With chunks, more than the measures need: several may be of one document."""
    batch_size: int = Field(32, ge=1, le=4096)
    """Queries decoded together."""
    stemming: bool = True
    """BM25: stem words."""
    language: str = Field("english", pattern=r"^[a-z]+$")
    """BM25: language of the stemmer and the stop words."""
    k1: float = Field(1.2, ge=0.0, le=10.0)
    """BM25: term frequency saturation."""
    b: float = Field(0.75, ge=0.0, le=1.0)
    """BM25: length normalisation."""


class EvaluationConfig(Section):
    """What is measured, and how sure the figures are."""

    measures: tuple[str, ...] = ("HIT@1", "HIT@4", "HIT@5", "HIT@10", "MAP@10", "MRR@10", "NDCG@10")
    """Names as the paper writes them, with a cut-off."""
    bootstrap_samples: int = Field(1000, ge=100, le=100_000)
    """Resamplings of the queries for the confidence intervals."""
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    """Coverage of the confidence intervals."""


class ComputeConfig(Section):
    """What the stages may use. The only section that differs between a laptop and a cluster."""

    address: str = ""
    """Ray address; empty: the cluster of the environment (RAY_ADDRESS, a submitted job), else a local Ray."""
    cpu_workers: int = Field(2, ge=1, le=10_000)
    """Actors that synthesise, mine and retrieve side by side."""
    cpus_a_worker: float = Field(1.0, gt=0.0, le=256.0)
    """CPUs of each of them."""
    gpus_a_worker: float = Field(0.0, ge=0.0, le=8.0)
    """GPUs of each of them that holds a model."""
    training_workers: int = Field(1, ge=1, le=10_000)
    """Ray Train workers."""
    cpus_a_training_worker: float = Field(2.0, gt=0.0, le=256.0)
    """CPUs of each training worker; also its number of torch threads, so that a run is repeatable."""
    gpus_a_training_worker: int = Field(0, ge=0, le=1)
    """GPUs of each training worker."""
    max_failures: int = Field(3, ge=0, le=1000)
    """How often training starts again after a worker died."""


class RunConfig(Section):
    """A whole run."""

    name: str = Field("run", min_length=1, pattern=r"^[\w.-]+$")
    """Name of the run; its folder is runs/NAME where none is given."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seed of everything random."""
    corpus: CorpusConfig = CorpusConfig()
    llm: LlmConfig = ExtractiveConfig()
    identifiers: IdentifiersConfig = IdentifiersConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    examples: ExamplesConfig = ExamplesConfig()
    sft: SftConfig = SftConfig()
    mining: MiningConfig = MiningConfig()
    rpo: RpoConfig = RpoConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
