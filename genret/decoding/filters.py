"""Metadata predicates: which identifiers a search may return."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from genret.errors import InputError

# Deeper than any person writes; a request that nests further is refused before it exhausts the stack.
MAX_NESTING = 32
MAX_CONDITIONS = 64
"""Most conditions of one predicate, and, or and not counted too: each takes time for every identifier."""
MAX_VALUES = 1000
"""Most values in all lists of `in` of one predicate together."""
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
    """The field lies within bounds, all of them numbers or all of them moments in time; None is no bound.

    A moment without a zone is in UTC.

    Raises:
        InputError: No bound at all, one that is neither, or numbers beside moments.
    """

    field: str
    gte: float | datetime | None = None
    gt: float | datetime | None = None
    lte: float | datetime | None = None
    lt: float | datetime | None = None

    def __post_init__(self) -> None:
        given = {name: bound for name in BOUNDS if (bound := getattr(self, name)) is not None}
        known = all(isinstance(bound, datetime) or _number(bound) is not None for bound in given.values())
        if not known or len({isinstance(bound, datetime) for bound in given.values()}) != 1:
            raise InputError(
                f"range of {self.field}: expected bounds that are all finite numbers or all moments in time, "
                f"found {given}"
            )
        for name, bound in given.items():
            if isinstance(bound, datetime):
                object.__setattr__(self, name, _moment(bound))


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
    moment. There are at most `MAX_CONDITIONS` of these forms in one, and at most `MAX_VALUES` values of `in`.

    Args:
        data: The value, as `json.loads` gives it.

    Returns:
        The predicate.

    Raises:
        InputError: Another form, or too long; names the place in the predicate, what was expected and what was found.
    """
    return _parse(data, "filter", 0, _Room(MAX_CONDITIONS, MAX_VALUES))


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
            return _mask(metadata, field, _test_of((value,)))
        case In(field, values):
            return _mask(metadata, field, _test_of(values))
        case Range(field):
            return _mask(metadata, field, lambda found: _within(found, predicate))


def _mask(metadata: Sequence[Mapping[str, Any]], field: str, test: Any) -> npt.NDArray[np.bool_]:
    return np.fromiter((field in entry and test(entry[field]) for entry in metadata), bool, len(metadata))


def _test_of(values: tuple[Scalar, ...]) -> Callable[[Any], bool]:
    """Whether a field holds one of the values, in a list or alone."""
    wanted = _Values(values)

    def test(found: Any) -> bool:
        return any(map(wanted.__contains__, found)) if isinstance(found, list | tuple) else found in wanted

    return test


class _Values:
    """Values that a found one may be the same as; most are looked up in a set."""

    # Of these what is equal has the same hash; of others, such as an enumeration of text, it may have another.
    _HASHED = frozenset({str, bool, int, float, type(None)})

    def __init__(self, values: tuple[Scalar, ...]) -> None:
        self._values = values
        # NaN, which is the same as nothing, would be found as the same object.
        self._hashed = {_key(value) for value in values if type(value) in self._HASHED and value == value}
        self._others = tuple(value for value in values if type(value) not in self._HASHED)

    def __contains__(self, found: Any) -> bool:
        if type(found) not in self._HASHED:
            return any(_same(found, value) for value in self._values)
        return _key(found) in self._hashed or any(_same(found, value) for value in self._others)


def _key(value: Scalar) -> tuple[bool, Scalar]:
    return isinstance(value, bool), value


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


@dataclass
class _Room:
    """What may still come in a predicate that is being read."""

    conditions: int
    values: int

    def take_condition(self, place: str) -> None:
        self.conditions -= 1
        if self.conditions < 0:
            raise InputError(f"{place}: expected at most {MAX_CONDITIONS} conditions in a filter, found more")

    def take_values(self, count: int, place: str) -> None:
        self.values -= count
        if self.values < 0:
            found = MAX_VALUES - self.values
            raise InputError(f"{place}: expected at most {MAX_VALUES} values in all lists of a filter, found {found}")


def _parse(data: Any, place: str, depth: int, room: _Room) -> Predicate:
    if depth > MAX_NESTING:
        raise InputError(f"filter: expected at most {MAX_NESTING} levels of and, or, not; found more")
    room.take_condition(place)
    if not isinstance(data, Mapping):
        raise InputError(f"{place}: expected an object, found {data!r:.80}")
    keys = set(data)
    if keys == {"not"}:
        return Not(_parse(data["not"], f"{place}.not", depth + 1, room))
    if keys in ({"and"}, {"or"}):
        (name,) = keys
        parts = tuple(
            _parse(part, f"{place}.{name}[{number}]", depth + 1, room)
            for number, part in enumerate(_list(data[name], f"{place}.{name}"))
        )
        return And(parts) if name == "and" else Or(parts)
    if "field" in keys and len(keys) == 2:
        return _parse_field(data, place, room)
    raise InputError(
        f"{place}: expected one of and, or, not, or a field with one of equals, in, range; "
        f"found {sorted(map(str, keys))}"
    )


def _parse_field(data: Mapping[str, Any], place: str, room: _Room) -> Predicate:
    field = data["field"]
    if not isinstance(field, str) or not field:
        raise InputError(f"{place}.field: expected the name of a metadata field, found {field!r:.80}")
    if "equals" in data:
        return Equals(field, _scalar(data["equals"], f"{place}.equals"))
    if "in" in data:
        values = _list(data["in"], f"{place}.in")
        room.take_values(len(values), f"{place}.in")
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
