"""Ports: who listens at one alone, who shares one, and that no two services ever do.

The kernel lets any processes of a user share a port that all ask for it, and deals connections out to them. Of which
service a process is, it does not know: a file beside the port says so, and its lock says whether that is still true.
"""

import fcntl
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from genret.errors import InputError


@dataclass
class Place:
    """Where a process listens, until it is closed."""

    socket: socket.socket
    lock: BinaryIO | None = None

    def close(self) -> None:
        """Listen no more, and let others have the port."""
        self.socket.close()
        if self.lock is not None:
            self.lock.close()


def take_place(host: str, port: int, service: str = "") -> Place:
    """Listen at an address of this machine: alone, or together with processes that name the same service.

    Args:
        host: Name or address, of IPv4 or IPv6.
        port: The port.
        service: A name that no other start of a service has; empty: nobody else may listen there.

    Raises:
        InputError: There is no such address, or somebody else listens there.
    """
    if not service:
        return Place(_listening(host, port, shared=False))
    lock = _open_lock(host, port)
    try:
        return Place(_join(lock, host, port, service), lock)
    except BaseException:
        lock.close()
        raise


def check_free(host: str, port: int) -> None:
    """Make sure that nobody listens at an address of this machine.

    Raises:
        InputError: Somebody does, or there is no such address.
    """
    take_place(host, port).close()


def _resolve(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    """Family and address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    # A part of a name that is empty or too long for DNS is told as one that cannot be encoded.
    except (OSError, UnicodeError) as error:
        raise InputError(f"serving.host: expected an address of this machine, found {host!r} ({error})") from error
    return family, address


def _listening(host: str, port: int, shared: bool) -> socket.socket:
    family, address = _resolve(host, port)
    found = socket.socket(family)
    try:
        # Connections of a service that has just stopped do not stand in the way.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind(address)
        found.listen()
    except OSError as error:
        found.close()
        raise InputError(f"serving.port: expected a free port of {host}, found {port} ({error.strerror})") from error
    return found


def _join(lock: BinaryIO, host: str, port: int, service: str) -> socket.socket:
    if _locked(lock, fcntl.LOCK_EX):
        # The first one of its service. Who does not know of this file, or knows the address by another name, such as
        # 0.0.0.0, must not be there either.
        check_free(host, port)
        found = _listening(host, port, shared=True)
        # Not before it listens: the lock is not exchanged for a shared one at once, and who gets it in between must
        # find the port taken and leave the file as it is.
        lock.seek(0)
        lock.truncate()
        lock.write(service.encode())
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_SH)
        return found
    if _locked(lock, fcntl.LOCK_SH):
        lock.seek(0)
        if lock.read() == service.encode():
            return _listening(host, port, shared=True)
    raise InputError(f"serving.port: expected a free port of {host}, found {port}, where another service listens")


def _locked(lock: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open_lock(host: str, port: int) -> BinaryIO:
    """The file of an address, in the folder for temporary files. It stays: somebody may be about to lock it."""
    address = _resolve(host, port)[1][0]
    path = Path(tempfile.gettempdir()) / f"genret-{os.geteuid()}-{address}-{port}.lock"
    try:
        # Others may write to this folder: their links are not followed, and their files are not taken.
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InputError(f"serving.port: expected a file to lock at {path}, found {error.strerror}") from error
    found = os.fdopen(number, "r+b")
    owner = os.fstat(number).st_uid
    if owner != os.geteuid():
        found.close()
        raise InputError(f"serving.port: expected a file of this user at {path}, found one of user {owner}")
    return found
