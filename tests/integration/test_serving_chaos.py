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


def wrong(answers: list[tuple[float, int, str, list[str]]], expected: dict[str, list[str]]) -> list[object]:
    return [answer for answer in answers if answer[1] == 200 and answer[3] != expected[answer[2]]]


def test_a_replica_dies_under_load(service: Service, expected: dict[str, list[str]]) -> None:
    killed, answers = under_load(service, 25, 5, lambda: kill(service.replicas("sft")[:1]))
    assert not wrong(answers, expected)
    failed = [answer for answer in answers if answer[1] != 200]
    assert len(failed) <= 0.01 * len(answers), (len(failed), len(answers))
    assert {status for _, status, _, _ in failed} <= {503, 504}
    assert time.monotonic() > killed + BACK_SECONDS and len(service.replicas("sft")) == 2, "not back in time"


def test_all_replicas_of_a_model_die_under_load(service: Service, expected: dict[str, list[str]]) -> None:
    killed, answers = under_load(service, 30, 5, lambda: kill(service.replicas("sft")))
    assert not wrong(answers, expected)
    assert {status for _, status, _, _ in answers} <= {200, 503, 504}
    late = [answer for answer in answers if answer[0] > killed + BACK_SECONDS]
    assert late and {status for _, status, _, _ in late} == {200}
    assert service.retrieve("water", retriever="bm25").status_code == 200


def test_one_of_two_who_listen_dies_under_load(service: Service, expected: dict[str, list[str]]) -> None:
    killed, answers = under_load(service, 25, 5, lambda: kill(service.replicas("ingress")[:1]))
    assert not wrong(answers, expected)
    failed = [answer for answer in answers if answer[1] != 200]
    assert len(failed) <= 0.01 * len(answers), (len(failed), len(answers))
    late = [answer for answer in answers if answer[0] > killed + BACK_SECONDS]
    assert late and {status for _, status, _, _ in late} == {200}
    assert len(service.replicas("ingress")) == 2, "not back in time"


def test_memory_is_flat_over_twenty_thousand_requests(service: Service) -> None:
    def bear(number: int) -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = pool.map(
                lambda turn: service.retrieve(QUERIES[turn % len(QUERIES)], retriever="bm25").status_code, range(number)
            )
            assert set(answers) == {200}

    def private() -> dict[str, int]:
        return {
            f"{name} {number}": process.memory_full_info().uss
            for name in ("ingress", "bm25", "versions")
            for number, process in enumerate(service.replicas(name))
        }

    bear(4_000)
    before = private()
    bear(20_000)
    after = private()
    growth = {name: round((after[name] - before[name]) / MIB, 1) for name in before}
    assert max(growth.values()) < 16, growth
