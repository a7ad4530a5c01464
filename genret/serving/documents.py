"""Documents that are added to and removed from a running service, and the file that remembers them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from genret.config import ExtractiveConfig, HttpConfig, RunConfig
from genret.corpus.prepare import make_passages
from genret.errors import InputError
from genret.identifiers.semantic import extend_semantic_identifiers
from genret.llm.base import Engine
from genret.llm.completion import CompletionEngine
from genret.llm.extractive import CorpusStatistics, ExtractiveEngine
from genret.llm.filters import Limits
from genret.llm.http import HttpSender
from genret.runs import RunStore, fingerprint
from genret.serving.versions import Change, Collection, Version, mark_after, read_config, version_records
from genret.tables import passages_from_table, passages_to_table
from genret.types import Document, Passage

FILE = "serving.json"
"""The loose file of a run that says what its service serves, with the changes that were made to it."""

_FORMAT = 1


@dataclass(frozen=True)
class Changes:
    """What was added to and removed from a version, and which versions a service has served.

    Attributes:
        service: The service that wrote this, as soon as it began; another one begins with the run's current version.
        version: The version that is served.
        previous: The one before, for a way back.
        changes: What the version differs in from its run, in order.
        history: Everything that was ever added and removed, in order, also what this version has or lacks by itself:
            another one may not.
    """

    service: str
    version: Version
    previous: Version | None
    changes: tuple[Change, ...]
    history: tuple[Change, ...]


_CHANGES = TypeAdapter(Changes)


def read_changes(store: RunStore) -> Changes | None:
    """What `write_changes` wrote; None where nobody did.

    Raises:
        InputError: The file is damaged, or cannot be read.
    """
    try:
        text = store.read_file(FILE)
    except InputError as error:
        # One that is there and cannot be read is no file that is missing: what it remembers would be written over.
        if error.__cause__ is not None:
            raise
        return None
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}")
        # A file from before there was a history: what it still knows of it.
        data.setdefault("history", data.get("changes"))
        return _CHANGES.validate_python(data)
    except (ValueError, ValidationError) as error:
        raise InputError(
            f"{store.address(FILE)}: damaged ({str(error).splitlines()[0]}); delete it to serve the run as it is, "
            "without the documents that were added and removed"
        ) from error


def write_changes(store: RunStore, changes: Changes) -> None:
    """Keep changes in the run, atomically."""
    store.write_file(FILE, json.dumps({"format": _FORMAT, **asdict(changes)}, ensure_ascii=False, default=str) + "\n")


class Editor:
    """Makes changes of one version: passages of documents, and their identifiers by the run's own stage.

    Attributes:
        version: The version.
        changes: What was changed in it.
        marks: What stands for it without changes, with the first, and so on (`mark_after`).
        history: What was ever added and removed, by whichever version.
        collection: Its passages.
    """

    def __init__(
        self, store: RunStore, version: Version, changes: Sequence[Change] = (), history: Sequence[Change] = ()
    ) -> None:
        """Open a version with changes that were made to it, and the history that they come from."""
        records = version_records(store, version)
        self.version, self.history = version, list(history)
        self._store, self._config = store, read_config(store)
        passages = store.read_table(records["corpus"], "passages")
        self._original = self.collection = Collection(passages)
        identifiers = store.read_table(records["identifiers"], "identifiers")
        self._identifiers: list[str] = identifiers.column("identifier").to_pylist()
        self.changes: list[Change] = []
        self.marks = [version.id]
        for change in changes:
            self._take(change)
        self._passages = passages
        self._engine: Engine | None = None

    @property
    def mark(self) -> str:
        """Stands for the version with its changes."""
        return self.marks[-1]

    def add(self, document: Document) -> Change:
        """The change that adds a document.

        Raises:
            InputError: It is there already, says nothing, or its identifiers cannot be made.
        """
        if self.collection.of_document(document.doc_id):
            raise InputError(f"doc_id: expected an id that is not served yet, found {document.doc_id[:200]!r}")
        if not document.text.strip() and not document.title.strip():
            raise InputError("text: expected a text or a title, found neither")
        passages = list(make_passages([document], self._config.corpus))
        for passage in passages:
            if self.collection.get(passage.passage_id) is not None:
                raise InputError(f"doc_id: a passage {passage.passage_id[:200]!r} is there already")
        return self._made(passages, ())

    def remove(self, doc_id: str) -> Change | None:
        """The change that removes a document; None where there is none."""
        passages = self.collection.of_document(doc_id)
        return Change(self._number, removed=tuple(passages)) if passages else None

    def keep(self, change: Change) -> None:
        """Take a change that `add` or `remove` made as done."""
        self.history.append(change)
        self._take(change)

    def withdraw(self) -> None:
        """Take back what `keep` took last."""
        self.history.pop()
        self.marks.pop()
        del self._identifiers[len(self._identifiers) - len(self.changes.pop().identifiers or ()) :]
        self.collection = self._original
        for change in self.changes:
            self.collection = self.collection.changed(change)

    def replay(self, history: Sequence[Change]) -> None:
        """Make the history of another version this one's: what its corpus has or lacks already is not changed."""
        self.history = list(history)
        for change in history:
            removed = tuple(name for name in change.removed if self.collection.get(name) is not None)
            added = [passage for passage in change.added if self.collection.get(passage.passage_id) is None]
            if removed or added:
                self._take(self._made(added, removed))

    def _take(self, change: Change) -> None:
        self.changes.append(change)
        self.marks.append(mark_after(self.mark, change))
        self.collection = self.collection.changed(change)
        self._identifiers += change.identifiers or ()

    @property
    def _number(self) -> int:
        return len(self.changes) + 1

    def _made(self, passages: list[Passage], removed: tuple[str, ...]) -> Change:
        if self._config.identifiers.type == "atomic" or not passages:
            return Change(self._number, tuple(passages), None if passages else (), removed)
        limits = None if self._config.llm.type == "extractive" else Limits()
        identifiers = extend_semantic_identifiers(
            self._config.identifiers, passages_to_table(passages), self._opened_engine(), self._identifiers, limits
        )
        return Change(self._number, tuple(passages), tuple(identifiers), removed)

    def _opened_engine(self) -> Engine:
        if self._engine is None:
            self._engine = open_engine(self._config, self._passages, self._store)
        return self._engine


def open_engine(config: RunConfig, passages: pa.Table, store: RunStore) -> Engine:
    """The engine of a run's identifiers stage, in this process.

    Raises:
        InputError: It is one that a service cannot run.
    """
    if isinstance(config.llm, ExtractiveConfig):
        return ExtractiveEngine(config.llm, CorpusStatistics.fit(passages_from_table(passages)), config.seed)
    if isinstance(config.llm, HttpConfig):
        return CompletionEngine(
            HttpSender(config.llm, config.seed, config.compute),
            store.shared_folder("completions"),
            store.scratch("serving", fingerprint("serving")),
            lambda done, total: None,
            # There may be one prompt, and nothing to say against the model that it refuses it.
            must_answer=False,
        )
    raise InputError(
        f"llm.type: expected extractive or http to add documents while serving, found {config.llm.type}; "
        "add the document to the corpus, run again and reload"
    )


def as_document(doc_id: str, text: str, title: str, metadata: dict[str, Any]) -> Document:
    """A document from a request; metadata that JSON has no form for are refused.

    Raises:
        InputError: The metadata hold NaN or an infinity.
    """
    try:
        json.dumps(metadata, allow_nan=False)
    except ValueError as error:
        raise InputError("metadata: expected finite numbers, found NaN or an infinity") from error
    return Document(doc_id, text, title, metadata)
