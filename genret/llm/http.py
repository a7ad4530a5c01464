"""The engine `http`: a server with OpenAI's chat completions, asked by actors that Ray Data feeds."""

import asyncio
import json
import math
import os
from collections.abc import Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import SecretStr

from genret.cluster import die_with_node, stream_rows, waiting_actors
from genret.config import ComputeConfig, HttpConfig
from genret.errors import InputError
from genret.llm.chat import ChatClient, reach
from genret.llm.journal import Journal, JournalWriter
from genret.llm.prompts import Form, Prompt
from genret.llm.sending import OUTCOME_SCHEMA, Outcome
from genret.llm.sharing import check_shared
from genret.storage import Storage

Value = TypeVar("Value")

# One process keeps many requests under way; more processes only where one would be busy with them.
_SLOTS_AN_ACTOR = 64
# An actor works on two blocks at a time, so that its slots are full while the first comes to its end; a block has
# prompts for all slots several times over, so that handing out blocks takes no time beside them.
_BLOCKS_AT_A_TIME = 2
_PROMPTS_A_SLOT = 4
_SMALLEST_BLOCK = 8


class HttpSender:
    """Sends prompts to a server; see `genret.llm.sending.Sender`.

    Args:
        config: The `llm` section.
        seed: The run's seed.
        compute: `cpu_workers`: most actors, among which `concurrency` and the rate limits are shared out.
    """

    def __init__(self, config: HttpConfig, seed: int, compute: ComputeConfig) -> None:
        self.model = config.model
        self.form: Form = "json" if config.structured == "json_schema" else "list"
        decided_elsewhere = {*config.INCIDENTAL, "type", "model", "send_seed"}
        self.sampling: dict[str, Any] = config.model_dump(mode="json", exclude=decided_elsewhere)
        if config.send_seed:
            self.sampling["seed"] = seed
        self._config = config
        self._seed = seed
        self._actors = min(compute.cpu_workers, math.ceil(config.concurrency / _SLOTS_AN_ACTOR))

    def send(self, prompts: str, journal: str, session: str, proven: bool) -> Generator[pa.Table, None, None]:
        """Send prompts, and yield their outcomes."""
        check_shared(journal)
        key = _key(self._config.api_key_variable)
        with ThreadPoolExecutor(1) as thread:  # this one may have an event loop already, as in a notebook
            thread.submit(asyncio.run, reach(self._config, key)).result()
        slots = self._config.concurrency // self._actors
        arguments = {
            "config": self._config,
            # Its representation shows no key, wherever Ray logs it.
            "key": key,
            "seed": self._seed,
            "slots": slots,
            "share": 1 / self._actors,
            "proven": proven,
            "journal": journal,
            "session": session,
        }
        yield from stream_rows(
            *Storage(prompts).arrow(""),
            max(_SMALLEST_BLOCK, _PROMPTS_A_SLOT * slots),
            lambda rows: rows.map_batches(
                _HttpActor, fn_constructor_kwargs=arguments, **waiting_actors(self._actors, _BLOCKS_AT_A_TIME)
            ),
        )


class _HttpActor:
    """Sends blocks of prompts; called by several threads, whose requests share one event loop and its slots."""

    def __init__(
        self,
        config: HttpConfig,
        key: SecretStr | None,
        seed: int,
        slots: int,
        share: float,
        proven: bool,
        journal: str,
        session: str,
    ) -> None:
        # Nobody would know what it went on to send.
        die_with_node()
        # What was done in this session: something if this actor takes the place of one that died.
        self._before = Journal(journal, session)
        writer = JournalWriter(journal, session)
        self._client = ChatClient(config, key, seed, slots=slots, share=share, proven=proven, journal=writer)
        self._loop = _Loop()

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = block.to_pylist()
        done = self._before.done([row["id"] for row in rows])
        waiting = [(row["id"], _prompt(row)) for row, was_done in zip(rows, done, strict=True) if not was_done]
        outcomes = self._loop.run(self._client.complete_all(waiting))
        outcomes += [Outcome(row["id"], "done") for row, was_done in zip(rows, done, strict=True) if was_done]
        columns = {name: [getattr(outcome, name) for outcome in outcomes] for name in OUTCOME_SCHEMA.names}
        return pa.table(columns, schema=OUTCOME_SCHEMA)


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Wait for what a coroutine comes to; any thread may call this."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _prompt(row: dict[str, Any]) -> Prompt:
    return Prompt(row["system"], row["user"], row["pattern"], json.loads(row["schema"]), row["max_tokens"])


def _key(variable: str) -> SecretStr | None:
    """The key in an environment variable; None where none is named.

    Raises:
        InputError: The variable is empty.
    """
    if not variable:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"llm.api_key_variable: expected a key in the environment variable {variable}, found nothing")
    return SecretStr(key)
