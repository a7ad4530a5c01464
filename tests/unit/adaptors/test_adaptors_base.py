"""Predicates from other libraries' filters, and what is said where a library is missing."""

import subprocess
import sys

import pytest

from genret.adaptors.base import both, combination, comparison
from genret.decoding.filters import leaf_mask, parse_predicate
from genret.errors import InputError

METADATA = [{"year": 2001, "kind": "a"}, {"year": 2015, "kind": "b"}, {"kind": "c"}]


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        ("==", 2001, [True, False, False]),
        ("!=", 2001, [False, True, True]),
        (">", 2001, [False, True, False]),
        (">=", 2001, [True, True, False]),
        ("<", 2015, [True, False, False]),
        ("<=", 2015, [True, True, False]),
        ("in", [2015, 3], [False, True, False]),
        ("not in", [2015, 3], [True, False, True]),
        ("nin", (2015,), [True, False, True]),
    ],
)
def test_operators_mean_what_they_say(operator: str, value: object, expected: list[bool]) -> None:
    made = comparison("year", operator, value, "filters: year")
    assert leaf_mask(parse_predicate(made), METADATA).tolist() == expected


@pytest.mark.parametrize(
    ("operator", "expected"),
    [("AND", [False, True, False]), ("or", [True, True, False]), ("Not", [True, False, True])],
)
def test_combinations(operator: str, expected: list[bool]) -> None:
    parts = [comparison("year", ">", 2000, ""), comparison("kind", "==", "b", "")]
    assert leaf_mask(parse_predicate(combination(operator, parts, "")), METADATA).tolist() == expected


def test_what_the_service_has_not() -> None:
    with pytest.raises(InputError, match=r"filters: kind: expected one of ==.*found 'text_match'"):
        comparison("kind", "text_match", "a", "filters: kind")
    with pytest.raises(InputError, match="expected a list after 'in', found 'a'"):
        comparison("kind", "in", "a", "filters: kind")
    with pytest.raises(InputError, match="expected and, or, not, found 'XOR'"):
        combination("XOR", [], "filters")


def test_both() -> None:
    one, other = {"field": "a", "equals": 1}, {"field": "b", "equals": 2}
    assert both(None, None) is None
    assert both(one, None) == one
    assert both(None, other) == other
    assert both(one, other) == {"and": [one, other]}


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("haystack", "haystack", "haystack"),
    ],
)
def test_a_missing_library_is_named_with_its_command(module: str, library: str, extra: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; import genret.adaptors.{module}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert (
        f"ImportError: genret.adaptors.{module} needs a package that is not installed: pip install genret[{extra}]"
        in (result.stderr)
    )
