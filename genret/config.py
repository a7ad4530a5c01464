"""The configuration of a run: one section a stage, every field bounded and documented; and how it is read."""

import difflib
import json
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from genret.errors import InputError


class Section(BaseModel):
    """What all sections share: unknown keys are errors, values are frozen, docstrings describe fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _refuse(problems: Iterable[str]) -> None:
    """Raise the rules that a section breaks, one a line; each names the field that it is about first."""
    if message := "\n".join(problems):
        raise ValueError(message)


class CorpusConfig(Section):
    """Where the documents come from, and what the unit of retrieval is."""

    type: Literal["beir", "jsonl", "parquet", "ir_datasets", "python_docs"] = "beir"
    """`beir`: a folder with corpus.jsonl[.gz], queries.jsonl[.gz] and qrels/SPLIT.tsv. `jsonl`, `parquet`:
    one file of documents. `ir_datasets`: a dataset id (needs the extra). `python_docs`: the docstrings of the
    standard library of the Python that runs."""
    path: str = ""
    """The folder or file, as a URL or relative to the working folder (or ir_datasets id). Empty only for
    `python_docs`."""
    split: str = Field("test", min_length=1, pattern=r"^[\w.-]+$")
    """Which queries and judgements to evaluate with."""
    id_field: str = "_id"
    """`jsonl` and `parquet`: the field with the document's id."""
    title_field: str = "title"
    """`jsonl` and `parquet`: the field with the title; a document without it has no title."""
    text_field: str = "text"
    """`jsonl` and `parquet`: the field with the text."""
    queries_path: str = ""
    """`jsonl` and `parquet`: a JSONL file of queries (`_id`, `text`); empty: none, nothing is evaluated."""
    qrels_path: str = ""
    """`jsonl` and `parquet`: a TSV file of judgements (query-id, corpus-id, score)."""
    unit: Literal["document", "chunk"] = "document"
    """What is retrieved: whole documents, or chunks of them without overlap."""
    chunk_tokens: int = Field(256, ge=16, le=8192)
    """Most tokens a chunk (arXiv 2502.17957, appendix A.1: 256), counted as words and punctuation marks."""
    max_documents: int = Field(0, ge=0)
    """Read only the first so many documents; 0: all."""

    @model_validator(mode="after")
    def _check_paths(self) -> "CorpusConfig":
        used = {"jsonl": ("path", "queries_path", "qrels_path"), "python_docs": ()}
        used["parquet"] = used["jsonl"]
        paths = {"path": self.path, "queries_path": self.queries_path, "qrels_path": self.qrels_path}
        _refuse(
            f"{name}: expected nothing with the type {self.type}, found {value!r}"
            for name, value in paths.items()
            if value and name not in used.get(self.type, ("path",))
        )
        return self


class ExtractiveConfig(Section):
    """The engine without a model: keywords by tf-idf, queries sampled from the passage's own terms."""

    type: Literal["extractive"] = "extractive"
    """Which engine."""
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

    @model_validator(mode="after")
    def _check_terms(self) -> "ExtractiveConfig":
        if self.max_terms < self.min_terms:
            raise ValueError(f"max_terms: expected at least min_terms ({self.min_terms}), found {self.max_terms}")
        return self


LlmConfig = Annotated[ExtractiveConfig, Field()]


class IdentifiersConfig(Section):
    """How passages get their identifiers (docids)."""

    type: Literal["semantic", "atomic"] = "semantic"
    """`semantic`: a list of keywords, unique in the corpus. `atomic`: one new token a passage."""
    keywords: int = Field(4, ge=1, le=32)
    """Semantic: how many keywords an identifier starts with."""
    max_keywords: int = Field(10, ge=1, le=64)
    """Semantic: how many keywords a collision may extend it to, before an ordinal is added."""
    order: Literal["given", "distinctive"] = "given"
    """Semantic: `given`: keywords as the engine wrote them (the paper's). `distinctive`: of the best
    `max_keywords`, one that few other identifiers begin with comes first; better for small models."""

    @model_validator(mode="after")
    def _check_keywords(self) -> "IdentifiersConfig":
        if self.max_keywords < self.keywords:
            raise ValueError(f"max_keywords: expected at least keywords ({self.keywords}), found {self.max_keywords}")
        return self


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
    """`scratch`: as below. `pretrained`: by name, with other fields."""
    vocabulary_size: int = Field(16000, ge=300, le=200_000)
    """Size of the byte-level BPE vocabulary that is trained on the corpus (at most)."""
    hidden_size: int = Field(256, ge=16, le=8192)
    """Width of the model; a multiple of twice `heads`, as rotary embeddings turn pairs of numbers."""
    intermediate_size: int = Field(512, ge=16, le=65536)
    """Width inside the feed-forward blocks."""
    layers: int = Field(2, ge=1, le=64)
    """Number of decoder layers."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads (each also a key-value head)."""
    initialisation: Literal["svd", "random"] = "svd"
    """`svd`: truncated SVD of the term-passage matrix, so that the untrained model ranks about as latent
    semantic analysis does. `random`: the architecture's own."""

    @model_validator(mode="after")
    def _check_heads(self) -> "ScratchModel":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size: expected a multiple of twice heads (2 x {self.heads}), found {self.hidden_size}"
            )
        return self

    language: str = Field("english", pattern=r"^[a-z]+$")
    """`svd`: Snowball language in which words of one stem start alike."""


class PretrainedModel(Section):
    """Any Hugging Face causal language model, by name or path."""

    type: Literal["pretrained"] = "pretrained"
    """`pretrained`: as below. `scratch`: a small one, with other fields."""
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
    adam_beta2: float = Field(0.999, ge=0.5, lt=1.0)
    """AdamW's decay of the squared gradients; short trainings want less memory, such as 0.98."""
    max_tokens: int = Field(700, ge=8, le=131072)
    """Longest example (paper: 700; NQ 450); a longer prompt is cut at its end."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the computation (paper: bf16)."""
    checkpoints: int = Field(5, ge=0, le=1000)
    """How often to save a checkpoint to resume from; 0: never."""

    @model_validator(mode="after")
    def _check_loss(self) -> "SftConfig":
        if self.scoring == "trie" and self.loss != "completion":
            raise ValueError(f"loss: expected completion with the scoring trie, found {self.loss}")
        return self


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

    retrievers: tuple[Literal["sft", "rpo", "bm25"], ...] = Field(("sft", "rpo", "bm25"), min_length=1)
    """`sft` and `rpo`: the generative retriever after each training stage."""
    search: Literal["beam", "exact"] = "beam"
    """`beam`: constrained beam search. `exact`: best-first search for the true top k."""
    beam: int = Field(10, ge=1, le=1000)
    """Beam width (paper: 10); at least `depth`. A single query that asks for more passages widens it."""
    max_expansions: int = Field(200, ge=1, le=100_000)
    """`exact`: most trie nodes scored a query before the search returns what it has."""
    depth: int = Field(10, ge=1, le=1000)
    """Passages retrieved a query, at least as many as the measures look at. With chunks better more: several
    may be of one document."""
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


MeasureName = Annotated[str, Field(pattern=r"^(HIT|MAP|MRR|NDCG|P|R)@[1-9][0-9]{0,5}$")]


class EvaluationConfig(Section):
    """What is measured, and how sure the figures are."""

    measures: tuple[MeasureName, ...] = Field(
        ("HIT@1", "HIT@4", "HIT@5", "HIT@10", "MAP@10", "MRR@10", "NDCG@10"), min_length=1
    )
    """Names as the paper writes them (also P and R), with a cut-off."""
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

    name: str = Field("run", min_length=1, pattern=r"^\w[\w.-]*$")
    """Name of the run; its folder is runs/NAME where none is given."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seed of everything random."""
    corpus: CorpusConfig = CorpusConfig()
    """Where the documents come from, and what the unit of retrieval is."""
    llm: LlmConfig = ExtractiveConfig()
    """What writes keywords, queries and answers."""
    identifiers: IdentifiersConfig = IdentifiersConfig()
    """How passages get their identifiers (docids)."""
    synthesis: SynthesisConfig = SynthesisConfig()
    """How many synthetic queries to write, and of which kinds."""
    examples: ExamplesConfig = ExamplesConfig()
    """How texts and queries become training rows (paper, sections 3.2 and 3.3)."""
    sft: SftConfig = SftConfig()
    """Supervised fine-tuning: Context2ID and Query2ID (paper, section 3.1 and appendix A)."""
    mining: MiningConfig = MiningConfig()
    """Which false positives become negatives (paper, section 4.3)."""
    rpo: RpoConfig = RpoConfig()
    """Regularised preference optimisation (paper, section 4.1 and appendix A)."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """The retrievers that are compared, and how they search."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured, and how sure the figures are."""
    compute: ComputeConfig = ComputeConfig()
    """What the stages may use. The only section that differs between a laptop and a cluster."""

    @model_validator(mode="after")
    def _check_sections(self) -> "RunConfig":
        _refuse([*_batch_problems(self), *_synthesis_problems(self), *_retrieval_problems(self)])
        return self


def _batch_problems(config: RunConfig) -> Iterator[str]:
    stages: dict[str, SftConfig | RpoConfig] = {"sft": config.sft}
    if config.synthesis.preference_queries:
        stages["rpo"] = config.rpo
    workers = config.compute.training_workers
    for name, stage in stages.items():
        if stage.batch_size % (stage.micro_batch_size * workers):
            yield (
                f"{name}.batch_size: expected a multiple of {name}.micro_batch_size x "
                f"compute.training_workers ({stage.micro_batch_size} x {workers}), found {stage.batch_size}"
            )


def _synthesis_problems(config: RunConfig) -> Iterator[str]:
    synthesis = config.synthesis
    if synthesis.constraint_queries and not synthesis.constraint_fields:
        yield (
            "synthesis.constraint_fields: expected at least one with "
            f"synthesis.constraint_queries {synthesis.constraint_queries}, found none"
        )
    if config.examples.context2id == "none" and not (
        synthesis.chunk_queries or synthesis.sentence_queries or synthesis.constraint_queries
    ):
        yield (
            "examples.context2id: expected chunk or sentence where synthesis.chunk_queries, sentence_queries "
            "and constraint_queries are all 0, found none; nothing is left to train on"
        )


def _retrieval_problems(config: RunConfig) -> Iterator[str]:
    retrieval = config.retrieval
    if "rpo" in retrieval.retrievers and not config.synthesis.preference_queries:
        yield (
            "retrieval.retrievers: rpo needs synthesis.preference_queries above 0, found "
            f"{list(retrieval.retrievers)} and 0"
        )
    if len(set(retrieval.retrievers)) < len(retrieval.retrievers):
        yield f"retrieval.retrievers: expected each once, found {list(retrieval.retrievers)}"
    generative = {"sft", "rpo"} & set(retrieval.retrievers)
    if generative and retrieval.search == "beam" and retrieval.beam < retrieval.depth:
        yield (f"retrieval.beam: expected at least retrieval.depth ({retrieval.depth}), found {retrieval.beam}")
    deepest = max(config.evaluation.measures, key=lambda measure: int(measure.partition("@")[2]))
    if retrieval.depth < int(deepest.partition("@")[2]):
        yield (
            f"retrieval.depth: expected at least the cut-off of each of evaluation.measures ({deepest}), "
            f"found {retrieval.depth}"
        )


# --- loading ----------------------------------------------------------------------------------------------

_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_TEXT = "tag:yaml.org,2002:str"
_NAMES: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_BOUNDS = ("ge", "gt", "le", "lt", "min_length", "pattern")
_COMMENT_WIDTH = 96


class _Scalars(yaml.resolver.Resolver):
    """What a scalar without quotes is: by YAML 1.2, where 1e-7 is a number and `no` and dates are text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+",
        [*"-+.0123456789"],
    ),
    ("merge", r"<<", ["<"]),
):
    _Scalars.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


class _Loader(_Scalars, yaml.SafeLoader):
    """Reads YAML."""


class _Dumper(_Scalars, yaml.SafeDumper):
    """Writes YAML that `_Loader` reads back as it was."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """A text; one with line ends or other controls in double quotes."""
        style = None if data.isprintable() else '"'
        return self.represent_scalar(_TEXT, data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def preset_names() -> list[str]:
    """The names of the presets that ship with genret, sorted."""
    files = resources.files("genret.configs").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration.

    Args:
        source: The name of a preset (see `preset_names`), or else the path of a YAML file.
        overrides: Changes to it, in order: `section.field=value`, with the value in YAML (`[sft, bm25]`,
            `1e-3`); nothing after the `=` is the empty text.

    Returns:
        The configuration, with the defaults of all fields that are not mentioned.

    Raises:
        InputError: No such preset or file, no YAML, a key that is unknown or stands twice, a value out of
            bounds, or values that do not go together. Tells everything that was found, one problem a line.
    """
    presets = preset_names()
    name = str(source)
    if name in presets:
        text = resources.files("genret.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        return parse_config(text, f"preset {name}", overrides)
    try:
        return parse_config(Path(source).read_text(encoding="utf-8-sig"), name, overrides)
    except FileNotFoundError as error:
        nearest = _did_you_mean(Path(source).stem, presets)
        raise InputError(
            f"{name}: expected a YAML file or one of the presets {', '.join(presets)}; found neither{nearest}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: expected a YAML file in UTF-8, found something else ({error})") from error


def parse_config(text: str, origin: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration from text.

    Args:
        text: YAML.
        origin: What to call the text in messages.
        overrides: As `load_config` has them.

    Returns:
        The configuration.

    Raises:
        InputError: As `load_config` does.
    """
    data, lines, problems = _read_yaml(text, origin)
    if not isinstance(data, dict):
        raise InputError(f"{origin}: expected keys and values at the top level, found {_shown(data)}")
    applied: dict[str, str] = {}
    for override in overrides:
        try:
            path, found = _apply_override(data, override)
            applied[path] = override
            problems += found
        except InputError as error:
            problems.append(str(error))
    try:
        # JSON, as only there a list may stand for a tuple while a quoted number is no number.
        config = RunConfig.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        for path, message in _explain(error):
            problems.append(f"{_whereabouts(path, origin, lines, applied)}: {path}: {message}")
    if problems:
        raise InputError("\n".join(problems))
    return config


def resolved_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML, with every default; `parse_config` reads it back."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def dump_config(config: RunConfig) -> str:
    """The whole configuration as YAML, with each field's meaning and bounds in a comment above it."""
    return "\n".join(_commented(config, "")).strip("\n") + "\n"


# --- reading YAML -----------------------------------------------------------------------------------------


def _read_yaml(text: str, origin: str) -> tuple[Any, dict[str, int], list[str]]:
    """The value in a text, the line of each key by its dotted path, and problems that hide no others."""
    lines: dict[str, int] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            problems = [f"{origin}, {problem}" for problem in _inspect(node, "", lines, set())]
            # Through JSON, so that keys are text, and nothing stands in two places at once or in itself.
            data = json.loads(json.dumps(loader.construct_document(node))) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        found = error.problem or error.context
        raise InputError(f"{origin}{line}: expected YAML, found an error: {found}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{origin}: expected YAML, found an error: {str(error).splitlines()[0]}") from error
    return data, lines, problems


def _inspect(node: yaml.Node | None, path: str, lines: dict[str, int], seen: set[int]) -> Iterator[str]:
    """Note the lines of all keys, and yield what the parser would pass over in silence."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    line = node.start_mark.line + 1
    if node.tag not in _PLAIN_TAGS:
        raise ValueError(f"the tag {node.tag} in line {line}")
    if isinstance(node, yaml.ScalarNode):
        if node.tag not in (_TEXT, _Scalars().resolve(yaml.ScalarNode, node.value, (True, False))):
            raise ValueError(f"the tag {node.tag} in line {line} does not fit {node.value!r}")
        node.value.encode("utf-8")  # an escape can make half a character, which no JSON or file can hold
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _inspect(item, f"{path}[{number}]", lines, seen)
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            yield from _inspect(key_node, path, lines, seen)
            line = key_node.start_mark.line + 1
            key = str(key_node.value)
            below = f"{path}.{key}" if path else key
            if key in first:
                yield f"line {line}: {below}: stands twice; first in line {first[key]}"
            first.setdefault(key, line)
            lines.setdefault(below, line)
            yield from _inspect(value_node, below, lines, seen)


def _apply_override(data: dict[str, Any], override: str) -> tuple[str, list[str]]:
    """Change the data, and return the dotted path that was changed, and problems."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"override {override!r}: expected section.field=value")
    value, _, problems = _read_yaml(text, f"override {override!r}") if text.strip() else ("", {}, [])
    section = data
    for depth, key in enumerate(keys[:-1], start=1):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise InputError(
                f"override {override!r}: expected {'.'.join(keys[:depth])} to be a section, found {_shown(section)}"
            )
    section[keys[-1]] = value
    return ".".join(keys), problems


# --- explaining errors ------------------------------------------------------------------------------------


def _explain(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Dotted path and message of each problem."""
    for details in error.errors():
        section, field, path = _locate(details["loc"])
        kind, found = details["type"], details["input"]
        if kind == "too_short" and found:
            continue  # pydantic leaves refused items out of the count; they are told by themselves
        if kind == "value_error":
            for rule in str(details["ctx"]["error"]).splitlines():
                name, _, message = rule.partition(": ")
                yield (f"{path}.{name}" if path else name), message
        elif kind == "extra_forbidden":
            yield path, _unknown_key(str(details["loc"][-1]), section)
        elif kind == "union_tag_not_found":
            yield f"{path}.type", f"expected one of {', '.join(_tags(field))}, found nothing"
        elif kind == "union_tag_invalid":
            tag = details["ctx"]["tag"]
            tags = _tags(field)
            yield (
                f"{path}.type",
                f"expected one of {', '.join(tags)}, found {_shown(tag)}{_did_you_mean(tag, tags)}",
            )
        elif kind == "missing":
            yield path, f"expected {_described(field)}, found nothing"
        else:
            quotes = " (put it in quotes)" if kind == "string_type" and isinstance(found, int | float) else ""
            nearest = _did_you_mean(found, _choices(field)) if kind == "literal_error" else ""
            yield path, f"expected {_described(field)}, found {_shown(found)}{quotes}{nearest}"


def _locate(location: Sequence[str | int]) -> tuple[type[Section], FieldInfo, str]:
    """The section that holds a field, the field, and its path as it stands in the file.

    Of an unknown key, the field is that of its section.
    """
    path = ""
    section: type[Section] = RunConfig
    kinds: tuple[type[Section], ...] = (RunConfig,)
    field = FieldInfo(annotation=RunConfig)
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
            field = FieldInfo.from_annotation(get_args(field.annotation)[0])
        elif len(kinds) > 1:  # pydantic names the chosen kind of section here, the file does not
            kinds = tuple(kind for kind in kinds if kind.model_fields["type"].default == part)
        else:
            path += f".{part}" if path else part
            section = kinds[0]
            if part in section.model_fields:
                field = section.model_fields[part]
                kinds = _section_kinds(field.annotation)
    return section, field, path


def _unknown_key(key: str, section: type[Section]) -> str:
    known = list(section.model_fields)
    last = key.rpartition(".")[2]
    elsewhere = [path for path in _all_paths(RunConfig, "") if path.rpartition(".")[2] == last]
    nearest = _did_you_mean(key, known) or (f"; did you mean {elsewhere[0]}?" if elsewhere else "")
    return f"unknown key{nearest}; known here: {', '.join(known)}"


def _all_paths(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for kind in _section_kinds(field.annotation):
            yield from _all_paths(kind, f"{prefix}{name}.")


def _whereabouts(path: str, origin: str, lines: Mapping[str, int], applied: Mapping[str, str]) -> str:
    """Who said it: an override, or the line of the file with the key or the nearest section above it."""
    keys = path.partition("[")[0].split(".")
    above = [".".join(keys[:length]) for length in range(len(keys), 0, -1)]
    for key in above:
        if key in applied:
            return f"override {applied[key]!r}"
    for key in above:
        if key in lines:
            return f"{origin}, line {lines[key]}"
        for changed, override in applied.items():
            if changed.startswith(f"{key}."):  # the override made this section
                return f"override {override!r}"
    return origin


def _did_you_mean(found: object, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(str(found), known, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


# --- describing fields ------------------------------------------------------------------------------------


def _section_kinds(annotation: Any) -> tuple[type[Section], ...]:
    """The sections that a field may hold; none where it holds a value."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section))


def _tags(field: FieldInfo) -> list[str]:
    return [kind.model_fields["type"].default for kind in _section_kinds(field.annotation)]


def _choices(field: FieldInfo) -> list[str]:
    is_choice = get_origin(field.annotation) is Literal
    return [str(choice) for choice in get_args(field.annotation)] if is_choice else []


def _described(field: FieldInfo) -> str:
    """What a field may hold, in words: its kind and its bounds."""
    annotation = field.annotation
    if annotation is None or _section_kinds(annotation):
        return "a section with keys and values"
    bounds = {
        name: getattr(mark, name)
        for mark in field.metadata
        for name in _BOUNDS
        if getattr(mark, name, None) is not None
    }
    if get_origin(annotation) is tuple:
        item = _described(FieldInfo.from_annotation(get_args(annotation)[0]))
        return f"a list, not empty, of {item}" if "min_length" in bounds else f"a list of {item}"
    if choices := _choices(field):
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return " ".join([_NAMES[annotation], *_bounds_in_words(bounds)])


def _bounds_in_words(bounds: Mapping[str, Any]) -> Iterator[str]:
    if "pattern" in bounds:
        yield f"that matches {bounds['pattern']}"
    elif "min_length" in bounds:
        yield "that is not empty"
    least, above, most, below = (_number(bounds.get(name)) for name in ("ge", "gt", "le", "lt"))
    if least and most:
        yield f"from {least} to {most}"
    else:
        words = {"at least": least, "above": above, "at most": most, "below": below}
        if given := [f"{word} {bound}" for word, bound in words.items() if bound]:
            yield " and ".join(given)


def _number(bound: float | None) -> str:
    if bound is None:
        return ""
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _commented(section: Section, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not indent:
            yield ""
        comment = " ".join((field.description or "").split())
        if not isinstance(value, Section):
            comment += f" ({_described(field)})"
        prefix = f"{indent}# "
        yield from textwrap.wrap(
            comment, _COMMENT_WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_on_hyphens=False
        )
        if isinstance(value, Section):
            yield f"{indent}{name}:"
            yield from _commented(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_inline(value)}"


def _inline(value: Any) -> str:
    """A value as YAML in one line."""
    plain = list(value) if isinstance(value, tuple) else value
    dumped = yaml.dump([plain], Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True)
    return dumped.strip()[1:-1]
