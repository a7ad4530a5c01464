"""`genret serve` with retrievers that do not search: what proxy, ingress, batching and JSON take by themselves."""

import sys
from collections.abc import Sequence
from typing import Any

from genret.cli import main
from genret.serving import app
from genret.serving.asks import Answer, Ask
from genret.serving.members import RetrieverReplica
from genret.serving.searching import Searcher
from genret.serving.versions import Collection, Version, version_records


class EmptySearcher(Searcher):
    """Gives the same passages to every query."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self._places = [(passage_id, 0.0) for passage_id in collection.ids()[:10]]

    def answer(self, asks: Sequence[Ask], waited: float = 0.0) -> list[Answer]:
        return [Answer(self._places[: ask.k], exact=True, wait_seconds=waited, batch=len(asks)) for ask in asks]


class EmptyReplica(RetrieverReplica):
    """A replica of the same shape."""

    def open(self, store: Any, version: Version, name: str) -> Searcher:
        records = version_records(store, version)
        version.stages.pop("retrieval", None)  # with which the probe would compare the answers
        return EmptySearcher(Collection(store.read_table(records["corpus"], "passages")))


if __name__ == "__main__":
    app._replica = lambda name: EmptyReplica
    sys.argv.insert(1, "serve")
    main()
