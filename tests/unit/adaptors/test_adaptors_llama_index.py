"""The adaptor for LlamaIndex, with LlamaIndex itself."""

import asyncio

import pytest
from scripted_server import Script, answer, hit

from genret.client import Client
from genret.errors import InputError

pytest.importorskip("llama_index.core", reason="LlamaIndex is not installed: pip install genret[llama-index]")

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from genret.adaptors.llama_index import GenretRetriever, predicate
from genret.decoding.filters import leaf_mask, parse_predicate


def test_nodes(script: Script) -> None:
    script.replies = [answer(hit("d0", 1, -0.25, topic="river"), hit("d1", 2, -1.0))]
    filters = MetadataFilters(filters=[MetadataFilter(key="topic", value="river")])
    retriever = GenretRetriever(Client(script.url), 2, retriever="sft", filters=filters, deadline_seconds=0.5)
    found = retriever.retrieve("frozen lake")
    assert [(node.node_id, node.score) for node in found] == [("d0", -0.25), ("d1", -1.0)]
    assert found[0].text == "Text of d0."
    assert found[0].metadata == {"topic": "river", "title": "Title of d0", "doc_id": "d0-whole"}
    assert script.asked[0].body == {
        "queries": ["frozen lake"], "k": 2, "retriever": "sft", "timeout": 0.5, "explain": False,
        "filter": {"and": [{"field": "topic", "equals": "river"}]},
    }  # fmt: skip


def test_asynchronously(script: Script) -> None:
    script.replies = [answer(hit("d0", 1))]
    found = asyncio.run(GenretRetriever(Client(script.url)).aretrieve("frozen lake"))
    assert [node.node_id for node in found] == ["d0"]


def test_nested_filters() -> None:
    inner = MetadataFilters(
        filters=[
            MetadataFilter(key="year", operator=FilterOperator.GTE, value=2001),
            MetadataFilter(key="kind", operator=FilterOperator.NIN, value=["a", "b"]),
        ],
        condition=FilterCondition.OR,
    )
    made = predicate(MetadataFilters(filters=[inner, MetadataFilter(key="x", operator=FilterOperator.NE, value="y")]))
    assert made == {
        "and": [
            {"or": [{"field": "year", "range": {"gte": 2001}}, {"not": {"field": "kind", "in": ["a", "b"]}}]},
            {"not": {"field": "x", "equals": "y"}},
        ]
    }


METADATA = [{"year": 2001, "kind": "a"}, {"year": 2001, "kind": "b"}, {"year": 2015, "kind": "a"}, {"kind": "b"}, {}]
YEAR = MetadataFilter(key="year", value=2001)
KIND = MetadataFilter(key="kind", operator=FilterOperator.IN, value=["a", "c"])


@pytest.mark.parametrize("condition", [*FilterCondition, None])
@pytest.mark.parametrize("filters", [[], [YEAR], [YEAR, KIND]])
def test_filters_let_through_what_they_do_in_llama_index(
    condition: FilterCondition | None, filters: list[MetadataFilter]
) -> None:
    given = MetadataFilters(filters=filters, condition=condition)
    theirs = build_metadata_filter_fn(lambda number: METADATA[int(number)], given)
    expected = [theirs(str(number)) for number in range(len(METADATA))]
    assert leaf_mask(parse_predicate(predicate(given)), METADATA).tolist() == expected


def test_an_operator_that_the_service_has_not() -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="a", operator=FilterOperator.TEXT_MATCH, value="b")])
    with pytest.raises(InputError, match=r"filters: a: expected one of .* found 'text_match'"):
        GenretRetriever(Client(), filters=filters)
