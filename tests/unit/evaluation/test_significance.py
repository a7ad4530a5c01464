"""Paired tests against scipy and brute force, and Holm's correction against worked examples."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from measured import query_measures

from genret.config import EvaluationConfig
from genret.errors import InputError
from genret.evaluation.significance import compare_retrievers, holm, randomisation_test, t_test
from genret.tables import SCHEMAS

# --- the randomisation test ---


def brute_force(differences: np.ndarray) -> float:
    """The share of all sign flips, zeros flipped too, whose mean is as far from zero."""
    flips = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    return float(np.mean(np.abs(flips @ differences) >= abs(differences.sum()) - 1e-9))


@given(st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.5, 1 / 3, -2 / 3, 0.1]), min_size=1, max_size=10))
def test_few_queries_are_enumerated(differences: list[float]) -> None:
    column = np.array(differences)
    p = randomisation_test(column[:, None], permutations=1024, seed=0)
    assert p.tolist() == [pytest.approx(brute_force(column), abs=1e-12)]


def test_few_queries_agree_with_scipy() -> None:
    generator = np.random.default_rng(1)
    differences = generator.normal(0.3, 1.0, size=(12, 3))
    p = randomisation_test(differences, permutations=4096, seed=0)
    for column in range(3):
        expected = scipy.stats.permutation_test(
            (differences[:, column],),
            lambda x: np.mean(x),
            permutation_type="samples",
            n_resamples=np.inf,
            vectorized=False,
        )
        assert p[column] == pytest.approx(expected.pvalue, abs=1e-12)


def test_many_queries_are_sampled_near_the_exact_value() -> None:
    differences = np.random.default_rng(2).normal(0.25, 1.0, size=(15, 4))
    exact = randomisation_test(differences, permutations=2**15, seed=0)
    sampled = randomisation_test(differences, permutations=20_000, seed=0)
    deviation = np.sqrt(exact * (1 - exact) / 20_000)
    assert (np.abs(sampled - exact) < 5 * deviation + 1e-4).all()
    assert not np.array_equal(sampled, exact)


def test_a_sampled_p_is_never_zero_and_comes_again() -> None:
    differences = np.hstack([np.full((200, 1), 0.5), np.random.default_rng(3).normal(size=(200, 1))])
    p = randomisation_test(differences, permutations=1000, seed=5)
    assert p[0] == 1 / 1001
    assert (randomisation_test(differences, 1000, seed=5) == p).all()
    assert randomisation_test(differences, 1000, seed=6)[1] != p[1]


def test_zeros_do_not_count_as_queries() -> None:
    """Three differences among a thousand queries: all eight flips, of which two are as far."""
    differences = np.zeros((1000, 1))
    differences[[3, 500, 999], 0] = 0.2
    assert randomisation_test(differences, permutations=1000, seed=0).tolist() == [0.25]


def test_equal_retrievers_have_p_1() -> None:
    assert randomisation_test(np.zeros((50, 2)), permutations=1000, seed=0).tolist() == [1.0, 1.0]


@given(st.integers(0, 40), st.integers(0, 40))
def test_ones_and_minus_ones_are_the_sign_test(up: int, down: int) -> None:
    """Where all differences have one size, flipping signs is tossing coins."""
    if up + down > 12:
        up, down = up % 7, down % 6
    if up + down == 0:
        return
    differences = np.array([1.0] * up + [-1.0] * down)[:, None]
    expected = scipy.stats.binomtest(up, up + down).pvalue
    assert randomisation_test(differences, 4096, seed=0)[0] == pytest.approx(expected, abs=1e-12)


# --- the t-test ---


@given(st.integers(2, 40), st.integers(0, 1000))
def test_t_agrees_with_scipy(n_queries: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.uniform(size=(2, n_queries, 3))
    assert t_test(a - b) == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, rel=1e-9, abs=1e-12)


def test_t_of_what_does_not_vary() -> None:
    assert t_test(np.array([[0.0, 1 / 3, -0.1]] * 7)).tolist() == [1.0, 0.0, 0.0]
    assert t_test(np.array([[0.7]])).tolist() == [1.0]


# --- Holm ---


def test_holm_on_worked_examples() -> None:
    # The example of https://en.wikipedia.org/wiki/Holm%E2%80%93Bonferroni_method: of 0.05, the fourth and the first.
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # Times 5, 4, 3, 2, 1, and none below the one before it.
    assert holm(np.array([0.01, 0.02, 0.03, 0.04, 0.05])) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm(np.array([0.6, 0.5])).tolist() == [1.0, 1.0]
    assert holm(np.array([0.03])).tolist() == [0.03]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_procedure_rejects(values: list[float], level: float) -> None:
    """The step-down procedure itself: the smallest first, until one is not small enough."""
    p = np.array(values)
    rejected = set()
    for step, place in enumerate(np.argsort(p, kind="stable").tolist()):
        if p[place] * (len(p) - step) > level:
            break
        rejected.add(place)
    assert set(np.flatnonzero(holm(p) <= level).tolist()) == rejected
    assert (holm(p) >= p).all()


# --- the table ---

MEASURED = {
    ("rpo", "HIT@1"): [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    ("sft", "HIT@1"): [1.0, 0.0, 1.0, 0.0, 1.0, 0.0],
    ("bm25", "HIT@1"): [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ("rpo", "MRR@10"): [0.5, 1.0, 0.2, 0.1, 1.0, 0.0],
    ("bm25", "MRR@10"): [0.5, 1.0, 0.2, 0.1, 1.0, 0.0],
}


@pytest.mark.parametrize("test", ["randomisation", "t"])
def test_pairs_are_corrected_a_measure_at_a_time(test: str) -> None:
    table = compare_retrievers(EvaluationConfig(significance_test=test), query_measures(MEASURED))
    assert table.schema == SCHEMAS["significance"]
    rows = table.to_pylist()
    assert [(row["measure"], row["retriever_a"], row["retriever_b"]) for row in rows] == [
        ("HIT@1", "rpo", "sft"),
        ("HIT@1", "rpo", "bm25"),
        ("HIT@1", "sft", "bm25"),
        ("MRR@10", "rpo", "bm25"),
    ]
    assert [row["difference"] for row in rows] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert {row["n_queries"] for row in rows} == {6}
    p = [row["p"] for row in rows]
    if test == "randomisation":
        assert p == [2 / 8, 2 / 64, 2 / 8, 1.0]
    else:
        expected = scipy.stats.ttest_1samp([0, 1, 0, 1, 0, 1], 0).pvalue
        assert p == pytest.approx([expected, 0.0, expected, 1.0])
    assert [row["p_holm"] for row in rows] == pytest.approx([*holm(np.array(p[:3])), 1.0])


def test_queries_are_paired_by_their_ids() -> None:
    table = query_measures({("a", "HIT@1"): [1.0, 0.0, 0.5, 0.2], ("b", "HIT@1"): [0.2, 0.9, 0.0, 0.1]})
    order = [0, 1, 2, 3, 6, 4, 7, 5]
    config = EvaluationConfig()
    assert compare_retrievers(config, table) == compare_retrievers(config, table.take(order))


def test_the_seed_and_the_number_of_permutations_count() -> None:
    values = np.random.default_rng(8).uniform(size=(2, 60)).tolist()
    table = query_measures({("a", "HIT@1"): values[0], ("b", "HIT@1"): values[1]})
    p = [
        compare_retrievers(EvaluationConfig(permutations=permutations), table, seed)["p"][0].as_py()
        for permutations, seed in ((1000, 0), (1000, 0), (1000, 1), (2000, 0))
    ]
    assert p[0] == p[1]
    assert len({p[0], p[2], p[3]}) == 3


def test_one_retriever_or_none_is_an_empty_table() -> None:
    for values in ({}, {("a", "HIT@1"): [1.0, 0.0]}):
        table = compare_retrievers(EvaluationConfig(), query_measures(values))
        assert table.schema == SCHEMAS["significance"]
        assert table.num_rows == 0


def test_other_queries_cannot_be_paired() -> None:
    table = query_measures({("a", "HIT@1"): [1.0, 0.0], ("b", "HIT@1"): [1.0]})
    with pytest.raises(InputError, match="HIT@1: expected a and b on the same queries, found 'q1' for one of them"):
        compare_retrievers(EvaluationConfig(), table)
