"""What is done before Ray Train starts: in any storage, a list of checkpoints that is cut short is left behind."""

from pathlib import Path
from uuid import uuid4

import pytest

from genret.storage import Storage
from genret.training.launch import _drop_broken_snapshot

SNAPSHOT, CHECKPOINT = "train/checkpoint_manager_snapshot.json", "train/checkpoint_1/model.safetensors"


@pytest.mark.parametrize("kind", ["disk", "memory"])
@pytest.mark.parametrize(("content", "is_kept"), [(b'{"checkpoints": []}', True), (b'{"check', False), (None, True)])
def test_training_starts_anew_where_its_list_of_checkpoints_is_broken(
    tmp_path: Path, kind: str, content: bytes | None, is_kept: bool
) -> None:
    storage = Storage(str(tmp_path / "scratch") if kind == "disk" else f"memory://bucket/{uuid4().hex}")
    storage.put(CHECKPOINT, b"weights")
    if content is not None:
        storage.put(SNAPSHOT, content)
    _drop_broken_snapshot(storage)
    assert (storage.read(CHECKPOINT) is not None) == is_kept
    assert (storage.read(SNAPSHOT) is not None) == (is_kept and content is not None)
