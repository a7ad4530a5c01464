"""An engine that asks a language model: requests become prompts, completions become responses."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from genret.errors import EngineError, InputError
from genret.llm.base import Request, Response
from genret.llm.journal import Completion, IdSet, Journal
from genret.llm.parsing import parse
from genret.llm.prompts import Prompt, nothing_to_ask, prompt_digest, render
from genret.llm.sending import PROMPT_SCHEMA, Sender
from genret.storage import Storage, attempt_name

_REQUESTS = TypeAdapter(Request)
_REQUEST_SCHEMA = pa.schema({"id": pa.string(), "request": pa.string()})
_REQUESTS_A_BATCH = 1024
_ROWS_A_FILE = 8192


@dataclass
class Counts:
    """What an engine did.

    Attributes:
        requests: Requests that were answered or refused.
        prompts: Different prompts among them.
        reused: Prompts whose completion was in the journal already.
        answered: Prompts that the model answered now.
        failed: Prompts that ended in an error now.
        prompt_tokens: Of those answered now, as the engine counted them.
        completion_tokens: Likewise.
        damaged_lines: Lines of the journal that held no completion; their prompts were asked anew.
        reasons: How many failed for which reason (`genret.llm.reasons.short_reason`).
        seconds: From the first outcome to the last.
    """

    requests: int = 0
    prompts: int = 0
    reused: int = 0
    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    damaged_lines: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)

    @property
    def tokens_a_second(self) -> float:
        """Tokens of prompts and answers together, from the first outcome on; 0 before there is a second one."""
        return (self.prompt_tokens + self.completion_tokens) / self.seconds if self.seconds else 0.0

    def add(self, outcomes: pa.Table) -> None:
        """Count what became of prompts, none of which is `unsent`."""
        states = Counter(outcomes.column("state").to_pylist())
        self.answered += states["done"]
        self.failed += states["refused"] + states["failed"]
        self.prompt_tokens += pc.sum(outcomes.column("prompt_tokens")).as_py() or 0
        self.completion_tokens += pc.sum(outcomes.column("completion_tokens")).as_py() or 0
        for reason in filter(None, outcomes.column("reason").to_pylist()):
            self.reasons[reason] = self.reasons.get(reason, 0) + 1


class CompletionEngine:
    """A language model behind the `Engine` protocol.

    Two passes: the first turns requests into prompts and sends those whose completion is not in the journal, equal
    ones once; the second reads the journal and answers the requests in their order. Between the passes, requests
    and prompts lie in Parquet files; in memory are only the journal's index and 16 bytes a prompt.

    Args:
        sender: How prompts get to the model.
        journal: Local path or URL of the journal's folder.
        scratch: Local path or URL of a folder for the files in between; on a cluster readable by all nodes.
        progress: Called with the prompts that are settled, and the number of those that were to be sent.
        must_answer: Whether it is an error that none of the prompts is answered, and not a matter of each.
    """

    def __init__(
        self,
        sender: Sender,
        journal: str,
        scratch: str,
        progress: Callable[[int, int], None],
        must_answer: bool = True,
    ) -> None:
        self.name = sender.model
        self.counts = Counts()
        self._sender = sender
        self._journal = journal
        self._scratch = Storage(scratch)
        self._progress, self._must_answer = progress, must_answer

    def generate(self, requests: Iterable[Request]) -> Iterator[Response]:
        """One response for each request, in their order; see `genret.llm.base.Engine`.

        Raises:
            EngineError: The model no longer answers, or answered none of the prompts. What it answered is kept.
            InputError: The configuration asks for what cannot be, such as a model that the server does not know.
        """
        self.counts = Counts()
        folder = f"asked-{attempt_name()}"
        try:
            journal = Journal(self._journal)
            asked = _Spill(self._scratch, f"{folder}/requests", _REQUEST_SCHEMA)
            waiting = _Spill(self._scratch, f"{folder}/prompts", PROMPT_SCHEMA)
            self._spill(requests, journal, asked, waiting)
            self._send(waiting)
            journal.refresh()
            self.counts.damaged_lines = journal.damaged
            for rows in asked.read():
                yield from _respond(rows.to_pylist(), journal)
        finally:
            self._scratch.delete(folder)

    def _spill(self, requests: Iterable[Request], journal: Journal, asked: "_Spill", waiting: "_Spill") -> None:
        """Write down all requests with the ids of their prompts, and the prompts that have to be sent."""
        seen = IdSet()
        remaining = iter(requests)
        while batch := list(islice(remaining, _REQUESTS_A_BATCH)):
            fit = [request for request in batch if not nothing_to_ask(request)]
            prompts = [render(request, self._sender.form) for request in fit]
            ids = [prompt_digest(prompt, self._sender.model, self._sender.sampling) for prompt in prompts]
            id_of = {request.request_id: name for request, name in zip(fit, ids, strict=True)}
            asked.write(
                {"id": id_of.get(request.request_id, ""), "request": json.dumps(asdict(request))} for request in batch
            )
            new, done = seen.add(ids), journal.done(ids)
            waiting.write(
                _prompt_row(name, prompt) for name, prompt, send in zip(ids, prompts, new & ~done, strict=True) if send
            )
            self.counts.requests += len(batch)
            self.counts.prompts += int(new.sum())
            self.counts.reused += int((new & done).sum())
        asked.close()
        waiting.close()

    def _send(self, waiting: "_Spill") -> None:
        """Have prompts answered; what comes of them is in the journal afterwards."""
        if not waiting.rows:
            return
        counts = self.counts
        outcomes = self._sender.send(waiting.url, self._journal, attempt_name(), proven=counts.reused > 0)
        begun = 0.0
        with closing(outcomes):
            for table in outcomes:
                is_unsent = pc.equal(table.column("state"), "unsent")
                counts.add(table.filter(pc.invert(is_unsent)))
                for unsent in table.filter(is_unsent).slice(0, 1).to_pylist():
                    raise self._given_up(unsent["stop"], unsent["mistake"])
                begun = begun or time.perf_counter()
                counts.seconds = time.perf_counter() - begun
                self._progress(counts.answered + counts.failed, waiting.rows)
        lost = waiting.rows - counts.answered - counts.failed
        if lost:
            raise self._given_up(f"{lost:,} prompts got lost on the way to their actors", False)
        if self._must_answer and counts.failed and not counts.answered + counts.reused:
            # Not the prompts' fault, as it seems: what is made without an answer would be taken for done.
            reason = max(counts.reasons, key=counts.reasons.__getitem__, default="no reason")
            raise self._given_up(f"{self.name} answered none of {counts.failed:,} prompts, mostly: {reason}", False)

    def _given_up(self, reason: str, mistake: bool) -> Exception:
        kept = self.counts.reused + self.counts.answered
        message = (
            f"{reason}; {kept:,} of {self.counts.prompts:,} prompts are answered and kept, and the same command goes "
            "on from there"
        )
        return InputError(message) if mistake else EngineError(message)


def _respond(rows: list[dict[str, str]], journal: Journal) -> Iterator[Response]:
    requests = [_REQUESTS.validate_python(json.loads(row["request"])) for row in rows]
    try:
        completions = iter(journal.read([row["id"] for row in rows if row["id"]]))
    except KeyError as error:
        raise EngineError(
            f"{journal.address()}: expected the completions of all prompts that were answered, found none of {error}; "
            "on a cluster the run's folder has to be on storage that all nodes share"
        ) from error
    for row, request in zip(rows, requests, strict=True):
        yield _response(request, next(completions) if row["id"] else Completion("", error=nothing_to_ask(request)))


def _response(request: Request, completion: Completion) -> Response:
    if completion.error:
        return Response(request.request_id, error=completion.error, raw=completion.text)
    return parse(request, completion.text, finished=completion.finished)


def _prompt_row(name: str, prompt: Prompt) -> Mapping[str, Any]:
    return asdict(prompt) | {"id": name, "schema": json.dumps(prompt.schema)}


class _Spill:
    """Rows in Parquet files of a folder: written once from front to back, then read."""

    def __init__(self, storage: Storage, folder: str, schema: pa.Schema) -> None:
        self.rows = 0
        self._storage = storage
        self._folder = folder
        self._schema = schema
        self._pending: list[Mapping[str, Any]] = []
        self._files: list[str] = []

    @property
    def url(self) -> str:
        """Local path or URL of the folder."""
        return self._storage.join(self._folder)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows."""
        before = len(self._pending)
        self._pending += rows
        self.rows += len(self._pending) - before
        if len(self._pending) >= _ROWS_A_FILE:
            self.close()

    def close(self) -> None:
        """Write what is still in memory."""
        if not self._pending:
            return
        place = f"{self._folder}/{len(self._files):06}.parquet"
        with self._storage.writing(place) as stream:
            table = pa.Table.from_pylist(self._pending, schema=self._schema)
            pq.write_table(table, stream, compression="zstd", row_group_size=_REQUESTS_A_BATCH)
        self._files.append(place)
        self._pending = []

    def read(self) -> Iterator[pa.Table]:
        """The rows, some at a time, in the order in which they were written."""
        for place in self._files:
            with self._storage.reading(place) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(_REQUESTS_A_BATCH):
                    yield pa.Table.from_batches([batch])
