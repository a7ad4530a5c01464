"""Files below one root, on a local disk or in an object store: read, written whole or not at all, listed, deleted."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
from pyarrow import fs

from genret.errors import InputError
from genret.objects import create_object

_ARROW_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")


class Storage:
    """Files below one root, on a local disk or in an object store.

    Args:
        url: As `RunStore` takes it.

    Attributes:
        url: What another `Storage` of the same files is made with.
        local: The root, where it is a folder of this machine; else None.

    Raises:
        InputError: No such protocol, or a file lies where the folder should be. All methods raise it where a file
            or folder cannot be read, written or listed.
    """

    def __init__(self, url: str) -> None:
        if not url.strip():
            raise InputError("run: expected a folder or a URL, found nothing")
        self.local: Path | None = None
        if "://" in url:
            if not url.partition("://")[2].strip("/"):
                raise InputError(f"run: expected a folder or a URL, found {url!r}")
            self._base, _, self._query = url.partition("?")
            self._base = self._base.rstrip("/")
            self._filesystem, self._root = _open_url(url)
            if isinstance(self._filesystem, fs.LocalFileSystem):
                self.local = Path(self._root)
        else:
            self._filesystem, self.local = fs.LocalFileSystem(), Path(url).expanduser().absolute()
        if self.local is not None:
            self._base, self._query, self._root = str(self.local), "", str(self.local)
            if self.local.exists() and not self.local.is_dir():
                raise InputError(f"{self.local}: expected a folder for the run, found a file")
        self.url = self.join("")

    def join(self, place: str) -> str:
        """Path or URL of a place, to be opened."""
        joined = f"{self._base}/{place}" if place else self._base
        return f"{joined}?{self._query}" if self._query else joined

    def address(self, place: str) -> str:
        """Path or URL of a place, to be shown: without options and passwords."""
        joined = f"{self._base}/{place}" if place else self._base
        return _without_password(joined)

    def arrow(self, place: str) -> tuple[fs.FileSystem, str]:
        """Filesystem, and the path of a place in it, for libraries that read through pyarrow."""
        return self._filesystem, self._path(place)

    def read(self, place: str) -> bytes | None:
        """Content of a file; None where there is none."""
        try:
            with self._filesystem.open_input_stream(self._path(place)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{self.address(place)}: cannot be read: {error}") from error

    @contextmanager
    def reading(self, place: str) -> Iterator[pa.NativeFile]:
        """A file to read from."""
        with self._filesystem.open_input_file(self._path(place)) as stream:
            yield stream

    @contextmanager
    def writing(self, place: str) -> Iterator[BinaryIO]:
        """A new file to write to. A reader may see it half-written: nothing may refer to it yet."""
        with self._errors(place):
            self.make_folder(place.rpartition("/")[0])
            with self._filesystem.open_output_stream(self._path(place)) as stream:
                yield stream
            if self.local is not None:
                _flush(self.local / place)

    def put(self, place: str, content: bytes) -> None:
        """Write or replace a file at once: readers see the old content or the new one, never a part."""
        with self._errors(place):
            if self.local is None:
                _put_object(self._filesystem, self._path(place), content)
                return
            target = self.local / place
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}-{attempt_name()}.tmp")
            temporary.write_bytes(content)
            _flush(temporary)
            temporary.replace(target)
            _flush(target.parent)

    def create(self, place: str, content: bytes) -> bool:
        """Write a file at once, unless there is one; see `genret.objects.create_object` for which stores.

        Returns:
            Whether it was written. Of several processes that try, it is for one at most.
        """
        with self._errors(place):
            if self.local is None:
                return create_object(self._filesystem, self.url, self._path(place), content)
            target = self.local / place
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}-{attempt_name()}.tmp")
            temporary.write_bytes(content)
            _flush(temporary)
            try:
                os.link(temporary, target)  # fails where there is one, which a renaming would replace
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            _flush(target.parent)
            return True

    def size(self, place: str) -> int:
        """Bytes of a file; -1 where there is none."""
        with self._errors(place):
            info = self._filesystem.get_file_info(self._path(place))
            return info.size if info.type == fs.FileType.File else -1

    def children(self, place: str) -> list[str]:
        """Names of the files and folders right below a folder; none where there is no such folder."""
        with self._errors(place):
            selector = fs.FileSelector(self._path(place), allow_not_found=True)
            return [info.base_name for info in self._filesystem.get_file_info(selector)]

    def make_folder(self, place: str) -> None:
        """Create a folder on a local disk; object stores have none."""
        if self.local is not None:
            with self._errors(place):
                (self.local / place).mkdir(parents=True, exist_ok=True)

    def delete(self, place: str) -> None:
        """Delete a file, or a folder with all in it; nothing happens where there is neither."""
        with self._errors(place):
            kind = self._filesystem.get_file_info(self._path(place)).type
            if kind == fs.FileType.Directory:
                self._filesystem.delete_dir(self._path(place))
            elif kind == fs.FileType.File:
                self._filesystem.delete_file(self._path(place))

    def _path(self, place: str) -> str:
        return f"{self._root.rstrip('/')}/{place}" if place else self._root

    @contextmanager
    def _errors(self, place: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.address(place)}: cannot be written or listed: {error}") from error


def _open_url(url: str) -> tuple[fs.FileSystem, str]:
    scheme = url.partition("://")[0]
    if scheme in ("s3", "gs", "gcs") and "@" in urlsplit(url).netloc:
        raise InputError(
            f"run: expected a URL without keys, found some in {_without_password(url.partition('?')[0])!r}; "
            "keys come from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS) or the machine's role"
        )
    try:
        if scheme in _ARROW_SCHEMES:
            filesystem, root = fs.FileSystem.from_uri(url)
            return filesystem, root
        wrapped, root = fsspec.core.url_to_fs(url)
    except (ValueError, OSError, ImportError) as error:
        shown = _without_password(url.partition("?")[0])
        raise InputError(
            f"run: expected a local folder or a URL (s3://, gs://, ...), found {shown!r}: {error}"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(wrapped)), root


def _without_password(url: str) -> str:
    return re.sub(r"://[^/@]*@", "://", url)


def _put_object(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Upload an object. It is visible when all of it has arrived."""
    if isinstance(filesystem, fs.PyFileSystem):
        filesystem.handler.fs.pipe_file(path, content)
        return
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)


def _flush(path: Path) -> None:
    """Have the disk hold a file or folder, so that a power cut after the manifest takes nothing from it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def attempt_name() -> str:
    """A name that no other attempt has, with the time at which it began."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
