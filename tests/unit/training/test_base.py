"""What training starts from: tiny pretrained checkpoints, with tokenizers of several habits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from genret.config import PretrainedModel, ScratchModel, SftConfig, TuningConfig
from genret.errors import InputError
from genret.tables import table_from_rows
from genret.training.base import add_rows, build_base, load_for_training, passage_texts
from genret.training.bundle import Bundle
from genret.training.converting import convert_model
from genret.training.scratch import train_tokenizer
from genret.training.sft import train_sft

NAMES = {"river": "glacier", "lake": "glacier lake", "bread": "dough", "cake": "oven", "train": "night",
         "mail": "post", "winter": "snow"}  # fmt: skip
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def save_checkpoint(folder: Path, special: dict[str, str], *, tied: bool = False, positions: int = 128) -> Path:
    """A randomly initialised Llama of a few thousand weights with a byte-level tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=list(special.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the glacier feeds the lake and the oven bakes the dough"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, truncation_side="left", **special).save_pretrained(folder)
    torch.manual_seed(2)
    settings = LlamaConfig(
        vocab_size=300,  # more than the tokenizer has, as models with padded embeddings
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(settings).save_pretrained(folder)
    return folder


def pretrained(folder: Path, **changes) -> SftConfig:
    model = {"name": str(folder)} | {name: changes.pop(name) for name in ("prompt_suffix",) if name in changes}
    return SftConfig(**({"model": PretrainedModel(**model), "max_tokens": 64} | changes))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoint", SPECIAL)


@pytest.fixture
def build(passages):
    def make(config: SftConfig, identifier_type: str = "semantic") -> Bundle:
        names = NAMES.values() if identifier_type == "semantic" else map(str, range(len(NAMES)))
        identifiers = table_from_rows(
            "identifiers",
            ({"passage_id": key, "identifier": name, "source": "llm"} for key, name in zip(NAMES, names, strict=True)),
        )
        return build_base(config, passages, identifiers, table_from_rows("sft_examples", []), identifier_type, 0)

    return make


def test_the_bundle_of_a_pretrained_model_has_no_weights(build, checkpoint: Path, tmp_path: Path) -> None:
    bundle = build(pretrained(checkpoint, prompt_suffix=" is: ", scoring="vocabulary"))
    assert bundle.model is None
    assert bundle.settings.stage == "base"
    assert bundle.settings.scoring == "vocabulary"
    assert bundle.tokenizer.decode(bundle.settings.suffix) == " is: "
    assert bundle.identifiers[0].tolist()[-1] == bundle.tokenizer.eos_token_id
    bundle.save(tmp_path / "bundle")
    assert not list((tmp_path / "bundle").rglob("*.safetensors"))


def test_semantic_training_starts_from_the_pretrained_weights(build, checkpoint: Path, tmp_path: Path) -> None:
    config = pretrained(checkpoint)
    build(config).save(tmp_path / "bundle")
    bundle = load_for_training(tmp_path / "bundle", config.model, "sft")
    assert bundle.settings.stage == "sft"
    assert bundle.model.training
    original = LlamaForCausalLM.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(weight, original[name]) for name, weight in bundle.model.state_dict().items())
    assert {weight.dtype for weight in bundle.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("tied", [False, True])
def test_atomic_training_starts_with_new_rows(build, tmp_path: Path, tied: bool) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", SPECIAL, tied=tied)
    config = pretrained(checkpoint)
    build(config, "atomic").save(tmp_path / "bundle")
    bundle = load_for_training(tmp_path / "bundle", config.model, "sft")
    assert bundle.settings.first_row == 300, "beyond all rows that the model has, not only the tokenizer's"
    assert bundle.identifiers.tokens.tolist() == list(range(300, 307))
    original = LlamaForCausalLM.from_pretrained(checkpoint)
    for weights in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(original, weights)().weight, getattr(bundle.model, weights)().weight
        assert new.shape == (307, 16)
        assert torch.equal(new[:300], old)
        spread = old.std()
        assert (new[300:] - old.mean(0)).abs().max() < 0.6 * spread
        assert len(new[300:].unique(dim=0)) == 7, "no two alike"
    same = bundle.model.get_input_embeddings().weight is bundle.model.get_output_embeddings().weight
    assert same == tied
    bundle.save(tmp_path / "trained")
    again = load_for_training(tmp_path / "trained", None, "rpo")
    assert torch.equal(again.model.get_output_embeddings().weight, bundle.model.get_output_embeddings().weight)


def test_new_rows_are_the_same_in_every_worker(checkpoint: Path) -> None:
    rows = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = LlamaForCausalLM.from_pretrained(checkpoint)
        add_rows(model, 300, 5)
        rows.append(model.get_input_embeddings().weight[300:])
    assert torch.equal(*rows)


def test_a_tokenizer_without_padding_pads_with_its_end(build, tmp_path: Path) -> None:
    bundle = build(pretrained(save_checkpoint(tmp_path / "checkpoint", {"eos_token": "</s>"})))
    assert bundle.tokenizer.pad_token_id == bundle.tokenizer.eos_token_id


def test_a_tokenizer_without_an_end_is_refused(build, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "checkpoint", {"pad_token": "<pad>"})
    with pytest.raises(InputError, match=r"sft.model.name: the tokenizer of '.*checkpoint' has no end-of-sequence"):
        build(pretrained(folder))


def test_long_prompts_lose_their_end_whatever_the_tokenizer_prefers(build, checkpoint: Path) -> None:
    assert build(pretrained(checkpoint)).tokenizer.truncation_side == "right"


def test_no_such_model_is_named(build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sft.model.name: cannot load '.*/nothing' at 'main'"):
        build(pretrained(tmp_path / "nothing"))


def test_missing_weights_are_named(build, checkpoint: Path, tmp_path: Path) -> None:
    config = pretrained(checkpoint)
    build(config).save(tmp_path / "bundle")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"sft.model.name: cannot load '.*checkpoint' at 'main'"):
        load_for_training(tmp_path / "bundle", config.model, "sft")


def test_pickled_weights_are_refused(build, checkpoint: Path, tmp_path: Path) -> None:
    config = pretrained(checkpoint)
    build(config).save(tmp_path / "bundle")
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    load_for_training(tmp_path / "bundle", config.model, "sft")
    (checkpoint / "model.safetensors").unlink()
    says = (
        f"sft.model.name: {checkpoint}: expected weights in safetensors, found pytorch_model.bin; .*set sft.model.name"
    )
    with pytest.raises(InputError, match=says):
        load_for_training(tmp_path / "bundle", config.model, "sft")
    (checkpoint / "model-00001-of-00001.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"sft\.model\.name: cannot load"):  # the pickle is not to blame
        load_for_training(tmp_path / "bundle", config.model, "sft")
    (checkpoint / "model-00001-of-00001.safetensors").unlink()
    assert convert_model(str(checkpoint), "main", tmp_path / "copy") == ["model.safetensors"]
    load_for_training(tmp_path / "bundle", PretrainedModel(name=str(tmp_path / "copy")), "sft")


def test_a_bundle_without_weights_needs_a_model(build, checkpoint: Path, tmp_path: Path) -> None:
    build(pretrained(checkpoint)).save(tmp_path / "bundle")
    with pytest.raises(InputError, match="this bundle has no weights; expected a pretrained model beside it"):
        load_for_training(tmp_path / "bundle", None, "rpo")


def test_prompts_must_fit_the_positions(build, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", SPECIAL, positions=64)
    longest = build(pretrained(checkpoint, max_tokens=40)).trie.max_length
    with pytest.raises(InputError, match=rf"sft.max_tokens: expected at most {64 - longest}, .* found 64"):
        build(pretrained(checkpoint, max_tokens=64))
    build(pretrained(checkpoint, max_tokens=64 - longest))


def test_a_suffix_must_leave_room(build, checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"sft.model.prompt_suffix: .* at least one token and fewer than"):
        build(pretrained(checkpoint, max_tokens=8, prompt_suffix="identifier of the passage: "))


def test_atomic_identifiers_take_no_place_in_the_vocabulary(build, passages) -> None:
    model = ScratchModel(vocabulary_size=320, hidden_size=16, intermediate_size=16, layers=1, heads=2)
    bundle = build(SftConfig(model=model, max_tokens=64), "atomic")
    expected = train_tokenizer(passage_texts(passages), 320, 64)
    assert bundle.tokenizer.get_vocab() == expected.get_vocab()
    assert bundle.settings.first_row == len(expected)


def test_texts_are_title_and_text() -> None:
    row = {"passage_id": "p", "doc_id": "p", "metadata": "{}"}
    table = table_from_rows("passages", [row | {"title": "T", "text": "x"}, row | {"title": "", "text": "y"}])
    assert passage_texts(table) == ["T\nx", "y"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("identifier_type", ["semantic", "atomic"])
def test_lora_trains_a_pretrained_model_that_opens_as_a_plain_one(build, tmp_path, identifier_type, tied) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", SPECIAL, tied=tied)
    config = pretrained(
        checkpoint, tuning=TuningConfig(method="lora", rank=2), epochs=60, learning_rate=2e-2, batch_size=7,
        micro_batch_size=7, checkpoints=0, scoring="vocabulary",
    )  # fmt: skip
    build(config, identifier_type).save(tmp_path / "bundle")
    bundle = load_for_training(tmp_path / "bundle", config.model, "sft")
    names = bundle.passages.column("identifier").to_pylist()
    examples = table_from_rows(
        "sft_examples", ({"prompt": f"query {n}", "completion": n, "kind": "query2id"} for n in names)
    )
    log = train_sft(config, bundle, examples, tmp_path / "out", seed=0)
    # A random model of 16 dimensions with a frozen head can hardly change what it says.
    assert log[-1]["loss"] < log[0]["loss"] * (0.7 if identifier_type == "atomic" else 0.996)
    bundle.save(tmp_path / "trained")
    again = Bundle.load(tmp_path / "trained")
    ids = torch.arange(3, 13)[None]
    assert torch.equal(again.model(ids).logits, bundle.model.eval()(ids).logits)
    old = LlamaForCausalLM.from_pretrained(checkpoint).get_input_embeddings().weight
    assert torch.equal(again.model.get_input_embeddings().weight[:300], old), "LoRA leaves embeddings alone"
