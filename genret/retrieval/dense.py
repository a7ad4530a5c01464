"""The dense retriever: vectors of all passages, computed in blocks, and the search over them."""

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa

from genret.config import DenseConfig, RetrievalConfig
from genret.errors import InputError
from genret.retrieval.approximate import ApproximateIndex
from genret.retrieval.base import BatchedRetriever
from genret.retrieval.vectors import SCALES, VECTORS, DenseIndex, VectorIndex, quantise
from genret.runs import RunStore, StageRecord
from genret.spools import take_rows
from genret.storage import Storage
from genret.threads import use_threads
from genret.training.base import passage_texts
from genret.training.encoder import Encoder, EncoderPlace
from genret.types import ScoredPassage

BLOCK = 1024
"""Passages that are embedded together, and kept together where embedding is cut short."""

_IDS, _SETTINGS = "passage_ids.arrow", "index.json"
_FORMAT = 1


class DenseRetriever(BatchedRetriever):
    """Ranks passages by the inner product of their vectors with the query's.

    With the exact search every passage has some score, so that a query finds k of them; only a query that the encoder
    knows nothing of (the empty one; with an encoder from scratch also one of another script), or whose vector overflows
    16 bits, finds none. A query longer than `dense.max_tokens` is cut at its end.

    Attributes:
        exact: Whether no better passage can exist than those that are found; not with an approximate index.
    """

    def __init__(
        self, encoder: Encoder, index: VectorIndex, passage_ids: pa.ChunkedArray, name: str, batch_size: int
    ) -> None:
        super().__init__(name, batch_size)
        if len(index) != len(passage_ids):
            raise InputError(f"retriever {name}: expected {len(index)} passage ids, found {len(passage_ids)}")
        self.exact = not isinstance(index, ApproximateIndex)
        self._encoder = encoder
        self._index = index
        self._passage_ids = passage_ids

    @classmethod
    def load(
        cls,
        folder: Path,
        store: RunStore,
        records: Mapping[str, StageRecord],
        name: str,
        config: RetrievalConfig,
        lists: Path | None = None,
    ) -> "DenseRetriever":
        """Open an index that `write_index` wrote, and the encoder that it is of.

        Args:
            folder: The index.
            store: The run.
            records: Its current stages.
            name: What the tables call the retriever.
            config: The `retrieval` section.
            lists: The folder of the index's lists; without, every query is compared with every vector.

        Raises:
            InputError: A file or a package is missing, or the files do not belong together.
        """
        for file in (_IDS, _SETTINGS):
            if not (folder / file).is_file():
                raise InputError(f"dense index {folder}: expected the file {file}, found none")
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        if settings.get("format") != _FORMAT:
            raise InputError(f"dense index {folder}: expected format {_FORMAT}, found {settings.get('format')!r}")
        place = EncoderPlace(store.url, settings["stage"], DenseConfig(**settings["dense"]))
        ids = pa.ipc.open_file(pa.memory_map(str(folder / _IDS))).read_all().column("passage_id")
        index: VectorIndex = (
            ApproximateIndex.load(folder, lists, config.probes) if lists is not None else DenseIndex.load(folder)
        )
        return cls(place.open(records), index, ids, name, config.batch_size)

    @property
    def passage_ids(self) -> list[str]:
        """The passage of each row of the index."""
        names: list[str] = self._passage_ids.to_pylist()
        return names

    def find(self, queries: list[str], k: int, allowed: np.ndarray | None = None) -> list[list[ScoredPassage]]:
        """Rank passages for one batch.

        Args:
            queries: At most `batch_size`.
            k: How many passages a query, at least 1.
            allowed: bool by row of the index: others are not returned. Scores are the same with and without.

        Returns:
            A ranking a query.
        """
        # White space is no query: a transformer would give it a vector nevertheless.
        known = [row for row, query in enumerate(queries) if query.strip()]
        rankings: list[list[ScoredPassage]] = [[] for _ in queries]
        if not known:
            return rankings
        vectors = self._encoder.encode([queries[row] for row in known], queries=True)
        read = vectors.any(dim=1) & vectors.isfinite().all(dim=1)
        found = self._index.search(vectors.nan_to_num(), k, allowed)
        names = take_rows(self._passage_ids, np.concatenate([places for places, _ in found])).to_pylist()
        start = 0
        for row, is_read, (_, scores) in zip(known, read.tolist(), found, strict=True):
            if is_read:
                rankings[row] = list(map(ScoredPassage, names[start : start + len(scores)], scores.tolist()))
            start += len(scores)
        return rankings

    def _retrieve_batch(self, queries: list[str], k: int) -> list[list[ScoredPassage]]:
        return self.find(queries, k)


# --- embedding, in blocks ---


def missing_blocks(scratch: str, rows: int) -> list[int]:
    """Numbers of the blocks of so many passages that a folder does not hold yet."""
    storage = Storage(scratch)
    return [number for number in range(-(-rows // BLOCK)) if storage.size(_block(number)) <= 0]


def open_embedder(
    place: EncoderPlace, records: Mapping[str, StageRecord], scratch: str, threads: int
) -> Callable[[tuple[int, pa.Table]], int]:
    """A function, for an actor, that embeds a block of passages and keeps the vectors in a folder.

    Args:
        place: The encoder.
        records: The run's current stages.
        scratch: Folder, or URL, for the blocks.
        threads: CPU threads.

    Returns:
        From a block's number and its rows of the `passages` table to the number.
    """
    use_threads(threads)
    encoder = place.open(records)
    storage = Storage(scratch)

    def embed(block: tuple[int, pa.Table]) -> int:
        number, passages = block
        vectors = encoder.encode(passage_texts(passages), queries=False, batch_size=place.config.embedding_batch)
        quantised = quantise(vectors, place.config.vectors)
        content = BytesIO()
        np.savez(content, allow_pickle=False, values=quantised.values, scales=quantised.scales)
        # Appears whole or not at all: a block that is there is done.
        storage.put(_block(number), content.getvalue())
        return number

    return embed


def write_index(folder: Path, scratch: str, passage_ids: pa.ChunkedArray, place: EncoderPlace) -> None:
    """Join the blocks into an index.

    Args:
        folder: A local folder, which is there.
        scratch: Where the blocks are, all of them.
        passage_ids: Of all passages, in the order of the blocks.
        place: The encoder that the vectors are of.

    Raises:
        InputError: A block is missing, or is of other passages.
    """
    storage, total = Storage(scratch), len(passage_ids)
    values: np.ndarray | None = None
    scales = np.ones(total, dtype=np.float32)
    for number in range(-(-total // BLOCK)):
        content = storage.read(_block(number))
        start = number * BLOCK
        expected = min(BLOCK, total - start)
        if content is None:
            raise InputError(f"{storage.address(_block(number))}: expected a block of vectors, found none")
        with np.load(BytesIO(content), allow_pickle=False) as block:
            if len(block["values"]) != expected:
                raise InputError(
                    f"{storage.address(_block(number))}: expected {expected} vectors, found {len(block['values'])}"
                )
            if values is None:
                values = np.lib.format.open_memmap(
                    folder / VECTORS, "w+", block["values"].dtype, (total, block["values"].shape[1])
                )
            values[start : start + expected] = block["values"]
            scales[start : start + expected] = block["scales"]
    if values is None:
        np.save(folder / VECTORS, np.empty((0, 1), dtype=np.float16), allow_pickle=False)
    del values  # closes the map, and so writes it
    np.save(folder / SCALES, scales, allow_pickle=False)
    ids = pa.table({"passage_id": passage_ids})
    with pa.OSFile(str(folder / _IDS), "wb") as file, pa.ipc.new_file(file, ids.schema) as writer:
        writer.write_table(ids)
    settings = {"format": _FORMAT, "stage": place.stage, "dense": place.config.model_dump(mode="json")}
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _block(number: int) -> str:
    return f"block-{number:06d}.npz"
