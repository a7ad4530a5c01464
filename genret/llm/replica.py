"""One replica of the engine `vllm`: Ray's stage around vLLM, which keeps each answer the moment that it is there.

Importing this module imports vLLM where it is installed, which takes seconds: actors do, and the driver where the
engine is used. The driver needs none: on a cluster vLLM is on the workers alone. The class derives from one that Ray
(2.60) does not make public, since nothing public sees an answer before those of its whole batch are there: a killed
engine would lose the answers of all batches that were under way.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, TypedDict

from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMEngineStageUDF

from genret.cluster import die_with_node
from genret.config import VllmConfig
from genret.errors import InputError
from genret.llm.journal import Completion, Journal, JournalWriter
from genret.llm.reasons import short_reason
from genret.llm.sending import Outcome
from genret.llm.tokens import prompt_tokens
from genret.llm.vllm import LOGS, adapter_folder, check_vllm, most_tokens, sampling_parameters

# So many prompts refused or failed, and none answered: it is what all of them have in common.
_MOST_REJECTED_AT_FIRST = 20
# The errors by which vLLM refuses a prompt, whenever it is asked.
_REFUSALS = ("VLLMValidationError", "ValueError", "TypeError")
_LONGEST_MESSAGE = 500


class Work(TypedDict):
    """What a replica is told: the `llm` section, and what `Sender.send` is told."""

    config: VllmConfig
    journal: str
    session: str
    proven: bool


class Replica(vLLMEngineStageUDF):
    """An engine that gets batches of prompts.

    Args:
        data_column: As Ray's class has it.
        expected_input_keys: Ray's class wants sampling parameters in the rows; ours are made here.
        work: What to do.
        options: Further arguments of Ray's class.
    """

    def __init__(self, data_column: str, expected_input_keys: list[str], work: Work, **options: Any) -> None:
        # Nobody would know what it went on to write.
        die_with_node()
        self._watch = _watch_over_children()
        self._config = work["config"]
        # What was done in this session: something if this actor takes the place of one that died.
        self._before = Journal(work["journal"], work["session"])
        self._writer = JournalWriter(work["journal"], work["session"])
        # The writer is for one thread at a time, and so are tokenizers.
        self._writing, self._reading = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._proven = work["proven"]
        self._rejected = 0
        self._stop = ""
        self._mistaken = True
        # Ray's class sets these too, unless it fails.
        self.data_column = data_column
        self.expected_input_keys: set[str] = set()
        try:
            check_vllm()
            _check_folder(options["model"])
            self._adapter = adapter_folder(self._config) if self._config.lora else ""
            super().__init__(data_column, [], **options)
            self._tokenizer = self.llm.engine.get_tokenizer()
            self._limit = self.llm.engine.model_config.max_model_len
            self._ends = _end_tokens(self._tokenizer, self.llm.engine.model_config)
            self._try_template()
        except Exception as error:  # vLLM raises what it likes; the driver is told with the first batch
            self._stop = _explain(self._config, error)
            self._mistaken = isinstance(error, InputError | ImportError | OSError | TypeError | ValueError)

    async def udf(self, batch: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        """Outcomes of prompts, as they become known.

        Args:
            batch: Rows with the fields of a prompt.

        Yields:
            The fields of an `Outcome`, with the row's number in the batch.
        """
        place = self.IDX_IN_BATCH_COLUMN
        waiting: dict[int, dict[str, Any]] = {}
        for row, was_done in zip(batch, self._before.done([row["id"] for row in batch]), strict=True):
            if was_done:
                yield {place: row[place], **asdict(Outcome(row["id"], "done"))}
            elif self._stop:
                yield {place: row[place], **asdict(self._unsent(row["id"]))}
            else:
                waiting[row[place]] = row
        if not waiting:
            return
        asked = await _in_thread(self._reading, self._ask, list(waiting.values()))
        async for answer in super().udf(asked):
            outcome = await self._keep(waiting[answer[place]], answer)
            yield {place: answer[place], **asdict(outcome)}
        await _in_thread(self._writing, self._writer.flush)

    # --- questions ---

    def _ask(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows as vLLM's stage takes them."""
        place = self.IDX_IN_BATCH_COLUMN
        model = {"model": self._adapter} if self._adapter else {}
        return [
            {
                place: row[place],
                "tokenized_prompt": prompt_tokens(self._config, self._tokenizer, row["system"], row["user"]),
                "sampling_params": sampling_parameters(self._config, row),
                **model,
            }
            for row in rows
        ]

    def _try_template(self) -> None:
        try:
            prompt_tokens(self._config, self._tokenizer, "system", "user")
        except Exception as error:  # whatever a template raises
            raise InputError(
                "llm.system_role and llm.chat_template_arguments: expected what the model's chat template takes, "
                f"found an error: {error}"
            ) from error

    # --- answers ---

    async def _keep(self, row: Mapping[str, Any], answer: Mapping[str, Any]) -> Outcome:
        """Write an answer, or its error, into the journal."""
        completion = self._completion(row, answer)
        refused = completion.error.startswith(_REFUSALS)
        if completion.error:
            if self._stop:
                return self._unsent(completion.id)
            self._rejected += 1
            if not self._proven and self._rejected >= _MOST_REJECTED_AT_FIRST:
                did = "refused" if refused else "failed at"
                self._stop = f"vLLM {did} the first {self._rejected} prompts; the last: {completion.error}"
                self._mistaken = refused
        try:
            await _in_thread(self._writing, self._writer.append, completion)
        except InputError as error:
            self._stop = str(error)
            return self._unsent(completion.id)
        if completion.error:
            return Outcome(completion.id, "refused" if refused else "failed", reason=short_reason(completion.error))
        self._proven = True
        return Outcome(completion.id, "done", completion.prompt_tokens, completion.completion_tokens)

    def _completion(self, row: Mapping[str, Any], answer: Mapping[str, Any]) -> Completion:
        if problem := answer["__inference_error__"]:
            return Completion(row["id"], error=problem[:_LONGEST_MESSAGE])
        return Completion(
            row["id"],
            answer["generated_text"],
            self._finished(row, answer),
            prompt_tokens=answer["num_input_tokens"],
            completion_tokens=answer["num_generated_tokens"],
        )

    def _finished(self, row: Mapping[str, Any], answer: Mapping[str, Any]) -> bool:
        """Whether vLLM's reason to end was `stop`, which Ray does not hand on.

        vLLM looks for an end token first, and for the bounds then (`vllm.v1.core.sched.utils.check_stop`).
        """
        written = answer["num_generated_tokens"]
        cut = written >= most_tokens(self._config, row) or written + answer["num_input_tokens"] >= self._limit
        return not cut or int(answer["generated_tokens"][-1]) in self._ends

    def _unsent(self, name: str) -> Outcome:
        return Outcome(name, "unsent", stop=self._stop, mistake=self._mistaken)


async def _in_thread(thread: ThreadPoolExecutor, function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)


def _end_tokens(tokenizer: Any, model: Any) -> set[int]:
    """The tokens at which vLLM ends an answer: the tokenizer's, and those of the model's generation settings."""
    found = (model.try_get_generation_config() or {}).get("eos_token_id")
    tokens = found if isinstance(found, list) else [found]
    return {token for token in (tokenizer.eos_token_id, *tokens) if token is not None}


def _watch_over_children() -> Popen[bytes]:
    """Have this process's children killed when it was itself: vLLM's would go on for ever.

    Returns:
        What does that; keep it, as its input must stay open.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    # Nothing is ever written to it: its input ends with this process.
    watch = ["sh", "-c", 'cat; kill -KILL "-$1" 2>/dev/null', "sh", str(os.getpid())]
    return Popen(watch, stdin=PIPE, stdout=DEVNULL, start_new_session=True)


def _check_folder(model: str) -> None:
    """vLLM takes a folder that is not there for a name on the hub."""
    if Path(model).is_absolute() and not Path(model).is_dir():
        raise InputError(f"llm.model: expected a folder with a model (the same on all nodes), found none: {model}")


def _explain(config: VllmConfig, error: Exception) -> str:
    message = " ".join(str(error).split())[:_LONGEST_MESSAGE]
    if isinstance(error, InputError):
        return message
    return (
        f"llm: vLLM cannot work with {config.model!r} under these settings: {type(error).__name__}: {message} ({LOGS})"
    )
