"""Files below a root, on a disk and in memory as a stand for an object store."""

from pathlib import Path

import pytest

from genret.errors import InputError
from genret.storage import Storage, attempt_name


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root") if request.param == "local" else f"memory://{tmp_path.name}-{attempt_name()}")


def test_a_file_is_replaced_at_once_and_read(storage: Storage) -> None:
    assert storage.read("a/b.txt") is None and storage.size("a/b.txt") == -1
    storage.put("a/b.txt", b"old")
    storage.put("a/b.txt", b"newer")
    assert storage.read("a/b.txt") == b"newer" and storage.size("a/b.txt") == 5
    assert storage.children("a") == ["b.txt"], "nothing is left of the writing"
    with storage.writing("a/c.txt") as stream:
        stream.write(b"streamed")
    with storage.reading("a/c.txt") as stream:
        assert stream.read() == b"streamed"


def test_a_file_is_created_once(storage: Storage) -> None:
    assert storage.create("lease/one", b"first")
    assert not storage.create("lease/one", b"second")
    assert storage.read("lease/one") == b"first"
    assert storage.children("lease") == ["one"]


def test_what_is_not_there_is_listed_and_deleted_without_complaint(storage: Storage) -> None:
    assert storage.children("none") == []
    storage.delete("none")
    storage.put("folder/one", b"1")
    storage.put("folder/two", b"2")
    storage.delete("folder/one")
    assert storage.children("folder") == ["two"]
    storage.delete("folder")
    assert storage.read("folder/two") is None


def test_places_are_joined_before_options_and_shown_without_them(tmp_path: Path) -> None:
    assert Storage(str(tmp_path)).join("a/b") == Storage(str(tmp_path)).address("a/b") == str(tmp_path / "a" / "b")
    remote = Storage("s3://bucket/run?region=eu-west-1&scheme=https")
    assert remote.join("a") == "s3://bucket/run/a?region=eu-west-1&scheme=https"
    assert remote.address("a") == "s3://bucket/run/a"


@pytest.mark.parametrize(
    ("url", "found"),
    [("", "found nothing"), ("s3://", "found 's3://'"), ("s3://key:secret@bucket/x", "keys"), ("no://x", "'no://x'")],
)
def test_what_is_no_place_is_named(url: str, found: str) -> None:
    with pytest.raises(InputError, match=found) as caught:
        Storage(url)
    assert "secret" not in str(caught.value)


def test_no_two_attempts_have_one_name() -> None:
    assert len({attempt_name() for _ in range(100)}) == 100
