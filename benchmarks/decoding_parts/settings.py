"""What the command line asks for."""

import re
from dataclasses import dataclass
from pathlib import Path

from decoding_parts.timing import Limits


@dataclass(frozen=True)
class Settings:
    """Common to all parts.

    Attributes:
        limits: How long each side of a comparison is measured.
        quick: The smallest sizes only.
        run: The folder of a finished run, for the part `exact`.
        identifiers: How many the part `scale` has at its largest.
        cells: What is measured in the part `speed`: cells whose name, such as "2x256 12000 5000 trie 32" (model,
            vocabulary, identifiers, scoring, batch), this finds a match in.
        queries: How many the part `exact` has.
    """

    limits: Limits
    quick: bool
    run: Path | None
    identifiers: int
    cells: re.Pattern[str] = re.compile("")
    queries: int = 200
