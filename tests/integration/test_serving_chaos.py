"""The service while its parts die, and over many requests: no wrong answer, few errors, soon back, no growth."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from service import Service, start, stop
from small_run import make_run

from genret.retrieval.opening import load_retriever
from genret.serving.versions import read_config

# Minutes of load on real Ray Serve.
pytestmark = pytest.mark.chaos

QUERIES = [f"what is near the model{number}x" for number in range(24)]
K = 5
CLIENTS = 8
BACK_SECONDS = 15
MIB = 2**20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("chaos")
    settings = ("serving.generative={min_replicas: 2, max_replicas: 2}", "serving.ingress_replicas=2")
    found = start(make_run(folder / "run"), folder, *settings)
    yield found
    stop(found)


@pytest.fixture(scope="module")
def expected(service: Service) -> dict[str, list[str]]:
    """The right answer to each query."""
    retriever = load_retriever(service.store, service.store.current(), "sft", read_config(service.store).retrieval)
    rankings = retriever.retrieve(QUERIES, K)
    return {query: [place.passage_id for place in ranking] for query, ranking in zip(QUERIES, rankings, strict=True)}


def ask(service: Service, query: str) -> tuple[float, int, str, list[str]]:
    """When it was answered, the status (0: the connection broke), the query, and the ids found."""
    try:
        answer = service.retrieve(query, k=K, retriever="sft")
    except httpx.TransportError:
        return time.monotonic(), 0, query, []
    hits = answer.json()["results"][0]["hits"] if answer.status_code == 200 else []
    return time.monotonic(), answer.status_code, query, [hit["passage_id"] for hit in hits]


def under_load(
    service: Service, seconds: float, after: float, act: Callable[[], None]
) -> tuple[float, list[tuple[float, int, str, list[str]]]]:
    """Ask for some seconds, and do something meanwhile; when it was done, and all answers."""
    end = time.monotonic() + seconds

    def client(number: int) -> list[tuple[float, int, str, list[str]]]:
        answers, turn = [], number
        while time.monotonic() < end:
            answers.append(ask(service, QUERIES[turn % len(QUERIES)]))
            turn += 1
        return answers

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        time.sleep(after)
        act()
        done = time.monotonic()
        return done, [answer for found in clients for answer in found.result()]


def kill(processes: list[psutil.Process]) -> None:
    assert processes
    for process in processes:
        process.kill()


def check_few_failed(killed: float, answers: list[tuple[float, int, str, list[str]]]) -> None:
    """At most 1 % of the answers from the kill until all must be back, and of all that were later none."""
    during = [status for moment, status, _, _ in answers if killed <= moment <= killed + BACK_SECONDS]
    late = [status for moment, status, _, _ in answers if moment > killed + BACK_SECONDS]
    failed = [status for status in during if status != 200]
    assert len(failed) <= 0.01 * len(during), (len(failed), len(during))
    assert set(failed) <= {0, 503}
    assert late and set(late) == {200}


def replicas_ready(service: Service, retriever: str) -> int:
    """How many replicas the service says that it can ask."""
    found = service.call("GET", "/v1/retrievers").json()
    return next(int(one["replicas"]) for one in found if one["name"] == retriever)


def wrong(answers: list[tuple[float, int, str, list[str]]], expected: dict[str, list[str]]) -> list[object]:
    return [answer for answer in answers if answer[1] == 200 and answer[3] != expected[answer[2]]]


def test_a_replica_dies_under_load(service: Service, expected: dict[str, list[str]]) -> None:
    before = {process.pid for process in service.replicas("sft")}
    back: list[float] = []

    def kill_and_wait() -> None:
        kill(service.replicas("sft")[:1])
        begin = time.monotonic()
        while time.monotonic() < begin + BACK_SECONDS and not back:
            time.sleep(0.2)
            new = {process.pid for process in service.replicas("sft")} - before
            if new and replicas_ready(service, "sft") == 2:
                back.append(time.monotonic() - begin)

    waited, answers = under_load(service, 30, 5, kill_and_wait)
    assert back, "not back in time"
    assert not wrong(answers, expected)
    check_few_failed(waited - back[0], answers)


def test_all_replicas_of_a_model_die_under_load(service: Service, expected: dict[str, list[str]]) -> None:
    killed, answers = under_load(service, 30, 5, lambda: kill(service.replicas("sft")))
    assert not wrong(answers, expected)
    assert {status for _, status, _, _ in answers} <= {200, 503}
    late = [answer for answer in answers if answer[0] > killed + BACK_SECONDS]
    assert late and {status for _, status, _, _ in late} == {200}
    assert service.retrieve("water", retriever="bm25").status_code == 200


def test_one_of_two_who_listen_dies_under_load(service: Service, expected: dict[str, list[str]]) -> None:
    killed, answers = under_load(service, 25, 5, lambda: kill(service.replicas("ingress")[:1]))
    assert not wrong(answers, expected)
    check_few_failed(killed, answers)
    assert len(service.replicas("ingress")) == 2, "not back in time"


def test_memory_is_flat_over_twenty_thousand_requests(service: Service) -> None:
    def answered(turn: int) -> int:
        """Of one request; all differ, and there are more filters than a replica keeps."""
        fields: dict[str, object] = {"retriever": ("bm25", "sft", "fusion")[turn % 3], "k": 1 + turn % 7}
        if turn % 4 == 0:
            fields["filter"] = {"field": "topic", "in": ["river", "oven", f"none{turn % 500}"]}
        if turn % 6 == 1:
            fields["explain"] = True
        return service.retrieve(f"{QUERIES[turn % len(QUERIES)]} {turn}", **fields).status_code

    def bear(turns: range) -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            assert set(pool.map(answered, turns)) == {200}

    def private() -> dict[str, int]:
        return {
            f"{name} {number}": process.memory_full_info().uss
            for name in ("ingress", "bm25", "sft", "fusion", "versions")
            for number, process in enumerate(service.replicas(name))
        }

    bear(range(6_000))
    before = private()
    bear(range(6_000, 26_000))
    after = private()
    growth = {name: round((after[name] - before[name]) / MIB, 1) for name in before}
    assert max(growth.values()) < 16, growth
