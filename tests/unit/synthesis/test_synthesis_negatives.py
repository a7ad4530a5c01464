"""Hard negatives: what the engine is asked, and what of its answers is kept."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pytest

from genret.config import ExtractiveConfig
from genret.llm.base import Item, Request, Response
from genret.llm.extractive import CorpusStatistics, ExtractiveEngine
from genret.llm.filters import Limits
from genret.llm.words import split_words
from genret.synthesis.negatives import negative_requests, write_negatives
from genret.tables import passages_from_table, table_from_rows

QUERY = "which night train carries mail to the capital"


def queries() -> pa.Table:
    row = {"query_id": "q1", "passage_id": "train", "text": QUERY, "kind": "chunk", "generator": "x"}
    return table_from_rows("queries", [row])


class Answering:
    """An engine that gives the same answers to every request."""

    name = "answering"

    def __init__(self, *texts: str, error: str = "") -> None:
        self._response = (tuple(Item(text) for text in texts), error)

    def generate(self, requests: Iterable[Request]) -> Iterator[Response]:
        for request in requests:
            yield Response(request.request_id, *self._response)


def test_a_request_holds_the_query_its_passage_and_what_was_found(passages) -> None:
    request = next(iter(negative_requests(queries(), passages, {"q1": ["mail", "winter", "lake"]}, 3)))
    assert (request.request_id, request.kind, request.n) == ("q1|negative", "negative", 3)
    assert (request.query, request.text[:15]) == (QUERY, "The night train")
    assert [text[:4] for text in request.related] == ["Mail", "In w"]


def test_nothing_is_lost(passages) -> None:
    own = passages_from_table(passages)[4].text
    engine = Answering("The day bus carries nobody at all.", "the DAY bus carries nobody at all.", own, "short", "")
    tables = write_negatives(queries(), passages, {}, 5, engine, Limits())
    assert [row["text"] for row in tables["negatives"].to_pylist()] == ["The day bus carries nobody at all."]
    assert [row["reason"] for row in tables["rejects"].to_pylist()] == [
        "the passage itself, or a duplicate",
        "the passage itself, or a duplicate",
        "passage too short",
        "empty passage",
    ]


def test_an_error_is_a_reject(passages) -> None:
    tables = write_negatives(queries(), passages, {}, 1, Answering(error="it did not answer"), Limits())
    assert tables["negatives"].num_rows == 0
    assert tables["rejects"].to_pylist()[0]["reason"] == "it did not answer"


def test_an_answer_without_negatives_is_a_reject(passages) -> None:
    tables = write_negatives(queries(), passages, {}, 1, Answering(), None)
    assert tables["negatives"].num_rows == 0
    assert [(row["input_id"], row["reason"]) for row in tables["rejects"].to_pylist()] == [
        ("q1|negative", "no negatives")
    ]


def test_the_engine_without_a_model_breaks_what_the_query_names(passages) -> None:
    statistics = CorpusStatistics.fit(passages_from_table(passages))
    engine = ExtractiveEngine(ExtractiveConfig(), statistics, 0)
    tables = write_negatives(queries(), passages, {"q1": ["winter"]}, 2, engine, None)
    texts = tables["negatives"].column("text").to_pylist()
    original = set(split_words(passages_from_table(passages)[4].text))
    named = {"night", "train", "carries", "mail", "capital"}
    assert texts
    for text in texts:
        words = set(split_words(text))
        assert named - words, "some of what the query names is gone"
        assert len(original & words) >= len(original) // 2, "most of the passage stays"
    again = write_negatives(queries(), passages, {"q1": ["winter"]}, 2, engine, None)
    assert again["negatives"].equals(tables["negatives"])


@pytest.mark.parametrize(
    ("text", "query", "stays"),
    [
        ("東京の大学で研究する", "東京の大学", "研究"),
        ("นักวิจัยทำงานที่มหาวิทยาลัยในกรุงเทพ", "มหาวิทยาลัย", "นักวิจัย"),
        ("Le cafe\u0301 de Gene\u0300ve ouvre", "cafe\u0301 Gene\u0300ve", "ouvre"),
        ("दिल्ली विश्वविद्यालय में शोध", "दिल्ली विश्वविद्यालय", "में"),
    ],
)
def test_what_the_query_names_is_broken_in_any_script(passages, text: str, query: str, stays: str) -> None:
    engine = ExtractiveEngine(ExtractiveConfig(), CorpusStatistics.fit(passages_from_table(passages)), 0)
    request = Request("q|negative", "negative", 1, "", text, query=query)
    [item] = engine.respond(request).items
    assert set(split_words(query)) - set(split_words(item.text)), "some of what the query names is gone"
    assert stays in item.text


def test_numbers_are_others(passages) -> None:
    engine = ExtractiveEngine(ExtractiveConfig(), CorpusStatistics.fit(passages_from_table(passages)), 0)
    request = Request("q|negative", "negative", 1, "", "Built in 1887 it is 300 metres tall.", query="how tall")
    text = next(engine.generate([request])).items[0].text
    assert "1887" not in text and "300" not in text
    assert sorted(len(word) for word in split_words(text) if word.isdecimal()) == [3, 4]
