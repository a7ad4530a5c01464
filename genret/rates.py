"""How fast stages are: what their work is counted in, and how much of it a worker gets done a second."""

from dataclasses import dataclass

UNITS = {
    "corpus": "passages", "identifiers": "passages", "synthesis": "queries", "examples": "rows", "base": "passages",
    "sft": "FLOP", "mining": "FLOP", "rpo": "FLOP", "bm25": "passages", "retrieval": "FLOP", "evaluation": "rankings",
    "report": "rankings", "mining_2": "FLOP", "rpo_2": "FLOP", "encoder": "passages", "base_embedding": "passages",
    "candidates": "queries", "negatives": "queries", "contrastive": "queries", "dense": "queries",
    "embedding": "passages", "lists": "passages",
}  # fmt: skip
"""What the work of a stage is counted in; of one that asks a language model in tokens."""

START_SECONDS = {
    "synthesis": 3.0, "sft": 10.0, "mining": 6.0, "rpo": 10.0, "candidates": 2.0, "dense": 10.0, "base_embedding": 5.0,
    "embedding": 5.0, "retrieval": 12.0,
}  # fmt: skip
"""Seconds for Ray, processes and models to start."""

RATES = {
    "corpus": 4000.0, "identifiers": 30000.0, "synthesis": 20000.0, "examples": 80000.0, "base": 400.0, "sft": 1.4e11,
    "mining": 6.0e11, "rpo": 1.85e11, "bm25": 25000.0, "retrieval": 6.0e11, "evaluation": 2000.0, "report": 5000.0,
    "mining_2": 6.0e11, "rpo_2": 1.85e11, "encoder": 2400.0, "base_embedding": 2000.0, "candidates": 2500.0,
    "negatives": 2600.0, "contrastive": 20000.0, "dense": 1300.0, "embedding": 2000.0,
    "lists": 2200.0,
}  # fmt: skip
"""Work a second of one worker on two CPU cores, by runs of the quickstart and of scifact; of lists by 64,000 vectors of
512 numbers, as they are for large corpora. Of GPUs see `GPU_FLOPS`."""

GPU_FLOPS = {
    "sft": 1.25e14, "rpo": 1.25e14, "rpo_2": 1.25e14, "mining": 1.5e13, "mining_2": 1.5e13, "retrieval": 1.5e13,
}  # fmt: skip
"""Operations a second of one A100: 312e12 in 16 bits (NVIDIA's data sheet), of which training a model of billions of
parameters reaches about 40 %, and decoding, which waits for memory, about 5 %. Give --rate for others."""

LLM_TOKENS = 5000.0
"""Tokens a second, read and written, of a replica of a language model whose section names no `tokens_a_second`: a round
figure for models of this size on A100, to be replaced by what a first run measures."""


@dataclass(frozen=True)
class Rate:
    """How fast a stage was.

    Attributes:
        work: Of a worker, a second.
        unit: Of the work.
        device: What did it: GPU, CPU, or a server that is none of the run's.
        start: Seconds before it began.
    """

    work: float
    unit: str
    device: str
    start: float


def usual_rate(stage: str, unit: str, gpus: float, told: float) -> float:
    """What a worker gets done a second where no run has shown it.

    Args:
        stage: The stage.
        unit: What its work is counted in.
        gpus: GPUs of the worker.
        told: Tokens a second of a language model, by the configuration; 0 where it does not tell.
    """
    if unit == "tokens":
        return told or LLM_TOKENS
    return GPU_FLOPS[stage] * gpus if gpus and stage in GPU_FLOPS else RATES[stage]
