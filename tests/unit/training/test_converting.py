"""A tiny checkpoint with pickled weights, as older models on the hub have them, and its copy."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizer

from genret.config import DenseConfig, PretrainedEncoder
from genret.errors import InputError
from genret.training.converting import convert_model
from genret.training.encoder import Encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "night", "train", "sea", "snow"]


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A checkpoint without safetensors."""
    folder = tmp_path / "contriever-tiny"
    folder.mkdir()
    BertTokenizer({word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=len(WORDS), **sizes))
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "tf_model.h5").write_bytes(b"of another library")
    return folder


def open_named(folder: Path) -> Encoder:
    return Encoder.pretrained(DenseConfig(model=PretrainedEncoder(name=str(folder))))


def test_a_converted_model_is_opened_with_the_same_weights(pickled: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="genret convert"):
        open_named(pickled)
    target = tmp_path / "models" / "contriever-tiny"
    assert convert_model(str(pickled), "main", target) == ["model.safetensors"]
    encoder = open_named(target)
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    found = encoder.model[0].auto_model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items() if name in found)
    assert len(found.keys() & weights.keys()) > 10
    assert encoder.encode(["night train", "sea"], queries=True).shape == (2, 16)
    assert not list(target.rglob("*.bin")) and not (target / "tf_model.h5").exists()
    assert (pickled / "pytorch_model.bin").is_file(), "the source stays as it is"


def test_shards_and_shared_weights_become_one_file(pickled: Path, tmp_path: Path) -> None:
    shared = torch.ones(2, 3)
    (pickled / "pytorch_model.bin").unlink()
    torch.save({"a": shared, "b": shared.T}, pickled / "pytorch_model-00001-of-00002.bin")
    torch.save({"c": shared}, pickled / "pytorch_model-00002-of-00002.bin")
    convert_model(str(pickled), "main", tmp_path / "one")
    found = load_file(tmp_path / "one" / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in found.items()} == {"a": (2, 3), "b": (3, 2), "c": (2, 3)}


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(("content", "found"), [(Evil(), "something else"), ([1], "list of other things")])
def test_nothing_in_a_pickle_is_run(pickled: Path, tmp_path: Path, monkeypatch, content: object, found: str) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match=rf"pytorch_model\.bin: expected .*, found {found}"):
        convert_model(str(pickled), "main", tmp_path / "target")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "target").exists()


def test_what_cannot_be_converted_is_named(pickled: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder that does not exist yet, found one"):
        convert_model(str(pickled), "main", tmp_path)
    with pytest.raises(InputError, match=r"no/such-model: expected a local folder or a model on the hub, found none"):
        convert_model("no/such-model", "main", tmp_path / "target")
    convert_model(str(pickled), "main", tmp_path / "target")
    with pytest.raises(InputError, match=r"expected weights in pytorch_model\*\.bin beside no safetensors, found none"):
        convert_model(str(tmp_path / "target"), "main", tmp_path / "again")
