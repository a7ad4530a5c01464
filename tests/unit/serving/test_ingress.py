"""What the ingress decides without asking anybody."""

import pytest

from genret.retrieval.fusion import FUSION
from genret.serving.asks import Answer
from genret.serving.ingress import is_lost, workers_of


def test_the_fusion_works_on_as_many_batches_as_its_slowest_part() -> None:
    replicas = {"sft": 4, "bm25": 1, "dense": 8, FUSION: 1}
    found = [workers_of(name, replicas, ("sft", "bm25")) for name in ("sft", "bm25", "dense", FUSION)]
    assert found == [4, 1, 8, 4]
    assert workers_of("sft", {}, ()) == workers_of(FUSION, replicas, ()) == 1


@pytest.mark.parametrize(
    ("answer", "seconds", "lost"),
    [
        (Answer([], exact=False, timed_out=True, search_seconds=0.1), 9.0, True),
        (Answer([], exact=False, timed_out=True, search_seconds=8.9), 9.0, False),
        (Answer([], exact=False, timed_out=True), 0.002, False),
        (Answer([("a", -1.0)], exact=False, timed_out=True, search_seconds=0.1), 9.0, False),
        (Answer([], exact=True, search_seconds=0.1), 9.0, False),
    ],
)
def test_only_who_waited_and_got_nothing_is_lost(answer: Answer, seconds: float, lost: bool) -> None:
    assert is_lost(answer, seconds) is lost
