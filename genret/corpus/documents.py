"""The documents of a corpus, on disk."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from genret.spools import Spool
from genret.tables import metadata_to_json
from genret.types import Document

_SCHEMA = pa.schema({"doc_id": pa.string(), "title": pa.string(), "text": pa.string(), "metadata": pa.string()})
_DOCUMENTS_A_BLOCK = 1024


@dataclass(frozen=True)
class Documents:
    """Documents in their order; what JSON has no form for in their metadata is text.

    Attributes:
        table: Columns doc_id, title, text and metadata (a JSON object), all string; it lies in a file that is mapped.
    """

    table: pa.Table

    @classmethod
    def collect(cls, documents: Iterable[Document]) -> "Documents":
        """Keep documents, of which some are held at a time."""
        spool = Spool(_SCHEMA)
        remaining = iter(documents)
        while block := list(islice(remaining, _DOCUMENTS_A_BLOCK)):
            columns = [
                [document.doc_id for document in block],
                [document.title for document in block],
                [document.text for document in block],
                [metadata_to_json(document.metadata) for document in block],
            ]
            spool.append(pa.table(columns, schema=_SCHEMA))
        return cls(spool.table())

    def __len__(self) -> int:
        """Number of documents."""
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Document]:
        """The documents, made as they are asked for."""
        for batch in self.table.to_batches(_DOCUMENTS_A_BLOCK):
            for row in batch.to_pylist():
                yield Document(row["doc_id"], row["text"], row["title"], json.loads(row["metadata"]))

    def among(self, ids: Iterable[str]) -> set[str]:
        """Which of some ids documents have."""
        column = self.table.column("doc_id")
        wanted = pa.array(sorted(ids), pa.string())
        found = (chunk.filter(pc.is_in(chunk, wanted)).to_pylist() for chunk in column.chunks)
        return {name for names in found for name in names}
