import json
import math
import re
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.decoding.filters import And, Equals, In, Not, Or, Range, leaf_mask, parse_predicate
from genret.errors import InputError

METADATA = [
    {"source": "The Verge", "year": 2023, "date": "2023-10-05", "tags": ["ai", "law"], "open": True},
    {"source": "CNBC", "year": 2024.5, "date": "2024-01-01T09:30:00+02:00", "tags": [], "open": False},
    {"source": "Wired", "year": 1, "date": "2024-01-01T08:00:00"},
    {"source": None, "year": "2023", "date": "last summer", "open": 1},
    {},
]


def matched(data: Any) -> list[int]:
    return np.flatnonzero(leaf_mask(parse_predicate(data), METADATA)).tolist()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"field": "source", "equals": "CNBC"}, [1]),
        ({"field": "source", "equals": None}, [3]),
        ({"field": "year", "equals": 2023}, [0]),
        ({"field": "open", "equals": True}, [0]),
        ({"field": "open", "equals": 1}, [3]),
        ({"field": "tags", "equals": "law"}, [0]),
        ({"field": "source", "in": ["CNBC", "Wired", "BBC"]}, [1, 2]),
        ({"field": "source", "in": []}, []),
        ({"field": "tags", "in": ["ai", "sport"]}, [0]),
        ({"field": "year", "range": {"gte": 2023}}, [0, 1]),
        ({"field": "year", "range": {"gt": 2023}}, [1]),
        ({"field": "year", "range": {"gt": 0, "lt": 2023}}, [2]),
        ({"field": "year", "range": {"lte": 2023}}, [0, 2]),
        ({"field": "date", "range": {"gte": "2023-10-05", "lt": "2024-01-01"}}, [0]),
        ({"field": "date", "range": {"gte": "2024-01-01T07:45:00Z"}}, [2]),
        ({"field": "date", "range": {"gte": "2024-01-01T07:30:00+00:00"}}, [1, 2]),
        ({"field": "open", "range": {"gte": 0}}, [3]),
        ({"not": {"field": "source", "equals": "CNBC"}}, [0, 2, 3, 4]),
        ({"and": [{"field": "year", "range": {"gte": 2}}, {"field": "open", "equals": True}]}, [0]),
        ({"or": [{"field": "source", "equals": "Wired"}, {"field": "open", "equals": False}]}, [1, 2]),
        ({"and": []}, [0, 1, 2, 3, 4]),
        ({"or": []}, []),
    ],
)
def test_predicates_select(data: Any, expected: list[int]) -> None:
    assert matched(data) == expected
    # What a request carries is JSON.
    assert matched(json.loads(json.dumps(data))) == expected


def test_a_predicate_is_parsed_into_records() -> None:
    data = {
        "and": [
            {"field": "a", "in": [1, "x"]},
            {"or": [{"not": {"field": "b", "equals": 2.5}}, {"field": "c", "range": {"lt": "2024-01-01"}}]},
        ]
    }
    expected = And(
        (
            In("a", (1, "x")),
            Or((Not(Equals("b", 2.5)), Range("c", lt=datetime(2024, 1, 1, tzinfo=UTC)))),
        )
    )
    assert parse_predicate(data) == expected


def test_a_range_made_in_python_is_checked_as_one_that_is_read() -> None:
    metadata = [{"date": "2024-02-01"}, {"date": "2023-02-01"}, {"date": "2024-01-01T01:00:00+02:00"}]
    assert leaf_mask(Range("date", gte=datetime(2024, 1, 1)), metadata).tolist() == [True, False, False]
    for bounds in ({}, {"gt": 1, "lt": datetime(2024, 1, 1)}, {"gt": "2024"}, {"lt": float("nan")}, {"lt": True}):
        with pytest.raises(
            InputError, match="range of date: expected bounds that are all finite numbers or all moment"
        ):
            Range("date", **bounds)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "filter: expected an object"),
        ("source = x", "filter: expected an object"),
        ({}, "filter: expected one of and, or, not"),
        ({"field": "a"}, "filter: expected one of and, or, not"),
        ({"field": "a", "like": "b"}, r"filter: expected equals, in or range beside field, found \['like'\]"),
        ({"field": "a", "equals": 1, "in": [1]}, "filter: expected one of"),
        ({"field": 3, "equals": 1}, "filter.field: expected the name"),
        ({"field": "a", "equals": {"b": 1}}, "filter.equals: expected text, a number"),
        ({"field": "a", "in": "b"}, "filter.in: expected a list"),
        ({"field": "a", "in": [[1]]}, r"filter.in\[0\]: expected text"),
        ({"field": "a", "range": {}}, "filter.range: expected an object with some of gte"),
        ({"field": "a", "range": {"from": 1}}, "filter.range: expected an object with some of gte"),
        ({"field": "a", "range": {"gt": "tomorrow"}}, "filter.range.gt: expected a finite number or an ISO"),
        ({"field": "a", "range": {"gt": float("nan")}}, "filter.range.gt"),
        ({"field": "a", "range": {"gt": True}}, "filter.range.gt"),
        ({"field": "a", "range": {"gt": 1, "lt": "2024-01-01"}}, "all bounds to be numbers or all to be dates"),
        ({"and": {"field": "a"}}, "filter.and: expected a list"),
        ({"or": [{"field": "a", "equals": 1}, 7]}, r"filter.or\[1\]: expected an object, found 7"),
        ({"not": {"and": [3]}}, r"filter.not.and\[0\]: expected an object"),
    ],
)
def test_other_forms_are_refused_by_place(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_predicate(data)


def test_deep_nesting_is_refused() -> None:
    data: Any = {"field": "a", "equals": 1}
    for _ in range(10_000):
        data = {"not": data}
    with pytest.raises(InputError, match="at most 32 levels"):
        parse_predicate(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("2024-02-30"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["field", "equals", "in", "range", "and", "or", "not", "gte", "x"]), inner)
    ),
    max_leaves=8,
)


@given(json_values, st.lists(st.dictionaries(st.sampled_from(["x", "field"]), json_values), max_size=4))
def test_any_json_is_a_predicate_or_a_named_error(data: Any, metadata: list[dict[str, Any]]) -> None:
    try:
        predicate = parse_predicate(data)
    except InputError as error:
        assert str(error).startswith("filter")
    else:
        assert leaf_mask(predicate, metadata).shape == (len(metadata),)


@given(
    st.lists(st.integers(-3, 3), max_size=6).map(lambda years: [{"year": year} for year in years]),
    st.integers(-3, 3),
    st.integers(-3, 3),
)
def test_connectives_follow_the_laws_of_logic(metadata: list[dict[str, int]], low: int, high: int) -> None:
    above: Any = {"field": "year", "range": {"gte": low}}
    below: Any = {"field": "year", "range": {"lt": high}}

    def mask(data: Any) -> list[bool]:
        return leaf_mask(parse_predicate(data), metadata).tolist()

    assert mask({"and": [above, below]}) == mask({"field": "year", "range": {"gte": low, "lt": high}})
    assert mask({"not": {"or": [above, below]}}) == mask({"and": [{"not": above}, {"not": below}]})
    assert mask({"and": [above, below]}) == [low <= entry["year"] < high for entry in metadata]


class Kind(StrEnum):
    A = "a"


def nested(count: int) -> Any:
    """So many predicates in one."""
    return {"and": [{"not": {"field": "a", "equals": 1}}] * ((count - 1) // 2) + [{"or": []}] * ((count - 1) % 2)}


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (nested(65), "filter.and[31].not"),
        ({"or": [{"and": []}] * 100_000}, "filter.or[63]"),
        ({"not": nested(64)}, "filter.not.and[31]"),
    ],
)
def test_more_conditions_than_anybody_writes_are_refused(data: Any, place: str) -> None:
    parse_predicate(nested(63))
    parse_predicate(nested(64))
    with pytest.raises(InputError, match=f"^{re.escape(place)}: expected at most 64 conditions in a filter"):
        parse_predicate(data)


def test_more_values_than_anybody_writes_are_refused() -> None:
    half = {"field": "a", "in": list(range(500))}
    parse_predicate({"and": [half, half]})
    with pytest.raises(InputError, match=r"^filter.or\[2\].in: expected at most 1000 values in all lists .*found 1001"):
        parse_predicate({"or": [half, half, {"field": "b", "in": [1]}]})
    with pytest.raises(InputError, match=r"^filter.in: expected at most 1000 .*, found 200000"):
        parse_predicate({"field": "a", "in": ["x"] * 200_000})


scalars = st.sampled_from(
    [None, True, False, 0, 1, 2, 0.0, -0.0, 1.0, 2.5, math.nan, math.inf, 2**53, float(2**53), 2**53 + 1, 2**62,
     "a", "1", "", Kind.A]
)  # fmt: skip
# What the metadata of a caller in Python may hold beside what JSON has.
found_ones = scalars | st.sampled_from([np.float64(2.5), np.int64(1), np.True_, Decimal(1), datetime(2024, 1, 1)])


@given(
    st.lists(scalars, max_size=6).map(tuple),
    found_ones | st.lists(found_ones | st.lists(scalars, max_size=2) | st.just({"a": 1}), max_size=4) | st.just({}),
)
def test_values_of_in_are_the_same_as_one_by_one(values: tuple[Any, ...], found: Any) -> None:
    candidates = found if isinstance(found, list) else [found]
    expected = any(
        isinstance(candidate, bool) == isinstance(value, bool) and bool(candidate == value)
        for candidate in candidates
        for value in values
    )
    assert leaf_mask(In("x", values), [{"x": found}]).tolist() == [expected]
    one_by_one = Or(tuple(Equals("x", value) for value in values))
    assert leaf_mask(one_by_one, [{"x": found}]).tolist() == [expected]
