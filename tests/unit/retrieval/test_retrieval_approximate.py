"""Approximate search: against the exact one, what is stored, and what is refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from genret.errors import InputError
from genret.retrieval import approximate, packages
from genret.retrieval.approximate import LISTS, ApproximateIndex, build_lists, write_lists
from genret.retrieval.dense import DenseRetriever
from genret.retrieval.vectors import DenseIndex, quantise
from genret.serving.asks import Ask
from genret.serving.searching import Searcher
from genret.serving.versions import Collection
from genret.tables import passages_to_table
from genret.types import Passage

pytest.importorskip("faiss", reason="faiss is not installed")
COUNT, WIDTH = 3000, 16


def clustered(count: int = COUNT) -> torch.Tensor:
    """Unit vectors around forty centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, WIDTH, generator=generator)
    chosen = centres[torch.randint(40, (count,), generator=generator)]
    return torch.nn.functional.normalize(chosen + 0.4 * torch.randn(count, WIDTH, generator=generator), dim=1)


def saved(folder: Path, count: int = COUNT, kind: str = "fp16") -> DenseIndex:
    folder.mkdir()
    index = DenseIndex(quantise(clustered(count), kind))
    index.save(folder)
    write_lists(folder, folder, seed=0)
    return index


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_all_lists_are_the_exact_search(tmp_path, kind) -> None:
    exact = saved(tmp_path / "index", kind=kind)
    queries = clustered(20)
    found = ApproximateIndex.load(tmp_path / "index", tmp_path / "index", probes=65_536).search(queries, 10)
    for (places, scores), (expected, values) in zip(found, exact.search(queries, 10), strict=True):
        assert places.tolist() == expected.tolist()
        assert np.allclose(scores, values, atol=1e-5)


def test_few_lists_find_most_and_more_find_more(tmp_path) -> None:
    exact = saved(tmp_path / "index")
    queries = clustered(50)
    expected = [set(places.tolist()) for places, _ in exact.search(queries, 10)]

    def recall(probes: int) -> float:
        found = ApproximateIndex.load(tmp_path / "index", tmp_path / "index", probes).search(queries, 10)
        return sum(len(want & set(places.tolist())) for want, (places, _) in zip(expected, found, strict=True)) / 500

    assert 0.3 < recall(1) < recall(8)
    assert recall(8) > 0.95


@pytest.mark.parametrize("left", [0, 3, 1500])
def test_a_mask_leaves_the_exact_ranking_without_the_others(tmp_path, left) -> None:
    exact = saved(tmp_path / "index")
    allowed = np.zeros(COUNT, dtype=np.bool_)
    allowed[np.random.default_rng(0).permutation(COUNT)[:left]] = True
    index = ApproximateIndex.load(tmp_path / "index", tmp_path / "index", probes=65_536)
    queries = clustered(20)
    found = index.search(queries, 10, allowed)
    for (places, _), (expected, _) in zip(found, exact.search(queries, 10, allowed), strict=True):
        assert places.tolist() == expected.tolist() and len(places) == min(10, left) and allowed[places].all()


def test_a_retriever_says_whether_its_rankings_are_exact(tmp_path) -> None:
    every = saved(tmp_path / "index")
    some = ApproximateIndex.load(tmp_path / "index", tmp_path / "index", 8)
    ids = pa.chunked_array([[f"d{number}" for number in range(COUNT)]])

    class Encoder:
        def encode(self, texts: list[str], queries: bool) -> torch.Tensor:
            return clustered(len(texts))

    collection = Collection(passages_to_table(Passage(name, name, "") for name in ids.to_pylist()))
    for index, exact in ((every, True), (some, False)):
        retriever = DenseRetriever(Encoder(), index, ids, "dense", 8)
        assert retriever.exact is exact
        answers = Searcher(retriever, collection).answer([Ask("a", 5, "", 60.0, explain=False)])
        assert (answers[0].exact, len(answers[0].places)) == (exact, 5)


def test_equal_scores_rank_in_the_order_of_the_places(tmp_path) -> None:
    index = DenseIndex(quantise(torch.ones(200, 4), "fp16"))
    lists = build_lists(index, seed=0)
    places, scores = ApproximateIndex(lists, index, 65_536).search(torch.ones(1, 4), 5)[0]
    assert places.tolist() == sorted(places.tolist())
    assert scores.tolist() == [4.0] * 5


@pytest.mark.parametrize("count", [1, 2, 38, 100])
def test_a_small_corpus_has_one_list_or_few(tmp_path, count) -> None:
    exact = saved(tmp_path / "index", count)
    found = ApproximateIndex.load(tmp_path / "index", tmp_path / "index", 32).search(clustered(3), 500)
    assert [places.tolist() for places, _ in found] == [
        places.tolist() for places, _ in exact.search(clustered(3), 500)
    ]


def test_no_vectors_find_nothing(tmp_path) -> None:
    np.save(tmp_path / "vectors.npy", np.empty((0, 4), dtype=np.float16))
    np.save(tmp_path / "scales.npy", np.empty(0, dtype=np.float32))
    write_lists(tmp_path, tmp_path, seed=0)
    assert not (tmp_path / LISTS).exists()
    places, scores = ApproximateIndex.load(tmp_path, tmp_path, 32).search(torch.ones(1, 4), 5)[0]
    assert len(places) == len(scores) == 0


def test_the_seed_decides_the_lists(tmp_path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name)
    assert (tmp_path / "a" / LISTS).read_bytes() == (tmp_path / "b" / LISTS).read_bytes()


def test_what_does_not_belong_together_is_refused(tmp_path) -> None:
    saved(tmp_path / "index")
    saved(tmp_path / "other", 100)
    lists = tmp_path / "index" / LISTS
    lists.write_bytes((tmp_path / "other" / LISTS).read_bytes())
    with pytest.raises(InputError, match="expected lists of 3000 vectors of 16 dimensions, found 100 of 16"):
        ApproximateIndex.load(tmp_path / "index", tmp_path / "index", 1)
    lists.write_bytes(b"no index")
    with pytest.raises(InputError, match=r"expected an index of faiss in lists\.faiss"):
        ApproximateIndex.load(tmp_path / "index", tmp_path / "index", 1)
    lists.unlink()
    with pytest.raises(InputError, match=r"expected the file lists\.faiss, found none"):
        ApproximateIndex.load(tmp_path / "index", tmp_path / "index", 1)


class Counted(DenseIndex):
    """Remembers how many vectors are asked for at a time."""

    def rows(self, places: np.ndarray) -> np.ndarray:
        self.asked = [*getattr(self, "asked", []), len(places)]
        return super().rows(places)


def test_centroids_are_found_with_a_sample(monkeypatch) -> None:
    monkeypatch.setattr(approximate, "_FEWEST_A_LIST", 1000)  # so that there are few lists
    vectors = Counted(quantise(clustered(), "fp16"))
    lists = build_lists(vectors, seed=0)
    assert (lists.nlist, lists.ntotal) == (3, COUNT)
    assert vectors.asked == [3 * 64, COUNT]


def test_queries_of_another_width_are_refused(tmp_path) -> None:
    saved(tmp_path / "index")
    index = ApproximateIndex.load(tmp_path / "index", tmp_path / "index", 1)
    with pytest.raises(InputError, match="dense index: expected 16 dimensions, found 8"):
        index.search(torch.ones(1, 8), 5)


def test_without_the_package_nothing_is_built_or_opened(tmp_path, monkeypatch) -> None:
    index = saved(tmp_path / "index")
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"dense\.index: lists needs the package faiss"):
        build_lists(index, seed=0)
    with pytest.raises(InputError, match=r"dense\.index: lists needs the package faiss"):
        ApproximateIndex.load(tmp_path / "index", tmp_path / "index", 1)
