"""Folders of workers: whose they are, and which of them are left behind and deleted."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from genret.training.workplace import workplace

WORKER = """
import sys, tempfile
from genret.training.workplace import workplace
tempfile.tempdir = sys.argv[1]
with workplace() as folder:
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"weights")
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def worker(parent: Path) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Another process with a folder of its own, and a checkpoint in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_killed_workers_left_is_deleted_and_no_other(parent: Path) -> None:
    (parent / "genret-training-mine.txt").write_text("a file of that name", encoding="utf-8")
    (parent / "genret-train-older").mkdir()
    with ExitStack() as stack:
        killed, left = stack.enter_context(worker(parent))
        _, kept = stack.enter_context(worker(parent))
        killed.kill()
        killed.wait()
        assert (left / "checkpoint-1" / "model.safetensors").is_file(), "nobody has deleted it"
        own = stack.enter_context(workplace())
        assert not left.exists()
        assert (kept / "checkpoint-1" / "model.safetensors").is_file()
        names = {path.name for path in parent.iterdir()}
        assert names == {kept.name, own.name, "genret-training-mine.txt", "genret-train-older"}


def test_a_folder_ends_with_its_block(parent: Path) -> None:
    with pytest.raises(ValueError, match="diverged"), workplace() as folder:
        (folder / "checkpoint-1").mkdir()
        raise ValueError("diverged")
    assert list(parent.iterdir()) == []


def test_what_was_deleted_in_part_is_deleted_whole(parent: Path) -> None:
    (parent / "genret-training-half" / "checkpoint-1").mkdir(parents=True)
    with workplace() as folder:
        assert list(parent.iterdir()) == [folder]
