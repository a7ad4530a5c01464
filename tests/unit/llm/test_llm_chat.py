"""The client against a real server in the same event loop, which says what a test wants it to say.

Times are by a clock that no stall of the machine moves on.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import still_time
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from pydantic import SecretStr

from genret.config import HttpConfig
from genret.errors import InputError
from genret.llm.chat import ChatClient, reach
from genret.llm.journal import Completion, Journal, JournalWriter
from genret.llm.prompts import Prompt
from genret.llm.sending import Outcome

KEY = "sk-very-secret"
Answer = Callable[[web.Request, dict[str, Any]], Any]


def name(number: int) -> str:
    return f"{number:032x}"


def prompt(text: str = "a prompt", max_tokens: int = 100) -> Prompt:
    return Prompt("a system", text, "- [a-z]{1,9}", {"type": "object"}, max_tokens)


def completion(text: Any = "- one", reason: str | None = "stop", **message: Any) -> web.Response:
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


def status(code: int, message: str = "no", **headers: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "code": "some_code"}},
        status=code,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


class AtOnce(Random):
    """No jitter: retries come at once."""

    def uniform(self, a: float, b: float) -> float:
        return a


class Asked:
    """What came of asking, and what the server saw of it."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.most_at_once = 0

    def states(self) -> list[str]:
        return [outcome.state for outcome in self.outcomes]


def ask(
    folder: Any,
    answers: Iterable[Any] | Answer,
    prompts: list[Prompt] | None = None,
    *,
    key: str = "",
    slots: int = 8,
    proven: bool = False,
    path: str = "/v1/chat/completions",
    **settings: Any,
) -> Asked:
    """Send prompts to a server that gives these answers in turn (the last one for ever), or calls a function."""
    asked, under_way = Asked(), 0
    prompts = prompts or [prompt()]
    script = None if callable(answers) else list(answers)

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal under_way
        under_way += 1
        asked.most_at_once = max(asked.most_at_once, under_way)
        try:
            body = await request.json()
            asked.bodies.append(body)
            asked.headers.append(request.headers)
            answer = answers(request, body) if script is None else script[0] if len(script) == 1 else script.pop(0)
            answer = answer() if callable(answer) else answer
            return await answer if asyncio.iscoroutine(answer) else answer
        finally:
            under_way -= 1

    async def run() -> None:
        app = web.Application()
        app.router.add_post(path, handle)
        async with TestServer(app) as server:
            config = HttpConfig(base_url=f"http://127.0.0.1:{server.port}/v1", model="tiny", **settings)
            writer = JournalWriter(str(folder), "s")
            secret = SecretStr(key) if key else None
            client = ChatClient(
                config, secret, 5, slots=slots, share=1.0, proven=proven, journal=writer, random=AtOnce()
            )
            asked.outcomes = await client.complete_all((name(number), one) for number, one in enumerate(prompts))
            await client.close()
            writer.close()

    still_time.run(run())
    return asked


def kept(folder: Any, number: int = 0) -> Completion:
    return Journal(str(folder)).read([name(number)])[0]


# --- what is asked and what comes back ---


def test_a_completion_is_kept_before_it_is_done(tmp_path):
    asked = ask(tmp_path, [completion("- one\n- two")])
    assert asked.outcomes == [Outcome(name(0), "done", 7, 3)]
    assert kept(tmp_path) == Completion(name(0), "- one\n- two", True, "", 7, 3)


def test_the_request_is_that_of_the_chat_completions(tmp_path):
    asked = ask(tmp_path, [completion()], key=KEY, top_p=0.9, extra_body={"top_k": 20})
    assert asked.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "a system"}, {"role": "user", "content": "a prompt"}],
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 100,
            "seed": 5,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
            },
            "top_k": 20,
        }
    ]
    assert asked.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert asked.headers[0]["Content-Type"] == "application/json"


def test_the_request_as_other_servers_want_it(tmp_path):
    asked = ask(
        tmp_path, [completion()], structured="regex", send_seed=False, system_role=False, temperature=0,
        token_limit_field="max_completion_tokens", thinking_tokens=1000,
    )  # fmt: skip
    assert asked.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "a system\n\na prompt"}],
            "temperature": 0.0,
            "max_completion_tokens": 1100,
            "structured_outputs": {"regex": "- [a-z]{1,9}"},
        }
    ]
    assert "Authorization" not in asked.headers[0]
    plain = ask(tmp_path / "plain", [completion()], structured="none")
    assert not {"response_format", "structured_outputs"} & plain.bodies[0].keys()


def test_an_answer_cut_short_is_done_and_says_so(tmp_path):
    assert ask(tmp_path, [completion("- one\n- tw", "length")]).states() == ["done"]
    assert not kept(tmp_path).finished


def test_a_model_that_only_thought_wrote_nothing(tmp_path):
    assert ask(tmp_path, [completion(None, "length", reasoning_content="hm")]).states() == ["done"]
    assert kept(tmp_path).text == ""


def test_a_server_that_counts_no_tokens_will_do(tmp_path):
    answer = web.json_response({"choices": [{"message": {"content": "- one"}}]})
    assert ask(tmp_path, [answer]).outcomes == [Outcome(name(0), "done", 0, 0)]
    assert kept(tmp_path).finished


# --- what is tried again ---


@pytest.mark.parametrize(
    "bad",
    [
        lambda: status(500), lambda: status(501), lambda: status(408), lambda: status(429), lambda: status(502),
        lambda: status(503), lambda: status(504), lambda: status(529), lambda: web.Response(text='{"choices": [{"mes'),
        lambda: web.Response(text="<html>"), lambda: web.json_response([1]), lambda: web.json_response({"choices": []}),
        lambda: web.json_response({"choices": [{"message": "hello"}]}), lambda: completion("- one", "abort"),
        lambda: web.json_response({"error": {"message": "upstream", "code": 502}}), lambda: completion(["- one"]),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(tmp_path, bad):
    asked = ask(tmp_path, [bad, bad, completion])
    assert asked.states() == ["done"]
    assert len(asked.bodies) == 3 and asked.bodies[0] == asked.bodies[2]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda: status(500, "boom"), "HTTP 500: boom; tried 3 times"),
        (lambda: web.Response(text="<html>\n  oops"), "no completion in the answer: <html> oops; tried 3 times"),
        (lambda: asyncio.sleep(60), "no answer within 0.1 s; tried 3 times"),
    ],
)
@pytest.mark.parametrize("others", [2, 0])
def test_a_prompt_that_breaks_the_server_every_time_fails_alone(tmp_path, bad, reason, others):
    """Also where it is the only one that is left, and no other shows that the server is alive."""

    def answer(request: web.Request, body: dict[str, Any]) -> Any:
        return bad() if body["messages"][-1]["content"] == "broken" else completion()

    prompts = [prompt("broken"), *[prompt()] * others]
    asked = ask(tmp_path, answer, prompts, max_attempts=3, timeout_seconds=0.1, give_up_seconds=0.15)
    assert asked.states() == ["failed", *["done"] * others]
    assert kept(tmp_path) == Completion(name(0), error=reason)
    contents = [body["messages"][-1]["content"] for body in asked.bodies]
    assert contents.count("broken") == 3
    assert contents.count("a prompt") == others


def test_a_server_in_trouble_blames_no_prompt(tmp_path):
    replies = iter([completion, *[lambda: status(500)] * 50])
    asked = ask(tmp_path, lambda request, body: next(replies, completion)(), [prompt()] * 30, max_attempts=2, slots=1)
    assert asked.states() == ["done"] * 30


def test_a_busy_server_blames_no_prompt(tmp_path):
    asked = ask(tmp_path, [*[lambda: status(503), lambda: status(429)] * 10, completion], max_attempts=1)
    assert asked.states() == ["done"]
    assert len(asked.bodies) == 21


def test_retry_after_holds_all_requests_back(tmp_path):
    times = []

    def answer(request: web.Request, body: dict[str, Any]) -> Any:
        times.append(asyncio.get_running_loop().time())
        return status(429, Retry_After="1") if len(times) == 1 else completion()

    assert ask(tmp_path, answer, [prompt()] * 4, slots=1).states() == ["done"] * 4
    assert times[1] - times[0] >= 1.0


def test_no_more_requests_than_slots_and_all_slots_are_used(tmp_path):
    async def slow() -> web.Response:
        await asyncio.sleep(0.05)
        return completion()

    asked = ask(tmp_path, [slow], [prompt()] * 40, slots=5)
    assert asked.states() == ["done"] * 40
    assert asked.most_at_once == 5


def test_rate_limits_space_the_requests_out(tmp_path):
    times = []

    def answer(request: web.Request, body: dict[str, Any]) -> Any:
        times.append(asyncio.get_running_loop().time())
        return completion()

    ask(tmp_path, answer, [prompt()] * 4, requests_per_minute=300)
    assert all(second - first > 0.15 for first, second in pairwise(times))
    times.clear()
    # 10 tokens each by the server's count, where 104 were feared.
    ask(tmp_path / "tokens", answer, [prompt()] * 4, tokens_per_minute=6000, slots=1)
    assert all(second - first > 0.08 for first, second in pairwise(times))


# --- what is final ---


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda: status(400, "too\n long"), "HTTP 400: too long"),
        (lambda: web.json_response({"message": "too long"}, status=422), "HTTP 422: too long"),
        (lambda: web.json_response({"detail": "too long"}, status=413), "HTTP 413: too long"),
        (lambda: web.json_response({"error": "too long"}, status=400), "HTTP 400: too long"),
        (lambda: web.Response(text="x" * 5000, status=400), f"HTTP 400: {'x' * 300}..."),
        (lambda: completion("- one", "content_filter"), "the server's content filter stopped the answer"),
        (lambda: completion(None, refusal="I cannot"), "the model refused: I cannot"),
    ],
)
def test_a_refused_prompt_is_an_error_and_the_others_go_on(tmp_path, bad, reason):
    def answer(request: web.Request, body: dict[str, Any]) -> Any:
        return bad() if "refuse" in body["messages"][1]["content"] else completion()

    asked = ask(tmp_path, answer, [prompt(), prompt("refuse"), prompt()])
    assert asked.states() == ["done", "refused", "done"]
    assert kept(tmp_path, 1) == Completion(name(1), error=reason)
    assert len(asked.bodies) == 3


def test_forbidden_is_of_the_prompt_once_the_model_has_answered(tmp_path):
    asked = ask(tmp_path, [lambda: status(403, "moderation")], [prompt()] * 2, proven=True)
    assert asked.states() == ["refused", "refused"]


# --- when the engine is given up ---


@pytest.mark.parametrize(
    ("bad", "stop"),
    [
        (lambda: status(401, f"Incorrect API key: {KEY}"), r"llm.api_key_variable: .* the key in A_KEY \(HTTP 401: In"),
        (lambda: status(403), r"llm.api_key_variable: the server refuses the key in A_KEY \(HTTP 403: no\)"),
        (lambda: status(404, "no such model"), r"llm.model: .* found 'tiny' at http://.*/v1 \(HTTP 404: no such model"),
        (lambda: status(405), r"llm.model: expected a model or address that the server knows"),
        (lambda: status(301), r"llm.base_url: expected the server's own address, found a redirection"),
        (lambda: status(402, "pay"), r"http://.*/v1: HTTP 402: pay"),
        (
            lambda: web.json_response({"error": {"message": "pay", "code": "insufficient_quota"}}, status=429),
            r"http://.*/v1: HTTP 429: pay",
        ),
        (lambda: status(429, Retry_After="86400"), r"asks to wait for 86400 s, which is too long \(HTTP 429: no\)"),
    ],
)
def test_what_no_prompt_can_mend_ends_all_of_them_at_once(tmp_path, bad, stop):
    asked = ask(tmp_path, [bad], [prompt()] * 30, slots=4, key=KEY, api_key_variable="A_KEY")
    assert asked.states() == ["unsent"] * 30
    assert len(asked.bodies) <= 4
    [reason] = {outcome.stop for outcome in asked.outcomes}
    assert KEY not in reason
    assert re.search(stop, reason)
    assert {outcome.mistake for outcome in asked.outcomes} == {reason.startswith("llm.")}
    assert not len(Journal(str(tmp_path)))


def test_a_wrong_key_after_good_answers_keeps_these(tmp_path):
    asked = ask(tmp_path, [completion, completion, lambda: status(401)], [prompt()] * 6, slots=1)
    assert asked.states() == ["done", "done", "unsent", "unsent", "unsent", "unsent"]
    assert len(Journal(str(tmp_path))) == 2
    assert "requests without a key" in asked.outcomes[-1].stop


def test_a_server_that_refuses_all_first_prompts_is_misconfigured(tmp_path):
    def refuse(request: web.Request, body: dict[str, Any]) -> Any:
        return status(400, "seed: unknown field")

    asked = ask(tmp_path, refuse, [prompt()] * 60, slots=4)
    assert set(asked.states()) == {"refused", "unsent"}
    stops = {(outcome.stop, outcome.mistake) for outcome in asked.outcomes if outcome.state == "unsent"}
    assert stops == {("the server refused the first 20 prompts; the last: HTTP 400: seed: unknown field", True)}
    proven = ask(tmp_path / "proven", refuse, [prompt()] * 60, slots=4, proven=True)
    assert proven.states() == ["refused"] * 60


@pytest.mark.parametrize("slots", [1, 4])
def test_a_server_that_fails_at_all_first_prompts_is_given_up(tmp_path, slots):
    """It breaks on the form that is asked for, and answers what any model can answer."""

    def answer(request: web.Request, body: dict[str, Any]) -> Any:
        return status(500, "no grammar") if "response_format" in body else completion("yes")

    asked = ask(tmp_path, answer, [prompt()] * 60, slots=slots)
    assert set(asked.states()) == {"failed", "unsent"}
    stops = {(outcome.stop, outcome.mistake) for outcome in asked.outcomes if outcome.state == "unsent"}
    reason = "the server failed at the first 20 prompts; the last: HTTP 500: no grammar; tried 4 times"
    assert stops == {(reason, False)}
    assert not Journal(str(tmp_path)).done([name(number) for number in range(60)]).any(), "a restart asks again"
    proven = ask(tmp_path / "proven", answer, [prompt()] * 60, slots=slots, proven=True)
    assert proven.states() == ["failed"] * 60


@pytest.mark.parametrize("bad", [lambda: status(503, "starting"), lambda: status(500), lambda: asyncio.sleep(60)])
def test_a_dead_server_is_given_up_and_blames_no_prompt(tmp_path, bad):
    times = {"max_attempts": 2, "timeout_seconds": 0.2, "give_up_seconds": 0.5}
    asked = ask(tmp_path, [completion, bad], [prompt()] * 50, slots=1, **times)
    assert asked.states() == ["done"] + ["unsent"] * 49
    [stop] = {outcome.stop for outcome in asked.outcomes if outcome.state == "unsent"}
    assert "no answer from http://127.0.0.1" in stop
    assert not any(outcome.mistake for outcome in asked.outcomes)
    assert kept(tmp_path).text == "- one"


def test_no_connection_is_waited_for_until_the_engine_is_given_up(tmp_path):
    config = HttpConfig(
        base_url=f"http://127.0.0.1:{unused_port()}/v1", model="tiny", give_up_seconds=0.3, timeout_seconds=0.1,
        max_attempts=1,
    )  # fmt: skip
    writer = JournalWriter(str(tmp_path), "s")

    async def run() -> list[Outcome]:
        client = ChatClient(config, None, 0, slots=2, share=1, proven=False, journal=writer, random=AtOnce())
        outcomes = await client.complete_all([(name(number), prompt()) for number in range(5)])
        await client.close()
        return outcomes

    outcomes = still_time.run(run())
    assert [outcome.state for outcome in outcomes] == ["unsent"] * 5
    assert "Cannot connect" in outcomes[0].stop and not outcomes[0].mistake
    with pytest.raises(InputError, match=r"llm.base_url: expected a server at http://127.0.0.1:\d+/v1, found none"):
        asyncio.run(reach(config, None))


def test_an_address_that_is_none_is_named():
    config = HttpConfig(base_url="http://localhost:99999/v1", model="tiny")
    with pytest.raises(InputError, match=r"llm.base_url: expected a server at http://localhost:99999/v1, found none"):
        asyncio.run(reach(config, None))


def test_a_journal_that_cannot_be_written_ends_all(tmp_path):
    (tmp_path / "journal").write_text("a file")
    folder = tmp_path / "journal" / "below"
    asked = ask(folder, [completion], [prompt()] * 20, slots=2)
    assert asked.states() == ["unsent"] * 20
    assert "cannot be written" in asked.outcomes[0].stop and asked.outcomes[0].mistake


def test_bodies_are_plain_ascii(tmp_path):
    asked = ask(tmp_path, [completion("- é你\ud83d")], [prompt("é你")])
    assert asked.bodies[0]["messages"][1]["content"] == "é你"
    assert json.dumps(kept(tmp_path).text) == '"- \\u00e9\\u4f60\\ud83d"'
