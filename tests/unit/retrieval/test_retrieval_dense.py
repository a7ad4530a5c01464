"""The dense retriever: search against brute force, embedding that goes on where it stopped, and odd queries."""

import re
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from genret.config import DenseConfig, PretrainedEncoder, RetrievalConfig, ScratchEncoder
from genret.errors import InputError
from genret.retrieval import dense, vectors
from genret.retrieval.approximate import write_lists
from genret.retrieval.dense import DenseRetriever, missing_blocks, open_embedder, write_index
from genret.retrieval.vectors import DenseIndex, QuantisedVectors, quantise
from genret.runs import RunStore
from genret.training.base import passage_texts
from genret.training.encoder import EncoderPlace, build_scratch_encoder

SMALL = DenseConfig(model=ScratchEncoder(vocabulary_size=400, dimensions=16), max_tokens=32)
RETRIEVAL = RetrievalConfig(batch_size=2)


def brute_force(values: np.ndarray, scales: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    scores = [float(np.dot(row.astype(np.float64) * scale, query)) for row, scale in zip(values, scales, strict=True)]
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]


@pytest.mark.parametrize("kind", ["fp16", "int8"])
@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("k", [1, 10, 500])
def test_search_is_brute_force(monkeypatch, kind, block, k) -> None:
    monkeypatch.setattr(vectors, "_SEARCH_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    stored = quantise(torch.randn(200, 24, generator=generator), kind)
    queries = torch.randn(5, 24, generator=generator)
    for query, (places, scores) in zip(queries, DenseIndex(stored).search(queries, k), strict=True):
        assert places.tolist() == brute_force(stored.values, stored.scales, query.double().numpy(), k)
        assert np.all(np.diff(scores) <= 0)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-1, 1)), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([0, 1 << 20]),
)
def test_ties_rank_in_the_order_of_the_passages(numbers, k, block, most_kept) -> None:
    values = np.array(numbers, dtype=np.float16)
    index = DenseIndex(QuantisedVectors(values, np.ones(len(values), dtype=np.float32)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "_SEARCH_BLOCK", block)
        patch.setattr(vectors, "_MOST_KEPT", most_kept)
        # The second time, what is kept of the first is used.
        for _ in range(2):
            for column, (places, scores) in enumerate(index.search(torch.eye(2), k)):
                by_score = sorted(range(len(numbers)), key=lambda place: (-numbers[place][column], place))
                assert places.tolist() == by_score[:k]
                assert scores.tolist() == [numbers[place][column] for place in by_score[:k]]
    assert (index._multiply is None) == (len(numbers) > block or not most_kept)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_a_mask_leaves_the_ranking_without_the_others(numbers, k, block) -> None:
    values = np.array([[number] for number, _ in numbers], dtype=np.float16)
    index = DenseIndex(QuantisedVectors(values, np.ones(len(values), dtype=np.float32)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "_SEARCH_BLOCK", block)
        ((places, scores),) = index.search(torch.ones(1, 1), k, np.array([allowed for _, allowed in numbers]))
    kept = [place for place, (_, allowed) in enumerate(numbers) if allowed]
    assert places.tolist() == sorted(kept, key=lambda place: (-numbers[place][0], place))[:k]
    assert scores.tolist() == [numbers[place][0] for place in places]


def test_an_empty_index_finds_nothing() -> None:
    index = DenseIndex(quantise(torch.empty(0, 3), "fp16"))
    assert [(len(places), len(scores)) for places, scores in index.search(torch.ones(2, 3), 4)] == [(0, 0)] * 2


def test_int8_is_close_to_what_it_stands_for() -> None:
    exact = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    stored = quantise(exact, "int8")
    assert stored.values.dtype == np.int8
    error = np.abs(stored.values * stored.scales[:, None] - exact.numpy()).max(axis=1)
    assert np.all(error <= stored.scales / 2 + 1e-6)


def test_zero_vectors_stay_zero() -> None:
    assert not quantise(torch.zeros(2, 4), "int8").values.any()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e6])
def test_vectors_that_cannot_be_stored_are_refused(number) -> None:
    with pytest.raises(InputError, match="expected"):
        quantise(torch.tensor([[number]]), "fp16")


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_rows_are_held_once(kind) -> None:
    index = DenseIndex(quantise(torch.randn(2000, 64, generator=torch.Generator().manual_seed(0)), kind))
    places = np.arange(2000)
    tracemalloc.start()
    rows = index.rows(places)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.dtype == np.float32
    # Beside the numbers as they are stored, of which there is a copy as well.
    assert peak < 1.75 * rows.nbytes


def test_queries_of_another_width_are_refused() -> None:
    index = DenseIndex(quantise(torch.ones(2, 3), "fp16"))
    with pytest.raises(InputError, match="expected 3 dimensions, found 4"):
        index.search(torch.ones(1, 4), 1)


# --- embedding ---


@pytest.fixture
def place(passages, tmp_path) -> EncoderPlace:
    folder = tmp_path / "encoder"
    build_scratch_encoder(SMALL, passage_texts(passages), seed=0).save(folder)
    return EncoderPlace("", "", SMALL.model_copy(update={"model": PretrainedEncoder(name=str(folder))}))


def embed(place: EncoderPlace, passages: pa.Table, scratch: str) -> list[int]:
    done = []
    embedder = open_embedder(place, {}, scratch, 1)
    for number in missing_blocks(scratch, passages.num_rows):
        done.append(embedder((number, passages.slice(number * dense.BLOCK, dense.BLOCK))))
    return done


def open_index(folder, place, passages, scratch, tmp_path) -> DenseRetriever:
    folder.mkdir()
    write_index(folder, scratch, passages.column("passage_id"), place)
    return DenseRetriever.load(folder, RunStore(tmp_path / "run"), {}, "dense", RETRIEVAL)


def test_embedding_goes_on_where_it_stopped(monkeypatch, place, passages, tmp_path) -> None:
    monkeypatch.setattr(dense, "BLOCK", 2)
    undisturbed, killed = str(tmp_path / "a"), tmp_path / "b"
    assert embed(place, passages, undisturbed) == [0, 1, 2, 3]
    embedder = open_embedder(place, {}, str(killed), 1)
    embedder((0, passages.slice(0, 2)))
    embedder((2, passages.slice(4, 2)))
    # What a kill in the middle of writing leaves: a file that was never renamed.
    (killed / ".block-000001.npz-x.tmp").write_bytes(b"half")
    assert embed(place, passages, str(killed)) == [1, 3]
    whole = open_index(tmp_path / "index-a", place, passages, undisturbed, tmp_path)
    resumed = open_index(tmp_path / "index-b", place, passages, str(killed), tmp_path)
    assert (tmp_path / "index-a" / "vectors.npy").read_bytes() == (tmp_path / "index-b" / "vectors.npy").read_bytes()
    queries = ["night train to the capital", "a cake in the oven"]
    assert resumed.retrieve(queries, 3) == whole.retrieve(queries, 3)


@pytest.fixture
def transformer(passages, tmp_path):
    """A tiny BERT that has learned nothing, in a folder as the hub has them: sentence-transformers pools its tokens."""
    folder = tmp_path / "bert"
    words = dict.fromkeys(word for text in passage_texts(passages) for word in re.findall(r"\w+", text.lower()))
    numbers = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(numbers), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_a_transformer_finds_what_brute_force_finds(monkeypatch, transformer, passages, tmp_path, kind) -> None:
    monkeypatch.setattr(dense, "BLOCK", 3)
    model = PretrainedEncoder(name=str(transformer), query_prefix="sea ", passage_prefix="winter ")
    place = EncoderPlace("", "", DenseConfig(model=model, max_tokens=12, vectors=kind, embedding_batch=2))
    assert embed(place, passages, str(tmp_path / "scratch")) == [0, 1, 2]
    retriever = open_index(tmp_path / "index", place, passages, str(tmp_path / "scratch"), tmp_path)
    theirs = SentenceTransformer(str(transformer), device="cpu")
    theirs.max_seq_length = 12

    def vectors_of(texts: list[str]) -> torch.Tensor:
        return theirs.encode(texts, convert_to_tensor=True, normalize_embeddings=True)

    values, scales = (np.load(tmp_path / "index" / name) for name in ("vectors.npy", "scales.npy"))
    expected = vectors_of([f"winter {text}" for text in passage_texts(passages)]).numpy()
    assert np.abs(values * scales[:, None] - expected).max() < (1e-3 if kind == "fp16" else 1e-2)
    names = passages.column("passage_id").to_pylist()
    queries = ["night train to the capital", "a cake in the oven", "snow", "zeppelin", "bread " * 10_000]
    for query, ranking in zip(queries, retriever.retrieve(queries, 7), strict=True):
        vector = vectors_of([f"sea {query}"])[0].double().numpy()
        places = brute_force(values, scales, vector, 7)
        assert ids(ranking) == [names[place] for place in places]
        scores = [float(values[place].astype(np.float64) @ vector * scales[place]) for place in places]
        assert [place.score for place in ranking] == pytest.approx(scores, abs=1e-5)


def test_a_missing_block_is_named(place, passages, tmp_path) -> None:
    with pytest.raises(InputError, match=r"block-000000\.npz: expected a block of vectors, found none"):
        write_index(tmp_path, str(tmp_path / "scratch"), passages.column("passage_id"), place)


def test_a_block_of_other_passages_is_refused(place, passages, tmp_path) -> None:
    embed(place, passages.slice(0, 3), str(tmp_path / "scratch"))
    with pytest.raises(InputError, match="expected 7 vectors, found 3"):
        write_index(tmp_path, str(tmp_path / "scratch"), passages.column("passage_id"), place)


# --- queries ---


@pytest.fixture
def retriever(place, passages, tmp_path) -> DenseRetriever:
    embed(place, passages, str(tmp_path / "scratch"))
    return open_index(tmp_path / "index", place, passages, str(tmp_path / "scratch"), tmp_path)


def ids(ranking) -> list[str]:
    return [place.passage_id for place in ranking]


def test_finds_passages(retriever) -> None:
    ranking = retriever.retrieve(["knead dough with yeast"], 7)[0]
    assert ranking[0].passage_id == "bread"
    assert len(ranking) == 7
    assert [place.score for place in ranking] == sorted((place.score for place in ranking), reverse=True)


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_finds_nothing(retriever, query) -> None:
    assert retriever.retrieve([query, "mail"], 2)[0] == []
    assert len(retriever.retrieve([query, "mail"], 2)[1]) == 2


@pytest.mark.parametrize("query", ["Wo fährt der Nachtzug ab?", "夜行列車はどこから", "поезд", "\ud800", "\x00"])
def test_a_query_of_another_language_is_answered(retriever, query) -> None:
    assert len(retriever.retrieve([query], 3)[0]) <= 3


def test_a_query_that_is_not_read_leaves_the_others_theirs(retriever) -> None:
    # The encoder knows nothing of another script; both are in one batch.
    unread, read = retriever.retrieve(["поезд", "knead dough with yeast"], 3)
    assert unread == [] and len(read) == 3
    assert ids(read) == ids(retriever.retrieve(["knead dough with yeast"], 3)[0])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_query_whose_vector_overflows_finds_nothing(retriever, number, monkeypatch) -> None:
    encode = retriever._encoder.encode

    def overflowing(texts, **options):
        vectors = encode(texts, **options).clone()
        vectors[0, 0] = number
        return vectors

    expected = retriever.retrieve(["night train"], 3)[0]
    monkeypatch.setattr(retriever._encoder, "encode", overflowing)
    overflown, other = retriever.retrieve(["knead dough", "night train"], 3)
    assert overflown == [] and ids(other) == ids(expected)


def test_a_query_of_ten_thousand_words_is_cut(retriever) -> None:
    ranking = retriever.retrieve(["knead dough with yeast " * 2500], 3)[0]
    assert ranking[0].passage_id == "bread"


def test_an_index_that_is_not_whole_is_refused(retriever, tmp_path) -> None:
    (tmp_path / "index" / "scales.npy").unlink()
    with pytest.raises(InputError, match=r"expected the file scales\.npy, found none"):
        DenseRetriever.load(tmp_path / "index", RunStore(tmp_path / "run"), {}, "dense", RETRIEVAL)


def test_lists_find_what_the_exact_search_finds(place, passages, retriever, tmp_path) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed")
    lists = tmp_path / "lists"
    lists.mkdir()
    write_lists(tmp_path / "index", lists, 0)
    opened = DenseRetriever.load(tmp_path / "index", RunStore(tmp_path / "run"), {}, "dense", RETRIEVAL, lists)
    for query in ("night train to the capital", "a cake in the oven", ""):
        found, expected = (one.retrieve([query], 7)[0] for one in (opened, retriever))
        assert [place.passage_id for place in found] == [place.passage_id for place in expected]
        assert [place.score for place in found] == pytest.approx([place.score for place in expected], abs=1e-6)
