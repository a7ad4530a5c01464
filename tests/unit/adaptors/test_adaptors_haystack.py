"""The adaptor for Haystack, with Haystack itself."""

import pytest
from scripted_server import Script, answer, hit

from genret.errors import InputError

pytest.importorskip("haystack", reason="Haystack is not installed: pip install genret[haystack]")

from haystack import Pipeline
from haystack.utils import Secret

from genret.adaptors.haystack import GenretRetriever, predicate

RIVER = {"field": "meta.topic", "operator": "==", "value": "river"}
RECENT = {"field": "year", "operator": ">=", "value": 2001}


def test_documents_from_a_pipeline(script: Script) -> None:
    script.replies = [answer(hit("d0", 1, -0.25, topic="river"), hit("d1", 2, -1.0))]
    pipeline = Pipeline()
    pipeline.add_component(
        "retriever", GenretRetriever(script.url, top_k=5, retriever="rpo", filters=RIVER, deadline_seconds=0.5)
    )
    found = pipeline.run({"retriever": {"query": "frozen lake", "filters": RECENT, "top_k": 2}})["retriever"][
        "documents"
    ]
    assert [(document.id, document.score) for document in found] == [("d0", -0.25), ("d1", -1.0)]
    assert found[0].content == "Text of d0."
    assert found[0].meta == {"topic": "river", "title": "Title of d0", "doc_id": "d0-whole"}
    both = {"and": [{"field": "topic", "equals": "river"}, {"field": "year", "range": {"gte": 2001}}]}
    assert script.asked[0].body == {
        "queries": ["frozen lake"], "k": 2, "retriever": "rpo", "filter": both, "timeout": 0.5, "explain": False,
    }  # fmt: skip


def test_a_pipeline_survives_a_file(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRET_API_KEY", "secret")
    script.replies = [answer(hit("d0", 1))]
    pipeline = Pipeline()
    key = Secret.from_env_var("GENRET_API_KEY")
    pipeline.add_component("retriever", GenretRetriever(script.url, top_k=3, filters=RIVER, api_key=key))
    text = pipeline.dumps()
    assert "secret" not in text
    again = Pipeline.loads(text, allowed_modules=["genret.*"])
    assert again.run({"retriever": {"query": "a"}})["retriever"]["documents"][0].id == "d0"
    assert script.asked[0].headers["authorization"] == "Bearer secret"
    assert script.asked[0].body["k"] == 3
    assert again.get_component("retriever").to_dict() == pipeline.get_component("retriever").to_dict()


def test_without_a_key_or_filters_too(script: Script) -> None:
    component = GenretRetriever(script.url)
    assert GenretRetriever.from_dict(component.to_dict()).url == script.url


def test_empty_filters_are_none(script: Script) -> None:
    script.replies = [answer(hit("d0", 1)), answer(hit("d0", 1))]
    assert GenretRetriever(script.url, filters={}).run("a")["documents"][0].id == "d0"
    GenretRetriever(script.url, filters=RIVER).run("a", filters={})
    assert "filter" not in script.asked[0].body
    assert script.asked[1].body["filter"] == {"field": "topic", "equals": "river"}


def test_nested_filters() -> None:
    filters = {"operator": "AND", "conditions": [RIVER, {"operator": "NOT", "conditions": [RECENT]}]}
    assert predicate(filters) == {
        "and": [
            {"field": "topic", "equals": "river"},
            {"not": {"and": [{"field": "year", "range": {"gte": 2001}}]}},
        ]
    }


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"topic": "river"}, "expected an object with an operator"),
        ({"operator": "=="}, "expected field and value beside operator"),
        ({"field": "meta.a", "operator": "~", "value": 1}, "filters: a: expected one of ==.*found '~'"),
        ({"operator": "XOR", "conditions": []}, "expected and, or, not"),
    ],
)
def test_filters_that_are_none(filters: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GenretRetriever(filters=filters)
