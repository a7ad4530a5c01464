"""What the page works out without a browser: addresses, predicates, marked words; run by the Node of Playwright."""

import json
import shutil
import subprocess
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from genret.decoding.filters import leaf_mask, parse_predicate

FIELDS = [
    {"name": "year", "type": "number", "values": []},
    {"name": "flag", "type": "boolean", "values": [{"value": True, "count": 1}, {"value": False, "count": 1}]},
    {"name": "level", "type": "mixed", "values": [{"value": 3, "count": 2}, {"value": "high", "count": 1}]},
    {"name": "topic", "type": "text", "values": []},
    {"name": "date", "type": "date", "values": []},
]
METADATA = [
    {"year": 2001, "topic": "train", "flag": True, "level": 3, "date": "2001-05-01T23:00:00"},
    {"year": 2002, "topic": "oven", "flag": False, "level": "high", "date": "2001-05-02"},
    {"topic": "true", "level": "3"},
]


def node() -> str:
    spec = find_spec("playwright")
    own = Path(spec.origin).parent / "driver" / "node" if spec and spec.origin else None
    found = shutil.which("node") or (str(own) if own and own.is_file() else None)
    if found is None:
        pytest.skip("no Node is installed, nor Playwright that brings one: pip install genret[test]")
    return found


def evaluate(code: str, value: Any) -> Any:
    """What a function body returns for `value`, with the page's modules imported as `state`, `filters`, `words`."""
    folder = Path(str(resources.files("genret.serving") / "page")).resolve()
    imports = "".join(
        f"import * as {name} from {json.dumps((folder / f'{name}.js').as_uri())};\n"
        for name in ("state", "filters", "words")
    )
    script = (
        f"{imports}const answer = ((value) => {{ {code} }})({json.dumps(value)});"
        "process.stdout.write(JSON.stringify(answer ?? null));"
    )
    result = subprocess.run(
        [node(), "--no-warnings", "--input-type=module", "-"],
        input=script, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("?from.year=2002", [False, True, False]),
        ("?from.year=2001&to.year=2001", [True, False, False]),
        ("?in.year=2001&in.year=7", [True, False, False]),
        ("?in.flag=true", [True, False, False]),
        ("?in.level=3", [True, False, False]),
        ("?in.level=high", [False, True, False]),
        ("?in.topic=true&in.topic=oven", [False, True, True]),
        ("?in.unknown=a", [False, False, False]),
        ("?to.date=2001-05-01", [True, False, False]),
        ("?from.date=2001-05-02", [False, True, False]),
        ("?in.topic=oven&in.flag=true", [False, False, False]),
        ("?in.topic=oven&from.year=2000&to.date=2001-12-31", [False, True, False]),
    ],
)
def test_filters_of_an_address_mean_what_they_say(search: str, expected: list[bool]) -> None:
    """Predicates as the page makes them, read by what the service reads them with."""
    again, made = evaluate(
        "const seen = state.parseState(value[0]);"
        "return [state.formatState(seen), filters.predicate(seen.filters, value[1])];",
        [search, FIELDS],
    )
    assert parse_qs(again[1:]) == parse_qs(search[1:])
    assert leaf_mask(parse_predicate(made), METADATA).tolist() == expected, made


@pytest.mark.parametrize(
    "search",
    [
        "",
        "?q=a+b%26c%3D%22%C3%A9&r=sft,bm25&k=3&limit=0.5&tokens=0&passage=d%2F1%3F",
        "?q=%F0%9F%A6%86&in.a.b=x&in.a.b=%2C&from.%20=1",
    ],
)
def test_an_address_says_all_and_nothing_else(search: str) -> None:
    again = evaluate("return state.formatState(state.parseState(value));", search)
    assert parse_qs(again[1:]) == parse_qs(search[1:])


@pytest.mark.parametrize(
    "search", ["?k=0&limit=x&r=&in.=a&from.a=&to.", "?k=1e9&limit=-1&r=,,", "?k=2.5&limit=Infinity&x=y&tokens=1"]
)
def test_what_makes_no_sense_is_left_out(search: str) -> None:
    again, made = evaluate(
        "const seen = state.parseState(value); return [state.formatState(seen), filters.predicate(seen.filters, [])];",
        search,
    )
    assert (again, made) == ("", None)


def test_filters_in_words() -> None:
    said = evaluate(
        "return filters.spoken(state.parseState(value).filters);", "?in.topic=oven&in.topic=train&from.year=3&to.year=4"
    )
    assert said == [{"name": "topic", "text": "oven or train"}, {"name": "year", "text": "from 3 to 4"}]


def marked(query: str, text: str) -> list[str]:
    parts = evaluate("return words.segments(value[1], words.stems(value[0]));", [query, text])
    assert "".join(part["text"] for part in parts) == text
    return [part["text"] for part in parts if part["marked"]]


def test_words_of_the_query_are_marked() -> None:
    text = "Merges sorted\n inputs; the merging of a QUERY and of queries. Übergröße 東京 merge_sorted"
    assert marked("merge the sorted query über 東京", text) == [
        "Merges", "sorted", "merging", "QUERY", "queries", "東京", "merge", "sorted",
    ]  # fmt: skip
    assert marked("to be or not to be", "Not to be") == ["Not", "to", "be"], "a query of such words only"
    assert marked("", text) == []
    assert marked("<b>", "a <b> c") == ["b"]


def test_an_excerpt_has_the_words_of_the_query() -> None:
    cut = "return words.excerpt(value[1], words.stems(value[0]), value[2]);"
    hay = "hay " * 200
    short = evaluate(cut, ["needle", f"{hay}a\n needle here {hay}", 100])
    assert "a needle here" in short
    assert short.startswith("… ") and short.endswith(" …") and len(short) <= 104
    assert evaluate(cut, ["needle", "short\n\ntext", 100]) == "short text"
    assert evaluate(cut, ["needle", f"{hay}One. The needle is here. {hay}", 60]).startswith("… The needle is here.")
    for odd in ("", "   ", "a" * 1000, "needle " * 300, "…", f"{'b' * 500} needle"):
        assert len(evaluate(cut, ["needle of", odd, 50])) <= 54
