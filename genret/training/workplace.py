"""A training worker's folder on its machine's disk, of which nothing is left for long however the worker ends."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "genret-training-"


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for checkpoints where temporary files lie (TMPDIR), for the time of a `with` block.

    Ray ends workers by SIGKILL, after which their folders stay: they are deleted by the next worker on the machine.
    Whose worker is alive is told by a lock on the folder, which the system gives back with the process, and not by a
    process id, which may be another's in a container.
    """
    _sweep(Path(tempfile.gettempdir()))
    hidden = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
    with _opened(hidden) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Under this name no other worker ever finds it unlocked.
        folder = hidden.rename(hidden.with_name(hidden.name.removeprefix(".")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Delete the folders of workers that are no more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        # Its worker is alive, or it is another user's, or being deleted.
        with suppress(OSError), _opened(folder) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
