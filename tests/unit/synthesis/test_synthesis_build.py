import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genret.config import ExtractiveConfig, SynthesisConfig
from genret.errors import InputError
from genret.llm.base import Item, Request, Response
from genret.llm.extractive import CorpusStatistics, ExtractiveEngine
from genret.llm.filters import Limits
from genret.synthesis.build import synthesize
from genret.tables import SCHEMAS, passages_to_table
from genret.types import Passage


class ScriptedEngine:
    """Answers each request with what a script holds for its id; nothing else."""

    name = "scripted"

    def __init__(self, script):
        self.script = script

    def generate(self, requests):
        for request in requests:
            items = self.script.get(request.request_id, ())
            if isinstance(items, str):
                yield Response(request.request_id, (), items, "raw text")
            else:
                yield Response(request.request_id, tuple(i if isinstance(i, Item) else Item(i) for i in items))


def passages(*texts):
    return passages_to_table(Passage(f"p{n}", f"p{n}", text) for n, text in enumerate(texts))


def run(script, *texts, **settings):
    wanted = SynthesisConfig(**({"chunk_queries": 5, "sentence_queries": 0, "preference_queries": 0} | settings))
    return synthesize(wanted, passages(*texts), ScriptedEngine(script))


def rejects(outputs):
    return [(row["input_id"], row["reason"], row["raw"]) for row in outputs["rejects"].to_pylist()]


def test_queries_carry_where_they_come_from():
    outputs = run({"p0|chunk": ["what is  a\nb"], "p1|sentence|0": ["who"]}, "text", "a b c d", sentence_queries=2)
    assert outputs["queries"].to_pylist() == [
        {
            "query_id": "p0|chunk|0", "passage_id": "p0", "text": "what is a b", "kind": "chunk",
            "generator": "scripted",
        },
        {
            "query_id": "p1|sentence|0|0", "passage_id": "p1", "text": "who", "kind": "sentence",
            "generator": "scripted",
        },
    ]  # fmt: skip
    assert rejects(outputs) == []


def test_duplicates_of_a_passage_are_dropped_and_counted():
    outputs = run(
        {
            "p0|chunk": ["One", "two", "ONE", "one ", "Straße"],
            "p0|sentence|0": ["strasse", "three"],
            "p1|chunk": ["one"],
        },
        "a b c d e.",
        "text",
        sentence_queries=2,
    )
    assert outputs["queries"].column("query_id").to_pylist() == [
        "p0|chunk|0",
        "p0|chunk|1",
        "p0|chunk|4",
        "p0|sentence|0|1",
        "p1|chunk|0",
    ]
    assert rejects(outputs) == [
        ("p0|chunk", "2 duplicate queries", "ONE"),
        ("p0|sentence|0", "1 duplicate queries", "strasse"),
    ]


def test_unfit_queries_and_failed_requests_are_rejected_with_a_reason():
    outputs = run(
        {
            "p0|chunk": ["", " \n", "half\ud83d", "good"],
            "p1|chunk": "timed out",
            "p0|preference": [Item("question", ""), Item("fine", "answer")],
        },
        "text",
        "other",
        preference_queries=2,
    )
    assert outputs["queries"].column("text").to_pylist() == ["good"]
    assert outputs["preference_queries"].to_pylist() == [
        {"query_id": "p0|preference|1", "passage_id": "p0", "text": "fine", "answer": "answer"}
    ]
    assert rejects(outputs) == [
        ("p0|preference|0", "query without an answer", "question"),
        ("p0|chunk|0", "empty query", ""),
        ("p0|chunk|1", "empty query", " \n"),
        ("p0|chunk|2", "not valid Unicode", "half?"),
        ("p1|chunk", "timed out", "raw text"),
    ]
    assert set(outputs["rejects"].column("stage").to_pylist()) == {"synthesis"}


def judged(script, *texts, limits=None, **settings):
    wanted = SynthesisConfig(**({"chunk_queries": 5, "sentence_queries": 0, "preference_queries": 0} | settings))
    return synthesize(wanted, passages(*texts), ScriptedEngine(script), limits or Limits())


def test_texts_of_a_language_model_are_judged_and_counted():
    script = {
        "p0|chunk": ["What is the article about?", "fjord", "What is a fjord?", "Here are 5 questions on fjords"],
        "p0|preference": [Item("deepest inlet of Norway", "word " * 40), Item("longest inlet of Norway", "Sognefjord")],
    }
    outputs = judged(script, "text", preference_queries=2)
    assert outputs["queries"].column("text").to_pylist() == ["What is a fjord?"]
    assert outputs["preference_queries"].column("text").to_pylist() == ["longest inlet of Norway"]
    assert rejects(outputs) == [
        ("p0|preference|0", "answer too long", "deepest inlet of Norway"),
        ("p0|chunk|0", "mentions the passage", "What is the article about?"),
        ("p0|chunk|1", "query too short", "fjord"),
        ("p0|chunk|3", "speaks of the task or as an assistant", "Here are 5 questions on fjords"),
    ]
    # Without limits, nothing is judged.
    assert run(script, "text", preference_queries=2)["queries"].num_rows == 4


def test_near_duplicates_of_a_passage_are_dropped_and_counted():
    script = {
        "p0|chunk": ["What is a fjord?", "a fjord, what is", "WHAT IS A FJORD?", "Where are fjords?"],
        "p0|sentence|0": ["what is: a fjord"],
        "p1|chunk": ["what is: a fjord"],
        "p0|preference": [Item("a fjord: what is?", "x")],
    }
    outputs = judged(script, "a b c d e.", "text", sentence_queries=1, preference_queries=1)
    assert outputs["queries"].column("query_id").to_pylist() == ["p0|chunk|0", "p0|chunk|3", "p1|chunk|0"]
    assert outputs["preference_queries"].num_rows == 1
    assert rejects(outputs) == [
        ("p0|chunk", "1 near-duplicate queries", "a fjord, what is"),
        ("p0|chunk", "1 duplicate queries", "WHAT IS A FJORD?"),
        ("p0|sentence|0", "1 near-duplicate queries", "what is: a fjord"),
    ]
    assert run(script, "a b c d e.", "text", sentence_queries=1)["queries"].num_rows == 5
    strict = judged(script, "a b c d e.", "text", sentence_queries=1, limits=Limits(max_overlap=0.3))
    assert strict["queries"].column("query_id").to_pylist() == ["p0|chunk|0", "p0|chunk|3", "p1|chunk|0"]


def test_multihop_queries_belong_to_the_passage_of_their_request():
    asked = [Request("p1|multihop", "multihop", 2, "", "other", related=("text",))]
    engine = ScriptedEngine({"p0|chunk": ["one"], "p1|chunk": ["two"], "p1|multihop": ["both", "Two"]})
    outputs = synthesize(
        SynthesisConfig(chunk_queries=1, sentence_queries=0, preference_queries=0),
        passages("text", "other", "third"),
        engine,
        multihop=asked,
    )
    found = [(row["query_id"], row["passage_id"], row["kind"]) for row in outputs["queries"].to_pylist()]
    assert found == [
        ("p0|chunk|0", "p0", "chunk"), ("p1|chunk|0", "p1", "chunk"), ("p1|multihop|0", "p1", "multihop")
    ]  # fmt: skip
    assert rejects(outputs) == [("p1|multihop", "1 duplicate queries", "Two")]


def test_a_preference_query_that_any_sft_query_equals_is_dropped():
    outputs = run(
        {
            "p0|preference": [Item("Same Words", "x"), Item("other", "x"), Item("OTHER", "x")],
            "p1|preference": [Item("mine", "x")],
            "p0|chunk": ["mine"],
            "p1|chunk": ["same words"],
        },
        "text",
        "text",
        preference_queries=3,
    )
    assert outputs["queries"].column("text").to_pylist() == ["mine", "same words"]
    assert outputs["preference_queries"].column("query_id").to_pylist() == ["p0|preference|1"]
    reason = "supervised fine-tuning has the same query"
    assert rejects(outputs) == [
        ("p0|preference", "1 duplicate queries", "OTHER"),
        ("p0|preference|0", reason, "Same Words"),
        ("p1|preference|0", reason, "mine"),
    ]


def test_a_preference_query_does_not_displace_an_sft_query_of_the_only_passage():
    outputs = run({"p0|preference": [Item("q", "x")], "p0|chunk": ["q"]}, "text", preference_queries=1)
    assert outputs["queries"].num_rows == 1
    assert outputs["preference_queries"].num_rows == 0


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_item_is_in_a_table_or_counted(data):
    texts = st.lists(st.sampled_from(["", "a", "A", "b", "c c", "c  c", "d\ud800"]), max_size=6)
    items = st.lists(st.builds(Item, st.sampled_from(["a", "b", "e", " "]), st.sampled_from(["", "x"])), max_size=4)
    script = {}
    for n in range(3):
        script[f"p{n}|chunk"] = data.draw(texts)
        script[f"p{n}|sentence|0"] = data.draw(texts)
        script[f"p{n}|preference"] = data.draw(items)
    outputs = data.draw(st.sampled_from([run, judged]))(
        script, *["a b c d"] * 3, sentence_queries=6, preference_queries=4
    )

    counted = 0
    for _, reason, _ in rejects(outputs):
        duplicates = re.match(r"(\d+) (?:near-)?duplicate", reason)
        counted += int(duplicates.group(1)) if duplicates else 1
    kept = outputs["queries"].num_rows + outputs["preference_queries"].num_rows
    assert kept + counted == sum(map(len, script.values()))

    keys = Counter((row["passage_id"], row["text"].casefold()) for row in outputs["queries"].to_pylist())
    assert not keys or max(keys.values()) == 1
    sft = {text.casefold() for text in outputs["queries"].column("text").to_pylist()}
    assert sft.isdisjoint(text.casefold() for text in outputs["preference_queries"].column("text").to_pylist())


def test_nothing_to_do_gives_empty_tables():
    for outputs in (run({}), run({}, "text", chunk_queries=0)):
        for name in ("queries", "preference_queries", "rejects"):
            assert outputs[name].num_rows == 0
            assert outputs[name].schema == SCHEMAS[name]


def test_parts_change_nothing(monkeypatch):
    script = {
        **{f"p{n}|chunk": [f"q{n}", f"Q{n}", "same"] for n in range(5)},
        **{f"p{n}|preference": [Item(f"x{n}", "a"), Item("SAME", "b")] for n in range(5)},
        "p1|multihop": ["both"],
        "p4|multihop": ["q4", "all"],
    }
    multihop = [Request(f"p{n}|multihop", "multihop", 2, "", "t", related=("u",)) for n in (1, 4)]
    config = SynthesisConfig(chunk_queries=3, sentence_queries=0, preference_queries=2)

    def outputs():
        return synthesize(config, passages(*"abcde"), ScriptedEngine(script), multihop=multihop)

    whole = outputs()
    assert [whole[name].num_rows for name in ("queries", "preference_queries", "rejects")] == [12, 5, 11]
    monkeypatch.setattr("genret.parts.rows_a_part", lambda rows: 2)
    parts = outputs()
    assert all(parts[name].equals(whole[name]) for name in whole)


def test_multihop_requests_out_of_order_are_an_error(monkeypatch):
    monkeypatch.setattr("genret.parts.rows_a_part", lambda rows: 1)
    multihop = [Request(f"p{n}|multihop", "multihop", 2, "", "t", related=("u",)) for n in (1, 0)]
    with pytest.raises(ValueError, match=r"'p0\|multihop' is not in the order of the passages"):
        synthesize(SynthesisConfig(), passages("a", "b"), ScriptedEngine({}), multihop=multihop)


def test_missing_metadata_is_found_before_the_engine_is_asked():
    class Untouched:
        name = "untouched"

        def generate(self, requests):
            raise AssertionError("asked")

    with pytest.raises(InputError, match="'source'"):
        synthesize(
            SynthesisConfig(constraint_queries=1, constraint_fields=("source",)),
            passages("text"),
            Untouched(),
        )


WORLD = [
    Passage("en", "en", "Calcium channels open in the membrane. Proteins fold in the cell quickly.", "Channels"),
    Passage("de", "de", "Die Straße führt über den großen Fluss. Das Wetter ist heute sehr schön.", "Straßen"),
    Passage("zh", "zh", "今天天气很好我们去公园。日本語の文章を検索する。", "天气"),
    Passage("hi", "hi", "हिन्दी भाषा भारत में बोली जाती है। यह एक सुंदर भाषा है।", ""),
    Passage("ar", "ar", "اللغة العربية جميلة جدا في العالم. نحن نتعلم كل يوم.", ""),
    Passage("ko", "ko", "한국어 검색 엔진을 만들고 있습니다. 오늘 날씨가 좋습니다.", ""),
    Passage("emoji", "emoji", "😀😀 !!!", ""),
    Passage("empty", "empty", "", ""),
]


def world(corpus, seed=0):
    engine = ExtractiveEngine(ExtractiveConfig(), CorpusStatistics.fit(WORLD), seed)
    return synthesize(SynthesisConfig(), passages_to_table(corpus), engine)


def test_the_extractive_engine_writes_for_every_language():
    outputs = world(WORLD)
    for table in ("queries", "preference_queries"):
        assert set(outputs[table].column("passage_id").to_pylist()) == {"en", "de", "zh", "hi", "ar", "ko"}
    assert Counter(outputs["rejects"].column("input_id").to_pylist()) >= Counter(
        ["emoji|chunk", "emoji|preference", "empty|chunk", "empty|preference"]
    )
    assert len(set(outputs["queries"].column("query_id").to_pylist())) == outputs["queries"].num_rows


def test_synthesis_does_not_depend_on_the_order_of_the_passages():
    def rows(outputs, table):
        return sorted(map(str, outputs[table].to_pylist()))

    first, second = world(WORLD), world(WORLD[::-1])
    for table in ("queries", "preference_queries", "rejects"):
        assert rows(first, table) == rows(second, table)
    assert rows(first, "queries") != rows(world(WORLD, seed=1), "queries")
