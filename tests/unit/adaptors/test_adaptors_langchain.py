"""The adaptor for LangChain, with LangChain itself."""

import asyncio

import pytest
from scripted_server import Script, answer, hit, refusal

from genret.client import Client, RequestError

pytest.importorskip("langchain_core", reason="LangChain is not installed: pip install genret[langchain]")

from langchain_core.runnables import RunnableLambda

from genret.adaptors.langchain import GenretRetriever


def test_documents(script: Script) -> None:
    script.replies = [answer(hit("d0", 1, -0.25, topic="river"), hit("d1", 2, -1.0))]
    retriever = GenretRetriever(
        client=Client(script.url),
        k=2,
        retriever="rpo",
        filter={"field": "topic", "equals": "river"},
        deadline_seconds=0.5,
    )
    found = retriever.invoke("frozen lake")
    assert [document.id for document in found] == ["d0", "d1"]
    assert found[0].page_content == "Text of d0."
    assert found[0].metadata == {"topic": "river", "title": "Title of d0", "doc_id": "d0-whole", "score": -0.25}
    assert script.asked[0].body == {
        "queries": ["frozen lake"], "k": 2, "retriever": "rpo", "filter": {"field": "topic", "equals": "river"},
        "timeout": 0.5, "explain": False,
    }  # fmt: skip


def test_in_a_chain_and_asynchronously(script: Script) -> None:
    script.replies = [answer(hit("d0", 1))]
    chain = GenretRetriever(client=Client(script.url)) | RunnableLambda(lambda documents: documents[0].id)
    assert chain.invoke("frozen lake") == "d0"
    assert asyncio.run(chain.ainvoke("frozen lake")) == "d0"


def test_errors_come_through(script: Script) -> None:
    script.replies = [refusal(422, "expected at most 100, found 500", "k")]
    with pytest.raises(RequestError, match="expected at most 100"):
        GenretRetriever(client=Client(script.url), k=500).invoke("a")


def test_a_misspelt_option_is_an_error() -> None:
    with pytest.raises(ValueError, match="top_k"):
        GenretRetriever(client=Client(), top_k=5)
