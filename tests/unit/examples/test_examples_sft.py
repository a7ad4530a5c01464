from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genret import parts
from genret.config import ExamplesConfig
from genret.errors import InputError
from genret.examples import sft
from genret.examples.sft import build_sft_examples
from genret.tables import SCHEMAS, passages_to_table, table_from_rows
from genret.types import Passage


def tables(n_passages, n_queries, text="some words in text {n}."):
    passages = passages_to_table(Passage(f"p{n}", f"d{n}", text.format(n=n), f"title {n}") for n in range(n_passages))
    # In another order than the passages: rows are matched by id.
    identifiers = table_from_rows(
        "identifiers",
        ({"passage_id": f"p{n}", "identifier": f"id {n}", "source": "llm"} for n in reversed(range(n_passages))),
    )
    queries = table_from_rows(
        "queries",
        (
            {
                "query_id": f"q{n}",
                "passage_id": f"p{n % n_passages}",
                "text": f"query {n}",
                "kind": "chunk",
                "generator": "test",
            }
            for n in range(n_queries)
        ),
    )
    return passages, identifiers, queries


def build_table(*arguments):
    examples = build_sft_examples(*arguments)
    table = pa.Table.from_batches(
        [batch for part in examples.parts for batch in part.to_batches()], SCHEMAS["sft_examples"]
    )
    assert table.num_rows == examples.rows
    return table


def build(n_passages, n_queries, seed=0, **settings):
    return build_table(ExamplesConfig(**settings), *tables(n_passages, n_queries), seed)


def kinds(examples):
    return examples.column("kind").to_pylist()


def test_rows_pair_texts_with_the_identifier_of_their_passage():
    examples = build(3, 4, mix="concat")
    assert examples.schema == SCHEMAS["sft_examples"]
    assert sorted(map(tuple, (row.values() for row in examples.to_pylist()))) == [
        ("query 0", "id 0", "query2id"),
        ("query 1", "id 1", "query2id"),
        ("query 2", "id 2", "query2id"),
        ("query 3", "id 0", "query2id"),
        *((f"title {n}\nsome words in text {n}.", f"id {n}", "context2id") for n in range(3)),
    ]


def test_long_passages_are_cut_into_chunks():
    passages, identifiers, queries = tables(2, 1, text="one two three four. " * 5)
    config = ExamplesConfig(mix="concat", context_tokens=8)
    examples = build_table(config, passages, identifiers, queries, 0)
    contexts = [row for row in examples.to_pylist() if row["kind"] == "context2id"]
    for name in ("id 0", "id 1"):
        own = [row["prompt"] for row in contexts if row["completion"] == name]
        assert len(own) > 2
        assert " ".join(own).count("three") == 5
        assert all(len(text.split()) <= 8 for text in own)


def test_sentences_and_the_title_as_contexts():
    passages, identifiers, queries = tables(1, 1, text="The first one is here. The second one is there.")
    config = ExamplesConfig(mix="concat", context2id="sentence")
    examples = build_table(config, passages, identifiers, queries, 0)
    assert sorted(examples.column("prompt").to_pylist()) == [
        "The first one is here.",
        "The second one is there.",
        "query 0",
        "title 0",
    ]


@pytest.mark.parametrize("mix", ["interleave", "concat"])
def test_queries_alone(mix):
    examples = build(3, 10, context2id="none", mix=mix)
    assert sorted(examples.column("prompt").to_pylist()) == sorted(f"query {n}" for n in range(10))


@pytest.mark.parametrize("mix", ["interleave", "concat"])
def test_contexts_alone(mix):
    examples = build(3, 0, mix=mix)
    assert sorted(examples.column("completion").to_pylist()) == ["id 0", "id 1", "id 2"]


def test_the_default_alternates_one_to_one():
    assert kinds(build(3, 10)) == ["query2id", "context2id"] * 10


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 60), st.floats(0.05, 0.95), st.integers(0, 3))
def test_interleaving_has_the_share_and_loses_nothing(n_passages, n_queries, share, seed):
    examples = build(n_passages, n_queries, seed, context_share=share)
    found = Counter(kinds(examples))
    total = examples.num_rows
    # The share to the nearest row, and no smaller table would do.
    assert abs(found["context2id"] - share * total) <= 0.5 + 1e-6
    assert found["query2id"] == n_queries or found["context2id"] == n_passages
    # Everything at least once, and equally often to within one.
    for kind, count in (("query2id", n_queries), ("context2id", n_passages)):
        times = Counter(row["prompt"] for row in examples.to_pylist() if row["kind"] == kind)
        assert len(times) == count
        assert max(times.values()) - min(times.values()) <= 1
    # Evenly spread: no prefix is off by more than one row.
    seen = 0
    for place, kind in enumerate(kinds(examples), start=1):
        seen += kind == "context2id"
        assert abs(seen - place * found["context2id"] / total) < 1


@pytest.mark.parametrize("mix", ["interleave", "concat"])
def test_the_order_is_shuffled_by_the_seed_alone(mix):
    first = build(20, 50, mix=mix)
    assert first.equals(build(20, 50, mix=mix))
    assert not first.equals(build(20, 50, mix=mix, seed=1))
    prompts = [row["prompt"] for row in first.to_pylist() if row["kind"] == "query2id"]
    assert prompts != sorted(prompts, key=lambda text: int(text.split()[1]))


def test_passages_in_several_chunks(monkeypatch):
    monkeypatch.setattr(parts, "rows_a_part", lambda rows: 2)
    monkeypatch.setattr(sft, "_ROWS_A_BLOCK", 3)
    monkeypatch.setattr(sft, "_ROWS_A_PART", 5)
    passages, identifiers, queries = tables(7, 5)
    chunked = pa.concat_tables([passages.slice(0, 3), passages.slice(3)])
    config = ExamplesConfig(mix="concat")
    examples = build_table(config, chunked, identifiers, queries, 0)
    for row in examples.to_pylist():
        if row["kind"] == "context2id":
            assert row["prompt"].startswith(f"title {row['completion'].split()[1]}\n")
    assert examples.num_rows == 12


def test_a_passage_without_text_is_rejected_and_keeps_its_queries():
    passages = passages_to_table([Passage("p0", "d0", " \n", ""), Passage("p1", "d1", "text")])
    _, identifiers, queries = tables(2, 2)
    examples = build_sft_examples(ExamplesConfig(mix="concat"), passages, identifiers, queries, 0)
    assert examples.rejects.to_pylist() == [
        {
            "stage": "examples",
            "input_id": "p0",
            "reason": "no text to learn the identifier from",
            "raw": "",
        }
    ]
    assert sorted(row["prompt"] for part in examples.parts for row in part.to_pylist()) == [
        "query 0",
        "query 1",
        "text",
    ]


def test_no_passages_at_all():
    empty = [table_from_rows(name, []) for name in ("passages", "identifiers", "queries")]
    for mix in ("interleave", "concat"):
        assert build_table(ExamplesConfig(mix=mix), *empty, 0).num_rows == 0


def test_a_query_or_passage_without_an_identifier_is_named():
    passages, identifiers, queries = tables(3, 3)
    with pytest.raises(InputError, match=r"table passages, row 1: .* found 'p1'"):
        build_sft_examples(ExamplesConfig(), passages, identifiers.filter([True, False, True]), queries.slice(0, 1), 0)
    with pytest.raises(InputError, match=r"table queries, row 2: .* found 'p2'"):
        build_sft_examples(ExamplesConfig(), passages.slice(0, 2), identifiers.slice(1), queries, 0)


def annotated(queries, count):
    """The last so many queries are ones that people wrote."""
    kinds = ["chunk"] * (queries.num_rows - count) + ["annotated"] * count
    place = queries.schema.get_field_index("kind")
    return queries.set_column(place, queries.schema.field("kind"), pa.array(kinds, pa.string()))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, 9), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]))
def test_queries_that_people_wrote_are_repeated_until_they_have_their_share(synthetic, written, share):
    passages, identifiers, queries = tables(5, synthetic + written)
    config = ExamplesConfig(mix="concat", context2id="none", annotated_share=share)
    rows = build_table(config, passages, identifiers, annotated(queries, written), 0)
    counts = Counter(rows.column("prompt").to_pylist())
    repeated = [counts[f"query {n}"] for n in range(synthetic, synthetic + written)]
    assert all(counts[f"query {n}"] == 1 for n in range(synthetic))
    assert sum(repeated) == sft.annotated_rows(config, synthetic, written)
    if written:
        assert min(repeated) >= 1 and max(repeated) - min(repeated) <= 1
        # The smallest number of rows that has the share, to the nearest row.
        assert sum(repeated) == written or abs(sum(repeated) - share * rows.num_rows) <= 0.5


def test_repeated_queries_keep_their_identifiers_and_come_in_a_mixed_order():
    passages, identifiers, queries = tables(4, 40)
    config = ExamplesConfig(mix="concat", context2id="none", annotated_share=0.5)
    rows = build_table(config, passages, identifiers, annotated(queries, 2), 0).to_pylist()
    assert all(row["completion"] == f"id {int(row['prompt'].split()[1]) % 4}" for row in rows)
    places = [place for place, row in enumerate(rows) if row["prompt"] in ("query 38", "query 39")]
    assert len(places) == 38
    assert all(any(low <= place < low + 19 for place in places) for low in range(0, len(rows) - 19, 19))
