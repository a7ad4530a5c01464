"""Arrays of whole numbers, and folders of them: .npy files under a header with their sizes and checksums."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from genret.errors import InputError

# Checksums of arrays up to this size together are always compared: reading them takes a fraction of a second.
SMALL_INDEX_BYTES = 64 * 2**20

IntArray = npt.NDArray[np.integer[Any]]
Ints = npt.NDArray[np.int64]


def ranges(starts: IntArray, lengths: IntArray) -> npt.NDArray[np.int64]:
    """The integers `starts[i], starts[i] + 1, ...`, `lengths[i]` of them for each `i`, one run after the other.

    Args:
        starts: `[a]`.
        lengths: `[a]`.

    Returns:
        int64 `[lengths.sum()]`.
    """
    # Methods, as numpy's functions take about as long again to get to them.
    lengths = lengths.astype(np.int64, copy=False)
    before = lengths.cumsum() - lengths
    numbers = (starts.astype(np.int64, copy=False) - before).repeat(lengths)
    numbers += np.arange(len(numbers))
    return numbers


def compact(array: IntArray) -> IntArray:
    """The same numbers as int32 where they fit."""
    fits = array.size == 0 or (array.min() >= -(2**31) and array.max() < 2**31)
    return array.astype(np.int32 if fits else np.int64)


class Rows:
    """An array that rows are added to, again and again, without copying all of them each time."""

    def __init__(self, first: npt.NDArray[Any]) -> None:
        """Begin with rows, perhaps none."""
        self._array, self._count = first, len(first)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Ints) -> npt.NDArray[Any]:
        """A copy of some rows, by numbers from 0."""
        return self._array[index]

    def add(self, rows: npt.NDArray[Any]) -> int:
        """Add rows, and tell where the first of them is."""
        first, self._count = self._count, self._count + len(rows)
        if self._count > len(self._array):
            # Room for half as many more, so that each row is copied a few times at most, on average.
            wider = np.empty((self._count * 3 // 2, *self._array.shape[1:]), self._array.dtype)
            wider[:first] = self._array[:first]
            self._array = wider
        self._array[first : self._count] = rows
        return first


def write_arrays(folder: Path, header_name: str, facts: Mapping[str, Any], arrays: Mapping[str, IntArray]) -> None:
    """Write arrays as .npy files, and last of all a header with facts and with the arrays' sizes and checksums.

    Without the header there is nothing to load: what a process that dies half-way leaves behind is refused. Those who
    have memory-mapped the arrays of before keep what they read.

    Args:
        folder: A local folder; it is made if it is not there.
        header_name: The header's file name.
        facts: JSON values to stand in the header, `format` and `version` among them.
        arrays: Arrays by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / header_name).unlink(missing_ok=True)
    entries = {name: _write_array(folder / f"{name}.npy", array) for name, array in arrays.items()}
    partial = folder / f"{header_name}.partial"
    partial.write_text(json.dumps({**facts, "arrays": entries}, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / header_name)


def read_arrays(
    folder: Path, header_name: str, form: str, version: int, names: Collection[str], *, verify: bool | None
) -> tuple[dict[str, Any], dict[str, IntArray]]:
    """Open what `write_arrays` wrote.

    Args:
        folder: The folder.
        header_name: The header's file name.
        form: The expected `format`.
        version: The expected `version`.
        names: The names of the expected arrays.
        verify: Compare checksums; by default if the arrays have up to 64 MiB. Sizes are always compared.

    Returns:
        The header, and the arrays by name, memory-mapped.

    Raises:
        InputError: A file is missing, truncated, altered, of another format or version; names it.
    """
    header = _read_header(folder / header_name, form, version, names)
    entries = header["arrays"]
    check = verify if verify is not None else sum(entry["bytes"] for entry in entries.values()) <= SMALL_INDEX_BYTES
    return header, {name: _read_array(folder / f"{name}.npy", entries[name], check) for name in names}


def checksum(array: IntArray) -> str:
    """The checksum of an array: of the .npy file that holds it."""
    digest = hashlib.sha256()
    np.save(SimpleNamespace(write=digest.update), array, allow_pickle=False)
    return digest.hexdigest()


def joint_checksum(checksums: Mapping[str, str]) -> str:
    """One checksum for several arrays, from that of each by its name."""
    return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()


def _write_array(path: Path, array: IntArray) -> dict[str, Any]:
    # A memory map of the old file stays valid: the new one takes its name, not its place.
    partial = path.with_suffix(".npy.partial")
    with partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    partial.replace(path)
    return {
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "bytes": path.stat().st_size,
        "sha256": _sha256(path),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_header(path: Path, form: str, version: int, names: Collection[str]) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: expected the header of a saved index ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, found something else ({error})") from error
    if not isinstance(header, dict) or header.get("format") != form:
        raise InputError(f"{path}: expected the format {form!r}, found something else")
    if header.get("version") != version:
        raise InputError(f"{path}: expected version {version}, found {header.get('version')!r}")
    entries = header.get("arrays")
    if not isinstance(entries, dict) or sorted(entries) != sorted(names):
        raise InputError(f"{path}: expected the arrays {sorted(names)}, found {sorted(entries or [])}")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or {"dtype", "shape", "bytes", "sha256"} - set(entry):
            raise InputError(f"{path}: array {name!r}: expected dtype, shape, bytes and sha256, found {entry!r:.80}")
    return header


def _read_array(path: Path, entry: dict[str, Any], verify: bool) -> IntArray:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: expected an array of the index ({error.strerror})") from error
    if size != entry["bytes"]:
        raise InputError(f"{path}: expected {entry['bytes']} bytes, found {size}; the file is truncated or foreign")
    if verify and _sha256(path) != entry["sha256"]:
        raise InputError(f"{path}: expected the checksum {entry['sha256']}, found another; the file was altered")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path}: expected a .npy array ({error})") from error
    if array.dtype.str != entry["dtype"] or list(array.shape) != entry["shape"] or array.dtype.kind != "i":
        raise InputError(
            f"{path}: expected integers {entry['dtype']} of shape {entry['shape']}, "
            f"found {array.dtype.str} of shape {list(array.shape)}"
        )
    return array
