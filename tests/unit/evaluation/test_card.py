"""Model cards, read back by the library that the hub's own tools are made of."""

from typing import Any

import pyarrow as pa
import pytest
from huggingface_hub import ModelCard

from genret.config import load_config
from genret.evaluation.card import Recipe, model_card
from genret.tables import table_from_rows

RECIPE = Recipe(1234, {"llm": 1200, "ordinal": 34}, {"chunk": 5000}, {"query2id": 5000, "context2id": 5000}, 321)
VERSIONS = {"python": "3.11.7", "torch": "2.11.0"}


def measures_table(*rows: tuple[str, str, float]) -> pa.Table:
    return table_from_rows(
        "measures",
        [
            {"retriever": retriever, "measure": measure, "value": value, "n_queries": 9, "ci_low": 0.0, "ci_high": 1.0}
            for retriever, measure, value in rows
        ],
    )


MEASURES = measures_table(
    ("rpo", "NDCG@10", 0.71234), ("rpo", "HIT@1", 0.5), ("bm25", "NDCG@10", 0.6), ("bm25", "HIT@1", 0.4)
)


def card_of(retriever: str = "rpo", measures: pa.Table = MEASURES, **overrides: Any) -> ModelCard:
    config = load_config(
        "scratch-semantic", ["corpus.path=/secret/place", *(f"{name}={value}" for name, value in overrides.items())]
    )
    return ModelCard(model_card(config, retriever, RECIPE, measures, VERSIONS))


def test_the_hub_reads_the_measures_of_this_retriever_alone() -> None:
    card = card_of()
    results = {(result.metric_type, result.metric_value) for result in card.data.eval_results}
    assert results == {("NDCG@10", 0.7123), ("HIT@1", 0.5)}
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None


def test_the_text_tells_the_data_and_all_retrievers() -> None:
    text = card_of().text
    assert "1,234 passages" in text and "5,000 query2id" in text and "321 preference pairs" in text
    assert "beta 0.5" in text
    assert "bm25" in text and "71.2" in text and "60.0" in text


def test_no_path_of_this_machine_is_told() -> None:
    assert "secret" not in card_of().content
    assert "secret" not in card_of(llm="{type: vllm, model: /secret/writer}").content
    assert "secret" not in card_of("sft", **{"sft.model": "{type: pretrained, name: /secret/model}"}).content


def test_a_pretrained_model_is_named() -> None:
    card = card_of("sft", **{"sft.model": "{type: pretrained, name: acme/seven-b}"})
    assert card.data.base_model == "acme/seven-b"
    assert "beta" not in card.text


def test_the_dense_encoder_has_a_card_of_its_own() -> None:
    card = card_of("dense", measures_table(("dense", "HIT@1", 0.25)))
    assert card.data.library_name == "sentence-transformers"
    assert "by source of the negative" in card.text and "preference" not in card.text.split("## Training")[1]


def test_without_queries_it_says_so() -> None:
    card = card_of(measures=measures_table())
    assert card.data.eval_results is None
    assert "Not evaluated" in card.text


@pytest.mark.parametrize("name", ["a", "x.y-z", "yes", "1e3"])
def test_names_survive_yaml(name: str) -> None:
    card = card_of(name=f"'{name}'")
    assert card.data.model_name == f"{name}-rpo"
