"""What is wrong with a configuration, in words."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from genret.config.describing import field_choices, field_description, field_tags, section_kinds
from genret.config.run import RunConfig
from genret.config.section import Section
from genret.config.yaml_text import shown_value


def explain_errors(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Dotted path and message of each problem."""
    for details in error.errors():
        section, field, path = _locate(details["loc"])
        kind, found = details["type"], details["input"]
        if kind == "too_short" and found:
            continue  # pydantic leaves refused items out of the count; they are told by themselves
        if kind == "value_error":
            for rule in str(details["ctx"]["error"]).splitlines():
                name, _, message = rule.partition(": ")
                yield (f"{path}.{name}" if path else name), message
        elif kind == "extra_forbidden":
            yield path, _unknown_key(str(details["loc"][-1]), section)
        elif kind == "union_tag_not_found":
            yield f"{path}.type", f"expected one of {', '.join(field_tags(field))}, found nothing"
        elif kind == "union_tag_invalid":
            tag = details["ctx"]["tag"]
            tags = field_tags(field)
            yield (
                f"{path}.type",
                f"expected one of {', '.join(tags)}, found {shown_value(tag)}{did_you_mean(tag, tags)}",
            )
        elif kind == "missing":
            yield path, f"expected {field_description(field)}, found nothing"
        else:
            quotes = " (put it in quotes)" if kind == "string_type" and isinstance(found, int | float) else ""
            nearest = did_you_mean(found, field_choices(field)) if kind == "literal_error" else ""
            yield path, f"expected {field_description(field)}, found {shown_value(found)}{quotes}{nearest}"


def _locate(location: Sequence[str | int]) -> tuple[type[Section], FieldInfo, str]:
    """The section that holds a field, the field, and its path as it stands in the file.

    Of an unknown key, the field is that of its section.
    """
    path = ""
    section: type[Section] = RunConfig
    kinds: tuple[type[Section], ...] = (RunConfig,)
    field = FieldInfo(annotation=RunConfig)
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
            field = FieldInfo.from_annotation(get_args(field.annotation)[0])
        elif len(kinds) > 1:  # pydantic names the chosen kind of section here, the file does not
            kinds = tuple(kind for kind in kinds if kind.model_fields["type"].default == part)
        else:
            path += f".{part}" if path else part
            section = kinds[0]
            if part in section.model_fields:
                field = section.model_fields[part]
                kinds = section_kinds(field.annotation)
    return section, field, path


def _unknown_key(key: str, section: type[Section]) -> str:
    known = list(section.model_fields)
    last = key.rpartition(".")[2]
    elsewhere = [path for path in _all_paths(RunConfig, "") if path.rpartition(".")[2] == last]
    nearest = did_you_mean(key, known) or (f"; did you mean {elsewhere[0]}?" if elsewhere else "")
    return f"unknown key{nearest}; known here: {', '.join(known)}"


def _all_paths(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for kind in section_kinds(field.annotation):
            yield from _all_paths(kind, f"{prefix}{name}.")


def whereabouts(path: str, origin: str, lines: Mapping[str, int], applied: Mapping[str, str]) -> str:
    """Who said it: an override, or the line of the file with the key or the nearest section above it."""
    keys = path.partition("[")[0].split(".")
    above = [".".join(keys[:length]) for length in range(len(keys), 0, -1)]
    for key in above:
        if key in applied:
            return f"override {applied[key]!r}"
    for key in above:
        if key in lines:
            return f"{origin}, line {lines[key]}"
        for changed, override in applied.items():
            if changed.startswith(f"{key}."):  # the override made this section
                return f"override {override!r}"
    return origin


def did_you_mean(found: object, known: Sequence[str]) -> str:
    """A question to put behind a message; empty where nothing known is near what was found."""
    matches = difflib.get_close_matches(str(found), known, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
