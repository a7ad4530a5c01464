"""What all retrievers share: checks, batches, and the `run` table of a set of queries."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import pyarrow as pa

from genret.errors import InputError
from genret.tables import check_table, table_from_rows
from genret.types import Retriever, ScoredPassage


class BatchedRetriever(ABC):
    """A retriever that answers its queries in batches; it implements the `Retriever` protocol.

    A subclass writes `_retrieve_batch` and may rely on what it is given: at least one query, at most
    `batch_size` of them, each a string, and k of at least 1.

    Attributes:
        name: What the tables call this retriever.
        batch_size: Most queries answered together.
    """

    def __init__(self, name: str, batch_size: int) -> None:
        if batch_size < 1:
            raise InputError(f"retriever {name}: expected a batch size of at least 1, found {batch_size}")
        self.name = name
        self.batch_size = batch_size

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        """Rank passages for each query.

        Args:
            queries: Query texts; any text is allowed, the empty one too, and so is no query at all.
            k: How many passages a query, at least 1.

        Returns:
            A ranking a query, in the order of `queries`: at most `k` passages, best first, none twice.

        Raises:
            InputError: k is not a positive whole number, or the queries are not a sequence of strings.
        """
        self._check(queries, k)
        rankings: list[list[ScoredPassage]] = []
        for start in range(0, len(queries), self.batch_size):
            batch = [_encodable(query) for query in queries[start : start + self.batch_size]]
            found = self._retrieve_batch(batch, k)
            if len(found) != len(batch):
                raise RuntimeError(f"retriever {self.name}: {len(batch)} queries got {len(found)} rankings")
            rankings.extend(found)
        return rankings

    @abstractmethod
    def _retrieve_batch(self, queries: list[str], k: int) -> list[list[ScoredPassage]]:
        """Rank passages for one batch; the contract is that of `retrieve`."""

    def _check(self, queries: Sequence[str], k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"retriever {self.name}: expected k to be a whole number of at least 1, found {k!r}")
        if isinstance(queries, str):
            raise InputError(f"retriever {self.name}: expected a list of queries, found one string")
        for number, query in enumerate(queries):
            if not isinstance(query, str):
                raise InputError(f"retriever {self.name}: query {number}: expected a string, found {query!r:.80}")


def _encodable(query: str) -> str:
    """The query with `?` for halves of surrogate pairs, which no tokenizer or stemmer takes."""
    return query if query.isascii() else query.encode("utf-8", "replace").decode("utf-8")


def retrieve_run(retriever: Retriever, queries: pa.Table, k: int) -> pa.Table:
    """Answer all queries of a table.

    Args:
        retriever: Any retriever.
        queries: Table `test_queries`.
        k: How many passages a query, at least 1.

    Returns:
        Table `run`, in the order of the queries; ranks count from 1 and scores are the retriever's own. A
        query for which nothing was found has no row.

    Raises:
        InputError: The table does not fit its schema, two queries share an id, or the retriever rejects its
            input.
    """
    queries = check_table("test_queries", queries)
    query_ids = queries.column("query_id").to_pylist()
    if len(set(query_ids)) != len(query_ids):
        twice = next(query_id for query_id in query_ids if query_ids.count(query_id) > 1)
        raise InputError(f"table test_queries: expected query ids to be unique, found {twice!r} twice")
    rankings = retriever.retrieve(queries.column("text").to_pylist(), k)
    return run_table(retriever.name, zip(query_ids, rankings, strict=True))


def run_table(retriever: str, rankings: Iterable[tuple[str, Sequence[ScoredPassage]]]) -> pa.Table:
    """The `run` table of rankings by query id; ranks count from 1."""
    return table_from_rows(
        "run",
        (
            {
                "query_id": query_id,
                "passage_id": place.passage_id,
                "rank": rank,
                "score": place.score,
                "retriever": retriever,
            }
            for query_id, ranking in rankings
            for rank, place in enumerate(ranking, start=1)
        ),
    )
