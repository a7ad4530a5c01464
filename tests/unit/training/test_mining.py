"""Mining part by part, with a ranking that is known."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genret.config import MiningConfig
from genret.tables import table_from_rows
from genret.training.mining import KeptParts, mine, queries_a_part

PASSAGES = 12


def identifiers() -> pa.Table:
    return table_from_rows(
        "identifiers",
        ({"passage_id": f"p{n}", "identifier": f"name {n}", "source": "llm"} for n in range(PASSAGES)),
    )


def preference_queries(count: int) -> pa.Table:
    return table_from_rows(
        "preference_queries",
        (
            {"query_id": f"q{n}", "passage_id": f"p{n % PASSAGES}", "text": f"text {n}", "answer": "a"}
            for n in range(count)
        ),
    )


class Ranker:
    """Ranks the positive of query n in place n modulo 5, from 0, behind the passages that follow it."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.calls: list[int] = []

    def __call__(self, parts: Iterator[pa.Table], k: int, before: int) -> Iterator[pa.Table]:
        self.calls.append(before)
        return (self.rank(queries, k) for queries in parts)

    def rank(self, queries: pa.Table, k: int) -> pa.Table:
        assert queries.column_names == ["query_id", "text"]
        self.asked.append((queries.num_rows, k))
        rows = []
        for query_id in queries.column("query_id").to_pylist():
            number = int(query_id[1:])
            ranked = [(number + 1 + other) % PASSAGES for other in range(PASSAGES - 1)]
            ranked.insert(number % 5, number % PASSAGES)
            rows += [
                {"query_id": query_id, "passage_id": f"p{n}", "rank": rank, "score": -float(rank), "retriever": "sft"}
                for rank, n in enumerate(ranked[:k], start=1)
            ]
        return table_from_rows("run", rows)


def test_what_is_ranked_above_the_positive_becomes_negatives() -> None:
    config = MiningConfig(negatives=2, candidates=4)
    pairs = pa.concat_tables(mine(config, [preference_queries(5)], identifiers(), Ranker(), 0))
    found = [
        (row["query_id"], row["prompt"], row["chosen"], row["rejected"], row["positive_rank"], row["negative_rank"])
        for row in pairs.to_pylist()
    ]
    assert found == [
        # q0 has its positive first; the positive of q4 is not among the four candidates.
        ("q1", "text 1", "name 1", "name 2", 2, 1),
        ("q2", "text 2", "name 2", "name 3", 3, 1),
        ("q2", "text 2", "name 2", "name 4", 3, 2),
        ("q3", "text 3", "name 3", "name 4", 4, 1),
        ("q3", "text 3", "name 3", "name 5", 4, 2),
        ("q4", "text 4", "name 4", "name 5", 0, 1),
        ("q4", "text 4", "name 4", "name 6", 0, 2),
    ]


@pytest.mark.parametrize("strategy", ["top", "random"])
@pytest.mark.parametrize("size", [1, 7, 23, 24])
def test_parts_change_nothing(strategy: str, size: int) -> None:
    config, queries, ranker = MiningConfig(strategy=strategy), preference_queries(23), Ranker()
    whole = pa.concat_tables(mine(config, [queries], identifiers(), Ranker(), 3))
    parts = mine(config, (queries.slice(start, size) for start in range(0, 23, size)), identifiers(), ranker, 3)
    first = next(parts)
    assert len(ranker.asked) == 1, "a part is there before the next queries are ranked"
    assert pa.concat_tables([first, *parts]).equals(whole)
    assert whole.num_rows > 23
    assert [rows for rows, _ in ranker.asked] == [min(size, 23 - start) for start in range(0, 23, size)]
    assert {k for _, k in ranker.asked} == {config.candidates}


def test_no_query_no_part() -> None:
    assert list(mine(MiningConfig(), [], identifiers(), Ranker(), 0)) == []


@pytest.mark.parametrize("strategy", ["top", "random"])
def test_a_mining_cut_short_goes_on_behind_the_last_part(tmp_path: Path, strategy: str) -> None:
    config, queries = MiningConfig(strategy=strategy), preference_queries(23)
    parts = [queries.slice(start, 6) for start in range(0, 23, 6)]
    whole = pa.concat_tables(mine(config, [queries], identifiers(), Ranker(), 3))

    class Dies(Ranker):
        def rank(self, queries: pa.Table, k: int) -> pa.Table:
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().rank(queries, k)

    with pytest.raises(KeyboardInterrupt):
        list(mine(config, parts, identifiers(), Dies(), 3, KeptParts(str(tmp_path), 6)))
    ranker = Ranker()
    found = pa.concat_tables(mine(config, parts, identifiers(), ranker, 3, KeptParts(str(tmp_path), 6)))
    assert found.equals(whole)
    assert [rows for rows, _ in ranker.asked] == [6, 5], "the first two parts are not ranked again"
    assert ranker.calls == [12]
    done = Ranker()
    again = pa.concat_tables(mine(config, parts, identifiers(), done, 3, KeptParts(str(tmp_path), 6)))
    assert again.equals(whole) and not done.calls, "where all is there, nothing is started"
    other = Ranker()
    assert pa.concat_tables(mine(config, [queries], identifiers(), other, 3, KeptParts(str(tmp_path), 23))).equals(
        whole
    )
    assert [rows for rows, _ in other.asked] == [23], "parts of another size are others"


class AheadRanker(Ranker):
    """Draws all parts before the first ranking is there, as many workers do."""

    def __call__(self, parts: Iterator[pa.Table], k: int, before: int) -> Iterator[pa.Table]:
        return super().__call__(iter(list(parts)), k, before)


def test_parts_may_be_drawn_ahead() -> None:
    config, queries = MiningConfig(), preference_queries(23)
    parts = [queries.slice(start, 6) for start in range(0, 23, 6)]
    found = list(mine(config, parts, identifiers(), AheadRanker(), 3))
    assert found == list(mine(config, parts, identifiers(), Ranker(), 3))


@pytest.mark.parametrize(
    ("queries", "size"),
    [
        (0, 2016),
        (3000, 2016),
        (40_320, 2016),
        (40_321, 2048),
        (640_000, 32_000),
        (2_000_000, 100_000),
        (10**8, 100_000),
    ],
)
def test_a_part_is_a_twentieth_of_the_queries_within_bounds(queries: int, size: int) -> None:
    assert queries_a_part(queries, 32) == size


def test_a_part_that_was_never_renamed_is_no_part(tmp_path: Path) -> None:
    kept = KeptParts(str(tmp_path), 12)
    kept.write(0, table_from_rows("preference_pairs", []))
    (name,) = (path.name for path in tmp_path.iterdir())
    (tmp_path / name).rename(tmp_path / f".{name}-x.tmp")
    assert kept.read(0) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "other bytes", "a flipped bit", "another table"])
def test_a_damaged_part_is_ranked_again(tmp_path: Path, damage: str) -> None:
    config, queries = MiningConfig(), preference_queries(23)
    parts = [queries.slice(start, 12) for start in range(0, 23, 12)]
    whole = pa.concat_tables(mine(config, parts, identifiers(), Ranker(), 3, KeptParts(str(tmp_path), 12)))
    part = max(tmp_path.iterdir())
    content = bytearray(part.read_bytes())
    if damage == "another table":
        pq.write_table(queries, part)
    else:
        content[40] ^= 1
        changed = {"cut": content[: len(content) // 2], "empty": b"", "other bytes": b"x" * 500}
        part.write_bytes(changed.get(damage, content))
    ranker = Ranker()
    assert pa.concat_tables(mine(config, parts, identifiers(), ranker, 3, KeptParts(str(tmp_path), 12))).equals(whole)
    assert [rows for rows, _ in ranker.asked] == [11]
    assert KeptParts(str(tmp_path), 12).read(1) is not None, "and kept again"


def test_what_is_behind_a_missing_part_is_ranked_again(tmp_path: Path) -> None:
    parts = [preference_queries(23).slice(start, 6) for start in range(0, 23, 6)]
    whole = pa.concat_tables(mine(MiningConfig(), parts, identifiers(), Ranker(), 3, KeptParts(str(tmp_path), 6)))
    sorted(tmp_path.iterdir())[1].unlink()
    ranker = Ranker()
    found = pa.concat_tables(mine(MiningConfig(), parts, identifiers(), ranker, 3, KeptParts(str(tmp_path), 6)))
    assert found.equals(whole)
    assert [rows for rows, _ in ranker.asked] == [6, 6, 5]
