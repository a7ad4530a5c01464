"""The presets of arXiv 2502.17957 hold the figures of its appendix A."""

import pytest

from genret.config import RunConfig, load_config

PAPER = ["multihop-rag", "allsides", "agnews", "nq"]
# Appendix A, A.1 to A.4 and table 10: m_c, m_s, m_i, preference queries, longest sequence, mix, level of Context2ID.
DATA = {
    "multihop-rag": (10, 10, 10, 10, 700, "interleave", "chunk"),
    "allsides": (10, 10, 10, 10, 700, "interleave", "chunk"),
    "agnews": (10, 10, 10, 10, 700, "interleave", "chunk"),
    "nq": (15, 0, 0, 2, 450, "concat", "sentence"),
}
ATTRIBUTES = {
    "multihop-rag": {"author", "published_at", "source", "category", "title"},
    "allsides": {"political_polarity"},
    "agnews": {"location", "topic"},
    "nq": set(),
}


@pytest.fixture(params=PAPER)
def config(request: pytest.FixtureRequest) -> RunConfig:
    return load_config(request.param, ["corpus.path=somewhere"])


def test_data(config: RunConfig) -> None:
    synthesis, examples = config.synthesis, config.examples
    found = (
        *(synthesis.chunk_queries, synthesis.sentence_queries, synthesis.constraint_queries),
        *(synthesis.preference_queries, config.sft.max_tokens, examples.mix, examples.context2id),
    )
    assert found == DATA[config.name]
    assert set(synthesis.constraint_fields) == ATTRIBUTES[config.name]
    assert config.corpus.unit == ("chunk" if config.name == "multihop-rag" else "document")
    assert config.corpus.train_split == ("train" if config.name == "nq" else "")
    if examples.context2id == "chunk":
        assert examples.context_tokens == 256
    assert config.llm.model == "mistralai/Mixtral-8x7B-Instruct-v0.1"
    assert config.llm.temperature == 0.7


def test_the_whole_list_of_keywords_is_the_identifier(config: RunConfig) -> None:
    """Section 2.1: "we instruct an LLM to produce a list of keywords [...] and use this keyword list"."""
    identifiers = config.identifiers
    assert (identifiers.type, identifiers.order) == ("semantic", "given")
    assert identifiers.keywords == identifiers.max_keywords


def test_training(config: RunConfig) -> None:
    sft, rpo = config.sft, config.rpo
    assert sft.model.name == "mistralai/Mistral-7B-Instruct-v0.3"
    assert (sft.epochs, sft.batch_size, sft.learning_rate, sft.warmup_ratio) == (2, 256, 2e-5, 0.1)
    assert (sft.precision, sft.loss, sft.scoring, sft.tuning.method) == ("bf16", "all", "vocabulary", "full")
    assert (rpo.epochs, rpo.batch_size, rpo.learning_rate, rpo.beta, rpo.alpha) == (1, 64, 1e-7, 0.5, 1.0)
    assert (config.mining.strategy, config.mining.candidates, config.mining.negatives) == ("top", 10, 10)
    assert (config.retrieval.search, config.retrieval.beam) == ("beam", 10)
    assert config.preference.rounds == 1


def test_machine(config: RunConfig) -> None:
    compute = config.compute
    assert (compute.training_workers, compute.gpus_a_training_worker, compute.zero_stage) == (8, 1, 3)


def test_a_consumer_gpu_has_one_worker() -> None:
    compute = load_config("small-gpu", ["corpus.path=somewhere"]).compute
    assert (compute.training_workers, compute.gpus_a_training_worker, compute.gpus_a_worker) == (1, 1, 1.0)
