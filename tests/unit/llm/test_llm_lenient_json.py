import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genret.llm.answers.lenient_json import Number, read_json

VALUES = st.recursive(
    st.text() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
    | st.none(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=12,
)  # fmt: skip


def plain(value):
    """As `read_json` has it: numbers as they were written, nothing for words."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return json.dumps(value)
    if isinstance(value, list):
        return [plain(part) for part in value]
    return {key: plain(part) for key, part in value.items()} if isinstance(value, dict) else value


def read(text):
    found = read_json(text, 0)
    return None if found is None else found[0]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(VALUES, max_size=4) | st.dictionaries(st.text(), VALUES, max_size=4),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_json_is_read_as_json(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read_json(text, 0) == (plain(value), len(text))
    assert read_json(f"see {text} there", 4) == (plain(value), 4 + len(text))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=8), max_size=5), st.integers(0, 60))
def test_what_is_whole_of_a_list_that_is_cut_off_is_kept(texts, length):
    text = json.dumps(texts)
    found = read(text[: max(1, length)])
    assert found == texts[: len(found)]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("[]{}\"',:\\/ \nu0a1-tn“”"), max_size=60).map(lambda text: f"[{text}"))
def test_nothing_raises_and_the_place_is_in_the_text(text):
    found = read_json(text, 0)
    assert found is None or 1 <= found[1] <= len(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": ["x", "y', {"a": ["x"]}),
        ('{"a": {"b": "c"', {"a": {"b": "c"}}),
        ('{"a": "b", "c', {"a": "b"}),
        ('{"a": "b", "c":', {"a": "b"}),
        ("['it''s', 'the dog's',]", ["it''s", "the dog's"]),
        ('["a" "b"]', ['a" "b']),
        ('["a"\n"b"]', ["a", "b"]),
        ("{a: “b”, c-d = 'e'}", {"a": "b", "c-d": "e"}),
        ('[ // one\n "a", /* two */ "b"]', ["a", "b"]),
        ('["\\ud83d\\ude00", "\\ud83d"]', ["😀", "\ud83d"]),
        ("[1, -2.5, true, None]", ["1", "-2.5", None, None]),
        ("[word]", None),
        ("{1}", None),
        ("[" * 100, None),
    ],
)
def test_json_of_models(text, value):
    assert read(text) == value


def test_a_number_is_no_string():
    assert [type(part) for part in read('[1, "1"]')] == [Number, str]
