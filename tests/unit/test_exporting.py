"""Trained retrievers out of their runs: what transformers and genret load again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from genret.config import RunConfig, parse_config
from genret.errors import InputError
from genret.exporting import export_retriever
from genret.runs import RunStore
from genret.training.bundle import Bundle


def config_of(store: RunStore) -> RunConfig:
    return parse_config(store.read_file("config.yaml"), "small")


def test_transformers_loads_the_same_weights(small_run: RunStore, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    assert export_retriever(small_run, config_of(small_run), folder) == "sft"
    exported = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    model = Bundle.load(small_run.local_folder(small_run.current()["sft"], "sft")).model
    assert model is not None
    for name, weight in model.state_dict().items():
        assert torch.equal(exported[name], weight), name
    assert AutoTokenizer.from_pretrained(folder)("river")["input_ids"]
    assert Bundle.load(folder).passages.num_rows == 40
    card = ModelCard.load(folder / "README.md")
    assert "40 passages" in card.text
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_what_is_there_is_not_written_over(small_run: RunStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder that does not exist yet"):
        export_retriever(small_run, config_of(small_run), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_retriever_without_a_model_is_refused(small_run: RunStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--retriever: expected one of \['sft'\], found 'bm25'"):
        export_retriever(small_run, config_of(small_run), tmp_path / "x", "bm25")


def test_a_run_without_training_is_refused(new_run: Callable[..., RunStore], tmp_path: Path) -> None:
    store = new_run()
    store.set_current({"corpus": store.current()["corpus"].fingerprint})
    with pytest.raises(InputError, match="expected a run with a trained retriever, found none"):
        export_retriever(store, config_of(store), tmp_path / "x")
