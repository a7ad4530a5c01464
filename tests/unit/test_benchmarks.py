"""Every benchmark still fits the code that it measures."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
# The bare engine is vLLM itself.
MODULES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if path.name not in ("__init__.py", "bare.py")
)


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_imports_what_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    importlib.import_module(name)


def test_there_are_benchmarks() -> None:
    assert {"decoding", "retrieval", "serving", "synthesis", "training"} <= set(MODULES)
