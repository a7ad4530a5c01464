"""A service without Ray: the same searchers and the same application, all in this process."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from genret.config import ServingConfig
from genret.errors import InputError
from genret.runs import RunStore
from genret.serving.asks import Answer, Ask
from genret.serving.batching import Batcher
from genret.serving.documents import Editor, as_document
from genret.serving.gates import Gate, Keys
from genret.serving.generating import open_searcher
from genret.serving.metrics import Meters, exposition
from genret.serving.routes import build_app
from genret.serving.schemas import DocumentRequest
from genret.serving.searching import open_bm25
from genret.serving.versions import Collection, find_version, metadata_fields, retriever_kind


@dataclass
class Here:
    version: str
    collection: Collection
    names: tuple[str, ...]


class LocalBackend:
    """Answers from searchers in this process."""

    def __init__(self, store: RunStore, config: ServingConfig) -> None:
        found = find_version(store)
        self.editor = Editor(store, found)
        self.searchers = {
            name: (open_bm25 if name == "bm25" else open_searcher)(store, found, name) for name in found.retrievers
        }
        self.meters, self.lines = Meters(), list[Any]()
        self._config = config
        self._batchers = {name: self._batcher(name) for name in found.retrievers}

    def _batcher(self, name: str) -> Batcher[Here]:
        async def send(asks: list[Ask]) -> tuple[Here, list[Answer]]:
            return self.served(), self.searchers[name].answer(asks)

        return Batcher(send, 16, self._config.places, lambda: 1)

    async def ask(self, retriever: str, asks: Sequence[Ask]) -> tuple[Here, list[Answer]]:
        begin = time.monotonic()
        found = await self._batchers[retriever].ask(asks)
        for _, answer in found:
            self.meters.answer(retriever, answer, time.monotonic() - begin)
        return found[-1][0], [answer for _, answer in found]

    def served(self) -> Here:
        return Here(self.editor.version.id, self.editor.collection, tuple(self.searchers))

    def retrievers(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "kind": retriever_kind(name),
                "default": number == 0,
                "filters": True,
                "explain": retriever_kind(name) == "generative",
                "replicas": 1,
            }
            for number, name in enumerate(self.searchers)
        ]

    def info(self) -> dict[str, Any]:
        there, added, removed = self.editor.collection.counts
        return {
            "run": "small", "version": self.editor.version.id, "previous_version": None, "passages": there,
            "added": added, "removed": removed, "versions": {}, "measures": [],
        }  # fmt: skip

    def fields(self) -> list[dict[str, Any]]:
        collection = self.editor.collection
        return metadata_fields(collection.metadata(collection.ids()))

    async def metrics(self) -> str:
        return exposition([self.meters.families()])

    async def reload(self) -> dict[str, Any]:
        return {"version": self.editor.version.id, "previous_version": None, "changed": False, "seconds": 0.0}

    async def rollback(self) -> dict[str, Any]:
        raise InputError("there is no version to go back to")

    async def add(self, document: DocumentRequest) -> dict[str, Any]:
        change = self.editor.add(as_document(document.doc_id, document.text, document.title, document.metadata))
        self._make(change)
        names = [passage.passage_id for passage in change.added]
        return {
            "doc_id": document.doc_id,
            "passages": dict(zip(names, change.identifiers or [None] * len(names), strict=True)),
            "found_by": list(self.searchers),
            "not_found_by": {},
        }

    async def remove(self, doc_id: str) -> dict[str, Any] | None:
        change = self.editor.remove(doc_id)
        if change is None:
            return None
        self._make(change)
        return {"doc_id": doc_id, "passages": list(change.removed), "still_found_by": []}

    def _make(self, change: Any) -> None:
        self.editor.keep(change)
        self.searchers = {name: searcher.changed(change) for name, searcher in self.searchers.items()}


def local_app(
    store: RunStore, config: ServingConfig | None = None, api: str = "", admin: str = ""
) -> tuple[ASGIApp, LocalBackend]:
    config = config or ServingConfig()
    backend = LocalBackend(store, config)
    return Gate(
        build_app(backend, config), config, Keys(api, admin), backend.meters.request, backend.lines.append
    ), backend
