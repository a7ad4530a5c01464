import json
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genret.llm.base import Item, Request
from genret.llm.parsing import parse
from genret.llm.prompts import render

CASES = yaml.safe_load(Path(__file__).with_name("ugly_outputs.yaml").read_text(encoding="utf-8"))
KINDS = ["keywords", "chunk", "sentence", "constraint", "preference", "multihop", "negative"]


def request(kind, n=10):
    return Request("r", kind, n, "", "text", {"source": "BBC"}, ("other",), "query")


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_ugly_outputs(case):
    response = parse(request(case["kind"], case["n"]), case["text"], finished=case.get("finished", True))
    found = [[item.text, item.answer] if case["kind"] == "preference" else item.text for item in response.items]
    assert (found, response.error) == (case.get("items", []), case.get("error", ""))
    assert (response.request_id, response.raw) == ("r", case["text"])


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_ugly_outputs_with_other_line_ends(case):
    asked, finished = request(case["kind"], case["n"]), case.get("finished", True)
    there = parse(asked, case["text"], finished=finished)
    assert parse(asked, case["text"].replace("\n", "\r\n"), finished=finished).items == there.items
    assert parse(asked, f"\n\n{case['text']}", finished=finished).items == there.items


# --- whatever a model may write ---

# Pieces of ugly outputs, in any order, reach more of the code than characters do.
PIECES = st.sampled_from(
    [
        *"\n\n\n  -*`\"'[]{}|:?.,>#()_~=3",
        "- ", "* ", "1. ", "2) ", "１．", "1️⃣", "1 - ", "A. ", "B. ", "```", "```json\n", "<think>", "</think>", "**",
        "Q1: ", "Answer: ", "Query: ", "A: ", "Answers:\n", "|---|", "\n| a | b |", "Final:", "Drafts:\n",
        "Attributes: ", "Sure! ", "Let me know", '{"items": [', '", "', '"}]', "\\", "\\u00e9", "//", "/*", "<li>",
        "</ul>", "<|im_end|>", "\r\n", "\u200b", "\uffff", "\ud800", "é", "你好？", "word", "What is it? ", "a, b, c",
    ]
)  # fmt: skip
OUTPUTS = st.text(max_size=300) | st.lists(PIECES, max_size=40).map("".join)


@settings(max_examples=400, deadline=None)
@given(OUTPUTS, st.sampled_from(KINDS), st.integers(1, 4), st.booleans())
@example("[" * 10_000, "chunk", 3, True)
@example('{"a":' * 10_000, "preference", 3, False)
@example("[" + "9" * 10_000 + "]", "keywords", 3, True)
def test_nothing_raises_and_every_item_is_one_line_of_text(text, kind, n, finished):
    response = parse(request(kind, n), text, finished=finished)
    assert len(response.items) <= n
    assert bool(response.items) != bool(response.error)
    assert response.raw == text
    for item in response.items:
        assert item.text
        assert item.text == " ".join(item.text.split())
        assert item.answer == " ".join(item.answer.split())
        assert kind == "preference" or not item.answer


WORDS = st.lists(st.text("abcdefghij", min_size=2, max_size=8), min_size=3, max_size=8).map(" ".join)
QUERIES = st.lists(WORDS.map(lambda words: f"What {words}?"), min_size=2, max_size=6, unique=True)
KEYWORDS = st.lists(WORDS.map(lambda words: " ".join(words.split()[:3])), min_size=2, max_size=6, unique=True)
STYLES = [
    "{i}. {x}", "{i}) {x}", "({i}) {x}", "Q{i}: {x}", "Query {i}: {x}", "- Query {i}: {x}", "**{i}.** {x}",
    "- {i}. {x}",
    "- {x}", "* {x}", "+ {x}", "• {x}", "•{x}", "- **{x}**", "- *{x}*", '- "{x}"', "- `{x}`", "  - {x}", "> - {x}",
]  # fmt: skip
PREAMBLES = ["", "Sure! Here you are:\n\n", "Here you go\n\n", "## Results\n", "```\n", "<think>\n- no?\n</think>\n"]
CLOSINGS = ["", "\n", "\n\nLet me know if you need more!", "\n```", "\n\n---"]
FRAMES = st.tuples(
    st.sampled_from(PREAMBLES), st.sampled_from(CLOSINGS), st.sampled_from(["\n", "\n\n", "\r\n", " \n"])
)


@settings(max_examples=200, deadline=None)
@given(QUERIES | KEYWORDS, st.sampled_from(STYLES), FRAMES)
def test_a_list_comes_back_whatever_its_markers_and_its_frame(items, style, frame):
    preamble, closing, line_end = frame
    kind = "chunk" if items[0].endswith("?") else "keywords"
    text = preamble + line_end.join(style.format(i=i, x=item) for i, item in enumerate(items, 1)) + closing
    assert [item.text for item in parse(request(kind), text).items] == items


PAIRS = [
    "- Query: {q}\n  Answer: {a}", "- Query: {q} Answer: {a}", "Q: {q}\nA: {a}\n", "{i}. {q} - {a}",
    "{i}. **{q}**\n   - {a}", "**Question {i}:** {q}\n**Answer:** {a}\n", "{q}\n{a}\n", "- {q} ({a})",
    "* Query: {q}\n* Answer: {a}", "### Q{i}. {q}\n{a}\n",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(QUERIES, st.sampled_from(PAIRS), FRAMES)
def test_pairs_come_back_whatever_their_form(queries, style, frame):
    preamble, closing, _ = frame
    pairs = [Item(query, f"answer {query[5:-1]}") for query in queries]
    text = preamble + "\n".join(style.format(i=i, q=p.text, a=p.answer) for i, p in enumerate(pairs, 1)) + closing
    assert list(parse(request("preference"), text).items) == pairs


@settings(max_examples=100, deadline=None)
@given(QUERIES, st.integers(0, 200))
def test_nothing_but_whole_items_is_kept_of_an_answer_that_was_cut_off(queries, length):
    whole = "".join(f"- {query}\n" for query in queries)
    found = [item.text for item in parse(request("chunk"), whole[:length], finished=False).items]
    assert found == queries[: len(found)]
    assert len(found) >= whole[:length].count("\n")

    as_json = json.dumps({"items": queries})
    found = [item.text for item in parse(request("chunk"), as_json[:length], finished=False).items]
    assert found == queries[: len(found)]
    assert len(found) >= as_json[:length].count('", "')


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.lists(st.text(string.ascii_letters + string.digits + "äß你 ", min_size=1, max_size=30), min_size=1, max_size=4),
)
def test_answers_in_the_form_of_the_schema_come_back(kind, texts):
    texts = [f"x {' '.join(text.split())}x" for text in texts]
    prompt = render(request(kind, len(texts)))
    if kind == "preference":
        items = [{"question": f"{text}?", "answer": text} for text in texts]
        expected = [Item(f"{text}?", text) for text in texts]
    else:
        items, expected = texts, [Item(text) for text in texts]
    filler = {"attributes": ["a"], "plan": "b", "drafts": ["c"], "check": "d", "items": items}
    answer = {name: filler[name] for name in prompt.schema["required"]}
    assert list(parse(request(kind, len(texts)), json.dumps(answer, indent=1)).items) == expected


@pytest.mark.parametrize("kind", ["keywords", "chunk", "preference", "negative"])
def test_long_and_repetitive_answers_are_read_in_linear_time(kind):
    # Quadratic time would be beyond the time limit of a test.
    for piece in ("[", '{"a": "b', "- a\n", "a\n", "**", "</s>", " \n", " ", "<think>", "a? "):
        parse(request(kind), piece * (100_000 // len(piece)), finished=False)
