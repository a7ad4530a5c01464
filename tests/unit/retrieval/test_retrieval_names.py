"""From which stages retrievers are opened."""

import pytest

from genret.config import RunConfig, load_config
from genret.retrieval.names import last_stage, retriever_stages


@pytest.mark.parametrize(
    ("name", "records", "expected"),
    [
        ("sft", {"sft", "rpo", "bm25"}, ("sft",)),
        ("rpo", {"sft", "rpo"}, ("rpo",)),
        ("rpo", {"sft", "rpo", "rpo_2"}, ("rpo_2",)),
        ("bm25", {"bm25", "dense"}, ("bm25",)),
        ("dense", {"encoder", "dense", "embedding", "base_embedding"}, ("embedding", "dense")),
        ("dense", {"encoder", "embedding"}, ("embedding", "encoder")),
        ("dense", {"encoder", "dense", "embedding", "lists"}, ("embedding", "lists", "dense")),
        ("dense", {"embedding"}, ("embedding",)),
        ("dense_base", {"encoder", "dense", "embedding", "base_embedding", "lists"}, ("base_embedding", "encoder")),
        ("dense_base", {"dense", "embedding", "base_embedding"}, ("base_embedding",)),
    ],
)
def test_a_retriever_is_opened_from_its_own_stages(name: str, records: set[str], expected: tuple[str, ...]) -> None:
    assert retriever_stages(name, records) == expected


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("sft", [], "sft"),
        ("rpo", [], "rpo"),
        ("rpo", ["preference.rounds=2"], "rpo_2"),
        ("bm25", ["preference.rounds=2", "dense.index=lists"], "bm25"),
        ("dense", [], "embedding"),
        ("dense", ["dense.index=lists"], "lists"),
    ],
)
def test_a_retriever_is_what_its_configuration_asks_for_after_its_last_stage(
    name: str, settings: list[str], expected: str
) -> None:
    config: RunConfig = load_config("scratch-semantic", ["corpus.path=nowhere", *settings])
    assert last_stage(name, config) == expected
