"""Bootstrap intervals against theory and against scipy."""

import math

import numpy as np
import pytest
import scipy.stats

from genret.evaluation import intervals
from genret.evaluation.intervals import bootstrap_intervals


def test_width_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(3).uniform(size=(400, 1))
    low, high = bootstrap_intervals(values, samples=5000, confidence=0.95, seed=0)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low[0] == pytest.approx(values.mean() - half, abs=0.003)
    assert high[0] == pytest.approx(values.mean() + half, abs=0.003)


def test_agrees_with_scipy() -> None:
    values = (np.random.default_rng(5).uniform(size=120) < 0.3).astype(float)
    low, high = bootstrap_intervals(values[:, None], samples=10_000, confidence=0.9, seed=0)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=10_000, method="percentile", rng=1
    ).confidence_interval
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_measures_share_their_draws() -> None:
    values = np.random.default_rng(7).uniform(size=(50, 1))
    low, high = bootstrap_intervals(np.hstack([values, values, 1 - values]), 300, 0.95, seed=2)
    assert low[0] == low[1]
    assert low[2] == pytest.approx(1 - high[0])


def test_more_confidence_is_wider_and_the_seed_decides() -> None:
    values = np.random.default_rng(11).uniform(size=(60, 2))
    narrow_low, narrow_high = bootstrap_intervals(values, 500, 0.8, seed=0)
    wide_low, wide_high = bootstrap_intervals(values, 500, 0.99, seed=0)
    assert (wide_low < narrow_low).all()
    assert (wide_high > narrow_high).all()
    assert (bootstrap_intervals(values, 500, 0.8, seed=0)[0] == narrow_low).all()
    assert (bootstrap_intervals(values, 500, 0.8, seed=1)[0] != narrow_low).any()


@pytest.mark.parametrize("values", [np.ones((20, 1)), np.full((1, 1), 0.25)])
def test_what_does_not_vary_has_no_width(values: np.ndarray) -> None:
    low, high = bootstrap_intervals(values, 100, 0.95, seed=0)
    assert low[0] == high[0] == values[0, 0]


def test_chunks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(13).uniform(size=(40, 1))
    monkeypatch.setattr(intervals, "_CELLS_A_CHUNK", 100)
    low, high = bootstrap_intervals(values, 4000, 0.95, seed=0)
    monkeypatch.undo()
    whole_low, whole_high = bootstrap_intervals(values, 4000, 0.95, seed=0)
    assert (low[0], high[0]) == pytest.approx((whole_low[0], whole_high[0]), abs=0.01)
