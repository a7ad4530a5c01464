"""What the benchmark of negatives prints."""

import importlib
import sys
from pathlib import Path

import pytest


@pytest.fixture
def syneg(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    yield importlib.import_module("syneg")
    sys.modules.pop("syneg")


def of(*values: float) -> list[dict[str, float]]:
    return [{"NDCG@10": value, "HIT@10": 2 * value} for value in values]


def test_rows_stand_with_their_spread_and_hybrid_beside_each(syneg) -> None:
    found = syneg.lines({"base": of(0.3, 0.31), "retrieved": of(0.32, 0.34), "hybrid": of(0.33, 0.33)})
    assert "| retrieved | 33.0 (1.4) | 66.0 (2.8) | +2.0, +3.0 |" in found
    assert "- hybrid less retrieved: +0.00 ± 1.41, not below with 1 of 2 seeds" in found
    assert not any("hybrid less hybrid" in line for line in found)


def test_without_hybrid_nothing_is_compared(syneg) -> None:
    assert len(syneg.lines({"base": of(0.3), "random": of(0.2)})) == 4
