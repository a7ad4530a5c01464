"""Saving and loading a retriever."""

import json
from pathlib import Path

import pytest
import torch

from genret.errors import InputError
from genret.training.bundle import Bundle


@pytest.mark.parametrize("identifier_type", ["semantic", "atomic"])
def test_what_is_loaded_is_what_was_saved(make_bundle, tmp_path: Path, identifier_type: str) -> None:
    bundle = make_bundle(identifier_type, "vocabulary")
    bundle.save(tmp_path / "some" / "folder")
    loaded = Bundle.load(tmp_path / "some" / "folder")
    assert loaded.settings == bundle.settings
    assert loaded.passages.equals(bundle.passages)
    assert loaded.identifiers.tokens.tolist() == bundle.identifiers.tokens.tolist()
    assert loaded.identifiers.offsets.tolist() == bundle.identifiers.offsets.tolist()
    for number in range(len(bundle.trie)):
        assert loaded.trie.identifier(number).tolist() == bundle.identifiers[number].tolist()
    text = "The mountain lake, naïve & ﬁne"
    assert loaded.tokenizer(text)["input_ids"] == bundle.tokenizer(text)["input_ids"]
    prompt = torch.tensor([[*bundle.tokenizer(text)["input_ids"], *bundle.settings.suffix]])
    with torch.no_grad():
        assert torch.equal(loaded.model(prompt).logits, bundle.model(prompt).logits)
    assert not loaded.model.training


def test_no_pickle_is_written(make_bundle, tmp_path: Path) -> None:
    make_bundle().save(tmp_path)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".npy", ".parquet", ".safetensors", ".bin"}
    for path in tmp_path.rglob("*.bin"):
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path


def test_weights_can_be_read_in_other_numbers(make_bundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    bundle.save(tmp_path)
    loaded = Bundle.load(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}


def test_without_weights_it_has_no_model(make_bundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    bundle.model = None
    bundle.save(tmp_path)
    assert Bundle.load(tmp_path).model is None


def test_a_foreign_folder_is_named(make_bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: no saved retriever here; expected the file genret.json"):
        Bundle.load(tmp_path)
    make_bundle().model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no saved retriever here"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON, found something else"),
        ("[]", "expected a JSON object of format 1, found \\[\\]"),
        ('{"format": 2}', "expected a JSON object of format 1, found .'format': 2."),
        ("{}", "expected a JSON object of format 1"),
        ('{"format": 1}', "expected the fields .*'first_row'.*, found \\[\\]"),
        ('{"format": 1, "suffix": [1], "more": 2}', "expected the fields .*, found \\['more', 'suffix'\\]"),
    ],
)
def test_a_wrong_settings_file_is_named(make_bundle, tmp_path: Path, content: str, message: str) -> None:
    make_bundle().save(tmp_path)
    (tmp_path / "genret.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=f"{tmp_path}/genret.json: {message}"):
        Bundle.load(tmp_path)


def test_settings_are_readable_json(make_bundle, tmp_path: Path) -> None:
    make_bundle("atomic").save(tmp_path)
    settings = json.loads((tmp_path / "genret.json").read_text(encoding="utf-8"))
    assert settings["identifier_type"] == "atomic"
    assert settings["stage"] == "base"
    assert settings["max_tokens"] == 64


def test_a_missing_file_is_named(make_bundle, tmp_path: Path) -> None:
    make_bundle().save(tmp_path)
    (tmp_path / "identifier_tokens.npy").unlink()
    with pytest.raises(InputError, match=f"{tmp_path}: expected the file identifier_tokens.npy, found none"):
        Bundle.load(tmp_path)
