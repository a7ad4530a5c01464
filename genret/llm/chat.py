"""One process's part in asking a server with OpenAI's chat completions: slots, retries, limits.

The request: https://platform.openai.com/docs/api-reference/chat/create. What a failure means:

* the server is away or busy (no connection, 429, 502, 503, 504): every prompt waits, and none is blamed;
* a prompt failed (time-out, 500, connection lost, an answer that cannot be read): it is tried again, and so often
  blamed: where the server answered another meanwhile, or answers then what any model can answer;
* a prompt is refused (400, 413, 422, content filter): its error is final;
* the configuration is wrong (401, 403, 404, a redirection) or nothing is paid for (402): the engine is given up, as
  it is when nothing was answered for long, or none of the first prompts.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic import SecretStr

from genret.config import HttpConfig
from genret.errors import InputError
from genret.llm.journal import Completion, JournalWriter
from genret.llm.pacing import Pacer, backoff_seconds, loop_time, retry_after_seconds
from genret.llm.prompts import Prompt
from genret.llm.reasons import short_reason
from genret.llm.sending import Outcome
from genret.llm.tokens import estimated_tokens

_BUSY = frozenset({425, 429, 502, 503, 504, 529})
_TRY_AGAIN = frozenset({408, 409})
_WRONG_ADDRESS = frozenset({404, 405})
# So many prompts refused or failed, and none answered: it is what all of them have in common.
_MOST_REJECTED_AT_FIRST = 20
_PROBE = "Answer with the word yes."
_PROBE_TOKENS = 16
# How long to leave a server alone that did not answer it.
_PROBE_SECONDS = 5.0
_CONNECT_SECONDS = 30.0
_LONGEST_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class _Reply:
    """What one attempt came to. `hopeless` is the end of all, `mistake` where the user can mend it."""

    state: Literal["done", "refused", "failed", "busy", "hopeless"]
    text: str = ""
    finished: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0
    problem: str = ""
    retry_after: float | None = None
    mistake: bool = False


class ChatClient:
    """Sends prompts to a server, so many at a time, and hands on what comes back.

    All methods are called in one event loop; the slots are shared by all calls that are under way.

    Args:
        config: The `llm` section.
        key: What the server knows us by; None: nothing is sent. It stands in no message.
        seed: The run's seed.
        slots: Most requests under way.
        share: This client's share of the rate limits.
        proven: Whether this model was seen to answer with this configuration.
        journal: Gets each completion and each final error. Only this client may write to it.
        random: Spreads the waits after failures.
    """

    def __init__(
        self,
        config: HttpConfig,
        key: SecretStr | None,
        seed: int,
        *,
        slots: int,
        share: float,
        proven: bool,
        journal: JournalWriter,
        random: Random | None = None,
    ) -> None:
        self._config = config
        self._key = key
        self._seed = seed
        self._proven = proven
        self._journal = journal
        # An object store is slow: the event loop must not wait for it. A disk is quicker than another thread.
        self._scribe = ThreadPoolExecutor(1)
        self._slot_count = slots
        self._slots = asyncio.Semaphore(slots)
        self._pacer = Pacer(config.requests_per_minute * share, config.tokens_per_minute * share)
        self._random = random or Random()
        self._session: aiohttp.ClientSession | None = None
        self._url = f"{_base(config)}/chat/completions"
        self._tasks: set[asyncio.Task[Outcome]] = set()
        self._rejected = 0
        self._last_answer = float("-inf")
        self._failing_since: float | None = None
        self._one_probe = asyncio.Lock()
        self._next_probe = float("-inf")
        self._stop = ""
        self._mistake = False

    async def complete_all(self, prompts: Iterable[tuple[str, Prompt]]) -> list[Outcome]:
        """Send prompts, each with its id, and wait for all of them.

        Returns:
            One outcome a prompt, in their order. After the engine was given up, all that are not done are `unsent`.
            The journal is flushed.
        """
        named = list(prompts)
        tasks = [asyncio.create_task(self._complete(name, prompt)) for name, prompt in named]
        self._tasks.update(tasks)
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._tasks.difference_update(tasks)
            if not self._tasks:
                self._failing_since = None  # nobody waits: the time until the next request is not the server's
        outcomes = []
        for (name, _), result in zip(named, results, strict=True):
            if isinstance(result, asyncio.CancelledError):
                outcomes.append(self._unsent(name))
            elif isinstance(result, BaseException):
                raise result
            else:
                outcomes.append(result)
        # What is not kept is not done.
        return outcomes if await self._write(self._journal.flush) else [self._unsent(name) for name, _ in named]

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
        self._scribe.shutdown()

    # --- one prompt ---

    async def _complete(self, name: str, prompt: Prompt) -> Outcome:
        body = json.dumps(self._body(prompt)).encode()
        estimate = self._estimate(prompt)
        failures = waits = 0
        while not self._stop:
            async with self._slots:
                begun, reply = await self._send(body, estimate)
                if reply.state in ("done", "refused"):
                    # Before the next is sent: a kill then costs what is under way, and never more than the slots.
                    return await self._settle(name, reply)
                blamed = reply.state == "failed" and (self._last_answer >= begun or await self._is_alive())
            if reply.state == "hopeless":
                self._give_up(reply.problem, reply.mistake)
                break
            failures += blamed
            if failures >= self._config.max_attempts:
                return await self._reject(name, f"{reply.problem}; tried {failures} times", "failed")
            silence = self._silence(begun)
            if silence >= self._config.give_up_seconds:
                self._give_up(f"no answer from {self._config.base_url} for {silence:.0f} s; last: {reply.problem}")
                break
            await self._wait(reply, waits)
            waits += 1
        return self._unsent(name)

    async def _send(self, body: bytes, estimate: int) -> tuple[float, _Reply]:
        """One attempt, within the limits: when it began, and what it came to. The caller has a slot."""
        await self._pacer.admit(estimate)
        begun = loop_time()
        reply = await self._post(body)
        if reply.state in ("done", "refused"):
            self._last_answer, self._failing_since = loop_time(), None
        if reply.state == "busy":
            self._pacer.correct(estimate, 0)
        elif used := reply.prompt_tokens + reply.completion_tokens:
            self._pacer.correct(estimate, used)
        return begun, reply

    async def _is_alive(self) -> bool:
        """Whether the server answers a question that any model can answer. The caller has a slot."""
        begun = loop_time()
        async with self._one_probe:
            if self._last_answer < begun and loop_time() >= self._next_probe:
                body = {
                    "model": self._config.model,
                    "messages": [{"role": "user", "content": _PROBE}],
                    self._config.token_limit_field: _PROBE_TOKENS + self._config.thinking_tokens,
                    **self._config.extra_body,
                }
                await self._send(json.dumps(body).encode(), _PROBE_TOKENS)
                if self._last_answer < begun:
                    self._next_probe = loop_time() + _PROBE_SECONDS
        return self._last_answer >= begun

    async def _wait(self, reply: _Reply, waits: int) -> None:
        """Until the next attempt."""
        pause = reply.retry_after or 0.0
        if pause >= self._config.give_up_seconds:
            self._give_up(f"{self._config.base_url} asks to wait for {pause:g} s, which is too long ({reply.problem})")
            return
        self._pacer.pause(pause)
        await asyncio.sleep(backoff_seconds(0 if pause else waits, self._random))

    async def _settle(self, name: str, reply: _Reply) -> Outcome:
        """The server has answered: keep it."""
        if reply.state == "done":
            self._proven = True
            counts = reply.prompt_tokens, reply.completion_tokens
            return await self._keep(Completion(name, reply.text, reply.finished, "", *counts), "done")
        return await self._reject(name, reply.problem, "refused")

    async def _reject(self, name: str, problem: str, state: Literal["refused", "failed"]) -> Outcome:
        """A prompt gets no answer: keep why."""
        self._rejected += 1
        if not self._proven and self._rejected >= _MOST_REJECTED_AT_FIRST:
            did = "refused" if state == "refused" else "failed at"
            reason = f"the server {did} the first {self._rejected} prompts; the last: {problem}"
            self._give_up(reason, mistake=state == "refused")
        return await self._keep(Completion(name, error=problem), state)

    async def _keep(self, completion: Completion, state: Literal["done", "refused", "failed"]) -> Outcome:
        # What has come is kept, also when all else is stopped.
        self._tasks.discard(asyncio.current_task())
        if not await self._write(partial(self._journal.append, completion)):
            return self._unsent(completion.id)
        reason = short_reason(completion.error) if completion.error else ""
        return Outcome(completion.id, state, completion.prompt_tokens, completion.completion_tokens, reason=reason)

    async def _write(self, work: Callable[[], None]) -> bool:
        """Have the journal do something. Where it cannot, there is no use in going on."""
        try:
            if self._journal.is_local:
                work()
            else:
                await asyncio.get_running_loop().run_in_executor(self._scribe, work)
        except InputError as error:
            self._give_up(str(error), mistake=True)
            return False
        return True

    def _silence(self, begun: float) -> float:
        """Seconds in which nothing was answered though something was asked, at a failure of what began then."""
        if self._failing_since is None:
            self._failing_since = max(begun, self._last_answer)
        return loop_time() - self._failing_since

    def _give_up(self, reason: str, mistake: bool = False) -> None:
        """Stop everything, requests under way included."""
        if self._stop:
            return
        self._stop, self._mistake = reason, mistake
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def _unsent(self, name: str) -> Outcome:
        return Outcome(name, "unsent", stop=self._stop, mistake=self._mistake)

    # --- one request ---

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        config = self._config
        system = [{"role": "system", "content": prompt.system}] if config.system_role else []
        user = prompt.user if config.system_role else f"{prompt.system}\n\n{prompt.user}"
        body: dict[str, Any] = {
            "model": config.model,
            "messages": [*system, {"role": "user", "content": user}],
            "temperature": config.temperature,
            config.token_limit_field: prompt.max_tokens + config.thinking_tokens,
        }
        if config.top_p < 1.0:
            body["top_p"] = config.top_p
        if config.send_seed:
            body["seed"] = self._seed
        if config.structured == "json_schema":
            schema = {"name": "answer", "strict": True, "schema": prompt.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif config.structured == "regex":
            body["structured_outputs"] = {"regex": prompt.pattern}
        return body | config.extra_body

    def _estimate(self, prompt: Prompt) -> int:
        return estimated_tokens(prompt) + prompt.max_tokens + self._config.thinking_tokens

    async def _post(self, body: bytes) -> _Reply:
        try:
            if self._session is None:
                self._session = _connect(self._config, self._key, self._slot_count)
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                content = await response.read()
                retry_after = retry_after_seconds(response.headers.get("Retry-After"), datetime.now(UTC))
                return self._judge(response.status, content, retry_after)
        except aiohttp.ClientConnectorCertificateError as error:
            return _Reply("hopeless", problem=f"llm.base_url: {self._shown(_named(error))}", mistake=True)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return _Reply("busy", problem=self._shown(_named(error)))
        except TimeoutError:
            return _Reply("failed", problem=f"no answer within {self._config.timeout_seconds:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return _Reply("failed", problem=self._shown(_named(error)))

    def _judge(self, status: int, content: bytes, retry_after: float | None) -> _Reply:
        fields = _read_object(content)
        if 200 <= status < 300:
            return self._read(fields, content)
        problem = f"HTTP {status}: {self._message(fields, content)}"
        if status == 402 or (status == 429 and _error_code(fields) == "insufficient_quota"):
            return _Reply("hopeless", problem=f"{self._config.base_url}: {problem}")
        if status == 401 or (status == 403 and not self._proven):
            variable = self._config.api_key_variable
            sent = f"the key in {variable}" if variable else "requests without a key"
            return _Reply(
                "hopeless", problem=f"llm.api_key_variable: the server refuses {sent} ({problem})", mistake=True
            )
        if status in _WRONG_ADDRESS:
            return _Reply(
                "hopeless",
                problem=f"llm.model: expected a model or address that the server knows, found {self._config.model!r} "
                f"at {self._config.base_url} ({problem})",
                mistake=True,
            )
        if 300 <= status < 400:
            return _Reply(
                "hopeless",
                problem=f"llm.base_url: expected the server's own address, found a redirection ({problem})",
                mistake=True,
            )
        if status in _BUSY:
            return _Reply("busy", problem=problem, retry_after=retry_after)
        if status in _TRY_AGAIN or status >= 500:
            return _Reply("failed", problem=problem, retry_after=retry_after)
        return _Reply("refused", problem=problem)

    def _read(self, fields: Mapping[str, Any], content: bytes) -> _Reply:
        """A reply of status 200, which need not be a completion."""
        try:
            choice = fields["choices"][0]
            message, reason = choice["message"], choice.get("finish_reason")
            text = message.get("content") or ""
        except (KeyError, IndexError, TypeError, AttributeError):
            return _Reply("failed", problem=f"no completion in the answer: {self._message(fields, content)}")
        if reason == "content_filter":
            return _Reply("refused", problem="the server's content filter stopped the answer")
        if not text and message.get("refusal"):
            return _Reply("refused", problem=f"the model refused: {self._shown(str(message['refusal']))}")
        if not isinstance(text, str) or reason in ("abort", "error"):
            return _Reply("failed", problem=f"no completion in the answer: {self._message(fields, content)}")
        usage = fields.get("usage")
        return _Reply(
            "done",
            text,
            finished=reason != "length",
            prompt_tokens=_count(usage, "prompt_tokens"),
            completion_tokens=_count(usage, "completion_tokens"),
        )

    def _message(self, fields: Mapping[str, Any], content: bytes) -> str:
        """What a server says of an error, in whichever of the usual places."""
        error = fields.get("error", fields)
        if isinstance(error, Mapping):
            error = error.get("message") or error.get("detail") or content.decode("utf-8", "replace")
        return self._shown(str(error))

    def _shown(self, message: str) -> str:
        return _clean(message, self._key)


async def reach(config: HttpConfig, key: SecretStr | None) -> None:
    """See that something answers at a server's address, whatever it says.

    Args:
        config: The `llm` section.
        key: What the server knows us by; None: nothing is sent.

    Raises:
        InputError: Nothing does.
    """
    # A request that costs nothing. Servers without it say 404, which is an answer too.
    url, limit = f"{_base(config)}/models", aiohttp.ClientTimeout(total=_CONNECT_SECONDS)
    try:
        async with _connect(config, key, 1) as session, session.get(url, timeout=limit, allow_redirects=False):
            return
    except (aiohttp.ClientError, OSError) as error:
        problem = _clean(_named(error), key)
        raise InputError(
            f"llm.base_url: expected a server at {config.base_url}, found none ({problem}); is it running?"
        ) from None


def _connect(config: HttpConfig, key: SecretStr | None, connections: int) -> aiohttp.ClientSession:
    """A session, which belongs to the running event loop."""
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key.get_secret_value()}"
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        timeout=aiohttp.ClientTimeout(total=config.timeout_seconds, sock_connect=_CONNECT_SECONDS),
        headers=headers,
        proxy=_proxy(_base(config)),
    )


def _base(config: HttpConfig) -> str:
    return config.base_url.rstrip("/")


def _clean(message: str, key: SecretStr | None) -> str:
    """One line, not too long, without the key, which servers like to repeat."""
    if key is not None and key.get_secret_value():
        message = message.replace(key.get_secret_value(), "***")
    message = " ".join(message.split())
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}..."


def _read_object(content: bytes) -> dict[str, Any]:
    """The JSON object in a body; empty where it is none."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _error_code(fields: Mapping[str, Any]) -> object:
    error = fields.get("error")
    return error.get("code") if isinstance(error, Mapping) else None


def _proxy(url: str) -> str | None:
    """The proxy that the environment has for an address (HTTPS_PROXY, NO_PROXY and the like).

    aiohttp's own way of finding it (trust_env) looks for passwords in .netrc too, before every request.
    """
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if type(value) is int and value > 0 else 0


def _named(error: Exception) -> str:
    return str(error) or type(error).__name__
