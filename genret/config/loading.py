"""Reading configurations and presets, and writing them."""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml
from pydantic import ValidationError

from genret.config.describing import commented_yaml
from genret.config.explaining import did_you_mean, explain_errors, whereabouts
from genret.config.run import RunConfig
from genret.config.yaml_text import Dumper, apply_override, read_yaml, shown_value
from genret.errors import InputError


def preset_names() -> list[str]:
    """The names of the presets that ship with genret, sorted."""
    files = resources.files("genret.configs").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration.

    Args:
        source: The name of a preset (see `preset_names`), or else the path of a YAML file.
        overrides: Changes to it, in order: `section.field=value`, with the value in YAML (`[sft, bm25]`,
            `1e-3`); nothing after the `=` is the empty text.

    Returns:
        The configuration, with the defaults of all fields that are not mentioned.

    Raises:
        InputError: No such preset or file, no YAML, a key that is unknown or stands twice, a value out of
            bounds, or values that do not go together. Tells everything that was found, one problem a line.
    """
    presets = preset_names()
    name = str(source)
    if name in presets:
        text = resources.files("genret.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        return parse_config(text, f"preset {name}", overrides)
    try:
        return parse_config(Path(source).read_text(encoding="utf-8-sig"), name, overrides)
    except FileNotFoundError as error:
        nearest = did_you_mean(Path(source).stem, presets)
        raise InputError(
            f"{name}: expected a YAML file or one of the presets {', '.join(presets)}; found neither{nearest}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: expected a YAML file in UTF-8, found something else ({error})") from error


def parse_config(text: str, origin: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration from text.

    Args:
        text: YAML.
        origin: What to call the text in messages.
        overrides: As `load_config` has them.

    Returns:
        The configuration.

    Raises:
        InputError: As `load_config` does.
    """
    data, lines, problems = read_yaml(text, origin)
    if not isinstance(data, dict):
        raise InputError(f"{origin}: expected keys and values at the top level, found {shown_value(data)}")
    applied: dict[str, str] = {}
    for override in overrides:
        try:
            path, found = apply_override(data, override)
            applied[path] = override
            problems += found
        except InputError as error:
            problems.append(str(error))
    try:
        # JSON, as only there a list may stand for a tuple while a quoted number is no number.
        config = RunConfig.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        for path, message in explain_errors(error):
            problems.append(f"{whereabouts(path, origin, lines, applied)}: {path}: {message}")
    if problems:
        raise InputError("\n".join(problems))
    return config


def resolved_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML, with every default; `parse_config` reads it back."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def dump_config(config: RunConfig) -> str:
    """The whole configuration as YAML, with each field's meaning and bounds in a comment above it."""
    return "\n".join(commented_yaml(config, "")).strip("\n") + "\n"
