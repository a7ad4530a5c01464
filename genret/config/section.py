"""What every section of a configuration has in common."""

from collections.abc import Iterable, Iterator
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """What all sections share: unknown keys are errors, values are frozen, docstrings describe fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset()
    """Fields that say how the work is done and not what comes of it: a change of them redoes nothing."""


def refuse(problems: Iterable[str]) -> None:
    """Raise the rules that a section breaks, one a line; each names the field that it is about first."""
    if message := "\n".join(problems):
        raise ValueError(message)


def gpu_problems(name: str, gpus: float) -> Iterator[str]:
    """What is wrong with a number of GPUs: Ray shares out parts of one GPU, and of several none."""
    if gpus > 1 and gpus % 1:
        yield f"{name}: expected at most 1, or a whole number, found {gpus:g}"
