"""Runs in an object store: S3's own protocol, spoken by a server on this machine."""

import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import boto3
import pytest

from genret.errors import RunBusyError
from genret.leases import driving
from genret.runs import RunStore
from genret.storage import Storage

# It is given back, and expires never.
LEASE = {"heartbeat": 0.2, "expiry": 120.0}


def command(settings: list[str], run: str, *more: str) -> list[str]:
    flags = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "genret", "run", "scratch-semantic", "--run", run, *flags, *more]


def test_a_file_of_a_run_is_created_once(s3_environment: dict[str, str]) -> None:
    storage = Storage("s3://bucket/created")
    assert storage.create("stages/a.json", b"first")
    assert not storage.create("stages/a.json", b"second")
    assert storage.read("stages/a.json") == b"first"


def test_a_lease_is_held_by_one_and_passes_on(s3_environment: dict[str, str]) -> None:
    url = "s3://bucket/leased"
    with driving(url, **LEASE), pytest.raises(RunBusyError, match="another driver"), driving(url, **LEASE):
        raise AssertionError("must not be reached")
    with driving(url, **LEASE):
        assert Storage(url).children("lease") == ["00000002.json"]
        with pytest.raises(RunBusyError, match="another driver"), driving(url, **LEASE):
            raise AssertionError("must not be reached")


def test_models_are_uploaded_in_parts(s3_environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.safetensors").write_bytes(os.urandom(24 << 20))
    store = RunStore("s3://bucket/parts")
    writer = store.begin("sft", "aa")
    writer.write_folder("sft", tmp_path / "model")
    record = writer.commit({})
    key = f"parts/{record.folders['sft']['path']}/weights.safetensors"
    head = boto3.client("s3").head_object(Bucket="bucket", Key=key)
    assert re.search(r"-[2-9]\d*\"$", head["ETag"]), "one part only"
    assert (store.local_folder(record, "sft") / "weights.safetensors").read_bytes() == (
        tmp_path / "model" / "weights.safetensors"
    ).read_bytes()


def _kill_in_training(settings: list[str], run: str, environment: dict[str, str], log: Path) -> None:
    """Start the run and kill all of its processes once training has a checkpoint to go on from."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command(settings, run), stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        scratch = Storage(f"{run}/scratch")
        deadline = time.monotonic() + 240
        while not any(
            name.startswith("checkpoint_")
            for stage in scratch.children("")
            if stage.startswith("sft-")
            for name in scratch.children(f"{stage}/train")
        ):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_run_on_s3_killed_in_training_ends_with_the_measures_of_a_local_one(
    s3_environment: dict[str, str], tiny_settings: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    remote = "s3://bucket/whole"
    environment = s3_environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    _kill_in_training(tiny_settings, remote, environment, tmp_path / "killed.log")
    finished = subprocess.run(
        command(tiny_settings, remote), timeout=600, capture_output=True, text=True, env=environment
    )
    assert finished.returncode == 0, finished.stderr
    ours, theirs = RunStore(undisturbed), RunStore(remote)
    assert ours.current().keys() == theirs.current().keys()
    for stage, record in ours.current().items():
        assert theirs.current()[stage].fingerprint == record.fingerprint
        for name in record.tables:
            if name not in ("training_log", "validation_log", "latencies"):  # what a clock wrote
                expected, found = ours.read_table(record, name), theirs.read_table(theirs.current()[stage], name)
                assert expected.equals(found), f"{stage}: {name}"
    assert "<html" in theirs.read_file("report.html")


@pytest.mark.slow
def test_a_model_is_trained_at_a_url_that_pyarrow_does_not_know(tiny_settings: list[str], tmp_path: Path) -> None:
    run = f"local://{tmp_path}/run"  # fsspec's name for a disk
    environment = os.environ | {"FSSPEC_LOCAL": '{"auto_mkdir": true}'}
    subprocess.run(
        command(tiny_settings, run, "--until", "sft"), check=True, timeout=600, capture_output=True, env=environment
    )
    records = RunStore(run).current()
    assert (RunStore(run).local_folder(records["sft"], "sft") / "model.safetensors").is_file()


@pytest.mark.slow
def test_of_two_drivers_on_one_run_one_works_and_the_other_says_so(
    s3_environment: dict[str, str], tiny_settings: list[str], tmp_path: Path
) -> None:
    for run in (str(tmp_path / "disk"), "s3://bucket/two"):
        drivers = [
            subprocess.Popen(
                command(tiny_settings, run, "--until", "examples"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True, env=s3_environment,
            )
            for _ in range(2)
        ]  # fmt: skip
        ended = {driver.communicate(timeout=300)[1]: driver.returncode for driver in drivers}
        assert sorted(ended.values()) == [0, 3], ended
        (refused,) = [errors for errors, code in ended.items() if code == 3]
        assert "another driver works on this run (process" in refused and "started" not in refused
        store = RunStore(run)
        assert list(store.current()) == ["corpus", "identifiers", "synthesis", "examples"]
        assert store.sweep(timedelta(0)) == [], "files that no manifest refers to"
