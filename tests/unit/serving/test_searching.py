"""Searchers: filters, deadlines, additions, removals, probes."""

import itertools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genret.config import RetrievalConfig
from genret.decoding.filters import Predicate
from genret.decoding.hypotheses import Batch
from genret.errors import InputError
from genret.retrieval.bm25 import Bm25Retriever
from genret.retrieval.generative import GenerativeRetriever
from genret.retrieval.opening import load_retriever
from genret.retrieval.vectors import DenseIndex
from genret.runs import RunStore
from genret.serving.asks import Answer, Ask, canonical_filter, grouped
from genret.serving.documents import Editor, as_document
from genret.serving.generating import GenerativeSearcher, open_searcher
from genret.serving.searching import Searcher, open_bm25, probe
from genret.serving.versions import Change, check_files, find_version, metadata_fields, read_config
from genret.types import ScoredPassage

NAMES = ["sft", "bm25", "dense", "fusion"]


def opened(store: RunStore, name: str) -> Searcher:
    return (open_bm25 if name == "bm25" else open_searcher)(store, find_version(store), name)


def ask(query: str, k: int = 5, text: str = "", timeout: float = 60.0, explain: bool = False) -> Ask:
    return Ask(query, k, text, timeout, explain)


def ids(answer: Answer) -> list[str]:
    return [passage_id for passage_id, _ in answer.places]


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_the_retriever(dense_run: RunStore, name: str) -> None:
    config = read_config(dense_run).retrieval
    retriever = load_retriever(dense_run, dense_run.current(), name, config)
    queries = [f"the model{number}x near the river" for number in range(8)]
    depths = [1, 3, 5, 10, 12, 2, 7, 40]
    answers = opened(dense_run, name).answer([ask(query, k) for k, query in zip(depths, queries, strict=True)])
    for k, query, answer in zip(depths, queries, answers, strict=True):
        expected = retriever.retrieve([query], k)[0]
        assert ids(answer) == [place.passage_id for place in expected]
        assert [score for _, score in answer.places] == pytest.approx([place.score for place in expected], abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_filter_leaves_the_ranking_without_the_others(dense_run: RunStore, name: str) -> None:
    searcher = opened(dense_run, name)
    text = canonical_filter(
        {"and": [{"field": "topic", "in": ["river", "oven"]}, {"field": "year", "range": {"gte": 2004}}]}
    )
    query = "the river has a bank near the bread"
    found = searcher.answer([ask(query, 40, text)])[0]
    wanted = {
        name
        for name in searcher.collection.ids()
        if (passage := searcher.collection.get(name))
        and passage.metadata["topic"] in ("river", "oven")
        and passage.metadata["year"] >= 2004
    }
    everything = ids(searcher.answer([ask(query, 40)])[0])
    assert ids(found) and set(ids(found)) <= wanted
    if name != "fusion":  # which joins what its parts find under the filter here, not before it
        assert ids(found) == [place for place in everything if place in wanted]


def test_tokens_add_up_to_the_score(small_run: RunStore) -> None:
    answer = opened(small_run, "sft").answer([ask("the river near the model4x", explain=True)])[0]
    assert answer.tokens is not None and answer.identifiers is not None
    for (_, score), tokens, identifier in zip(answer.places, answer.tokens, answer.identifiers, strict=True):
        assert sum(logprob for _, logprob in tokens) == pytest.approx(score, abs=1e-4)
        assert identifier in "".join(text for text, _ in tokens)


def test_without_time_there_is_an_answer_that_says_so(small_run: RunStore) -> None:
    answers = opened(small_run, "sft").answer([ask("river", timeout=1e-9), ask("river", timeout=60)], waited=1.0)
    assert (answers[0].exact, answers[0].timed_out, answers[0].places) == (False, True, [])
    assert len(answers[1].places) == 5 and not answers[1].timed_out


def test_a_deadline_between_two_passes_gives_what_was_found(
    new_run: Callable[..., RunStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = opened(new_run(search="exact", scoring="vocabulary"), "sft")
    query = ask("the river near the model4x")
    (whole,) = searcher.answer([query])
    cut_off = []
    for allowed in range(1, 20):
        passes = itertools.count()
        monkeypatch.setattr(Batch, "late", lambda _, passes=passes, allowed=allowed: next(passes) >= allowed)
        cut_off.append(searcher.answer([query])[0])
    assert any(answer.places and not answer.exact for answer in cut_off)
    assert whole.exact and cut_off[-1].exact and ids(cut_off[-1]) == ids(whole)


class Endless:
    """Finds as many passages as are asked for, of which the collection has the first; counts how often it is asked."""

    name = "dense"

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls, self._seconds = 0, seconds

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        self.calls += 1
        assert self.calls < 50
        time.sleep(self._seconds)
        return [[ScoredPassage(f"x{number}" if number else "d1", -number) for number in range(k)]
                for _ in queries]  # fmt: skip


def test_where_a_filter_leaves_nothing_nothing_is_searched(small_run: RunStore) -> None:
    retriever, nothing = Endless(), canonical_filter({"field": "topic", "equals": "nothing"})
    searcher = Searcher(retriever, opened(small_run, "bm25").collection)
    *answers, neighbour = searcher.answer([*(ask(f"{number}", 5, nothing) for number in range(64)), ask("b")])
    assert [(answer.places, answer.exact, answer.timed_out) for answer in answers] == [([], True, False)] * 64
    assert len(neighbour.places) == 5 and retriever.calls == 1
    (answer,) = opened(small_run, "bm25").answer([ask("river", 5, nothing)])
    assert (answer.places, answer.exact, answer.timed_out) == ([], True, False)


def test_a_filter_that_finds_too_little_ends_with_its_deadline_and_lets_others_by(small_run: RunStore) -> None:
    retriever, oven = Endless(0.05), canonical_filter({"field": "topic", "equals": "oven"})
    searcher = Searcher(retriever, opened(small_run, "bm25").collection)
    asks = [ask(f"{number}", 5, oven, timeout=0.2) for number in range(64)]
    *answers, neighbour = searcher.answer([*asks, ask("b", timeout=0.2)])
    assert retriever.calls <= 1 + 4
    assert {(tuple(ids(answer)), answer.exact, answer.timed_out) for answer in answers} <= {
        (("d1",), False, True),
        ((), False, True),
    }
    assert len(neighbour.places) == 5 and not neighbour.timed_out


def test_after_a_removal_queries_still_go_together(small_run: RunStore) -> None:
    class Listed(Endless):
        def retrieve(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
            self.calls += 1
            return [[ScoredPassage(f"d{number}", -number) for number in range(min(k, 40))] for _ in queries]

    retriever = Listed()
    searcher = Searcher(retriever, opened(small_run, "bm25").collection).changed(Change(1, removed=("d0",)))
    answers = searcher.answer([ask(f"{number}", 3) for number in range(64)])
    assert [ids(answer) for answer in answers] == [["d1", "d2", "d3"]] * 64 and retriever.calls == 1


def test_a_filter_costs_the_dense_retriever_no_longer_rankings(
    dense_run: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher, asked, search = opened(dense_run, "dense"), list[tuple[int, int]](), DenseIndex.search

    def counted(index: DenseIndex, queries: Any, k: int, *more: Any) -> Any:
        asked.append((len(queries), k))
        return search(index, queries, k, *more)

    monkeypatch.setattr(DenseIndex, "search", counted)
    removed = searcher.changed(Change(1, removed=("d0",)))
    oven = canonical_filter({"field": "topic", "equals": "oven"})
    nothing = canonical_filter({"field": "topic", "equals": "nothing"})
    for state, text, found in ((searcher, oven, 10), (removed, oven, 10), (removed, "", 12), (searcher, nothing, 0)):
        answers = state.answer([ask(f"the model{number}x", 12, text) for number in range(8)])
        assert [len(answer.places) for answer in answers] == [found] * 8
        assert all(answer.exact and not answer.timed_out and "d0" not in ids(answer) for answer in answers)
    assert asked == [(8, 12)] * 3
    # What all of the index has been compared with is kept.
    monkeypatch.setattr(removed, "_names", None)
    assert all(len(state.answer([ask("river", 5, oven)])[0].places) == 5 for state in (searcher, removed))
    assert len(removed.answer([ask("river", 5)])[0].places) == 5


def test_words_are_looked_up_until_the_deadline(small_run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = opened(small_run, "bm25")
    assert isinstance(searcher.retriever, Bm25Retriever)
    find = searcher.retriever.find

    def slow(queries: list[str], *more: Any) -> list[list[ScoredPassage]]:
        time.sleep(0.05)
        return find(queries, *more)

    monkeypatch.setattr(searcher.retriever, "find", slow)
    answers = searcher.answer([ask("river", timeout=0.12) for _ in range(8)])
    assert sum(answer.timed_out for answer in answers) >= 5
    assert all(answer.timed_out == (not answer.places) == (not answer.exact) for answer in answers)


def test_explanations_end_with_the_deadline(small_run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = opened(small_run, "sft")
    explain = GenerativeRetriever.explain

    def slow(*arguments: Any) -> Any:
        time.sleep(0.6)
        return explain(*arguments)

    monkeypatch.setattr(GenerativeRetriever, "explain", slow)
    answers = searcher.answer([ask(f"river model{number}x", timeout=0.5, explain=True) for number in range(3)])
    assert sum(answer.tokens is not None for answer in answers) <= 1
    assert all(answer.timed_out for answer in answers if answer.tokens is None)


def test_the_time_that_a_filter_takes_is_the_querys(small_run: RunStore) -> None:
    class Slow(GenerativeSearcher):
        def _applied(self, predicate: Predicate) -> Any:
            time.sleep(0.5)
            return super()._applied(predicate)

    whole = opened(small_run, "sft")
    assert isinstance(whole, GenerativeSearcher)
    searcher = Slow(whole.retriever, whole.collection, whole._beam)
    query = ask("river", 5, canonical_filter({"field": "topic", "equals": "river"}), timeout=0.4)
    (answer,) = searcher.answer([query])
    assert (answer.places, answer.exact, answer.timed_out) == ([], False, True)
    (answer,) = searcher.answer([replace(query, timeout=60.0)])  # its mask is kept
    assert len(answer.places) == 5


@pytest.mark.parametrize("name", ["sft", "bm25", "dense"])
def test_metadata_are_read_once_and_anew_where_they_change(
    dense_run: RunStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher, read, loads = opened(dense_run, name), list[str](), json.loads

    def counted(text: str) -> Any:
        read.append(text)
        return loads(text)

    monkeypatch.setattr(json, "loads", counted)
    for topic in ("river", "oven"):
        searcher.answer([ask("near", 40, canonical_filter({"field": "topic", "equals": topic}))])
    assert len(read) == 40 + 2  # and the filters
    passage = searcher.collection.get("d1")
    assert passage is not None
    change = Change(1, (replace(passage, metadata={"topic": "river"}),), ("zeppelin gondola",), ("d1",))
    for state, found in ((searcher.changed(change), True), (searcher, False)):
        answer = state.answer([ask("near the model1x", 40, canonical_filter({"field": "topic", "equals": "river"}))])[0]
        assert ("d1" in ids(answer)) is found
    assert len(read) == 40 + 2 + 1 + 1  # d1 by this test, and the filter by the new state


def test_queries_go_together_unless_that_changes_what_they_find() -> None:
    asks = [ask("a", 3), ask("b", 10), ask("c", 20), ask("d", 3, '{"not": 1}'), ask("e", 3, timeout=1.0)]
    assert grouped(asks, 10) == [[0, 1], [2], [3], [4]]
    assert grouped(asks, 1) == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("name", ["sft", "bm25"])
def test_an_added_document_is_found_and_a_removed_one_is_not(small_run: RunStore, name: str) -> None:
    editor = Editor(small_run, find_version(small_run))
    document = as_document("new", "A zeppelin floats over the garden with its gondola.", "zeppelin", {"topic": "air"})
    change = editor.add(document)
    assert change.identifiers is not None and len(change.identifiers) == len(change.added) == 1
    editor.keep(change)
    searcher = opened(small_run, name)
    before = searcher.answer([ask("zeppelin gondola", 40), ask("river model0x")])
    after = searcher.changed(change)
    assert "new" not in ids(before[0])
    assert "new" in ids(after.answer([ask("zeppelin gondola", 40)])[0])
    assert ids(
        after.answer([ask("zeppelin gondola", 40, canonical_filter({"field": "topic", "equals": "air"}))])[0]
    ) == ["new"]
    removal = editor.remove("d0")
    assert removal is not None and removal.removed == ("d0",)
    gone = after.changed(removal)
    assert "d0" in ids(before[1]) and "d0" not in ids(gone.answer([ask("river model0x", 40)])[0])
    assert "new" in ids(gone.answer([ask("zeppelin gondola", 40)])[0])


def test_an_id_can_be_used_again_after_its_removal(small_run: RunStore) -> None:
    editor = Editor(small_run, find_version(small_run))
    searchers = [opened(small_run, name) for name in ("sft", "bm25")]
    changes: list[Change] = []
    for text in ("A zeppelin floats.", "A submarine dives."):
        changes.append(editor.add(as_document("again", text, "", {})))
        editor.keep(changes[-1])
        removal = editor.remove("again")
        assert removal is not None
        changes.append(removal)
        editor.keep(removal)
    identifiers = [change.identifiers for change in changes if change.added]
    assert identifiers[0] != identifiers[1]
    for searcher in searchers:
        for change in changes[:-1]:
            searcher = searcher.changed(change)
        assert ids(searcher.answer([ask("submarine dives", 41)])[0]).count("again") == 1
        assert "again" not in ids(searcher.changed(changes[-1]).answer([ask("submarine dives", 41)])[0])


@pytest.mark.parametrize("variant", get_args(RetrievalConfig.model_fields["variant"].annotation))
def test_an_added_passage_scores_in_bm25_as_one_of_the_index_does(
    new_run: Callable[..., RunStore], tmp_path: Path, variant: str
) -> None:
    store, mark = new_run(), "0123456789abcdef"
    records = store.current()
    passages = store.read_table(records["corpus"], "passages")
    Bm25Retriever.build(passages, RetrievalConfig(variant=variant)).save(tmp_path / variant)
    writer = store.begin("bm25", mark)
    writer.write_folder("bm25", tmp_path / variant)
    writer.commit({"seconds": 0})
    store.set_current({name: record.fingerprint for name, record in records.items()} | {"bm25": mark})
    searcher = opened(store, "bm25")
    twin = searcher.collection.get("d5")
    assert twin is not None
    document = as_document("twin", twin.text, twin.title, {})
    change = Editor(store, find_version(store)).add(document)
    places = dict(searcher.changed(change).answer([ask(twin.text, 40)])[0].places)
    assert places["twin"] == pytest.approx(places["d5"], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_probe_finds_what_the_evaluation_found(dense_run: RunStore, name: str) -> None:
    probe(opened(dense_run, name), dense_run, find_version(dense_run), name, 8)


@pytest.mark.parametrize("name", ["sft", "bm25", "dense"])
def test_one_bit_of_any_file_is_enough_to_refuse_a_version(dense_run: RunStore, tmp_path: Path, name: str) -> None:
    copied = RunStore(shutil.copytree(dense_run.url, tmp_path / "run"))
    version, records = find_version(copied), copied.current()
    check_files(copied, version, name)
    stages = {"dense": ["embedding", "encoder"]}.get(name, [name])
    files = [
        file
        for stage in stages
        for file in copied.local_folder(records[stage], stage).rglob("*")
        if file.is_file() and file.stat().st_size
    ]
    assert len(files) >= 4 and {"model.safetensors", "vectors.npy", "data.csc.index.npy"} & {
        file.name for file in files
    }
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(InputError, match=f"{file.name}: expected the SHA-256"):
            check_files(copied, version, name)
        file.write_bytes(content)
    check_files(copied, version, name)


def test_a_probe_refuses_another_model(small_run: RunStore) -> None:

    class Reversed:
        name = "bm25"

        def retrieve(self, queries: list[str], k: int) -> list[list[ScoredPassage]]:
            return [[ScoredPassage(f"d{39 - number}", 1.0) for number in range(k)] for _ in queries]

    searcher = Searcher(Reversed(), opened(small_run, "bm25").collection)
    with pytest.raises(InputError, match="its index or model is damaged"):
        probe(searcher, small_run, find_version(small_run), "bm25", 8)


def test_atomic_runs_add_to_bm25_alone(new_run: Callable[..., RunStore]) -> None:
    store = new_run(identifiers="atomic")
    change = Editor(store, find_version(store)).add(as_document("new", "A zeppelin floats.", "", {}))
    assert change.identifiers is None
    generative = opened(store, "sft").changed(change)
    assert "new" not in ids(generative.answer([ask("zeppelin", 40)])[0])
    assert "new" in ids(opened(store, "bm25").changed(change).answer([ask("zeppelin", 40)])[0])


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a", "b"]),
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=3)
            | st.lists(st.integers() | st.text(max_size=2), max_size=3)
            | st.dictionaries(st.text(max_size=1), st.none()),
        ),
        max_size=20,
    )
)  # fmt: skip
def test_fields_are_described_whatever_the_metadata(metadata: list[dict[str, object]]) -> None:
    for entry in metadata_fields(metadata):
        assert entry["count"] == sum(entry["name"] in row for row in metadata)
        assert len(entry["values"]) <= 50
        assert entry["distinct"] >= len(entry["values"])


def test_fields_of_the_small_run(small_run: RunStore) -> None:
    collection = opened(small_run, "bm25").collection
    fields = {entry["name"]: entry for entry in metadata_fields(collection.metadata(collection.ids()))}
    assert {entry["value"] for entry in fields["topic"]["values"]} == {"river", "oven", "train", "garden"}
    assert (fields["year"]["minimum"], fields["year"]["maximum"], fields["year"]["type"]) == (2000, 2009, "number")
    assert fields["date"]["type"] == "date" and fields["date"]["minimum"] == "2000-01-02"
    assert np.sum([entry["count"] for entry in fields["year"]["values"]]) == 40
