"""Scripts of jobs/ as submitted jobs, on a head of its own: together they give what a local run gives."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from genret.config import load_config
from genret.pipeline import STAGES, planned
from genret.runs import RunStore

PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def submit(
    script: str, arguments: list[str], address: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", str(PROJECT), "--",
         "python", f"jobs/{script}.py", *arguments],
        capture_output=True, text=True, timeout=600, cwd=PROJECT, env=environment,
    )  # fmt: skip


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "chosen", [pytest.param(("corpus", "sft"), marks=pytest.mark.slow), pytest.param((), marks=pytest.mark.chaos)]
)
def test_submitted_jobs_give_the_measures_of_a_local_run(
    tiny_settings: list[str],
    undisturbed: Path,
    tmp_path: Path,
    ray_head: tuple[str, dict[str, str]],
    chosen: tuple[str, ...],
) -> None:
    """The scripts of some stages and then that of everything, or first of every stage."""
    address, environment = ray_head
    flags = [part for setting in tiny_settings for part in ("--set", setting)]
    submitted = tmp_path / "submitted"
    arguments = ["--config", "scratch-semantic", "--run", str(submitted), *flags]
    names = [stage.name for stage in planned(load_config("scratch-semantic", tiny_settings))]
    for stage in chosen or names:
        result = submit(stage, arguments, address, environment)
        assert result.returncode == 0, result.stdout + result.stderr
        assert re.search(rf"^\s*{stage}\s+started", result.stdout, flags=re.MULTILINE), "no progress in the log"
        record = RunStore(submitted).current()[stage]
        assert record.details["job"].startswith("raysubmit_")
    # The job of everything does what is left, and the metadata that it was submitted with is to be seen.
    whole = subprocess.run(
        [sys.executable, "jobs/submit.py", "full_pipeline", "--address", address, *arguments],
        capture_output=True, text=True, timeout=600, cwd=PROJECT, env=environment | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "NDCG@10" in whole.stdout
    started = re.findall(r"^\s*(\w+)\s+started", whole.stdout, flags=re.MULTILINE)
    assert started == (names[names.index(chosen[-1]) + 1 :] if chosen else [])
    listed = subprocess.run(
        [str(BIN / "ray"), "job", "list", "--address", address], capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert "'genret_job': 'full_pipeline'" in listed.stdout, listed.stdout
    ours, theirs = RunStore(undisturbed), RunStore(submitted)
    for stage_name, name in (("evaluation", "measures"), ("retrieval", "run"), ("mining", "preference_pairs")):
        assert ours.read_table(ours.current()[stage_name], name).equals(
            theirs.read_table(theirs.current()[stage_name], name)
        ), name
    # Bad input ends the job as it ends the command.
    wrong = submit("corpus", ["--config", "no-such-preset", "--run", str(submitted)], address, environment)
    assert wrong.returncode != 0
    assert "exit code 2" in wrong.stdout + wrong.stderr, wrong.stdout + wrong.stderr


def test_without_its_token_a_job_server_is_told_to_want_one(
    tmp_path: Path, ray_head: tuple[str, dict[str, str]]
) -> None:
    address, environment = ray_head
    token = environment["RAY_AUTH_TOKEN"]
    without = {name: value for name, value in environment.items() if not name.startswith("RAY_AUTH_")}
    command = [sys.executable, "jobs/submit.py", "corpus", "--address", address, "--no-wait", "--config", "none"]

    def submitted(**given: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, cwd=PROJECT,
            env=without | {"HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)} | given,
        )  # fmt: skip

    refused = submitted()
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "the job server expects its token, found Authentication required" in refused.stderr
    # What it says to do is what README and cluster.yaml say.
    fetch, export = (line.strip() for line in refused.stderr.strip().splitlines()[-2:])
    for name in ("README.md", "cluster.yaml"):
        text = (PROJECT / name).read_text(encoding="utf-8")
        assert fetch in text and export in text, name
    wrong = submitted(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * len(token))
    assert wrong.returncode == 2 and "expects its token, found Authentication failed" in wrong.stderr
    Path(tmp_path, fetch.rpartition("~/")[2]).write_text(token, encoding="utf-8")
    names = dict(setting.split("=") for setting in export.removeprefix("export ").split())
    given = submitted(**{name: value.replace("$HOME", str(tmp_path)) for name, value in names.items()})
    assert given.returncode == 0 and given.stdout.startswith("submitted "), given.stdout + given.stderr


def test_every_stage_has_a_script() -> None:
    scripts = {path.stem for path in (PROJECT / "jobs").glob("*.py")}
    assert scripts == {stage.name for stage in STAGES} | {"full_pipeline", "submit"}
    for stage in STAGES:
        assert f'run_job("{stage.name}")' in (PROJECT / "jobs" / f"{stage.name}.py").read_text()
