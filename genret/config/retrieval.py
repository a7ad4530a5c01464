"""The sections of retrieval and evaluation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genret.config.section import Section

PartWeight = Annotated[float, Field(gt=0.0, le=1e6)]


class FusionConfig(Section):
    """How the retriever `fusion` joins the rankings of others into one."""

    method: Literal["reciprocal_rank", "scores"] = "reciprocal_rank"
    """`reciprocal_rank`: the sum of weight / (rank_constant + rank) (Cormack, Clarke and Büttcher, SIGIR 2009).
    `scores`: the weighted mean of normalised scores."""
    parts: tuple[Literal["sft", "rpo", "bm25", "dense"], ...] = Field(("rpo", "bm25"), min_length=1)
    """The retrievers that are joined, at least two; of passages that come out equal, the one that the first finds
    earlier comes first."""
    weights: tuple[PartWeight, ...] = ()
    """How much each part counts, in the order of `parts`; none: all the same."""
    rank_constant: int = Field(60, ge=0, le=10_000)
    """`reciprocal_rank`: the larger, the less the first ranks stand out (60 in the article)."""
    normalisation: Literal["min_max", "z"] = "min_max"
    """`scores`: what makes scores of different retrievers comparable, a query at a time: between 0 and 1, or mean
    0 and variance 1. A passage that a part did not find counts as much as the last that it found."""
    depth: int = Field(0, ge=0, le=1000)
    """How many passages of each part are joined; 0: all that `retrieval.depth` lets it find, or as many as are
    asked for where these are more."""

    @model_validator(mode="after")
    def _check_parts(self) -> "FusionConfig":
        if len(self.parts) < 2 or len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts: expected at least two, each once, found {list(self.parts)}")
        if self.weights and len(self.weights) != len(self.parts):
            raise ValueError(
                f"weights: expected none or one for each of the {len(self.parts)} parts, found {len(self.weights)}"
            )
        return self


class RetrievalConfig(Section):
    """The retrievers that are compared, and how they search."""

    retrievers: tuple[Literal["sft", "rpo", "bm25", "dense", "fusion"], ...] = Field(
        ("sft", "rpo", "bm25"), min_length=1
    )
    """`sft` and `rpo`: the generative retriever after each training stage. `dense`: that of the `dense` section.
    `fusion`: some of the others joined. What none of them needs is not trained."""
    fusion: FusionConfig = FusionConfig()
    """How the retriever `fusion` joins the rankings of others into one."""
    search: Literal["beam", "exact"] = "beam"
    """`beam`: constrained beam search. `exact`: best-first search for the true top k."""
    beam: int = Field(10, ge=1, le=1000)
    """Beam width (paper: 10); at least `depth`. A single query that asks for more passages widens it."""
    max_expansions: int = Field(200, ge=1, le=100_000)
    """`exact`: most trie nodes scored a query before the search returns what it has."""
    probes: int = Field(32, ge=1, le=65_536)
    """`dense.index` with `lists`: lists that are looked through a query; more find more, and take longer."""
    depth: int = Field(10, ge=1, le=1000)
    """Passages retrieved a query, at least as many as the measures look at. With chunks better more: several
    may be of one document."""
    batch_size: int = Field(32, ge=1, le=4096)
    """Queries decoded together."""
    variant: Literal["lucene", "okapi"] = "lucene"
    """BM25: `lucene`: an idf that is never negative. `okapi`: scores equal to those of the package rank-bm25."""
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
    significance_test: Literal["randomisation", "t"] = "randomisation"
    """How retrievers are compared, two at a time and query by query: paired randomisation test, or paired t-test."""
    permutations: int = Field(10_000, ge=1000, le=1_000_000)
    """`randomisation`: random flips of the differences' signs; where there are no more than so many, all of them."""
    slice_fields: tuple[str, ...] = ()
    """Metadata fields, of the queries or of their relevant passages, by whose values the measures are also shown."""
