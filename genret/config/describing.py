"""Fields in words: their meaning, kinds and bounds."""

import math
import textwrap
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import JsonValue
from pydantic.fields import FieldInfo

from genret.config.section import Section
from genret.config.yaml_text import Dumper

_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict[str, JsonValue]: "keys and values",
}
_BOUNDS = ("ge", "gt", "le", "lt", "min_length", "pattern")
_COMMENT_WIDTH = 96


def section_kinds(annotation: Any) -> tuple[type[Section], ...]:
    """The sections that a field may hold; none where it holds a value."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section))


def field_tags(field: FieldInfo) -> list[str]:
    """The values of `type` that tell the sections apart that a field may hold."""
    return [kind.model_fields["type"].default for kind in section_kinds(field.annotation)]


def field_choices(field: FieldInfo) -> list[str]:
    """The values that a field may have, where they are few and named."""
    is_choice = get_origin(field.annotation) is Literal
    return [str(choice) for choice in get_args(field.annotation)] if is_choice else []


def field_description(field: FieldInfo) -> str:
    """What a field may hold, in words: its kind and its bounds."""
    annotation = field.annotation
    if annotation is None or section_kinds(annotation):
        return "a section with keys and values"
    bounds = {
        name: getattr(mark, name)
        for mark in field.metadata
        for name in _BOUNDS
        if getattr(mark, name, None) is not None
    }
    if get_origin(annotation) is tuple:
        item = field_description(FieldInfo.from_annotation(get_args(annotation)[0]))
        return f"a list, not empty, of {item}" if "min_length" in bounds else f"a list of {item}"
    if choices := field_choices(field):
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return " ".join([_NAMES[annotation], *_bounds_in_words(bounds)])


def _bounds_in_words(bounds: Mapping[str, Any]) -> Iterator[str]:
    if "pattern" in bounds:
        yield f"that matches {bounds['pattern']}"
    elif "min_length" in bounds:
        yield "that is not empty"
    least, above, most, below = (_number(bounds.get(name)) for name in ("ge", "gt", "le", "lt"))
    if least and most:
        yield f"from {least} to {most}"
    else:
        words = {"at least": least, "above": above, "at most": most, "below": below}
        if given := [f"{word} {bound}" for word, bound in words.items() if bound]:
            yield " and ".join(given)


def _number(bound: float | None) -> str:
    if bound is None:
        return ""
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def commented_yaml(section: Section, indent: str) -> Iterator[str]:
    """Lines of YAML for a section, with each field's meaning and bounds in a comment above it."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not indent:
            yield ""
        comment = " ".join((field.description or "").split())
        if not isinstance(value, Section):
            comment += f" ({field_description(field)})"
        prefix = f"{indent}# "
        yield from textwrap.wrap(
            comment, _COMMENT_WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_on_hyphens=False
        )
        if isinstance(value, Section):
            yield f"{indent}{name}:"
            yield from commented_yaml(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_inline(value)}"


def _inline(value: Any) -> str:
    """A value as YAML in one line."""
    plain = list(value) if isinstance(value, tuple) else value
    dumped = yaml.dump([plain], Dumper=Dumper, default_flow_style=True, width=math.inf, allow_unicode=True)
    return dumped.strip()[1:-1]
