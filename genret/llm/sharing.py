"""Whether all nodes of a cluster see the same folder."""

import secrets
import time
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genret.errors import InputError
from genret.storage import Storage

# Network file systems may take so long to show a new file.
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.5
# How long a node may take to answer at all, its first worker process included; one that does not is not judged.
_START_SECONDS = 60.0
_MOST_NAMED = 3
# Folders, and the nodes that were seen to share them.
_SHARED: set[tuple[str, frozenset[str]]] = set()


def check_shared(url: str) -> None:
    """See that a folder is the same on all nodes, before what is written into it is paid for.

    Args:
        url: Local path or URL of the folder, which need not be there yet. Object stores are the same everywhere.

    Raises:
        InputError: Some node has another folder, or none.
    """
    storage = Storage(url)
    if storage.local is None or not ray.is_initialized():
        return
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    known = (url, frozenset(nodes))
    if len(nodes) < 2 or known in _SHARED:
        return
    token = f".shared-{secrets.token_hex(8)}"
    storage.put(token, b"")
    try:
        asked = {_look(node, storage.local / token): address for node, address in nodes.items()}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_START_SECONDS + _PATIENCE_SECONDS)
        blind = [asked[answer] for answer in ready if not _saw(answer)]
    finally:
        storage.delete(token)
    if blind:
        raise InputError(
            f"run: expected a folder that all {len(nodes)} nodes share (on a network file system, or the URL of an "
            f"object store), found {storage.address('')}, which {len(blind)} of them do not see "
            f"({', '.join(blind[:_MOST_NAMED])})"
        )
    _SHARED.add(known)


def _look(node: str, path: Path) -> ray.ObjectRef:
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(_appears)
    return task.remote(path, _PATIENCE_SECONDS)


def _appears(path: Path, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _saw(answer: ray.ObjectRef) -> bool:
    try:
        return bool(ray.get(answer))
    except RayError:
        return True  # the node has gone meanwhile
