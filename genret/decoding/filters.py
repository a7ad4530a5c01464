"""Metadata predicates: which identifiers a search may return."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from genret.errors import InputError

# Deeper than any person writes; a request that nests further is refused before it exhausts the stack.
MAX_NESTING = 32
BOUNDS = ("gte", "gt", "lte", "lt")

Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Equals:
    """The field has this value, or holds a list in which it stands."""

    field: str
    value: Scalar


@dataclass(frozen=True, slots=True)
class In:
    """The field has one of these values, or holds a list in which one of them stands."""

    field: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The field lies within bounds, all of them numbers or all of them moments in time; None is no bound."""

    field: str
    gte: float | datetime | None = None
    gt: float | datetime | None = None
    lte: float | datetime | None = None
    lt: float | datetime | None = None


@dataclass(frozen=True, slots=True)
class And:
    """All of these hold; with none given, always."""

    predicates: tuple["Predicate", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of these holds; with none given, never."""

    predicates: tuple["Predicate", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """This does not hold: also where the field is missing."""

    predicate: "Predicate"


Predicate: TypeAlias = Equals | In | Range | And | Or | Not


def parse_predicate(data: Any) -> Predicate:
    """Read a predicate from a JSON-like value.

    The forms are `{"field": F, "equals": V}`, `{"field": F, "in": [V, ...]}`, `{"field": F, "range": {"gte":
    B, "lt": B}}` (any of gte, gt, lte, lt), `{"and": [P, ...]}`, `{"or": [P, ...]}` and `{"not": P}`. A bound
    B is a finite number or an ISO 8601 date or time; a time without a zone is UTC, and a date is its first
    moment.

    Args:
        data: The value, as `json.loads` gives it.

    Returns:
        The predicate.

    Raises:
        InputError: Another form; names the place in the predicate, what was expected and what was found.
    """
    return _parse(data, "filter", 0)


def leaf_mask(predicate: Predicate, metadata: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.bool_]:
    """Which identifiers satisfy a predicate.

    A missing field satisfies no `equals`, `in` or `range`, and neither does a value of another kind than the
    predicate's (text under a range of numbers, a truth value beside 0 or 1).

    Args:
        predicate: The predicate.
        metadata: The metadata of each identifier's passage, in the identifiers' order.

    Returns:
        bool `[len(metadata)]`, for `TrieSearch.search(allowed=...)`.
    """
    match predicate:
        case And(parts):
            return np.logical_and.reduce([np.ones(len(metadata), bool), *(leaf_mask(part, metadata) for part in parts)])
        case Or(parts):
            return np.logical_or.reduce([np.zeros(len(metadata), bool), *(leaf_mask(part, metadata) for part in parts)])
        case Not(part):
            return ~leaf_mask(part, metadata)
        case Equals(field, value):
            return _mask(metadata, field, lambda found: _holds(found, (value,)))
        case In(field, values):
            return _mask(metadata, field, lambda found: _holds(found, values))
        case Range(field):
            return _mask(metadata, field, lambda found: _within(found, predicate))


def _mask(metadata: Sequence[Mapping[str, Any]], field: str, test: Any) -> npt.NDArray[np.bool_]:
    return np.fromiter((field in entry and test(entry[field]) for entry in metadata), bool, len(metadata))


def _holds(found: Any, values: tuple[Scalar, ...]) -> bool:
    candidates = found if isinstance(found, list | tuple) else (found,)
    return any(_same(candidate, value) for candidate in candidates for value in values)


def _same(found: Any, value: Scalar) -> bool:
    # In Python True equals 1; in metadata they are different things.
    return isinstance(found, bool) == isinstance(value, bool) and bool(found == value)


def _within(found: Any, bounds: Range) -> bool:
    given = next(bound for bound in (bounds.gte, bounds.gt, bounds.lte, bounds.lt) if bound is not None)
    value = _moment(found) if isinstance(given, datetime) else _number(found)
    if value is None:
        return False
    # One of `value` and the bounds is a datetime exactly where all are.
    return bool(
        (bounds.gte is None or value >= bounds.gte)  # type: ignore[operator]
        and (bounds.gt is None or value > bounds.gt)  # type: ignore[operator]
        and (bounds.lte is None or value <= bounds.lte)  # type: ignore[operator]
        and (bounds.lt is None or value < bounds.lt)  # type: ignore[operator]
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _moment(value: Any) -> datetime | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def _parse(data: Any, place: str, depth: int) -> Predicate:
    if depth > MAX_NESTING:
        raise InputError(f"filter: expected at most {MAX_NESTING} levels of and, or, not; found more")
    if not isinstance(data, Mapping):
        raise InputError(f"{place}: expected an object, found {data!r:.80}")
    keys = set(data)
    if keys == {"not"}:
        return Not(_parse(data["not"], f"{place}.not", depth + 1))
    if keys in ({"and"}, {"or"}):
        (name,) = keys
        parts = tuple(
            _parse(part, f"{place}.{name}[{number}]", depth + 1)
            for number, part in enumerate(_list(data[name], f"{place}.{name}"))
        )
        return And(parts) if name == "and" else Or(parts)
    if "field" in keys and len(keys) == 2:
        return _parse_field(data, place)
    raise InputError(
        f"{place}: expected one of and, or, not, or a field with one of equals, in, range; "
        f"found {sorted(map(str, keys))}"
    )


def _parse_field(data: Mapping[str, Any], place: str) -> Predicate:
    field = data["field"]
    if not isinstance(field, str) or not field:
        raise InputError(f"{place}.field: expected the name of a metadata field, found {field!r:.80}")
    if "equals" in data:
        return Equals(field, _scalar(data["equals"], f"{place}.equals"))
    if "in" in data:
        values = _list(data["in"], f"{place}.in")
        return In(field, tuple(_scalar(value, f"{place}.in[{number}]") for number, value in enumerate(values)))
    if "range" in data:
        return _parse_range(field, data["range"], f"{place}.range")
    raise InputError(f"{place}: expected equals, in or range beside field, found {sorted(set(data) - {'field'})}")


def _parse_range(field: str, data: Any, place: str) -> Range:
    if not isinstance(data, Mapping) or not data or set(data) - set(BOUNDS):
        raise InputError(f"{place}: expected an object with some of {', '.join(BOUNDS)}, found {data!r:.80}")
    bounds: dict[str, float | datetime] = {}
    for name, value in data.items():
        bound = _number(value) if not isinstance(value, str) else _moment(value)
        if bound is None:
            raise InputError(
                f"{place}.{name}: expected a finite number or an ISO 8601 date or time, found {value!r:.80}"
            )
        bounds[name] = bound
    if len({isinstance(bound, datetime) for bound in bounds.values()}) > 1:
        raise InputError(f"{place}: expected all bounds to be numbers or all to be dates, found {dict(data)!r:.80}")
    return Range(field, **bounds)


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{place}: expected a list, found {value!r:.80}")
    return list(value)


def _scalar(value: Any, place: str) -> Scalar:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise InputError(f"{place}: expected text, a number, true, false or null, found {value!r:.80}")
