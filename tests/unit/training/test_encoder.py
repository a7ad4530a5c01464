"""The encoder: built from a corpus, saved, opened as sentence-transformers does, and what is refused."""

import json
import re

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

from genret.config import DenseConfig, PretrainedEncoder, ScratchEncoder
from genret.errors import InputError
from genret.training.base import passage_texts
from genret.training.encoder import (
    Encoder,
    EncoderPlace,
    build_scratch_encoder,
    chosen_family,
    family_of,
    reading_of,
)

SMALL = DenseConfig(model=ScratchEncoder(vocabulary_size=400, dimensions=16), max_tokens=32)

WEB_SEARCH = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


@pytest.fixture(scope="module")
def encoder(passages):
    return build_scratch_encoder(SMALL, passage_texts(passages), seed=0)


def test_finds_a_passage_by_its_words_before_training(encoder, passages) -> None:
    vectors = encoder.encode(passage_texts(passages), queries=False)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(7), atol=1e-5)
    scores = encoder.encode(["knead dough with yeast", "glacier lake in winter"], queries=True) @ vectors.T
    names = passages.column("passage_id").to_pylist()
    assert [names[place] for place in scores.argmax(1).tolist()] == ["bread", "lake"]


def test_saved_it_is_a_model_of_sentence_transformers(encoder, tmp_path) -> None:
    encoder.save(tmp_path)
    texts = ["night train", "sugar and eggs", ""]
    opened = Encoder.load(tmp_path)
    assert torch.equal(opened.encode(texts, queries=True), encoder.encode(texts, queries=True))
    theirs = SentenceTransformer(str(tmp_path), device="cpu").encode(texts[:2], convert_to_tensor=True)
    assert torch.allclose(theirs, encoder.encode(texts[:2], queries=False), atol=1e-6)
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("text", ["", " \n", "漢字", "train " * 10_000])
def test_any_text_has_a_vector(encoder, text) -> None:
    vector = encoder.encode([text], queries=True)
    assert vector.shape == (1, 16)
    assert bool(torch.isfinite(vector).all())


def test_a_long_text_is_cut_at_its_end(encoder) -> None:
    long = "train " * 32
    assert torch.equal(encoder.encode([long + "glacier " * 10_000], queries=True), encoder.encode([long], queries=True))


def test_vectors_do_not_depend_on_the_other_texts(encoder) -> None:
    texts = ["mail", "the night train carries passengers", "sea and snow"]
    together = encoder.encode(texts, queries=True, batch_size=2)
    alone = torch.cat([encoder.encode([text], queries=True) for text in texts])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "query", "normalise"),
    [
        ("plain", "", True),
        ("bge", "Represent this sentence for searching relevant passages: ", True),
        ("contriever", "", False),
        ("e5", "query: ", True),
        ("e5-mistral", WEB_SEARCH, True),
        ("gte-qwen2", WEB_SEARCH, True),
    ],
)  # fmt: skip
def test_families_read_as_their_authors_say(family, query, normalise) -> None:
    reading = reading_of(DenseConfig(model=PretrainedEncoder(name="some/model", family=family)))
    passage = "passage: " if family == "e5" else ""
    assert (reading.query_prefix, reading.passage_prefix, reading.normalise) == (query, passage, normalise)
    own = PretrainedEncoder(name="some/model", family=family, query_prefix="q: ", passage_prefix="p: ")
    assert reading_of(DenseConfig(model=own)).query_prefix == "q: "
    assert reading_of(DenseConfig(model=own)).passage_prefix == "p: "


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("BAAI/bge-large-en-v1.5", "bge"),
        ("BAAI/bge-base-zh-v1.5", "plain"),
        ("BAAI/bge-m3", "plain"),
        ("facebook/contriever-msmarco", "contriever"),
        ("intfloat/e5-mistral-7b-instruct", "e5-mistral"),
        ("intfloat/multilingual-e5-large-instruct", "e5-mistral"),
        ("intfloat/multilingual-e5-base", "e5"),
        ("Alibaba-NLP/gte-Qwen2-7B-instruct", "gte-qwen2"),
        ("/models/bge-large-en-v1.5/", "bge"),
        ("/models/bge-large-en-v1.5/mine", "plain"),
        ("sentence-transformers/all-MiniLM-L6-v2", "plain"),
        ("BAAI/bge-small-en", "bge"),
        ("BAAI/bge-en-icl", "plain"),
        ("BAAI/bge-reranker-large", "plain"),
        ("mine/bge-large-en-reranker", "plain"),
        ("mine/e5-base-reranker", "plain"),
        ("mine/type5-instruct", "plain"),
        ("mine/type5-base", "plain"),
        ("mine/e5-instructor", "e5"),
        ("mine/e5-instruct", "e5-mistral"),
        ("facebook/mcontriever-msmarco", "contriever"),
        ("/hub/models--intfloat--e5-base-v2/snapshots/1c644c92ad3ba1efdad3f1451a637716616a20e8", "e5"),
        ("/hub/models--BAAI--bge-base-en-v1.5/snapshots/a5beb1e3e68b9ab74eb54cfd186867f64f240e1a/", "bge"),
        ("/models/e5-base/mine/snapshots/a5beb1e3", "plain"),
        ("snapshots/e5-base", "e5"),
    ],
)
def test_a_name_tells_the_family(name: str, family: str) -> None:
    assert family_of(name) == family
    by_name = reading_of(DenseConfig(model=PretrainedEncoder(name=name)))
    assert by_name == reading_of(DenseConfig(model=PretrainedEncoder(name=name, family=family)))


def test_what_is_configured_goes_before_the_name() -> None:
    assert chosen_family(SMALL) is None
    assert chosen_family(DenseConfig(model=PretrainedEncoder(name="intfloat/e5-base-v2"))) == "e5"
    assert chosen_family(DenseConfig(model=PretrainedEncoder(name="intfloat/e5-base-v2", family="bge"))) == "bge"


def test_prefixes_stand_before_texts(encoder, passages, tmp_path) -> None:
    encoder.save(tmp_path)
    config = DenseConfig(model=PretrainedEncoder(name=str(tmp_path), query_prefix="glacier "))
    pretrained = EncoderPlace.of("", config, base=True).open({})
    assert torch.allclose(
        pretrained.encode(["train"], queries=True), encoder.encode(["glacier train"], queries=True), atol=1e-6
    )
    assert torch.allclose(pretrained.encode(["train"], queries=False), encoder.encode(["train"], queries=False))


def save_qwen(folder) -> None:
    """A tiny Qwen2 that has learned nothing, with a word a token; pooled at the last token as GTE's are."""
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", *"abcdefgh"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.5, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    Qwen2Model(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(folder)
    SentenceTransformer(modules=[Transformer(str(folder)), Pooling(16, "lasttoken")]).save_pretrained(str(folder))


def qwen(folder, family: str, attention: str) -> Encoder:
    opened = Encoder.pretrained(DenseConfig(model=PretrainedEncoder(name=str(folder), family=family)))
    opened.model.transformers_model.set_attn_implementation(attention)
    return opened


def first_state(encoder: Encoder, text: str) -> torch.Tensor:
    features = encoder.features([text], queries=False)
    with torch.inference_mode():
        return encoder.model[0](features)["token_embeddings"][0, 0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "is_seen"), [("gte-qwen2", True), ("plain", False), ("e5-mistral", False)])
def test_gte_reads_what_is_behind_a_token_too(tmp_path, family: str, is_seen: bool, attention: str) -> None:
    save_qwen(tmp_path)
    opened = qwen(tmp_path, family, attention)
    states = [first_state(opened, text) for text in ("a b c d", "a b c e")]
    assert torch.equal(*states) != is_seen
    # Padding on the side of the longer text changes nothing.
    texts = ["a b", "a b c d e f g h"]
    alone = torch.cat([opened.encode([text], queries=True) for text in texts])
    assert torch.allclose(opened.encode(texts, queries=True), alone, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gte_stays_bidirectional_once_it_is_saved(tmp_path, attention: str) -> None:
    save_qwen(tmp_path / "model")
    opened = qwen(tmp_path / "model", "gte-qwen2", attention)
    opened.save(tmp_path / "saved")
    again = Encoder.load(tmp_path / "saved", training=True)
    assert torch.allclose(again.encode(["a b c"], queries=False), opened.encode(["a b c"], queries=False), atol=1e-6)
    assert not torch.equal(first_state(again, "a b c d"), first_state(again, "a b c e"))


def open_named(path) -> Encoder:
    return Encoder.pretrained(DenseConfig(model=PretrainedEncoder(name=str(path))))


def test_pickled_weights_are_refused(encoder, tmp_path) -> None:
    encoder.save(tmp_path)
    weights = next(tmp_path.rglob("*.safetensors"))
    weights.rename(weights.with_name("pytorch_model.bin"))
    command = re.escape(f"genret convert {tmp_path} models/{tmp_path.name}")
    with pytest.raises(InputError, match=rf"expected weights in safetensors, found pytorch_model\.bin.*{command}"):
        open_named(tmp_path)


def test_a_model_on_the_hub_with_pickles_alone_says_what_to_do(encoder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    revision = "0" * 40
    place = tmp_path / "models--mine--contriever" / "snapshots" / revision
    (tmp_path / "models--mine--contriever" / "refs").mkdir(parents=True)
    (tmp_path / "models--mine--contriever" / "refs" / "main").write_text(revision)
    place.mkdir(parents=True)
    bert = BertModel(
        BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    bert.config.save_pretrained(place)
    torch.save(bert.state_dict(), place / "pytorch_model.bin")
    command = "genret convert mine/contriever models/contriever"
    with pytest.raises(InputError, match=rf"expected weights in safetensors, found none at 'main'; .*{command}"):
        open_named("mine/contriever")


def test_modules_of_others_are_refused(encoder, tmp_path) -> None:
    encoder.save(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["type"] = "os.Evil"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=r"expected modules of sentence_transformers, found 'os\.Evil'"):
        open_named(tmp_path)


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"dense\.model\.name: cannot load 'no/such-model-here'"):
        open_named("no/such-model-here")


def test_a_folder_that_is_no_encoder_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no saved encoder here; expected the file genret\.json"):
        Encoder.load(tmp_path)


def test_an_unknown_language_is_named(passages) -> None:
    config = DenseConfig(model=ScratchEncoder(vocabulary_size=300, dimensions=8, language="klingon"))
    with pytest.raises(InputError, match=r"dense\.model\.language: expected one of .*, found 'klingon'"):
        build_scratch_encoder(config, passage_texts(passages), seed=0)


def test_distinct_words_are_read_once(passages, tmp_path) -> None:
    model = ScratchEncoder(vocabulary_size=400, dimensions=16, distinct_words=True)
    once = build_scratch_encoder(SMALL.model_copy(update={"model": model}), passage_texts(passages), seed=0)
    once.save(tmp_path)
    for encoder in (once, Encoder.load(tmp_path)):
        several, one = encoder.encode(["Train, mail; train TRAIN", "train mail"], queries=True)
        assert torch.equal(several, one)
