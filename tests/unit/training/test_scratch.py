"""The model from scratch: its tokenizer, and that it ranks as truncated SVD of BM25 before any training."""

import hashlib
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genret.config import RetrievalConfig, ScratchModel, SftConfig
from genret.errors import InputError
from genret.retrieval.generative import GenerativeRetriever
from genret.tables import passages_to_table, table_from_rows
from genret.training.base import build_base
from genret.training.batches import Collator, find_branchings, trie_children
from genret.training.bundle import Bundle
from genret.training.encoding import encode_prompts
from genret.training.likelihood import decision_states, trie_log_probs
from genret.training.scratch import bm25_matrix, calibrate, train_tokenizer
from genret.types import Passage

HIDDEN = 64
RANK = HIDDEN - 8


def generated_documents(count: int) -> list[list[str]]:
    """Documents on as many topics as the model has dimensions, each with most words of its topic and some others.

    Singular values fall steeply behind the last topic, so that every good truncation is the same. A digit in a
    word keeps it from being stemmed.
    """
    rng = random.Random(5)
    topics = [[f"t{topic}w{number}" for number in range(20)] for topic in range(RANK)]
    return [
        rng.sample(topics[number % RANK], k=rng.randint(14, 18))
        + rng.choices(topics[number % RANK], k=2)
        + [f"t{rng.randrange(RANK)}w0", f"own{number % 150}"]
        for number in range(count)
    ]


def scratch_bundle(texts: list[str], identifier_type: str = "atomic", **changes) -> Bundle:
    model = {"vocabulary_size": 6000, "hidden_size": HIDDEN, "intermediate_size": 16, "layers": 2, "heads": 4}
    passages = passages_to_table(Passage(f"p{number}", f"p{number}", text) for number, text in enumerate(texts))
    names = [str(number) if identifier_type == "atomic" else f"number {number}" for number in range(len(texts))]
    identifiers = table_from_rows(
        "identifiers",
        ({"passage_id": f"p{number}", "identifier": name, "source": "ordinal"} for number, name in enumerate(names)),
    )
    examples = table_from_rows(
        "sft_examples",
        ({"prompt": text, "completion": name, "kind": "x"} for text, name in zip(texts, names, strict=True)),
    )
    config = SftConfig(model=ScratchModel(**(model | changes)), max_tokens=64)
    return build_base(config, passages, identifiers, examples, identifier_type, seed=0)


def plain_bm25(documents: list[list[str]]) -> tuple[np.ndarray, list[str]]:
    """Weights of words in documents, float64, by the formula alone."""
    words = sorted({word for document in documents for word in document})
    mean = sum(map(len, documents)) / len(documents)
    weights = np.zeros((len(words), len(documents)))
    for row, word in enumerate(words):
        holding = sum(word in document for document in documents)
        idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
        for column, document in enumerate(documents):
            count = document.count(word)
            weights[row, column] = idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(document) / mean))
    return weights, words


# --- what the weights compute ---


def test_untrained_model_ranks_as_truncated_svd_of_bm25() -> None:
    documents = generated_documents(300)
    bundle = scratch_bundle([" ".join(document) for document in documents])
    weights, words = plain_bm25(documents)
    for word in words:
        assert len(bundle.tokenizer(word)["input_ids"]) == 1, "the reference takes every word for one token"
    left, values, right = np.linalg.svd(weights, full_matrices=False)
    left, values, right = left[:, :RANK], values[:RANK], right[:RANK].T
    passages = right / np.linalg.norm(right * values, axis=1, keepdims=True)
    place = {word: row for row, word in enumerate(words)}

    rng = random.Random(1)
    correlations, agreement = [], []
    for _ in range(40):
        document = rng.choice(documents)
        query = rng.sample(document, 4)
        expected = passages @ sum(left[place[word]] * values for word in query)
        (prompt,) = encode_prompts([" ".join(query)], bundle.tokenizer, bundle.settings.suffix, 64)
        with torch.no_grad():
            logits = bundle.model(torch.tensor([prompt])).logits[0, -1, bundle.settings.first_row :]
        found = logits.double().numpy()
        correlations.append(np.corrcoef(found, expected)[0, 1])
        agreement.append(len({*np.argsort(-found)[:10]} & {*np.argsort(-expected)[:10]}) / 10)
    assert min(correlations) > 0.9999
    assert np.mean(agreement) > 0.98


def test_other_blocks_add_nothing_at_first() -> None:
    bundle = scratch_bundle(["one word", "two words", "three words"], layers=3)
    for number, layer in enumerate(bundle.model.model.layers):
        assert not layer.mlp.down_proj.weight.any()
        assert bool(layer.self_attn.o_proj.weight.any()) == (number == 0)


def test_the_seed_decides_the_weights() -> None:
    texts = [" ".join(document) for document in generated_documents(20)]
    for initialisation in ("svd", "random"):
        one, two = (scratch_bundle(texts, initialisation=initialisation).model.state_dict() for _ in range(2))
        assert all(torch.equal(weight, two[name]) for name, weight in one.items()), initialisation


def test_making_a_model_leaves_the_random_state_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    scratch_bundle(["one word", "two words"])
    assert torch.equal(torch.rand(3), expected)


# --- corners ---


@pytest.mark.parametrize("identifier_type", ["semantic", "atomic"])
@pytest.mark.parametrize("texts", [["a single passage"], ["", ""], ["?", "same", "same"], ["👩‍👩‍👧 नमस्ते", "x" * 5000]])
def test_any_corpus_gives_a_model_that_answers(identifier_type: str, texts: list[str]) -> None:
    bundle = scratch_bundle(texts, identifier_type)
    assert all(weight.isfinite().all() for weight in bundle.model.parameters())
    (ranking,) = GenerativeRetriever(bundle, RetrievalConfig()).retrieve(["a single question"], 5)
    assert sorted(place.passage_id for place in ranking) == [f"p{number}" for number in range(len(texts))]
    assert sum(math.exp(place.score) for place in ranking) == pytest.approx(1.0, abs=1e-5)


def test_the_longest_prompt_leaves_room_for_the_longest_identifier() -> None:
    bundle = scratch_bundle(["one word", "two words"], "semantic")
    config = bundle.model.config
    assert config.max_position_embeddings == bundle.settings.max_tokens + bundle.trie.max_length


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(InputError, match=r"sft.model.language: expected one of .*english.*, found 'klingon'"):
        scratch_bundle(["one word"], language="klingon")


# --- calibration ---


@pytest.mark.parametrize("wrong", [0.01, 1.0, 100.0])
def test_calibration_lowers_the_loss(make_bundle, wrong: float) -> None:
    bundle = make_bundle("atomic")
    prompts = ["snow and ice", "knead the dough", "the late train"]
    prompts = encode_prompts(prompts, bundle.tokenizer, bundle.settings.suffix, 64)
    children = trie_children(bundle.trie)
    collator = Collator(bundle.identifiers, find_branchings(bundle.trie, bundle.identifiers), "trie")
    batch = collator.collate(prompts, [0, 2, 4])

    def loss() -> float:
        with torch.no_grad():
            states, weight = decision_states(bundle.model, batch), bundle.model.get_output_embeddings().weight
            return -trie_log_probs(states, batch["node"], batch["target"], weight, children).mean().item()

    norm = bundle.model.model.norm.weight
    with torch.no_grad():
        norm.mul_(wrong)
    before, size = loss(), norm.mean().item()
    factor = calibrate(bundle.model, batch, children)
    assert norm.mean().item() == pytest.approx(size * factor, rel=1e-5)
    assert loss() <= before + 1e-6
    if wrong != 1.0:
        assert loss() < before - 0.01
    best = loss()
    for other in (0.5, 2.0) if wrong == 0.01 else ():  # inside the grid: nothing near it is better
        with torch.no_grad():
            norm.mul_(other)
        assert loss() >= best - 1e-6
        with torch.no_grad():
            norm.div_(other)


def test_nothing_to_choose_needs_no_calibration() -> None:
    bundle = scratch_bundle(["a single passage"])
    collator = Collator(bundle.identifiers, find_branchings(bundle.trie, bundle.identifiers), "trie")
    assert calibrate(bundle.model, collator.collate([[5, 2]], [0]), trie_children(bundle.trie)) == 1.0


# --- the BM25 matrix ---


@given(st.lists(st.lists(st.integers(0, 7), max_size=12), min_size=1, max_size=8))
def test_matrix_is_the_formula(encoded: list[list[int]]) -> None:
    feature = np.array([-1, 0, 1, 1, 2, 3, -1, 4])  # tokens 2 and 3 are one word, 0 and 6 none
    documents = [[f"f{feature[token]}" for token in ids if feature[token] >= 0] for ids in encoded]
    matrix = bm25_matrix(encoded, feature)
    assert matrix.shape == (5, len(encoded))
    assert matrix.dtype == np.float32
    expected = np.zeros(matrix.shape)
    if any(documents):
        weights, words = plain_bm25(documents)
        expected[[int(word[1:]) for word in words]] = weights
    np.testing.assert_allclose(matrix.toarray(), expected, rtol=1e-5)


# --- the tokenizer ---

SENTENCES = ["Naïve Müller eats ½ a crème brûlée!", "the rain in Spain stays", "ﬁne ＡＢＣ 東京 नमस्ते 👍"] * 3
TOKENIZER_DIGEST = """
import hashlib
from genret.training.scratch import train_tokenizer
print(hashlib.sha256(train_tokenizer({sentences!r}, 300, 32).backend_tokenizer.to_str().encode()).hexdigest())
"""


def test_every_process_makes_the_same_tokenizer() -> None:
    ours = train_tokenizer(SENTENCES, 300, 32).backend_tokenizer.to_str()
    theirs = subprocess.run(
        [sys.executable, "-c", TOKENIZER_DIGEST.format(sentences=SENTENCES)],
        env=os.environ | {"PYTHONHASHSEED": "4711", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert theirs.stdout.strip() == hashlib.sha256(ours.encode()).hexdigest()


def test_every_character_of_the_corpus_is_known() -> None:
    tokenizer = train_tokenizer(SENTENCES, 300, 32)
    for sentence in SENTENCES:
        assert tokenizer.unk_token_id not in tokenizer(sentence)["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("Ω")["input_ids"]


def test_case_and_compatibility_forms_are_one() -> None:
    tokenizer = train_tokenizer(SENTENCES, 300, 32)
    assert tokenizer("ABC Fine")["input_ids"] == tokenizer("ａｂｃ ﬁne")["input_ids"]


def test_vocabulary_has_at_most_the_size_asked_for() -> None:
    texts = [" ".join(document) for document in generated_documents(50)]
    assert len(train_tokenizer(texts, 300, 32)) == 300
    assert len(train_tokenizer(["ab"], 300, 32)) < 20


def test_settings_change_the_size() -> None:
    small = scratch_bundle(["one word", "two words"], hidden_size=32, heads=2, layers=1)
    assert small.model.config.hidden_size == 32
    assert len(small.model.model.layers) == 1
