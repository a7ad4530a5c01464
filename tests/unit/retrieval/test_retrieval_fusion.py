"""Fusion against hand-computed scores and plain definitions; runs against the retriever."""

import math
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.config import FusionConfig, RetrievalConfig
from genret.errors import InputError
from genret.retrieval.base import BatchedRetriever, retrieve_run, run_table
from genret.retrieval.bm25 import Bm25Retriever
from genret.retrieval.fusion import FusionRetriever, fuse, fuse_runs, normalised
from genret.retrieval.generative import GenerativeRetriever
from genret.retrieval.names import retriever_names
from genret.retrieval.opening import load_retriever
from genret.runs import RunStore
from genret.tables import SCHEMAS, table_from_rows
from genret.training.bundle import Bundle
from genret.types import Retriever, ScoredPassage

names = st.sampled_from("abcdefgh")
finite = st.floats(-1e6, 1e6)


def ranking(**scores: float) -> list[ScoredPassage]:
    return [ScoredPassage(name, score) for name, score in scores.items()]


@st.composite
def rankings(draw: st.DrawFn) -> list[ScoredPassage]:
    found = draw(st.lists(names, unique=True, max_size=8))
    scores = sorted(draw(st.lists(finite, min_size=len(found), max_size=len(found))), reverse=True)
    return [ScoredPassage(name, score) for name, score in zip(found, scores, strict=True)]


def config_of(**fields: object) -> FusionConfig:
    return FusionConfig.model_validate({"parts": ("sft", "rpo", "bm25")} | fields)


# --- reciprocal rank ---


def test_reciprocal_ranks_by_hand() -> None:
    found = fuse([ranking(a=-1.0, b=-2.0, c=-3.0), ranking(c=9.0, d=8.0)], FusionConfig(), 10)
    assert [place.passage_id for place in found] == ["c", "a", "b", "d"]
    assert [place.score for place in found] == pytest.approx([1 / 63 + 1 / 61, 1 / 61, 1 / 62, 1 / 62], abs=1e-15)


def test_weights_and_constant() -> None:
    config = FusionConfig(weights=(1.0, 2.5), rank_constant=0)
    found = {place.passage_id: place.score for place in fuse([ranking(a=1.0, b=0.5), ranking(b=7.0)], config, 10)}
    assert found == pytest.approx({"b": 1 / 2 + 2.5, "a": 1.0})


@given(st.lists(rankings(), min_size=3, max_size=3), st.integers(0, 100), st.integers(1, 9))
def test_reciprocal_rank_fusion_is_its_definition(parts: list[list[ScoredPassage]], constant: int, k: int) -> None:
    found = fuse(parts, config_of(rank_constant=constant), k)
    expected: dict[str, float] = {}
    for part in parts:
        for rank, place in enumerate(part, 1):
            expected[place.passage_id] = expected.get(place.passage_id, 0.0) + 1 / (constant + rank)
    assert len(found) == min(k, len(expected))
    assert {place.passage_id: place.score for place in found} == pytest.approx(
        {place.passage_id: expected[place.passage_id] for place in found}
    )
    assert all(first.score >= second.score for first, second in pairwise(found))


# --- scores ---


def test_scores_by_hand() -> None:
    config = FusionConfig(method="scores", weights=(1.0, 3.0))
    found = fuse([ranking(a=-2.0, b=-3.0, c=-6.0), ranking(d=30.0, b=20.0, e=10.0)], config, 4)
    # A quarter of (1, 3/4, 0, -, -) and three of (-, 1/2, -, 1, 0): what is missing gets the last one's 0.
    assert [(place.passage_id, place.score) for place in found] == [
        ("d", 0.75),
        ("b", pytest.approx(0.25 * 0.75 + 0.75 * 0.5)),
        ("a", 0.25),
        ("c", 0.0),
    ]


@given(st.lists(finite, min_size=2, max_size=8))
def test_z_scores_are_those_of_the_statistics_module(scores: list[float]) -> None:
    places = [ScoredPassage(str(number), score) for number, score in enumerate(sorted(scores, reverse=True))]
    values, missing = normalised(places, "z")
    assert missing <= min(values.values())
    if statistics.pstdev(scores) > 1e-3:
        mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
        expected = [(place.score - mean) / deviation for place in places]
        assert list(values.values()) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(rankings())
def test_min_max_is_between_0_and_1(places: list[ScoredPassage]) -> None:
    values, missing = normalised(places, "min_max")
    assert missing == 0.0
    assert all(0.0 <= value <= 1.0 for value in values.values())
    if places:
        assert values[places[0].passage_id] == 1.0


@pytest.mark.parametrize("places", [ranking(a=5.0), ranking(a=-2.0, b=-2.0), ranking(a=5e-324, b=5e-324)])
def test_equal_scores_say_what_was_found(places: list[ScoredPassage]) -> None:
    assert normalised(places, "min_max") == ({place.passage_id: 1.0 for place in places}, 0.0)
    assert normalised(places, "z") == ({place.passage_id: 1.0 for place in places}, -1.0)


def test_the_smallest_difference_there_is_has_a_z() -> None:
    assert normalised(ranking(a=5e-324, b=0.0), "z") == ({"a": 1.0, "b": -1.0}, -1.0)


@given(rankings(), rankings(), st.sampled_from(["min_max", "z"]), st.floats(0.5, 100), st.floats(-50, 50))
def test_units_and_origins_of_scores_do_not_count(
    first: list[ScoredPassage], second: list[ScoredPassage], normalisation: str, unit: float, origin: float
) -> None:
    rounded = [ScoredPassage(place.passage_id, float(round(place.score))) for place in first]
    other = [ScoredPassage(place.passage_id, place.score * unit + origin) for place in rounded]
    config = FusionConfig(method="scores", normalisation=normalisation)
    before = {place.passage_id: place.score for place in fuse([rounded, second], config, 20)}
    after = {place.passage_id: place.score for place in fuse([other, second], config, 20)}
    assert after == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("score", [-math.inf, math.nan])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    with pytest.raises(InputError, match="fusion: passage 'b': expected a finite score, found"):
        fuse([ranking(a=1.0, b=score), []], FusionConfig(method="scores"), 3)
    assert len(fuse([ranking(a=1.0, b=score), []], FusionConfig(), 3)) == 2, "ranks need no scores"


# --- order ---


def test_equal_scores_stand_in_the_order_of_the_first_ranking_then_of_the_second() -> None:
    found = fuse([ranking(b=2.0, a=1.0), ranking(a=2.0, b=1.0, d=0.5), ranking(c=3.0)], config_of(), 10)
    assert [place.passage_id for place in found] == ["b", "a", "c", "d"]
    assert found[0].score == found[1].score


@given(st.permutations(range(3)), st.lists(rankings(), min_size=3, max_size=3), st.sampled_from(["z", "min_max"]))
def test_the_order_of_the_parts_changes_no_score(
    order: list[int], parts: list[list[ScoredPassage]], normalisation: str
) -> None:
    for config in (config_of(), config_of(method="scores", normalisation=normalisation)):
        scores = [
            {place.passage_id: place.score for place in fuse(arranged, config, 30)}
            for arranged in (parts, [parts[place] for place in order])
        ]
        assert scores[0] == scores[1]


# --- runs and retrievers ---


class Listed(BatchedRetriever):
    """Finds the words of the query that it knows, in its own order."""

    def __init__(self, name: str, known: str) -> None:
        super().__init__(name, 2)
        self.known = known
        self.asked: list[int] = []

    def _retrieve_batch(self, queries: list[str], k: int) -> list[list[ScoredPassage]]:
        self.asked.append(k)
        return [
            [ScoredPassage(word, 1.0 / (place + 1)) for place, word in enumerate(self.known) if word in query][:k]
            for query in queries
        ]


def queries_table(*texts: str) -> pa.Table:
    rows = ({"query_id": f"q{number}", "text": text} for number, text in enumerate(texts))
    return table_from_rows("test_queries", rows)


@pytest.mark.parametrize("fusion", [{}, {"depth": 2}, {"method": "scores"}, {"method": "scores", "depth": 1}])
def test_fused_runs_are_the_runs_of_the_fusion(fusion: dict[str, object]) -> None:
    config = RetrievalConfig(depth=3, fusion=FusionConfig.model_validate(fusion))
    parts = [Listed("rpo", "abcdef"), Listed("bm25", "fbxgca")]
    queries = queries_table("abc def xg", "", "fa", "z", "g")
    runs = [retrieve_run(part, queries, config.depth) for part in parts]
    expected = retrieve_run(FusionRetriever(parts, config), queries, config.depth)
    shuffled = [run.take(list(reversed(range(run.num_rows)))) for run in runs]
    assert expected.num_rows > 4
    assert fuse_runs(runs, queries, config) == expected
    assert fuse_runs(shuffled, queries, config) == expected
    assert set(expected["retriever"].to_pylist()) == {"fusion"}


def test_lists_are_as_deep_as_asked_for_or_as_fixed() -> None:
    parts = [Listed("rpo", "abc"), Listed("bm25", "cd")]
    FusionRetriever(parts, RetrievalConfig(depth=5)).retrieve(["a"], 2)
    FusionRetriever(parts, RetrievalConfig(depth=5)).retrieve(["a"], 50)
    retriever = FusionRetriever(parts, RetrievalConfig(depth=5, fusion=FusionConfig(depth=1)))
    assert [place.passage_id for place in retriever.retrieve(["abcd"], 50)[0]] == ["a", "c"]
    assert parts[0].asked == [5, 50, 1]
    assert isinstance(retriever, Retriever)


def test_the_number_of_parts_is_checked() -> None:
    with pytest.raises(InputError, match="retriever fusion: expected 2 retrievers to join, found 1"):
        FusionRetriever([Listed("rpo", "")], RetrievalConfig())
    with pytest.raises(InputError, match="retriever fusion: expected 2 runs to join, found 0"):
        fuse_runs([], queries_table(), RetrievalConfig())


def test_no_query_is_an_empty_run() -> None:
    empty = run_table("rpo", [])
    fused = fuse_runs([empty, empty], queries_table(), RetrievalConfig())
    assert fused.schema == SCHEMAS["run"]
    assert fused.num_rows == 0


def test_a_fusion_of_a_run_is_opened_by_name(
    make_bundle: Callable[..., Bundle], passages: pa.Table, tmp_path: Path
) -> None:
    """The parts are real: a tiny model and BM25."""
    make_bundle().save(tmp_path / "rpo")
    Bm25Retriever.build(passages, RetrievalConfig()).save(tmp_path / "bm25")
    store, records = RunStore(tmp_path / "run"), {}
    for name in ("rpo", "bm25"):
        writer = store.begin(name, "0123456789abcdef")
        writer.write_folder(name, tmp_path / name)
        records[name] = writer.commit({"seconds": 1.0})
    config = RetrievalConfig(depth=4, beam=4)
    assert retriever_names(records, config) == ["rpo", "bm25", "fusion"]
    queries = queries_table("night train in winter", "flour", "")
    runs = [retrieve_run(load_retriever(store, records, name, config), queries, 4) for name in ("rpo", "bm25")]
    opened = load_retriever(store, records, "fusion", config)
    assert retrieve_run(opened, queries, 4) == fuse_runs(runs, queries, config)


@pytest.fixture
def real_fusion(make_bundle: Callable[..., Bundle], passages: pa.Table) -> FusionRetriever:
    """Of BM25 and a tiny model that has learned nothing."""
    config = RetrievalConfig(depth=4, beam=4)
    generative = GenerativeRetriever(make_bundle(), config, "rpo")
    return FusionRetriever([generative, Bm25Retriever.build(passages, config)], config)


def test_an_empty_query_has_the_ranking_of_the_model_alone(real_fusion: FusionRetriever) -> None:
    """BM25 finds nothing for it; the model ranks by how probable identifiers are before any query."""
    fused, other = real_fusion.retrieve(["", "night train"], 4)
    assert [place.score for place in fused] == pytest.approx([1 / (60 + rank) for rank in range(1, 5)])
    assert other == real_fusion.retrieve(["night train"], 4)[0]


@pytest.mark.parametrize("query", ["Wo fährt der Nachtzug ab?", "夜行列車はどこから", "поезд", "\x00"])
def test_a_query_of_another_language_is_answered(real_fusion: FusionRetriever, query: str) -> None:
    (ranking,) = real_fusion.retrieve([query], 3)
    assert len(ranking) == 3
    assert all(first.score >= second.score for first, second in pairwise(ranking))


def test_a_query_of_ten_thousand_words_is_answered(real_fusion: FusionRetriever) -> None:
    ranking = real_fusion.retrieve(["knead dough with yeast " * 2500], 7)[0]
    assert "bread" in [place.passage_id for place in ranking]


def test_a_run_without_a_part_has_no_fusion(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    records = {"bm25": store.begin("bm25", "0123456789abcdef").commit({"seconds": 1.0})}
    with pytest.raises(InputError, match=r"retriever: expected one of \['bm25'\], found 'fusion'"):
        load_retriever(store, records, "fusion", RetrievalConfig())
