"""YAML as configurations are written in: YAML 1.2, plain values only, and where each key stands."""

import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import yaml

from genret.errors import InputError

_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_TEXT = "tag:yaml.org,2002:str"


class _Scalars(yaml.resolver.Resolver):
    """What a scalar without quotes is: by YAML 1.2, where 1e-7 is a number and `no` and dates are text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+",
        [*"-+.0123456789"],
    ),
    ("merge", r"<<", ["<"]),
):
    _Scalars.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


class _Loader(_Scalars, yaml.SafeLoader):
    """Reads YAML."""


class Dumper(_Scalars, yaml.SafeDumper):
    """Writes YAML that `_Loader` reads back as it was."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """A text; one with line ends or other controls in double quotes."""
        style = None if data.isprintable() else '"'
        return self.represent_scalar(_TEXT, data, style=style)


Dumper.add_representer(str, Dumper.represent_str)


def read_yaml(text: str, origin: str) -> tuple[Any, dict[str, int], list[str]]:
    """The value in a text, the line of each key by its dotted path, and problems that hide no others."""
    lines: dict[str, int] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            problems = [f"{origin}, {problem}" for problem in _inspect(node, "", lines, set())]
            # Through JSON, so that keys are text, and nothing stands in two places at once or in itself.
            data = json.loads(json.dumps(loader.construct_document(node))) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        found = error.problem or error.context
        raise InputError(f"{origin}{line}: expected YAML, found an error: {found}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{origin}: expected YAML, found an error: {str(error).splitlines()[0]}") from error
    return data, lines, problems


def _inspect(node: yaml.Node | None, path: str, lines: dict[str, int], seen: set[int]) -> Iterator[str]:
    """Note the lines of all keys, and yield what the parser would pass over in silence."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    line = node.start_mark.line + 1
    if node.tag not in _PLAIN_TAGS:
        raise ValueError(f"the tag {node.tag} in line {line}")
    if isinstance(node, yaml.ScalarNode):
        if node.tag not in (_TEXT, _Scalars().resolve(yaml.ScalarNode, node.value, (True, False))):
            raise ValueError(f"the tag {node.tag} in line {line} does not fit {node.value!r}")
        node.value.encode("utf-8")  # an escape can make half a character, which no JSON or file can hold
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _inspect(item, f"{path}[{number}]", lines, seen)
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            yield from _inspect(key_node, path, lines, seen)
            line = key_node.start_mark.line + 1
            key = str(key_node.value)
            below = f"{path}.{key}" if path else key
            if key in first:
                yield f"line {line}: {below}: stands twice; first in line {first[key]}"
            first.setdefault(key, line)
            lines.setdefault(below, line)
            yield from _inspect(value_node, below, lines, seen)


def apply_override(data: dict[str, Any], override: str) -> tuple[str, list[str]]:
    """Change the data, and return the dotted path that was changed, and problems."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"override {override!r}: expected section.field=value")
    value, _, problems = read_yaml(text, f"override {override!r}") if text.strip() else ("", {}, [])
    section = data
    for depth, key in enumerate(keys[:-1], start=1):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise InputError(
                f"override {override!r}: expected {'.'.join(keys[:depth])} to be a section, "
                f"found {shown_value(section)}"
            )
    section[keys[-1]] = value
    return ".".join(keys), problems


def shown_value(value: object) -> str:
    """A value as a message shows it."""
    if value is None:
        return "nothing"
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."
