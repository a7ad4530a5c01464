"""The client, the command line and the adaptors before a service that answers over HTTP, without Ray."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import uvicorn
from local import local_app

from genret.cli import main
from genret.client import Client, RequestError
from genret.runs import RunStore

QUERY = "what is near the model7x"
KEY = "key-of-the-administration"


@dataclass
class Service:
    url: str
    store: RunStore
    admin: Client


@pytest.fixture(scope="module")
def service(small_run: RunStore) -> Iterator[Service]:
    app, _ = local_app(small_run, admin=KEY)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", api_key=KEY) as admin:
            while not admin.ready():
                time.sleep(0.05)
            yield Service(admin.url, small_run, admin)
        server.should_exit = True
        thread.join()


@pytest.fixture
def asked(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict]]:
    """Runs `genret query --json` in this process."""

    def ask(*arguments: str) -> list[dict]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["query", *arguments, "--json"])
        output = capsys.readouterr()
        assert end.value.code == 0, output.err
        return [json.loads(line) for line in output.out.splitlines()]

    return ask


def test_the_command_line_gets_from_a_service_what_it_gets_from_the_run(
    service: Service, asked: Callable[..., list[dict]]
) -> None:
    for entry in service.admin.retrievers():
        local = asked(service.store.url, QUERY, "-k", "5", "--retriever", entry.name)
        served = asked("--url", service.url, QUERY, "-k", "5", "--retriever", entry.name)
        assert served
        for ours, theirs in zip(local, served, strict=True):
            assert ours.pop("score") == pytest.approx(theirs.pop("score"), abs=1e-4)
            assert ours == theirs


def test_everything_that_can_be_read(service: Service) -> None:
    with Client(service.url) as client:
        names = [entry.name for entry in client.retrievers()]
        assert set(names) == {"sft", "bm25", "fusion"}
        answers = client.compare(QUERY, 3, explain=True).answers
        assert [answer.retriever for answer in answers] == names
        for answer in answers:
            alone = client.retrieve(QUERY, 3, retriever=answer.retriever, explain=True)
            assert [hit.passage_id for hit in alone.hits] == [hit.passage_id for hit in answer.hits]
        tokens = answers[names.index("sft")].hits[0].tokens
        assert tokens and all(token.logprob <= 0 for token in tokens)
        several = client.retrieve_all([QUERY, "bread"], 2, retriever="bm25")
        assert [result.query for result in several.results] == [QUERY, "bread"]
        topic = next(field for field in client.fields() if field.name == "topic")
        assert {entry.value for entry in topic.values} == {"river", "oven", "train", "garden"}
        found = client.retrieve("near", 40, retriever="sft", filter={"field": "topic", "equals": "oven"})
        assert len(found.hits) == 10
        assert {hit.metadata["topic"] for hit in found.hits} == {"oven"}
        assert client.passage("d7").metadata["topic"] == "garden"
        assert client.info().passages == 40


def test_documents_come_and_go(service: Service) -> None:
    added = service.admin.add_document("new/one?", "A zeppelin near the model99x.", metadata={"topic": "sky"})
    (passage_id,) = added.passages
    assert service.admin.retrieve("zeppelin", 1, retriever="bm25").hits[0].passage_id == passage_id
    assert service.admin.passage(passage_id).doc_id == "new/one?"
    assert service.admin.remove_document("new/one?").passages == [passage_id]
    assert service.admin.retrieve("zeppelin", 1, retriever="bm25").hits == []
    with pytest.raises(RequestError, match="new/one") as told:
        service.admin.remove_document("new/one?")
    assert told.value.status == 404


def test_what_the_service_refuses(service: Service) -> None:
    with Client(service.url) as client:
        with pytest.raises(RequestError) as told:
            client.reload()
        assert told.value.status == 401
        with pytest.raises(RequestError, match="retriever: expected one of") as told:
            client.retrieve("a", retriever="none")
        assert (told.value.status, told.value.field) == (422, "retriever")
        assert told.value.request_id
        with pytest.raises(RequestError, match="there is no passage") as told:
            client.passage("none")
        assert told.value.status == 404


def test_langchain(service: Service) -> None:
    pytest.importorskip("langchain_core", reason="LangChain is not installed: pip install genret[langchain]")
    from genret.adaptors.langchain import GenretRetriever

    found = GenretRetriever(client=Client(service.url), k=3, retriever="bm25").invoke(QUERY)
    assert [document.id for document in found] == ids(service)


def test_llama_index(service: Service) -> None:
    pytest.importorskip("llama_index.core", reason="LlamaIndex is not installed: pip install genret[llama-index]")
    from genret.adaptors.llama_index import GenretRetriever

    found = GenretRetriever(Client(service.url), 3, retriever="bm25").retrieve(QUERY)
    assert [node.node_id for node in found] == ids(service)


def test_haystack(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    pytest.importorskip("haystack", reason="Haystack is not installed: pip install genret[haystack]")
    from genret.adaptors.haystack import GenretRetriever

    found = GenretRetriever(service.url, top_k=3, retriever="bm25").run(QUERY)["documents"]
    assert [document.id for document in found] == ids(service)


def ids(service: Service) -> list[str]:
    return [hit.passage_id for hit in service.admin.retrieve(QUERY, 3, retriever="bm25").hits]
