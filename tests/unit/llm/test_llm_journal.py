import json
import os
import subprocess
import sys
import uuid
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genret.errors import InputError
from genret.llm.journal import Completion, IdSet, Journal, JournalWriter
from genret.storage import Storage

IDS = st.integers(0, 2**128 - 1).map("{:032x}".format) | st.integers(0, 20).map("{:032x}".format)
# Half of a surrogate pair too: broken JSON of a server may hold it.
TEXTS = st.text(st.characters(categories=["L", "N", "P", "Zs", "Cc", "Cs"]), max_size=40)
COMPLETIONS = st.builds(
    Completion, IDS, TEXTS, st.booleans(), st.just("") | TEXTS, st.integers(0, 10**6), st.integers(0, 10**6)
)


def name(number: int) -> str:
    return f"{number:032x}"


def write(folder: Path | str, completions: list[Completion], session: str = "s") -> None:
    writer = JournalWriter(str(folder), session)
    for completion in completions:
        writer.append(completion)
    writer.close()


def lines(completions: list[Completion]) -> list[bytes]:
    return [(json.dumps(asdict(completion)) + "\n").encode() for completion in completions]


def expected(completions: list[Completion]) -> dict[str, Completion]:
    """What counts of records in one file."""
    counted: dict[str, Completion] = {}
    for completion in completions:
        if completion.id not in counted or counted[completion.id].error:
            counted[completion.id] = completion
    return counted


def check(journal: Journal, completions: list[Completion], others: list[str]) -> None:
    counted = expected(completions)
    ids = [*counted, *(other for other in others if other not in counted)]
    assert journal.done(ids).tolist() == [one in counted and not counted[one].error for one in ids]
    assert journal.read(list(counted)) == list(counted.values())
    assert len(journal) == len(counted)


@pytest.fixture
def remote():
    """A folder of an object store that every `Storage` of this process sees."""
    url = f"memory://journal-{uuid.uuid4().hex}/completions"
    yield url


# --- what is read back ---


@settings(max_examples=60, deadline=None)
@given(st.lists(COMPLETIONS, max_size=30), st.lists(IDS, max_size=5))
def test_what_is_written_is_read(tmp_path_factory, completions, others):
    folder = tmp_path_factory.mktemp("journal")
    write(folder, completions)
    check(Journal(str(folder)), completions, others)


@settings(max_examples=100, deadline=None)
@given(st.lists(COMPLETIONS, min_size=1, max_size=12), st.data())
def test_a_file_cut_at_any_byte_keeps_every_whole_record(tmp_path_factory, completions, data):
    folder = tmp_path_factory.mktemp("journal")
    write(folder, completions)
    [path] = folder.iterdir()
    whole = path.read_bytes()
    assert whole == b"".join(lines(completions))
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    ends = np.cumsum([len(line) for line in lines(completions)])
    kept = completions[: int((ends <= cut).sum())]
    journal = Journal(str(folder))
    check(journal, kept, [completion.id for completion in completions])
    assert journal.damaged == 0, "a torn last line is nobody's fault"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        COMPLETIONS
        | st.binary(max_size=30).filter(lambda junk: b"\n" not in junk)
        | st.sampled_from(
            [
                b"{}", b"[]", b"null", b"1e999", b"[" * 100_000, b"\x00" * 64, b'{"id": "x"}', b"",
                json.dumps({"id": name(1), "text": 5}).encode(),
                json.dumps({"id": name(1), "finished": "yes"}).encode(),
                json.dumps({"id": name(1), "prompt_tokens": 1.5}).encode(),
                json.dumps({"id": name(1).upper().replace("0", "A")}).encode(),
                json.dumps({"id": name(1), "more": 1}).encode(),
            ]
        ),
        max_size=12,
    )
)  # fmt: skip
def test_lines_of_others_are_counted_and_passed_over(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("journal")
    good = [row for row in rows if isinstance(row, Completion)]
    content = [row + b"\n" if isinstance(row, bytes) else lines([row])[0] for row in rows]
    (folder / "s-1.jsonl").write_bytes(b"".join(content))
    (folder / "notes.txt").write_text("not of the journal\n")
    journal = Journal(str(folder))
    check(journal, good, [name(1)])
    assert journal.damaged == len(rows) - len(good)
    if journal.damaged:
        first = next(number for number, row in enumerate(rows) if isinstance(row, bytes))
        offset = sum(map(len, content[:first]))
        assert journal.first_damaged == f"{folder}/s-1.jsonl, byte {offset}"


def test_a_good_record_counts_whatever_came_before_or_after(tmp_path):
    error, later_error = Completion(name(1), error="down"), Completion(name(1), error="still down")
    good, second = Completion(name(1), "text"), Completion(name(1), "another text")
    for order in ([error, good], [good, error], [error, good, second, later_error]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write(folder, order)
        journal = Journal(str(folder))
        assert journal.done([name(1)]).tolist() == [True]
        assert journal.read([name(1)]) == [good]
    write(tmp_path / "errors", [error, later_error])
    journal = Journal(str(tmp_path / "errors"))
    assert journal.done([name(1)]).tolist() == [False]
    assert journal.read([name(1)]) == [later_error]


def test_which_record_counts_does_not_depend_on_when_a_file_was_first_seen(tmp_path):
    late, early = Completion(name(1), "of the later file"), Completion(name(1), "of the earlier file")
    write(tmp_path, [late], "session-2")
    journal = Journal(str(tmp_path))
    assert journal.read([name(1)]) == [late]
    write(tmp_path, [early], "session-1")
    journal.refresh()
    assert journal.read([name(1)]) == Journal(str(tmp_path)).read([name(1)]) == [early]


def test_refresh_takes_in_what_files_grew_by(tmp_path):
    writer = JournalWriter(str(tmp_path), "s")
    journal = Journal(str(tmp_path))
    assert not journal.done([name(1)]).any()
    writer.append(Completion(name(1), "one"))
    journal.refresh()
    writer.append(Completion(name(2), "two"))
    [path] = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(lines([Completion(name(3), "three")])[0][:-5])
    journal.refresh()
    assert journal.done([name(1), name(2), name(3)]).tolist() == [True, True, False]
    with path.open("ab") as file:
        file.write(lines([Completion(name(3), "three")])[0][-5:])
    journal.refresh()
    assert [completion.text for completion in journal.read([name(3), name(1)])] == ["three", "one"]
    assert journal.damaged == 0
    writer.close()


def test_a_session_is_read_alone(tmp_path):
    write(tmp_path, [Completion(name(1))], "20260101T000000-aaaaaaaa")
    write(tmp_path, [Completion(name(2))], "20260101T000001-bbbbbbbb")
    journal = Journal(str(tmp_path), "20260101T000001-bbbbbbbb")
    assert journal.done([name(1), name(2)]).tolist() == [False, True]


def test_an_unknown_id_is_an_error_and_no_journal_is_empty(tmp_path):
    journal = Journal(str(tmp_path / "nothing"))
    assert len(journal) == 0
    assert journal.done([]).tolist() == [] and journal.read([]) == []
    assert journal.done([name(1)]).tolist() == [False]
    with pytest.raises(KeyError, match=name(1)):
        journal.read([name(1)])


def test_a_record_that_changed_behind_the_index_is_an_error(tmp_path):
    write(tmp_path, [Completion(name(1), "text")])
    journal = Journal(str(tmp_path))
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"text", b"te\nt"))
    with pytest.raises(InputError, match=r"jsonl: changed while it was read"):
        journal.read([name(1)])


# --- what survives ---


def test_what_was_appended_survives_a_kill(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from genret.llm.journal import Completion, JournalWriter\n"
        f"writer = JournalWriter({str(tmp_path)!r}, 's')\n"
        "for number in range(100):\n"
        "    writer.append(Completion(f'{number:032x}', 'text ' * number))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -9
    journal = Journal(str(tmp_path))
    assert journal.done([name(number) for number in range(100)]).all()
    assert journal.read([name(99)])[0].text == "text " * 99


def test_writers_have_files_of_their_own_and_idle_ones_have_none(tmp_path):
    folder = tmp_path / "not" / "there" / "yet"
    writers = [JournalWriter(str(folder), "s") for _ in range(3)]
    for number in range(8):
        writers[number % 2].append(Completion(name(number)))
    for writer in writers:
        writer.close()
    assert len(list(folder.iterdir())) == 2
    assert Journal(str(folder)).done([name(number) for number in range(8)]).all()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_named(tmp_path):
    writer = JournalWriter(str(tmp_path), "s")
    writer.append(Completion(name(1)))
    os.dup2(os.open("/dev/full", os.O_WRONLY), writer._descriptor)
    with pytest.raises(InputError, match=rf"{tmp_path}: cannot be written: .*space"):
        writer.append(Completion(name(2)))


# --- object stores ---


def test_an_object_store_gets_segments(remote):
    now = [0.0]
    writer = JournalWriter(remote, "s", clock=lambda: now[0])
    writer.append(Completion(name(0), "a"))
    journal = Journal(remote)
    assert not journal.done([name(0)]).any(), "not yet put up"
    now[0] = 30.0
    writer.append(Completion(name(1), "b"))
    journal.refresh()
    assert journal.done([name(0), name(1)]).all(), "put up, as the first has waited for long"
    for number in range(2, 400):
        writer.append(Completion(name(number), f"text {number}"))
    journal.refresh()
    assert 200 < journal.done([name(number) for number in range(400)]).sum() < 400, "put up, as there were many"
    writer.flush()
    writer.flush()
    journal.refresh()
    assert journal.done([name(number) for number in range(400)]).all()
    wanted = [399, 5, 0, 257, 5]
    assert [completion.text for completion in journal.read([name(number) for number in wanted])] == [
        "text 399", "text 5", "a", "text 257", "text 5",
    ]  # fmt: skip
    assert Journal(remote).done([name(399)]).all()


@pytest.mark.parametrize("kept", [64 << 20, 1])
def test_segments_are_fetched_once_where_there_is_room_for_them(remote, monkeypatch, kept):
    monkeypatch.setattr("genret.llm.journal._KEPT_BYTES", kept)
    writer = JournalWriter(remote, "s")
    for number in range(1000):
        writer.append(Completion(name(number), f"text {number}"))
        if number % 32 == 31:
            writer.flush()
    writer.close()
    read, reads = Storage.read, []
    monkeypatch.setattr(Storage, "read", lambda storage, place: reads.append(place) or read(storage, place))
    journal = Journal(remote)
    order = np.random.default_rng(0).permutation(1000).tolist()
    for start in range(0, 1000, 100):
        some = order[start : start + 100]
        assert [one.text for one in journal.read([name(number) for number in some])] == [f"text {n}" for n in some]
    assert len(set(reads)) == 32
    assert (len(reads) == 32) == (kept > 1)


# --- sets of ids ---


@settings(deadline=None)
@given(st.lists(st.lists(IDS, max_size=20), max_size=20))
def test_an_id_is_new_once(batches):
    seen: set[str] = set()
    ids = IdSet()
    for batch in batches:
        new = ids.add(batch).tolist()
        for one, was_new in zip(batch, new, strict=True):
            assert was_new == (one not in seen)
            seen.add(one)


def test_the_index_takes_tens_of_bytes_a_record(tmp_path):
    write(tmp_path, [Completion(name(number), "text") for number in range(2000)])
    entries = Journal(str(tmp_path))._entries
    assert sum(column.nbytes for column in vars(entries).values()) == 33 * 2000
