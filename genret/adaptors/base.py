"""What the adaptors share: what is said where a library is missing, and predicates from other libraries' filters."""

from collections.abc import Mapping, Sequence
from typing import Any

from genret.errors import InputError

Predicate = dict[str, Any]
"""A predicate in the form that `genret.decoding.filters.parse_predicate` reads."""

_BOUNDS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}


def missing(extra: str) -> ImportError:
    """The error of an adaptor whose library is not installed.

    Args:
        extra: The name of the adaptor, which is that of genret's extra.
    """
    return ImportError(
        f"genret.adaptors.{extra.replace('-', '_')} needs a package that is not installed: pip install genret[{extra}]"
    )


def comparison(field: str, operator: str, value: Any, place: str) -> Predicate:
    """A predicate from an operator as other libraries write it.

    Args:
        field: The metadata field.
        operator: One of ==, !=, >, >=, <, <=, in, not in, nin.
        value: What it is compared with; a list for the last three.
        place: What an error calls the comparison.

    Raises:
        InputError: The service has no such operator, or the value is no list where it has to be.
    """
    if operator in ("in", "not in", "nin"):
        if not isinstance(value, list | tuple | set):
            raise InputError(f"{place}: expected a list after {operator!r}, found {value!r:.80}")
        inside = {"field": field, "in": list(value)}
        return inside if operator == "in" else {"not": inside}
    if operator in _BOUNDS:
        return {"field": field, "range": {_BOUNDS[operator]: value}}
    equal = {"field": field, "equals": value}
    if operator == "==":
        return equal
    if operator == "!=":
        return {"not": equal}
    raise InputError(f"{place}: expected one of ==, !=, >, >=, <, <=, in, not in, found {operator!r}")


def combination(operator: str, parts: Sequence[Predicate], place: str) -> Predicate:
    """Several predicates joined by `and`, `or` or `not`, in any case of letters; `not`: not all of them.

    Raises:
        InputError: Another operator.
    """
    match operator.lower():
        case "and":
            return {"and": list(parts)}
        case "or":
            return {"or": list(parts)}
        case "not":
            return {"not": {"and": list(parts)}}
    raise InputError(f"{place}: expected and, or, not, found {operator!r}")


def both(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> Predicate | None:
    """What satisfies two predicates, either of which may be missing."""
    given = [dict(predicate) for predicate in (first, second) if predicate is not None]
    return {"and": given} if len(given) > 1 else next(iter(given), None)
