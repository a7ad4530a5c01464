"""The client against a server that plays what a service, or a proxy before it, may answer."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from scripted_server import Reply, Script, answer, hit, refusal, scripted_server

from genret import client as client_module
from genret.cli import main
from genret.client import Client, RequestError, ServiceError
from genret.errors import EngineError, InputError


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted_server() as script:
        yield script


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(client_module.time, "sleep", waited.append)
    return waited


def test_an_answer_has_its_types(script: Script) -> None:
    script.replies = [answer(hit("d0", 1, topic="river"), hit("d1", 2), exact=False)]
    with Client(script.url) as client:
        result = client.retrieve("frozen lake", k=2, retriever="rpo", explain=True)
    assert [found.passage_id for found in result.hits] == ["d0", "d1"]
    assert result.exact is False
    assert result.hits[0].metadata == {"topic": "river"}
    assert result.hits[0].tokens is not None
    assert [(token.token, token.logprob) for token in result.hits[0].tokens] == [("glacier", -0.25), (" lake", 0.0)]


def test_what_is_not_given_is_left_to_the_service(script: Script) -> None:
    script.replies = [answer()]
    with Client(f"{script.url}/", api_key="secret") as client:
        client.retrieve("a")
        client.retrieve(
            "b", 3, retriever="bm25", filter={"field": "x", "equals": 1}, deadline_seconds=0.5, explain=True
        )
    first, second = script.asked
    assert (first.method, first.path) == ("POST", "/v1/retrieve")
    assert first.headers["authorization"] == "Bearer secret"
    assert first.body == {"queries": ["a"], "k": 10, "explain": False}
    assert second.body == {
        "queries": ["b"], "k": 3, "retriever": "bm25", "filter": {"field": "x", "equals": 1}, "timeout": 0.5,
        "explain": True,
    }  # fmt: skip


def test_no_key_is_sent_where_none_is_given(script: Script) -> None:
    script.replies = [Reply(body=[])]
    with Client(script.url) as client:
        assert client.fields() == []
    assert "authorization" not in script.asked[0].headers


def test_a_path_in_front_of_the_service_stays(script: Script) -> None:
    script.replies = [Reply(body=[])]
    with Client(f"{script.url}/search/") as client:
        client.retrievers()
    assert script.asked[0].path == "/search/v1/retrievers"


def test_ids_are_quoted(script: Script) -> None:
    script.replies = [
        Reply(body={"passage_id": "a/b?c", "doc_id": "a", "title": "", "text": "t", "metadata": {}}),
        Reply(body={"request_id": "r", "doc_id": "a/b?c", "passages": []}),
    ]
    with Client(script.url) as client:
        assert client.passage("a/b?c").text == "t"
        client.remove_document("a/b?c")
    assert [asked.path for asked in script.asked] == ["/v1/passages/a%2Fb%3Fc", "/v1/admin/documents/a%2Fb%3Fc"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_waited_for_as_it_asks(script: Script, naps: list[float], status: int) -> None:
    script.replies = [refusal(status, "full", Retry_After="7"), refusal(status, "full", Retry_After="2"), answer()]
    with Client(script.url) as client:
        client.retrieve("a")
    assert naps == [7.0, 2.0]
    assert len(script.asked) == 3


def test_a_service_that_stays_busy_is_given_up(script: Script, naps: list[float]) -> None:
    script.replies = [refusal(429, "64 queries wait for rpo")]
    with (
        Client(script.url, retries=2) as client,
        pytest.raises(ServiceError, match=r"64 queries wait for rpo.*busy") as told,
    ):
        client.retrieve("a")
    assert (told.value.status, told.value.request_id) == (429, "r2")
    assert len(script.asked) == 3
    assert len(naps) == 2
    assert isinstance(told.value, EngineError)


def test_nobody_waits_for_an_hour(script: Script, naps: list[float]) -> None:
    script.replies = [refusal(503, "gone", Retry_After="3600")]
    with Client(script.url) as client, pytest.raises(ServiceError, match="gone"):
        client.retrieve("a")
    assert naps == []


def test_a_broken_connection_is_tried_again_where_nothing_changes(script: Script, naps: list[float]) -> None:
    script.replies = [Reply(hang_up=True), answer(hit("d0", 1))]
    with Client(script.url) as client:
        assert client.retrieve("a").hits[0].passage_id == "d0"


def test_a_change_is_not_sent_twice(script: Script, naps: list[float]) -> None:
    script.replies = [Reply(hang_up=True)]
    with Client(script.url) as client, pytest.raises(ServiceError, match="expected the service to be there"):
        client.add_document("d9", "text")
    assert len(script.asked) == 1
    script.replies = [Reply(502, b"<html>bad gateway</html>")]
    with Client(script.url) as client, pytest.raises(ServiceError, match="502"):
        client.reload()
    assert len(script.asked) == 2


def test_a_change_that_was_turned_away_is_sent_again(script: Script, naps: list[float]) -> None:
    added = {"request_id": "r", "doc_id": "d9", "passages": {"d9": "a b"}, "found_by": ["bm25"], "not_found_by": {}}
    script.replies = [refusal(503, "starting", Retry_After="1"), Reply(201, added)]
    with Client(script.url, api_key="k") as client:
        assert client.add_document("d9", "text", title="T", metadata={"a": 1}).passages == {"d9": "a b"}
    assert script.asked[1].body == {"doc_id": "d9", "text": "text", "title": "T", "metadata": {"a": 1}}


def test_a_refused_request_names_its_field(script: Script) -> None:
    script.replies = [refusal(422, "expected at most 100, found 500", "k")]
    with Client(script.url) as client, pytest.raises(RequestError, match="k: expected at most 100, found 500") as told:
        client.retrieve("a", 500)
    assert (told.value.status, told.value.field, told.value.request_id) == (422, "k", "r2")
    assert isinstance(told.value, InputError)
    assert len(script.asked) == 1


def test_an_answer_that_is_too_late_is_not_asked_for_again(script: Script, naps: list[float]) -> None:
    script.replies = [Reply(delay=60.0, body={})]
    with Client(script.url, timeout=0.1, retries=1) as client, pytest.raises(ServiceError, match="in time"):
        client.retrieve("a")
    script.wait_for(1)
    assert len(script.asked) == 1 and naps == []


def test_an_answer_is_waited_for_as_long_as_the_service_may_take(script: Script, naps: list[float]) -> None:
    swap = {"request_id": "r", "version": "b", "previous_version": "a", "changed": True, "seconds": 0.5}
    compared = {"request_id": "r", "query": "a", "version": "v", "answers": []}
    with Client(script.url, timeout=0.1) as client:
        script.replies = [Reply(200, answer(hit("d0", 1)).body, delay=0.5)]
        assert client.retrieve("a", deadline_seconds=60).hits[0].passage_id == "d0"
        script.replies = [Reply(200, compared, delay=0.5)]
        assert client.compare("a", deadline_seconds=60).version == "v"
        script.replies = [Reply(200, swap, delay=0.5)]
        assert client.reload().changed
    assert len(script.asked) == 3 and naps == []


def test_no_service_at_all(naps: list[float]) -> None:
    with Client("http://127.0.0.1:9", retries=1) as client:
        assert client.ready() is False
        with pytest.raises(ServiceError, match=r"http://127.0.0.1:9: expected the service to be there"):
            client.info()


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"", b"\xff", b"[]", b'{"results": 3}'])
def test_something_else_that_answers(script: Script, body: bytes) -> None:
    script.replies = [Reply(body=body)]
    with Client(script.url) as client, pytest.raises(ServiceError, match="expected the answer of a genret service"):
        client.retrieve("a")


@pytest.mark.parametrize("body", [b"<html>no</html>", b"{}", b'{"error": 3}', b'{"error": {"message": 4}}', b"\xff"])
def test_an_error_that_no_service_wrote(script: Script, body: bytes) -> None:
    script.replies = [Reply(404, body)]
    with Client(script.url) as client, pytest.raises(RequestError, match="404"):
        client.passage("x")


def test_fewer_results_than_queries(script: Script) -> None:
    script.replies = [answer()]
    with Client(script.url) as client, pytest.raises(ServiceError, match="expected 2 results, found 1"):
        client.retrieve_all(["a", "b"])


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://", "", "http://a:b"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InputError, match=r"url: expected http"):
        Client(url)


def test_bounds() -> None:
    with pytest.raises(InputError, match="timeout"):
        Client(timeout=0)
    with pytest.raises(InputError, match="retries"):
        Client(retries=-1)
    with pytest.raises(InputError, match="expected a list of queries"), Client() as client:
        client.retrieve_all("one string")


def test_threads_share_a_client(script: Script) -> None:
    script.replies = [answer(hit("d0", 1))]
    with Client(script.url) as client:
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda: found.append(client.retrieve("a").hits[0].passage_id)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == ["d0"] * 8


def test_the_client_needs_no_model_library() -> None:
    """A program that only asks must not pay for torch or Ray."""
    code = (
        "import sys, genret.client; print([name for name in ('torch', 'ray', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


# --- genret query --url ---


def called(*arguments: str) -> object:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code


def test_query_asks_a_service(
    script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENRET_API_KEY", "secret")
    script.replies = [answer(hit("d0", 1, -0.25, topic="river"), hit("d1", 2, -1.5))]
    assert called("query", "--url", script.url, "frozen lake", "-k", "2", "--retriever", "rpo") == 0
    printed = capsys.readouterr().out
    assert "d0" in printed and "-0.250" in printed and "2 passages by rpo" in printed
    assert called("query", "--url", script.url, "frozen lake", "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        '{"rank": 1, "passage_id": "d0", "doc_id": "d0-whole", "score": -0.25, "title": "Title of d0", '
        '"text": "Text of d0.", "metadata": {"topic": "river"}}'
    )
    assert len(lines) == 2
    assert script.asked[0].headers["authorization"] == "Bearer secret"
    assert script.asked[0].body == {"queries": ["frozen lake"], "k": 2, "retriever": "rpo", "explain": False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--url", "http://127.0.0.1:9", "runs/a", "text"), "expected either a run or --url"),
        (("runs/a",), "expected a run and a query"),
        (("--url", "nowhere", "text"), "url: expected http"),
    ],
)
def test_query_says_what_is_wrong(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert called("query", *arguments) == 2
    assert message in capsys.readouterr().err


def test_query_tells_a_service_that_is_away(capsys: pytest.CaptureFixture[str], naps: list[float]) -> None:
    assert called("query", "--url", "http://127.0.0.1:9", "text") == 1
    assert "http://127.0.0.1:9: expected the service to be there" in capsys.readouterr().err


def test_query_tells_what_the_service_refuses(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.replies = [refusal(422, "expected one of rpo, bm25, found 'x'", "retriever")]
    assert called("query", "--url", script.url, "text", "--retriever", "x") == 2
    assert "retriever: expected one of rpo, bm25, found 'x'" in capsys.readouterr().err
