"""Ports: alone, together with one's own, and never with others; over real sockets and processes."""

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from service import free_port

from genret.errors import InputError
from genret.serving.ports import check_free, take_place

HOST = "127.0.0.1"
LISTENS = """
import sys, time
from genret.serving.ports import take_place
place = take_place("127.0.0.1", int(sys.argv[1]), sys.argv[2])
print("there", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_processes_of_a_service_share_a_port_and_nobody_else() -> None:
    port = free_port()
    with closing(take_place(HOST, port, "one")), closing(take_place("localhost", port, "one")):
        for service in ("other", ""):
            with pytest.raises(InputError, match=rf"serving\.port: expected a free port of {HOST}, found {port}"):
                take_place(HOST, port, service)
        with closing(take_place(HOST, port, "one")):
            pass
    with closing(take_place(HOST, port, "other")), pytest.raises(InputError, match="where another service listens"):
        take_place(HOST, port, "one")
    check_free(HOST, port)


@pytest.mark.parametrize(("first", "second"), [(HOST, "0.0.0.0"), ("0.0.0.0", HOST)])
def test_another_name_of_the_address_is_no_way_in(first: str, second: str) -> None:
    port = free_port()
    with closing(take_place(first, port, "one")), pytest.raises(InputError, match=r"serving\.port: expected a free"):
        take_place(second, port, "other")


def test_who_shares_it_without_a_file_keeps_it() -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind((HOST, 0))
        stranger.listen()
        with pytest.raises(InputError, match=r"serving\.port: expected a free port"):
            take_place(HOST, stranger.getsockname()[1], "one")


@pytest.mark.parametrize("service", ["one", ""])
def test_after_a_kill_its_place_is_free_at_once(service: str, temporary: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENS, str(port), service],
        env=os.environ | {"TMPDIR": str(temporary)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        # A connection that has begun outlives who listened.
        with process.stdout, socket.create_connection((HOST, port)):
            with pytest.raises(InputError, match=r"serving\.port"):
                take_place(HOST, port, "other")
            process.kill()
            process.wait()
            for name in (service, "other"):
                take_place(HOST, port, name).close()
    finally:
        process.kill()
        process.wait()


def test_a_file_that_is_a_link_is_not_written_to(temporary: Path) -> None:
    port = free_port()
    take_place(HOST, port, "one").close()
    (lock,) = temporary.iterdir()
    lock.rename(temporary / "precious")
    lock.symlink_to(temporary / "precious")
    with pytest.raises(InputError, match=r"serving\.port: expected a file to lock at"):
        take_place(HOST, port, "other")
    assert (temporary / "precious").read_text() == "one"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.77", "a" * 64, "a..b"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(InputError, match=r"^serving\.(host|port): expected"):
        check_free(host, 8000)
