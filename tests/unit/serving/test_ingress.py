"""What the ingress decides without asking anybody."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from genret.errors import InputError
from genret.retrieval.fusion import FUSION
from genret.serving.asks import Answer, Ask
from genret.serving.ingress import Ingress, accepted, is_lost, lacks, workers_of


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


@pytest.mark.parametrize(
    ("parts", "atomic", "late", "expected"),
    [
        (("sft", "bm25"), False, [], {"dense"}),
        (("sft", "bm25"), True, [], {"sft", "dense"}),
        (("sft", "bm25"), False, ["bm25"], {"bm25", "dense"}),
        (("sft", "bm25"), True, ["bm25"], {"sft", "bm25", "dense", FUSION}),
        (("bm25", "dense"), False, ["bm25"], {"bm25", "dense", FUSION}),
        (("sft", "bm25"), False, [""], {"sft", "bm25", "dense", FUSION}),
    ],
)
def test_who_does_not_find_an_added_document(
    parts: tuple[str, ...], atomic: bool, late: list[str], expected: set[str]
) -> None:
    reasons = lacks(("sft", "bm25", "dense", FUSION), parts, atomic, late)
    assert set(reasons) == expected and all(reasons.values())
    if "bm25" in late:
        assert reasons["bm25"].startswith("not yet: ")


@pytest.mark.parametrize("raised", ["by Ray", "by the fusion, which asks others"])
def test_where_a_replica_dies_another_is_asked(raised: str) -> None:
    asked: list[str] = []

    class Replica:
        """In the place of Ray's handle."""

        async def remote(self, version: str, asks: list[Ask]) -> list[Answer]:
            asked.append(version)
            if len(asked) > 1:
                return [Answer([("d1", 1.0)], exact=True)]
            error = ActorDiedError()
            raise error if raised == "by Ray" else RayTaskError("answer", "a traceback", error).as_instanceof_cause()

    served = SimpleNamespace(version="v")
    ingress: Any = SimpleNamespace(_answer={FUSION: Replica()}, served=lambda: served)
    found, answers = asyncio.run(Ingress._send(ingress, FUSION, [Ask("river", 1, "", 60.0, False)]))
    assert found is served and [answer.places for answer in answers] == [[("d1", 1.0)]] and asked == ["v", "v"]


def test_an_error_of_the_leader_is_told_as_it_told_it() -> None:
    async def fail() -> dict[str, Any]:
        # As Ray gives what another process raised, with that one's traceback in its text.
        raise RayTaskError("remove", "a traceback", InputError("serving.json: cannot be written")).as_instanceof_cause()

    with pytest.raises(InputError) as caught:
        asyncio.run(accepted(fail()))
    assert type(caught.value) is InputError and str(caught.value) == "serving.json: cannot be written"
