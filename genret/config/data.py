"""The sections of the stages from documents to training rows."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from genret.config.section import Section, refuse


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
    train_split: str = Field("", pattern=r"^[\w.-]*$")
    """`beir` with whole documents: the split whose queries people wrote and judged for training; they are trained on
    beside the synthetic ones (paper, A.4). Empty: none."""
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
    """Read only the first so many documents, and leave out judgements on the others; 0: all."""

    @model_validator(mode="after")
    def _check_paths(self) -> "CorpusConfig":
        used = {"jsonl": ("path", "queries_path", "qrels_path"), "python_docs": ()}
        used["parquet"] = used["jsonl"]
        if self.train_split:
            refuse(_train_split_problems(self))
        paths = {"path": self.path, "queries_path": self.queries_path, "qrels_path": self.qrels_path}
        refuse(
            f"{name}: expected nothing with the type {self.type}, found {value!r}"
            for name, value in paths.items()
            if value and name not in used.get(self.type, ("path",))
        )
        return self


def _train_split_problems(config: CorpusConfig) -> Iterator[str]:
    if config.type != "beir":
        yield f"train_split: expected nothing with the type {config.type}, found {config.train_split!r}"
    if config.unit != "document":
        # Judgements name documents: which chunk of one answers the query, nobody said.
        yield f"train_split: expected nothing where chunks are retrieved, found {config.train_split!r}"
    if config.train_split == config.split:
        yield f"train_split: expected another split than that of the evaluation, found {config.train_split!r} twice"


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
    multihop_queries: int = Field(0, ge=0, le=1000)
    """Queries over each group of related passages, which BM25 finds; 0: none. They need a language model."""
    multihop_passages: int = Field(3, ge=2, le=3)
    """Passages of a group."""
    round_trip_top: int = Field(0, ge=0, le=1000)
    """Keep a query only if BM25 finds its passage among so many; 0: keep all. BM25 sees no metadata."""
    max_overlap: float = Field(0.9, gt=0.0, le=1.0)
    """Language models: of two queries of a passage that share more of their words, one is a duplicate."""
    min_query_words: int = Field(2, ge=1, le=50)
    """Language models: shorter queries are rejected."""
    max_query_characters: int = Field(600, ge=20, le=5000)
    """Language models: longer queries are rejected."""
    max_answer_words: int = Field(24, ge=1, le=200)
    """Language models: preference queries with a longer answer are rejected."""


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
    annotated_share: float = Field(0.0, ge=0.0, lt=1.0)
    """Least share, among the queries, of those that people wrote (`corpus.train_split`), where the corpus has any: they
    are few, and are repeated until they make it up. 0: each is there once, as a synthetic one is."""
