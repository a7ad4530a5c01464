"""The whole configuration, and the rules between its sections."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from genret.config.data import CorpusConfig, ExamplesConfig, IdentifiersConfig, SynthesisConfig
from genret.config.dense import DenseConfig, NegativesConfig
from genret.config.engines import ExtractiveConfig, LlmConfig
from genret.config.retrieval import EvaluationConfig, RetrievalConfig
from genret.config.section import Section, gpu_problems, refuse
from genret.config.serving import ServingConfig
from genret.config.training import MiningConfig, PreferenceConfig, RpoConfig, SftConfig


class ComputeConfig(Section):
    """What the stages may use. The only section that differs between a laptop and a cluster."""

    address: str = ""
    """Ray address; empty: the cluster of the environment (RAY_ADDRESS, a submitted job), else a local Ray."""
    cpu_workers: int = Field(2, ge=1, le=10_000)
    """Actors that synthesise, mine and retrieve side by side."""
    cpus_a_worker: float = Field(1.0, gt=0.0, le=256.0)
    """CPUs of each of them."""
    gpus_a_worker: float = Field(0.0, ge=0.0, le=8.0)
    """GPUs of each of them that holds a model: a part of one, or a whole number."""
    training_workers: int = Field(1, ge=1, le=10_000)
    """Ray Train workers."""
    cpus_a_training_worker: float = Field(2.0, gt=0.0, le=256.0)
    """CPUs of each training worker; also its number of torch threads, so that a run is repeatable."""
    gpus_a_training_worker: int = Field(0, ge=0, le=1)
    """GPUs of each training worker."""
    min_training_workers: int = Field(0, ge=0, le=10_000)
    """With fewer nodes than hoped for, or after some are lost, training goes on with as few workers as this; 0: only
    with all `training_workers`."""
    max_failures: int = Field(3, ge=0, le=1000)
    """How often training starts again after a worker died."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    zero_stage: Literal[0, 2, 3] = 0
    """DeepSpeed's ZeRO: 2 shares out gradients and optimiser over the training workers, 3 the parameters too; 0: none
    (Rajbhandari et al., arXiv 1910.02054)."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What ZeRO keeps in the memory of the host: nothing, the optimiser, or (stage 3) the parameters too."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that get the loss curves while training runs. TensorBoard's files lie in the run's folder `tensorboard`;
    the others are set up by their own environment variables."""

    @model_validator(mode="after")
    def _check_workers(self) -> "ComputeConfig":
        refuse(_worker_problems(self))
        return self


def _worker_problems(config: ComputeConfig) -> Iterator[str]:
    yield from gpu_problems("gpus_a_worker", config.gpus_a_worker)
    if config.min_training_workers > config.training_workers:
        yield (
            f"min_training_workers: expected at most training_workers ({config.training_workers}), "
            f"found {config.min_training_workers}"
        )
    if config.min_training_workers and config.zero_stage:
        yield "min_training_workers: expected 0 with ZeRO, whose checkpoints are of a fixed number of workers"
    if config.offload != "none" and not config.zero_stage:
        yield f"offload: expected none without ZeRO (zero_stage 0), found {config.offload}"
    if config.offload == "all" and config.zero_stage != 3:
        yield f"offload: expected none or optimizer with zero_stage {config.zero_stage}, found all"


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
    preference: PreferenceConfig = PreferenceConfig()
    """How often the model learns from its own false positives."""
    mining: MiningConfig = MiningConfig()
    """Which false positives become negatives (paper, section 4.3)."""
    rpo: RpoConfig = RpoConfig()
    """Regularised preference optimisation (paper, section 4.1 and appendix A)."""
    negatives: NegativesConfig = NegativesConfig()
    """Passages that look relevant to a query and are not, to train the dense retriever with."""
    dense: DenseConfig = DenseConfig()
    """The dense retriever: its encoder, its training on the synthetic queries, and its index."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """The retrievers that are compared, and how they search."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured, and how sure the figures are."""
    serving: ServingConfig = ServingConfig()
    """The service that answers over HTTP; no stage reads it."""
    compute: ComputeConfig = ComputeConfig()
    """What the stages may use. The only section that differs between a laptop and a cluster."""

    @model_validator(mode="after")
    def _check_sections(self) -> "RunConfig":
        refuse([*_synthesis_problems(self), *_retrieval_problems(self)])
        return self


def _synthesis_problems(config: RunConfig) -> Iterator[str]:
    synthesis = config.synthesis
    if synthesis.constraint_queries and not synthesis.constraint_fields:
        yield (
            "synthesis.constraint_fields: expected at least one with "
            f"synthesis.constraint_queries {synthesis.constraint_queries}, found none"
        )
    if config.examples.context2id == "none" and not (
        synthesis.chunk_queries
        or synthesis.sentence_queries
        or synthesis.constraint_queries
        or config.corpus.train_split
    ):
        yield (
            "examples.context2id: expected chunk or sentence where synthesis.chunk_queries, sentence_queries "
            "and constraint_queries are all 0, found none; nothing is left to train on"
        )
    if synthesis.multihop_queries and config.llm.type == "extractive":
        yield (
            f"synthesis.multihop_queries: expected 0 with llm.type extractive, found {synthesis.multihop_queries}; "
            "queries over several passages need a language model"
        )


def _fusion_problems(retrieval: RetrievalConfig) -> Iterator[str]:
    if missing := [part for part in retrieval.fusion.parts if part not in retrieval.retrievers]:
        # Its ranking is made of theirs.
        yield (
            f"retrieval.retrievers: expected all of retrieval.fusion.parts beside fusion, found no {', '.join(missing)}"
        )
    if retrieval.fusion.depth > retrieval.depth:
        yield (
            f"retrieval.fusion.depth: expected at most retrieval.depth ({retrieval.depth}), "
            f"found {retrieval.fusion.depth}"
        )


def _retrieval_problems(config: RunConfig) -> Iterator[str]:
    retrieval = config.retrieval
    if "rpo" in retrieval.retrievers and not config.synthesis.preference_queries:
        yield (
            "retrieval.retrievers: rpo needs synthesis.preference_queries above 0, found "
            f"{list(retrieval.retrievers)} and 0"
        )
    if (
        "dense" in retrieval.retrievers
        and config.dense.epochs
        and not (
            config.synthesis.chunk_queries or config.synthesis.sentence_queries or config.synthesis.constraint_queries
        )
    ):
        yield "dense.epochs: expected 0 where no synthetic queries are written to train with, found " + str(
            config.dense.epochs
        )
    if config.negatives.adjust_share and config.negatives.source != "hybrid":
        yield f"negatives.adjust_share: expected false with the source {config.negatives.source}, found true"
    if config.negatives.adjust_share and not config.dense.validation_queries:
        yield "dense.validation_queries: expected at least 1 with negatives.adjust_share, found 0"
    if len(set(retrieval.retrievers)) < len(retrieval.retrievers):
        yield f"retrieval.retrievers: expected each once, found {list(retrieval.retrievers)}"
    if "fusion" in retrieval.retrievers:
        yield from _fusion_problems(retrieval)
    generative = {"sft", "rpo"} & set(retrieval.retrievers)
    if generative and retrieval.search == "beam" and retrieval.beam < retrieval.depth:
        yield (f"retrieval.beam: expected at least retrieval.depth ({retrieval.depth}), found {retrieval.beam}")
    deepest = max(config.evaluation.measures, key=lambda measure: int(measure.partition("@")[2]))
    if retrieval.depth < int(deepest.partition("@")[2]):
        yield (
            f"retrieval.depth: expected at least the cut-off of each of evaluation.measures ({deepest}), "
            f"found {retrieval.depth}"
        )
