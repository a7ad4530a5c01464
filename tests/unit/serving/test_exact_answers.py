"""Which answers of a searcher say that no better passage can exist."""

from collections.abc import Sequence
from typing import Any

import pytest

from genret.runs import RunStore
from genret.serving.asks import Ask, canonical_filter
from genret.serving.documents import Editor
from genret.serving.searching import Searcher, open_bm25
from genret.serving.versions import find_version
from genret.types import ScoredPassage


class Listed:
    """Finds the first passages, whatever is asked."""

    name = "dense"

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        return [[ScoredPassage(f"d{number}", 1.0 - number / 100) for number in range(min(k, 40))] for _ in queries]


class Approximate(Listed):
    exact = False


class Exact(Listed):
    exact = True


@pytest.mark.parametrize(("kind", "exact"), [(Listed, True), (Exact, True), (Approximate, False)])
def test_answers_are_exact_where_the_rankings_are(small_run: RunStore, kind: Any, exact: bool) -> None:
    editor = Editor(small_run, find_version(small_run))
    removal = editor.remove("d0")
    assert removal is not None
    searcher = Searcher(kind(), editor.collection)
    text = canonical_filter({"field": "topic", "equals": "oven"})
    for found in (searcher, searcher.changed(removal)):
        answers = found.answer([Ask("a", 3, filter, 60.0, explain=False) for filter in ("", text)])
        assert [(answer.exact, len(answer.places)) for answer in answers] == [(exact, 3)] * 2


def test_the_index_of_words_is_exact(small_run: RunStore) -> None:
    searcher = open_bm25(small_run, find_version(small_run), "bm25")
    assert searcher.answer([Ask("river", 3, "", 60.0, explain=False)])[0].exact is True
