import json
import os
import random
import subprocess
import sys
import textwrap
from datetime import timedelta
from hashlib import sha256
from io import FileIO
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret import runs, spools
from genret.errors import InputError
from genret.runs import RunStore, StageRecord, fingerprint
from genret.spools import NoRoomError
from genret.tables import table_from_rows

MARK = "0123456789abcdef"


def queries(count: int, word: str = "text") -> pa.Table:
    return table_from_rows(
        "test_queries", [{"query_id": f"q{number}", "text": f"{word} {number}"} for number in range(count)]
    )


def qrels(count: int) -> pa.Table:
    return table_from_rows(
        "qrels", [{"query_id": f"q{n}", "doc_id": f"d{n}", "relevance": n % 3} for n in range(count)]
    )


def model_folder(parent: Path) -> Path:
    folder = parent / "model"
    (folder / "tokens").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "tokens" / "vocabulary.txt").write_text("ein\nzwei\n")
    return folder


def write_stage(store: RunStore, stage: str, mark: str, folder: Path) -> StageRecord:
    writer = store.begin(stage, mark)
    writer.write_table("test_queries", queries(3))
    writer.write_table("qrels", qrels(5))
    writer.write_folder("sft", folder)
    writer.write_text("report.html", "<p>naïve</p>")
    return writer.commit({"seconds": 1.5, "loss": None})


def check_whole(store: RunStore, record: StageRecord) -> None:
    assert store.read_table(record, "test_queries").equals(queries(3))
    assert store.read_table(record, "qrels").equals(qrels(5))
    folder = store.local_folder(record, "sft")
    assert (folder / "weights.bin").read_bytes() == bytes(range(256)) * 40
    assert (folder / "tokens" / "vocabulary.txt").read_text() == "ein\nzwei\n"
    assert store.read_text(record, "report.html") == "<p>naïve</p>"


@pytest.fixture(params=["path", "file", "memory"])
def url(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return {
        "path": str(tmp_path / "my run"),
        "file": f"file://{tmp_path}/my-run",
        "memory": f"memory://bucket/{uuid4().hex}/run",
    }[request.param]


# --- a stage's output --------------------------------------------------------------------------------------


def test_nothing_is_visible_before_the_commit_and_everything_after(url, tmp_path):
    folder = model_folder(tmp_path)
    store = RunStore(url)
    writer = store.begin("corpus", MARK)
    writer.write_table("test_queries", queries(3))
    writer.write_table("qrels", qrels(5))
    writer.write_folder("sft", folder)
    writer.write_text("report.html", "<p>naïve</p>")
    assert store.find("corpus", MARK) is None
    record = writer.commit({"seconds": 1.5})
    found = RunStore(store.url).find("corpus", MARK)
    assert found == record
    assert (found.stage, found.fingerprint, found.details) == ("corpus", MARK, {"seconds": 1.5})
    assert found.tables["qrels"]["rows"] == 5
    check_whole(store, found)


def test_stages_and_fingerprints_do_not_meet(url, tmp_path):
    store = RunStore(url)
    for stage, mark, count in (("corpus", "aa", 1), ("corpus", "bb", 2), ("synthesis", "aa", 3)):
        writer = store.begin(stage, mark)
        writer.write_table("test_queries", queries(count))
        writer.commit({})
    for stage, mark, count in (("corpus", "aa", 1), ("corpus", "bb", 2), ("synthesis", "aa", 3)):
        assert store.read_table(store.find(stage, mark), "test_queries").num_rows == count
    assert store.find("synthesis", "bb") is None
    assert store.find("sft", "aa") is None


def test_the_first_of_two_writers_wins(url):
    store = RunStore(url)
    first, second = store.begin("corpus", MARK), store.begin("corpus", MARK)
    first.write_table("test_queries", queries(1))
    second.write_table("test_queries", queries(2))
    record = first.commit({"who": "first"})
    assert second.commit({"who": "second"}) == record
    assert store.read_table(store.find("corpus", MARK), "test_queries").num_rows == 1
    assert store.sweep(timedelta(0))  # the second one's file
    assert store.read_table(record, "test_queries").num_rows == 1


def test_a_writer_writes_each_name_once_and_nothing_after_its_commit(tmp_path):
    writer = RunStore(tmp_path / "run").begin("corpus", MARK)
    writer.write_table("test_queries", queries(1))
    with pytest.raises(ValueError, match="wrote 'test_queries' before"):
        writer.write_table("test_queries", queries(2))
    writer.commit({})
    with pytest.raises(RuntimeError, match="committed"):
        writer.write_table("qrels", qrels(1))


def test_tables_are_checked_against_their_schema(tmp_path):
    writer = RunStore(tmp_path / "run").begin("corpus", MARK)
    with pytest.raises(InputError, match="table qrels: expected the columns"):
        writer.write_table("qrels", pa.table({"query_id": ["a"]}))


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
def test_names_stay_in_their_folder(tmp_path, name):
    store = RunStore(tmp_path / "run")
    with pytest.raises(ValueError, match="plain name"):
        store.begin("corpus", MARK).write_text(name, "x")
    with pytest.raises(ValueError, match="plain name"):
        store.find(name, MARK)
    with pytest.raises(ValueError, match="plain name"):
        store.write_file(name, "x")


def test_an_empty_or_missing_folder_is_an_error(tmp_path):
    writer = RunStore(tmp_path / "run").begin("sft", MARK)
    with pytest.raises(InputError, match="expected a folder with files"):
        writer.write_folder("sft", tmp_path / "none")


def test_what_a_stage_did_not_write_is_an_error_that_lists_what_it_wrote(tmp_path):
    store = RunStore(tmp_path / "run")
    record = write_stage(store, "corpus", MARK, model_folder(tmp_path))
    with pytest.raises(InputError, match=r"stage corpus wrote no table 'queries'; found \['qrels'"):
        store.read_table(record, "queries")
    with pytest.raises(InputError, match=r"wrote no folder 'rpo'; found \['sft'\]"):
        store.local_folder(record, "rpo")
    with pytest.raises(InputError, match="wrote no text"):
        store.read_text(record, "x")


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text("ab\0\n\r\u2028"))))
def test_tables_read_back_as_they_were_written(rows):
    table = table_from_rows("test_queries", [{"query_id": first, "text": second} for first, second in rows])
    store = RunStore(f"memory://hypothesis/{uuid4().hex}")
    writer = store.begin("corpus", MARK)
    writer.write_table("test_queries", table)
    assert store.read_table(writer.commit({}), "test_queries").equals(table)


# --- the run as a whole ------------------------------------------------------------------------------------


def test_current_stages_keep_their_order_and_going_back_finds_them(url):
    store = RunStore(url)
    for stage, mark in (("synthesis", "aa"), ("corpus", "aa"), ("corpus", "bb")):
        store.begin(stage, mark).commit({"mark": mark})
    assert store.current() == {}
    store.set_current({"synthesis": "aa", "corpus": "bb", "sft": "cc"})
    current = RunStore(url).current()
    assert list(current) == ["synthesis", "corpus"]  # sft never finished
    assert current["corpus"].details == {"mark": "bb"}
    store.set_current({"corpus": "aa"})
    assert store.current()["corpus"].details == {"mark": "aa"}


def test_loose_files_are_replaced(url):
    store = RunStore(url)
    store.write_file("config.yaml", "a: 1\n")
    store.write_file("config.yaml", "ä: 2\n")
    assert store.read_file("config.yaml") == "ä: 2\n"
    with pytest.raises(InputError, match=r"report\.html: no such file"):
        store.read_file("report.html")


def test_open_existing_needs_a_run(url):
    with pytest.raises(InputError, match=r"no run at .*run; expected run\.json"):
        RunStore.open_existing(url)
    RunStore(url).set_current({})
    assert RunStore.open_existing(url).current() == {}


def test_relative_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = RunStore("runs/one")
    monkeypatch.chdir("/")
    store.write_file("config.yaml", "x")
    assert (tmp_path / "runs" / "one" / "config.yaml").read_text() == "x"
    assert RunStore(store.url).read_file("config.yaml") == "x"


def test_scratch_is_the_same_for_the_same_fingerprint_and_can_be_cleared(tmp_path):
    store = RunStore(tmp_path / "run")
    scratch = Path(store.scratch("sft", MARK))
    (scratch / "checkpoint").write_text("x")
    assert store.scratch("sft", MARK) == str(scratch)
    assert (scratch / "checkpoint").exists()
    assert store.scratch("sft", "ffff") != str(scratch)
    store.clear_scratch("sft", MARK)
    assert not scratch.exists()
    store.clear_scratch("sft", MARK)


def test_a_shared_folder_outlives_its_stages(tmp_path):
    store = RunStore(tmp_path / "run")
    folder = Path(store.shared_folder("completions"))
    assert folder == tmp_path / "run" / "completions"
    (folder / "20200101T000000-0123abcd-0123abcd.jsonl").write_text("x")
    store.clear_scratch("completions", MARK)
    assert store.sweep(timedelta(0)) == []
    assert RunStore(store.url).shared_folder("completions") == str(folder)
    assert [path.read_text() for path in folder.iterdir()] == ["x"]
    with pytest.raises(ValueError, match="plain name"):
        store.shared_folder("../elsewhere")


def test_scratch_of_a_url_is_a_url_with_its_options():
    assert RunStore("memory://bucket/run").scratch("sft", "aa") == "memory://bucket/run/scratch/sft-aa"
    store = RunStore("s3://bucket/run/?region=eu-west-1&endpoint_override=localhost:9")
    assert store.scratch("sft", "aa") == "s3://bucket/run/scratch/sft-aa?region=eu-west-1&endpoint_override=localhost:9"
    assert RunStore(store.url).url == store.url


def test_messages_show_no_password():
    url = "abfs://key:secret@bucket/run?region=x"
    with pytest.raises(InputError, match=r"found 'abfs://bucket/run'") as caught:
        RunStore(f"{url}&no_such_option=1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/run", "s3://secret@bucket/run?region=x", "gs://a:secret@b/r"])
def test_keys_in_a_url_are_refused_and_not_shown(url: str):
    with pytest.raises(InputError, match="keys come from the environment") as caught:
        RunStore(url)
    assert "secret" not in str(caught.value)


def test_a_remote_folder_is_fetched_once_and_again_when_it_was_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = RunStore(f"memory://bucket/{uuid4().hex}")
    record = write_stage(store, "sft", MARK, model_folder(tmp_path))
    folder = store.local_folder(record, "sft")
    assert folder.is_relative_to(tmp_path / "cache")
    inode = folder.stat().st_ino
    assert store.local_folder(record, "sft").stat().st_ino == inode
    (folder / "weights.bin").write_bytes(b"short")
    check_whole(store, record)


def flipped(content: bytes) -> bytes:
    return content[:60] + bytes([content[60] ^ 1]) + content[61:]


def test_every_byte_of_a_folder_can_be_checked(url, tmp_path):
    store = RunStore(url)
    record = write_stage(store, "sft", MARK, model_folder(tmp_path))
    assert record.folders["sft"]["checksums"] == {
        "weights.bin": sha256(bytes(range(256)) * 40).hexdigest(),
        "tokens/vocabulary.txt": sha256(b"ein\nzwei\n").hexdigest(),
    }
    store.check_folder(store.find("sft", MARK), "sft")
    check_whole(store, record)
    weights = store.local_folder(record, "sft") / "weights.bin"
    weights.write_bytes(flipped(weights.read_bytes()))
    store.local_folder(record, "sft")
    for reader in (store, RunStore(url)):
        with pytest.raises(InputError, match=r"weights\.bin.*expected the SHA-256 .* delete /.* to have") as told:
            reader.check_folder(record, "sft")
        assert str(told.value).endswith("fetched again" if store._storage.local is None else "the stage sft run again")


def test_a_file_is_read_once_until_somebody_writes_to_it(tmp_path, monkeypatch):
    store = RunStore(tmp_path / "run")
    record = write_stage(store, "sft", MARK, model_folder(tmp_path))
    read = []
    damage_of = runs._damage
    monkeypatch.setattr(runs, "_damage", lambda path, expected: read.append(path.name) or damage_of(path, expected))
    for _ in range(2):
        store.check_folder(record, "sft")
        assert sorted(read) == ["vocabulary.txt", "weights.bin"]
    weights = store.local_folder(record, "sft") / "weights.bin"
    weights.write_bytes(flipped(weights.read_bytes()))
    for _ in range(2):
        with pytest.raises(InputError, match="damaged"):
            store.check_folder(record, "sft")


def test_a_file_that_cannot_be_read_is_damaged(tmp_path, monkeypatch):
    store = RunStore(tmp_path / "run")
    record = write_stage(store, "sft", MARK, model_folder(tmp_path))

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(runs.hashlib, "file_digest", fail)
    with pytest.raises(InputError, match=r"vocabulary\.txt: .*Input/output error"):
        store.check_folder(record, "sft")


def test_a_remote_folder_that_was_damaged_there_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = RunStore(f"memory://bucket/{uuid4().hex}")
    record = write_stage(store, "sft", MARK, model_folder(tmp_path))
    place = f"{record.folders['sft']['path']}/weights.bin"
    content = store._storage.read(place)
    store._storage.delete(place)
    store._storage.put(place, flipped(content))
    with pytest.raises(InputError, match=r"cannot be copied .*weights\.bin: expected the SHA-256"):
        store.local_folder(record, "sft")
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_a_folder_from_before_there_were_checksums_is_taken_as_it_is(tmp_path):
    store = RunStore(tmp_path / "run")
    write_stage(store, "sft", MARK, model_folder(tmp_path))
    manifest = tmp_path / "run" / "stages" / f"sft-{MARK}.json"
    content = json.loads(manifest.read_text())
    del content["folders"]["sft"]["checksums"]
    manifest.write_text(json.dumps(content))
    record = store.find("sft", MARK)
    store.check_folder(record, "sft")
    check_whole(store, record)


# --- what can go wrong -------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        # Invert a byte of the first page: only its checksum can tell.
        path.write_bytes(content[:60] + bytes([content[60] ^ 0xFF]) + content[61:])


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "flipped"])
def test_a_damaged_table_is_named_with_what_to_do(tmp_path, how):
    store = RunStore(tmp_path / "run")
    record = write_stage(store, "corpus", MARK, model_folder(tmp_path))
    path = tmp_path / "run" / record.tables["test_queries"]["path"]
    damage(path, how)
    with pytest.raises(InputError, match="missing or damaged") as caught:
        store.read_table(record, "test_queries")
    with pytest.raises(InputError) as in_parts:
        list(store.read_parts(record, "test_queries", 2))
    assert str(in_parts.value) == str(caught.value)
    assert str(path) in str(caught.value)
    assert f"delete {tmp_path}/run/stages/corpus-{MARK}.json" in str(caught.value)


def test_a_table_is_read_in_parts(url, tmp_path):
    store = RunStore(url)
    record = write_stage(store, "corpus", MARK, model_folder(tmp_path))
    for rows in (1, 2, 5, 100):
        parts = list(store.read_parts(record, "qrels", rows))
        assert all(part.num_rows <= rows for part in parts)
        assert pa.concat_tables(parts).equals(qrels(5))
    record.tables["qrels"]["rows"] = 6
    with pytest.raises(InputError, match="expected 6 rows, found 5"):
        list(store.read_parts(record, "qrels", 2))
    writer = store.begin("empty", MARK)
    writer.write_table("qrels", qrels(0))
    assert list(store.read_parts(writer.commit({}), "qrels", 10)) == []


def test_a_table_with_other_rows_or_columns_is_damaged(tmp_path):
    store = RunStore(tmp_path / "run")
    record = write_stage(store, "corpus", MARK, model_folder(tmp_path))
    root = tmp_path / "run"
    (root / record.tables["qrels"]["path"]).write_bytes((root / record.tables["test_queries"]["path"]).read_bytes())
    with pytest.raises(InputError, match="expected 5 rows, found 3"):
        store.read_table(record, "qrels")


@pytest.mark.parametrize("how", ["missing", "cut"])
@pytest.mark.parametrize("kind", ["path", "memory"])
def test_a_damaged_folder_or_text_is_named(tmp_path, monkeypatch, how, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = RunStore(tmp_path / "run" if kind == "path" else f"memory://bucket/{uuid4().hex}")
    record = write_stage(store, "sft", MARK, model_folder(tmp_path))
    for place in (f"{record.folders['sft']['path']}/weights.bin", record.texts["report.html"]["path"]):
        store._storage.delete(place)
        if how == "cut":
            store._storage.put(place, b"x")
    with pytest.raises(InputError, match=r"artifacts/sft/.*weights\.bin"):
        store.local_folder(record, "sft")
    with pytest.raises(InputError, match=r"artifacts/report\.html/.*missing or damaged"):
        store.read_text(record, "report.html")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"format": 1, "sta', "Unterminated string"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"format": 99}', "expected format 1, found 99"),
        (b"{}", "expected format 1, found None"),
        (b'{"format": 1}', "stage: Field required"),
        (b"\xff\xfe\xff", "codec can't decode"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, content, reason):
    store = RunStore(tmp_path / "run")
    store.begin("corpus", MARK).commit({})
    path = tmp_path / "run" / "stages" / f"corpus-{MARK}.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged record of a stage") as caught:
        store.find("corpus", MARK)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    with pytest.raises(InputError, match="damaged record"):
        store.sweep()


def test_a_manifest_of_another_stage_or_with_wrong_types_is_damaged(tmp_path):
    store = RunStore(tmp_path / "run")
    store.begin("corpus", MARK).commit({})
    stages = tmp_path / "run" / "stages"
    content = json.loads((stages / f"corpus-{MARK}.json").read_text())
    (stages / f"sft-{MARK}.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="it is of stage corpus"):
        store.find("sft", MARK)
    content["tables"] = {"qrels": {"path": "x", "rows": "three"}}
    (stages / f"corpus-{MARK}.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"tables\.qrels\.rows: Input should be a valid integer"):
        store.find("corpus", MARK)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2, "stages": {}}', '{"format": 1}'])
def test_a_damaged_run_json_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        RunStore.open_existing(tmp_path).current()


@pytest.mark.parametrize("url", ["", "  ", "unknown://bucket/run", "s3://", "s3://b/r?no_such_option=1"])
def test_a_url_that_nobody_understands_is_an_error(url):
    with pytest.raises(InputError, match="run: expected"):
        RunStore(url)


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="expected a folder for the run, found a file"):
        RunStore(tmp_path / "run")
    with pytest.raises(InputError, match="cannot be written"):
        RunStore(tmp_path / "run" / "below").set_current({})


def test_parts_are_one_table_in_their_order(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    writer = store.begin("corpus", MARK)
    writer.write_parts("qrels", (qrels(count) for count in (2, 1, 4)))
    record = writer.commit({})
    assert record.tables["qrels"]["rows"] == 7
    assert store.read_table(record, "qrels").equals(pa.concat_tables([qrels(2), qrels(1), qrels(4)]))


@pytest.mark.parametrize("failing", [2, 3])
def test_a_part_that_cannot_be_written_is_an_error(
    tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = pq.ParquetWriter.write_table, []

    def fail(self, table, **options):
        calls.append(table)
        if len(calls) == failing:
            raise OSError("no space left on device")
        write(self, table, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    writer = RunStore(tmp_path).begin("corpus", MARK)
    with pytest.raises(InputError, match="no space left on device"):
        writer.write_parts("qrels", (qrels(1) for _ in range(3)))


def test_an_error_in_the_making_of_parts_passes_as_it_is(tmp_path: Path) -> None:
    def parts():
        yield qrels(1)
        raise InputError("what they are made of")

    with pytest.raises(InputError, match="what they are made of"):
        RunStore(tmp_path).begin("corpus", MARK).write_parts("qrels", parts())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write to")
def test_a_folder_that_cannot_be_written_to_is_an_error():
    store = RunStore("/proc/genret-run")
    with pytest.raises(InputError, match=r"/proc/genret-run.*cannot be written"):
        store.write_file("config.yaml", "x")
    with pytest.raises(InputError, match=r"/proc/genret-run.*cannot be written"):
        store.begin("corpus", MARK).write_table("qrels", qrels(1))


def test_a_file_that_is_gone_before_the_commit_stops_it(tmp_path):
    store = RunStore(tmp_path / "run")
    writer = store.begin("corpus", MARK)
    writer.write_table("qrels", qrels(1))
    store.sweep(timedelta(0))
    with pytest.raises(InputError, match="a file of stage corpus is gone: tables/qrels/"):
        writer.commit({})
    assert store.find("corpus", MARK) is None


def test_details_that_are_not_json_leave_nothing_visible(tmp_path):
    store = RunStore(tmp_path / "run")
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.begin("corpus", MARK).commit({"path": Path("x")})
    assert store.find("corpus", MARK) is None


def test_sweep_deletes_old_orphans_only(url, tmp_path):
    folder = model_folder(tmp_path)
    store = RunStore(url)
    record = write_stage(store, "corpus", MARK, folder)
    store.write_file("notes.txt", "mine")
    orphan = store.begin("sft", MARK)
    orphan.write_table("qrels", qrels(1))
    orphan.write_folder("sft", folder)
    orphan.write_text("report.html", "x")
    assert store.sweep() == []  # they are young
    swept = store.sweep(timedelta(0))
    assert [place.rsplit("-", 2)[0] for place in swept] == [
        f"artifacts/report.html/sft-{MARK}",
        f"artifacts/sft/sft-{MARK}",
        f"tables/qrels/sft-{MARK}",
    ]
    assert store.sweep(timedelta(0)) == []
    check_whole(store, record)
    assert store.read_file("notes.txt") == "mine"


# --- killed at any instant ---------------------------------------------------------------------------------

# Forks children that write stages of tiny tables and loose files into runs of their own, and are killed: the
# first ones at the Nth line of runs.py and storage.py that they execute, for every N, while they write one stage;
# the others after a random time, while they write two. Flushing to the disk only matters when the machine dies, and
# is left out for speed.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import genret.runs
import genret.storage
from genret.runs import RunStore
from genret.tables import table_from_rows

root, model, seed, repeats = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
queries = table_from_rows("test_queries", [{"query_id": f"q{n}", "text": f"text {n}"} for n in range(3)])
rows = [{"query_id": f"q{n}", "doc_id": f"d{n}", "relevance": n % 3} for n in range(5)]
qrels = table_from_rows("qrels", rows)
sources = {genret.runs.__file__, genret.storage.__file__}
os.fsync = lambda descriptor: None

def work(folder, stages):
    store = RunStore(folder)
    done = {}
    for stage in stages:
        writer = store.begin(stage, "0123456789abcdef")
        writer.write_table("test_queries", queries)
        writer.write_table("qrels", qrels)
        writer.write_folder("sft", model)
        writer.write_text("report.html", "<p>na\\u00efve</p>")
        writer.commit({})
        done[stage] = "0123456789abcdef"
        store.set_current(done)
        store.write_file("config.yaml", "x" * 10000 + stage)

def kill_at_line(number):
    left = number
    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename not in sources:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)

def child(folder, line=None):
    pid = os.fork()
    if pid == 0:
        if line is not None:
            kill_at_line(line)
        work(folder, ("corpus", "synthesis") if line is None else ("corpus",))
        os._exit(0)
    return pid

def killed(pid):
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

line = 0
while killed(child(root / f"line{line}", line)):
    line += 1
begin = time.perf_counter()
killed(child(root / "whole"))
whole = time.perf_counter() - begin
generator = random.Random(seed)
for number in range(repeats):
    pid = child(root / f"time{number}")
    time.sleep(generator.random() * whole)
    os.kill(pid, signal.SIGKILL)
    killed(pid)
print(line)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_at_any_instant_leaves_each_stage_whole_or_absent(tmp_path):
    folder = model_folder(tmp_path)
    root = tmp_path / "runs"
    root.mkdir()
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLER), str(root), str(folder), "7", "60"],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    lines = int(finished.stdout)
    assert lines > 100
    found = {0: 0, 1: 0, 2: 0}
    for path in sorted(root.iterdir()):
        store = RunStore(path)
        records = [store.find(stage, MARK) for stage in ("corpus", "synthesis")]
        for record in records:
            if record is not None:
                check_whole(store, record)
        assert not (records[0] is None and records[1] is not None)
        assert set(store.current()) <= {"corpus", "synthesis"}
        if (path / "config.yaml").exists():
            assert store.read_file("config.yaml").lstrip("x") in ("corpus", "synthesis")
        found[sum(record is not None for record in records)] += 1
    assert min(found[0], found[1]) > 10  # kills fell before and after the commits
    assert found[2] > 0
    for path in random.Random(7).sample(sorted(root.iterdir()), 20):
        store = RunStore(path)
        store.sweep(timedelta(0))
        for stage in ("corpus", "synthesis"):
            check_whole(store, store.find(stage, MARK) or write_stage(store, stage, MARK, folder))
        assert store.sweep(timedelta(0)) == []
        files = {file.relative_to(path).parts[0] for file in path.rglob("*") if file.is_file()}
        assert files <= {"tables", "artifacts", "stages", "run.json", "config.yaml"}


# --- fingerprints ------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_fingerprints_never_change():
    # By hand: printf '["sft",{"a":[1,2.5,null],"b":"\\u00ef"}]' | sha256sum
    assert fingerprint("sft", {"b": "ï", "a": (1, 2.5, None)}) == "f0c8050cd6267491"
    assert fingerprint() == "4f53cda18c2baa0c"  # of []


@given(json_values)
def test_fingerprints_survive_json(value):
    mark = fingerprint(value)
    assert fingerprint(json.loads(json.dumps(value))) == mark
    assert len(mark) == 16
    assert set(mark) <= set("0123456789abcdef")


@given(st.dictionaries(st.text(), json_values, min_size=2))
def test_the_order_of_keys_does_not_count(mapping):
    assert fingerprint(mapping) == fingerprint(dict(reversed(mapping.items())))


@given(json_values, json_values)
def test_different_values_have_different_fingerprints(first, second):
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (fingerprint(first) == fingerprint(second)) == same
    assert fingerprint(first, second) != fingerprint([first, second])


def test_what_is_not_json_has_no_fingerprint():
    with pytest.raises(TypeError):
        fingerprint({1, 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint(float("nan"))


def test_a_large_table_is_no_part_of_memory(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [{"query_id": f"q{number}", "text": rng.randbytes(100).hex()} for number in range(40_000)]
    store, table = RunStore(tmp_path), table_from_rows("test_queries", rows)
    writer = store.begin("corpus", MARK)
    writer.write_table("test_queries", table)
    record = writer.commit({})
    before = pa.total_allocated_bytes()
    found = store.read_table(record, "test_queries")
    assert pa.total_allocated_bytes() - before < found.nbytes / 10
    assert found.equals(table) and found.schema.equals(table.schema)


def test_no_room_for_a_large_table_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path)
    writer = store.begin("corpus", MARK)
    writer.write_table("test_queries", queries(3))
    record = writer.commit({})
    monkeypatch.setattr(runs, "_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(spools.tempfile, "TemporaryFile", lambda prefix: FileIO("/dev/full", "r+"))
    with pytest.raises(NoRoomError, match="TMPDIR"):
        store.read_table(record, "test_queries")
