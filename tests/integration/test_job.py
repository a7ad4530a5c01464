"""`ray job submit` of the pipeline against a head started for the test gives what a local run gives."""

import subprocess
import sys
from pathlib import Path

import pytest

from genret.runs import RunStore

PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.slow
def test_submitted_job_gives_the_measures_of_a_local_run(
    tiny_settings: list[str], tmp_path: Path, ray_head: tuple[str, dict[str, str]]
) -> None:
    address, environment = ray_head
    flags = [part for setting in tiny_settings for part in ("--set", setting)]
    local, submitted = tmp_path / "local", tmp_path / "submitted"
    subprocess.run(
        [sys.executable, "-m", "genret", "run", "scratch-semantic", "--run", str(local), *flags],
        check=True, capture_output=True, timeout=600,
    )  # fmt: skip
    result = subprocess.run(
        [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", str(PROJECT), "--",
         "python", "jobs/full_pipeline.py", "scratch-semantic", "--run", str(submitted), *flags],
        capture_output=True, text=True, timeout=600, cwd=PROJECT, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "NDCG@10" in result.stdout
    ours, theirs = RunStore(local), RunStore(submitted)
    for stage, name in (("evaluation", "measures"), ("retrieval", "run"), ("mining", "preference_pairs")):
        assert ours.read_table(ours.current()[stage], name).equals(
            theirs.read_table(theirs.current()[stage], name)
        ), name
