"""Why rows were rejected, counted."""

import re
from collections import Counter
from collections.abc import Iterable

_LEADING_COUNT = re.compile(r"(\d+) (?=\D)")
_DETAILS = re.compile(r"[:;] ")
_LONGEST = 60


def short_reason(reason: str) -> str:
    """What a reason begins with, without the details that differ from row to row: `HTTP 400`, `duplicate queries`.

    Args:
        reason: A row's reason; what is behind its first colon or semicolon is details, and so is a number before it.
    """
    kind = _DETAILS.split(_LEADING_COUNT.sub("", reason, count=1) if _counts(reason) else reason, maxsplit=1)[0]
    return kind.strip()[:_LONGEST] or "no reason"


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """How many there are of each `short_reason`, the most frequent first.

    Args:
        reasons: Those of rows; one that begins with a number ("3 duplicate queries") stands for so many.
    """
    counts: Counter[str] = Counter()
    for reason in reasons:
        counts[short_reason(reason)] += _counts(reason) or 1
    return dict(counts.most_common())


def _counts(reason: str) -> int:
    match = _LEADING_COUNT.match(reason)
    return int(match[1]) if match else 0
