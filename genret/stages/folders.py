"""What is in a local folder, to see whether it has changed."""

import hashlib
from functools import cache
from pathlib import Path

from genret.errors import InputError


def folder_content(name: str) -> dict[str, str] | None:
    """The SHA-256 of each file in a folder, by its name there.

    Args:
        name: Path of a folder, or the name of something that is none.

    Returns:
        Those of all files at any depth; None where there is no such folder. What is hidden is left out: there downloads
        and git keep their own notes.

    Raises:
        InputError: A file cannot be read.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None
    places = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        place.as_posix(): _digest(path.resolve(), path.stat().st_size, path.stat().st_mtime_ns)
        for place, path in places.items()
        if not any(part.startswith(".") for part in place.parts)
    }


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    """Size and time of change are there for the cache: models are large, and asked about at every stage."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
