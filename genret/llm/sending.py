"""What travels between the driver and the actors of an engine with a model behind it."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyarrow as pa

from genret.llm.prompts import Form

PROMPT_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "system": pa.string(),
        "user": pa.string(),
        "pattern": pa.string(),
        "schema": pa.string(),
        "max_tokens": pa.int64(),
    }
)
"""A prompt to be sent: the fields of `genret.llm.prompts.Prompt`, the schema as JSON, under the prompt's digest."""

OUTCOME_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "state": pa.string(),
        "prompt_tokens": pa.int64(),
        "completion_tokens": pa.int64(),
        "stop": pa.string(),
        "mistake": pa.bool_(),
        "reason": pa.string(),
    }
)
"""Rows of `Outcome`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a prompt. What the model wrote, or the error, is in the journal before this says so.

    Attributes:
        id: The prompt's digest.
        state: `done`: the journal has the completion. `refused`, `failed`: it has an error of the prompt's own, one
            that asking again would not mend, or one that may pass. `unsent`: the engine was given up; the journal
            has nothing.
        prompt_tokens: As the engine counted them.
        completion_tokens: Likewise.
        stop: `unsent` only: why the engine was given up.
        mistake: Whether that is something that the user can correct.
        reason: `refused` and `failed` only: why, as `genret.llm.reasons.short_reason` has it.
    """

    id: str
    state: Literal["done", "refused", "failed", "unsent"]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stop: str = ""
    mistake: bool = False
    reason: str = ""


class Sender(Protocol):
    """Sends prompts to a model, and has its actors write what comes back into the journal.

    Attributes:
        model: Name of the model.
        sampling: What decides a completion beside the prompt and the model, JSON-able.
        form: The form that prompts ask for in words: that which the model is held to, if any.
    """

    model: str
    form: Form
    sampling: dict[str, Any]

    def send(self, prompts: str, journal: str, session: str, proven: bool) -> Generator[pa.Table, None, None]:
        """Send prompts.

        Args:
            prompts: Folder (local path or URL) of Parquet files with `PROMPT_SCHEMA`; each id stands in them once.
            journal: Folder of the journal.
            session: Begins the names of the journal's files that the actors write. An actor that takes the place
                of a dead one sends nothing that is done in these files.
            proven: Whether this model was seen to answer with this sampling, so that a refusal is the prompt's
                fault and not the configuration's.

        Yields:
            Tables with `OUTCOME_SCHEMA`, as the outcomes become known, in any order: one row a prompt. After the
            first that is `unsent`, the rest may be missing.

        Raises:
            InputError: What was configured cannot be: no key, no server.
        """
        ...
