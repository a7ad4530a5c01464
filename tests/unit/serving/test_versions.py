"""Versions of a run, and the file that remembers what was added and removed."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from genret.config import resolved_yaml
from genret.errors import InputError
from genret.runs import RunStore
from genret.serving import versions
from genret.serving.documents import FILE, Changes, Editor, as_document, read_changes, write_changes
from genret.serving.versions import find_version, read_config, version_records

New = Callable[..., RunStore]


def test_a_version_stands_for_its_stages(small_run: RunStore) -> None:
    found = find_version(small_run)
    assert found == find_version(small_run)
    assert found.retrievers == ("sft", "bm25", "fusion")
    assert set(version_records(small_run, found)) == {"corpus", "identifiers", "retrieval", "sft", "bm25"}
    assert find_version(small_run, ["bm25"]).id != found.id


def test_what_is_not_there_is_named(small_run: RunStore) -> None:
    with pytest.raises(InputError, match=r"serving.retrievers: expected some of .*'sft'.*found \['rpo'\]"):
        find_version(small_run, ["rpo"])
    with pytest.raises(InputError, match=r"fusion needs \['sft'\]"):
        find_version(small_run, ["bm25", "fusion"])


def configure(store: RunStore, **sections: dict[str, object]) -> None:
    """Change sections of a run's configuration."""
    config = read_config(store)
    changed = {name: getattr(config, name).model_copy(update=fields) for name, fields in sections.items()}
    store.write_file("config.yaml", resolved_yaml(config.model_copy(update=changed)))


def test_a_retriever_that_the_run_is_not_through_with_is_no_version(new_run: New) -> None:
    store = new_run(dense=True)
    marks = {stage: record.fingerprint for stage, record in store.current().items()}
    for stage in ("rpo", "rpo_2", "lists"):
        store.begin(stage, marks["sft"]).commit({})
    configure(store, preference={"rounds": 2}, dense={"index": "lists"})
    store.set_current(marks | {"rpo": marks["sft"], "lists": marks["sft"]})
    with pytest.raises(InputError, match=r"expected all stages of what is served, still missing: rpo_2 \(of rpo\)$"):
        find_version(store)
    assert find_version(store, ["sft", "bm25"]).retrievers == ("sft", "bm25")
    store.set_current(marks | {"rpo": marks["sft"], "rpo_2": marks["sft"]})
    with pytest.raises(InputError, match=r"still missing: lists \(of dense\)$"):
        find_version(store)
    store.set_current(marks | dict.fromkeys(("rpo", "rpo_2", "lists"), marks["sft"]))
    assert {"rpo_2", "lists"} <= find_version(store).stages.keys()


def test_a_version_whose_stage_is_gone_is_an_error(new_run: New) -> None:
    store = new_run()
    found = find_version(store)
    (manifest,) = (path for path in (Path(store.url) / "stages").glob("bm25-*.json"))
    manifest.unlink()
    with pytest.raises(InputError, match=r"stage bm25 .* is gone"):
        version_records(store, found)


def test_changes_are_remembered(new_run: New) -> None:
    store = new_run()
    found = find_version(store)
    assert read_changes(store) is None
    editor = Editor(store, found)
    editor.keep(editor.add(as_document("new", "A zeppelin floats.", "Zeppelin", {"n": [1, "a", None]})))
    removal = editor.remove("d1")
    assert removal is not None
    editor.keep(removal)
    write_changes(store, Changes("s", found, None, tuple(editor.changes), tuple(editor.history)))
    kept = read_changes(store)
    assert kept is not None and kept.changes == kept.history == tuple(editor.changes) and kept.version == found
    again = Editor(store, kept.version, kept.changes, kept.history)
    assert (again.marks, again.history) == (editor.marks, editor.history)
    assert again.collection.get("new") == editor.collection.get("new")
    assert again.collection.get("d1") is None
    assert again.collection.counts == (40, 1, 1)


def test_json_is_that_of_the_passage_after_every_change(new_run: New) -> None:
    store = new_run()
    editor = Editor(store, find_version(store))

    def check(*names: str) -> None:
        for name in names:
            fields, passage = editor.collection.json_fields(name), editor.collection.get(name)
            assert (None if fields is None else json.loads(b"{%b}" % fields)) == (passage and asdict(passage))

    check("d1", "d1", "d2", "new", "none")
    before = editor.collection
    removal = editor.remove("d1")
    assert removal is not None
    editor.keep(removal)
    editor.keep(editor.add(as_document("new", "A \u201czeppelin\u201d floats.", "Zeppelin", {"n": [1, "a", None]})))
    check("d1", "d2", "new")
    editor.keep(editor.add(as_document("d1", "Another text.", "", {})))
    check("d1", "d2", "new")
    kept = before.json_fields("d1")
    assert kept is not None and b"Another" not in kept


def test_json_is_kept_as_far_as_there_is_room(small_run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = Editor(small_run, find_version(small_run)).collection
    size = len(collection.json_fields("d0") or b"")
    monkeypatch.setattr(versions, "_KEPT_BYTES", 3 * size + size // 2)
    expected = [collection.json_fields(name) for name in collection.ids()]
    assert [collection.json_fields(name) for name in collection.ids()] == expected
    assert len(collection._base._kept) <= 4 and collection._base._size == sum(map(len, collection._base._kept.values()))


def test_a_file_from_before_there_was_a_history_is_read(new_run: New) -> None:
    store = new_run()
    editor = Editor(store, find_version(store))
    editor.keep(editor.add(as_document("new", "A zeppelin floats.", "", {})))
    write_changes(store, Changes("s", editor.version, None, tuple(editor.changes), ()))
    content = json.loads(store.read_file(FILE))
    del content["history"]
    store.write_file(FILE, json.dumps(content))
    kept = read_changes(store)
    assert kept is not None and kept.history == kept.changes == tuple(editor.changes)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "service": 1}'])
def test_a_damaged_file_is_an_error_that_says_what_to_do(new_run: New, text: str) -> None:
    store = new_run()
    store.write_file(FILE, text)
    with pytest.raises(InputError, match=r"serving.json: damaged .* delete it to serve the run as it is"):
        read_changes(store)


def test_a_file_that_cannot_be_read_is_not_taken_for_none(new_run: New) -> None:
    store = new_run()
    (Path(store.url) / FILE).mkdir()
    with pytest.raises(InputError, match=r"serving.json: cannot be read"):
        read_changes(store)


def test_changes_go_along_to_the_next_version(new_run: New) -> None:
    store = new_run()
    old = Editor(store, find_version(store))
    old.keep(old.add(as_document("new", "A zeppelin floats.", "", {})))
    removal = old.remove("d1")
    assert removal is not None
    old.keep(removal)
    store = new_run(k1=0.9)
    found = find_version(store)
    assert found.id != old.version.id
    editor = Editor(store, found)
    editor.replay(old.history)
    assert editor.collection.get("new") is not None and editor.collection.get("d1") is None
    assert [change.number for change in editor.changes] == [1, 2]
    before = json.dumps([change.number for change in editor.changes])
    editor.replay(old.history)
    assert json.dumps([change.number for change in editor.changes]) == before


@pytest.mark.parametrize(
    ("doc_id", "text", "message"),
    [
        ("d3", "text", "doc_id: expected an id that is not served yet"),
        ("new", "  ", "text: expected a text or a title"),
    ],
)
def test_a_document_that_cannot_be_added_says_why(small_run: RunStore, doc_id: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Editor(small_run, find_version(small_run)).add(as_document(doc_id, text, "", {}))
