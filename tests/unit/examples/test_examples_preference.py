from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genret.config import MiningConfig
from genret.errors import InputError
from genret.examples.preference import build_preference_pairs
from genret.tables import SCHEMAS, table_from_rows

N_PASSAGES = 8


def tables(positives, rankings):
    """Query `q{i}` is about passage `p{positives[i]}`, and its ranking is `rankings[i]`."""
    identifiers = table_from_rows(
        "identifiers",
        ({"passage_id": f"p{n}", "identifier": f"id {n}", "source": "llm"} for n in range(N_PASSAGES)),
    )
    queries = table_from_rows(
        "preference_queries",
        (
            {"query_id": f"q{i}", "passage_id": f"p{n}", "text": f"text {i}", "answer": "a"}
            for i, n in enumerate(positives)
        ),
    )
    run = [
        {"query_id": f"q{i}", "passage_id": f"p{n}", "rank": rank, "score": -float(rank), "retriever": "sft"}
        for i, ranking in enumerate(rankings)
        for rank, n in enumerate(ranking, start=1)
    ]
    return table_from_rows("run", run), queries, identifiers


def build(positives, rankings, seed=0, **settings):
    config = MiningConfig(**settings)
    return build_preference_pairs(config, *tables(positives, rankings), seed)["preference_pairs"].to_pylist()


def naive(positives, rankings, negatives, candidates):
    """The rules of section 4.3 of the paper, one query at a time."""
    for i, (positive, ranking) in enumerate(zip(positives, rankings, strict=True)):
        best = ranking[:candidates]
        rank = best.index(positive) + 1 if positive in best else 0
        above = best[: rank - 1] if rank else best
        for negative_rank, negative in enumerate(above[:negatives], start=1):
            yield {
                "query_id": f"q{i}",
                "prompt": f"text {i}",
                "chosen": f"id {positive}",
                "rejected": f"id {negative}",
                "positive_rank": rank,
                "negative_rank": negative_rank,
            }


def test_the_rules_one_by_one():
    positives = [0, 0, 0, 0, 0]
    rankings = [
        [0, 1, 2],  # first: no pair
        [1, 0, 2],  # second: the one above
        [1, 2, 3, 0],  # below k: the k best
        [1, 2, 3, 4],  # missing: the k best
        [],  # nothing retrieved: no pair
    ]
    pairs = build(positives, rankings, negatives=2)
    assert [(p["query_id"], p["rejected"], p["positive_rank"], p["negative_rank"]) for p in pairs] == [
        ("q1", "id 1", 2, 1),
        ("q2", "id 1", 4, 1),
        ("q2", "id 2", 4, 2),
        ("q3", "id 1", 0, 1),
        ("q3", "id 2", 0, 2),
    ]
    assert all(p["chosen"] == "id 0" for p in pairs)


def test_a_positive_beyond_the_candidates_is_missing():
    (pair,) = build([0], [[1, 2, 0]], candidates=2, negatives=1)
    assert pair["positive_rank"] == 0


QUERIES = st.lists(
    st.tuples(
        st.integers(0, N_PASSAGES - 1),
        st.lists(st.integers(0, N_PASSAGES - 1), unique=True, max_size=N_PASSAGES),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(QUERIES, st.integers(1, 10), st.integers(2, 10), st.randoms(use_true_random=False))
def test_top_is_the_naive_version(queries, negatives, candidates, rng):
    positives, rankings = [q[0] for q in queries], [q[1] for q in queries]
    run, preference_queries, identifiers = tables(positives, rankings)
    # The rows of the run may come in any order.
    order = np.arange(run.num_rows)
    rng.shuffle(order)
    config = MiningConfig(negatives=negatives, candidates=candidates)
    table = build_preference_pairs(config, run.take(order), preference_queries, identifiers, 0)["preference_pairs"]
    assert table.schema == SCHEMAS["preference_pairs"]
    assert table.to_pylist() == list(naive(positives, rankings, negatives, candidates))


@settings(max_examples=100, deadline=None)
@given(QUERIES, st.integers(1, 10), st.integers(0, 5))
def test_random_has_as_many_pairs_with_other_passages(queries, negatives, seed):
    positives, rankings = [q[0] for q in queries], [q[1] for q in queries]
    top = list(naive(positives, rankings, negatives, 10))
    pairs = build(positives, rankings, seed, negatives=negatives, strategy="random")
    same = ("query_id", "prompt", "chosen", "positive_rank")
    assert [[p[name] for name in same] for p in pairs] == [[p[name] for name in same] for p in top]
    assert all(p["negative_rank"] == 0 for p in pairs)
    assert all(p["rejected"] != p["chosen"] for p in pairs)
    assert len({(p["query_id"], p["rejected"]) for p in pairs}) == len(pairs)


def test_random_negatives_are_uniform_over_all_others():
    count = 2000
    pairs = build([3] * count, [[1, 2]] * count, negatives=2, strategy="random")
    times = Counter(p["rejected"] for p in pairs)
    assert set(times) == {f"id {n}" for n in range(N_PASSAGES) if n != 3}
    expected = 2 * count / (N_PASSAGES - 1)
    assert all(abs(found - expected) < 0.2 * expected for found in times.values())


def test_random_draws_depend_on_seed_and_query_alone():
    settings = {"negatives": 3, "strategy": "random"}
    together = build([0, 1, 2], [[4, 5, 6]] * 3, **settings)
    assert together == build([0, 1, 2], [[4, 5, 6]] * 3, **settings)
    assert together != build([0, 1, 2], [[4, 5, 6]] * 3, seed=1, **settings)
    assert build([0], [[4, 5, 6]], **settings) == [p for p in together if p["query_id"] == "q0"]


def test_nothing_gives_an_empty_table():
    run, queries, identifiers = tables([], [])
    for strategy in ("top", "random"):
        pairs = build_preference_pairs(MiningConfig(strategy=strategy), run, queries, identifiers, 0)
        assert pairs["preference_pairs"].num_rows == 0
        assert pairs["preference_pairs"].schema == SCHEMAS["preference_pairs"]


def test_what_does_not_fit_together_is_named():
    run, queries, identifiers = tables([0, 1], [[1, 0], [0, 2]])
    config = MiningConfig()
    with pytest.raises(InputError, match="table run, row 2: unknown query_id 'q1'"):
        build_preference_pairs(config, run, queries.slice(0, 1), identifiers, 0)
    with pytest.raises(InputError, match="table run, row 3: unknown passage_id 'p2'"):
        build_preference_pairs(config, run, queries, identifiers.slice(0, 2), 0)
    with pytest.raises(InputError, match="table preference_queries, row 0: unknown passage_id 'p0'"):
        build_preference_pairs(config, run, queries, identifiers.slice(1), 0)


def test_two_rankings_of_a_query_are_refused():
    run, queries, identifiers = tables([0], [[1, 0]])
    twice = table_from_rows("run", run.to_pylist() * 2)
    with pytest.raises(InputError, match=r"query 'q0': expected one ranking .* found rank 1 in place 2"):
        build_preference_pairs(MiningConfig(), twice, queries, identifiers, 0)
