"""What the scripts of `jobs/` do: a stage, or all of them, as a Ray job.

A job takes `PRESET|FILE` (or `--config PRESET|FILE`), `--run DIR|URL` and `--set section.field=value`, does what is
not done up to its stage, writes its progress as lines to its log, and ends with the exit codes of `genret.cli.main`: 0
also where all was done before, 3 where another driver works on the run. So it is safe to submit twice.
"""

import argparse
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from genret.cli import main
from genret.cluster import submission_id

RUNS = "genret-runs"
"""Where runs lie for which no --run is given: this folder in the home folder of the node that drives the job. The
job's own working folder goes away with it."""

_EXCLUDES = [".git", ".venv", "runs", "tests", "benchmarks", "**/__pycache__"]


def run_job(stage: str | None, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a configuration up to a stage, as a job.

    Args:
        stage: The last stage; None: all.
        arguments: Of the command line; those of the process where none are given.

    Raises:
        SystemExit: Always; see `genret.cli.main`.
    """

    def command(
        source: Annotated[
            str | None, typer.Argument(help="A preset's name, or a YAML file.", metavar="PRESET|FILE")
        ] = None,
        config: Annotated[str | None, typer.Option(help="The same, by name.", metavar="PRESET|FILE")] = None,
        run: Annotated[
            str | None, typer.Option(help=f"Folder or URL of the run. Default: ~/{RUNS}/NAME.", metavar="DIR|URL")
        ] = None,
        overrides: Annotated[
            list[str] | None, typer.Option("--set", help="Change a field. May be given often.", metavar="a.b=c")
        ] = None,
    ) -> None:
        chosen = config or source
        if chosen is None or (config is not None and source is not None):
            raise typer.BadParameter("expected one PRESET|FILE, by its place or by --config, found none or both")
        typer.echo(f"job {submission_id() or 'local'}: {stage or 'all stages'} of {chosen}", err=True)
        places = ["--run", run] if run is not None else ["--runs-folder", str(Path.home() / RUNS)]
        until = ["--until", stage] if stage is not None else []
        flags = [part for setting in overrides or [] for part in ("--set", setting)]
        main(["run", chosen, *places, *until, *flags])

    command.__doc__ = f"Do everything that is not done of a run, up to {stage or 'the report'}."
    application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    application.command()(command)
    application(args=arguments)
    raise AssertionError("typer ends the process")


def parse_submission(arguments: Sequence[str], scripts: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line of `jobs/submit.py`: what is for the submission, and what the script gets."""
    parser = argparse.ArgumentParser(prog="jobs/submit.py", description="Submit a script of jobs/ as a Ray job.")
    parser.add_argument("script", choices=scripts)
    parser.add_argument("--address", help="of the job server; default: RAY_API_SERVER_ADDRESS, then 127.0.0.1:8265")
    parser.add_argument("--install", action="store_true", help="have the nodes install pyproject.toml's packages first")
    parser.add_argument("--extra", action="append", default=[], help="with --install: an extra of pyproject.toml")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the job's log")
    return parser.parse_known_args(list(arguments))


def runtime_environment(project: Path, extras: Sequence[str] = (), dependencies: bool = False) -> dict[str, Any]:
    """Ray's runtime environment for a job of this project.

    Args:
        project: The project's folder, which goes to the cluster without its runs and tests.
        extras: Of pyproject.toml's optional dependencies, those that the job needs too.
        dependencies: Have every node of the job install the packages of pyproject.toml, in the versions of
            constraints.txt. Not needed on clusters of `cluster.yaml` and in the image, which have them.

    Returns:
        JSON-able; keys come neither from this process's environment nor from anywhere else.

    Raises:
        KeyError: An extra that pyproject.toml does not have.
    """
    environment: dict[str, Any] = {
        "working_dir": str(project),
        "excludes": _EXCLUDES,
        "env_vars": {"PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    }
    if dependencies:
        table = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        packages = [*table["dependencies"]]
        for extra in extras:
            packages += table["optional-dependencies"][extra]
        # Ray puts these lines into a requirements file, in which pip looks up the variable.
        lock = "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt"
        environment["pip"] = {"packages": [*packages, lock], "pip_check": False}
    return environment


def job_metadata(script: str, arguments: Sequence[str]) -> dict[str, str]:
    """What `ray job list` tells of a job beside its command; the driver finds it in RAY_JOB_CONFIG_JSON_ENV_VAR."""
    options = dict(pairwise(arguments))
    named = {"config": options.get("--config", ""), "run": options.get("--run", "")}
    return {"genret_job": script} | {f"genret_{name}": value for name, value in named.items() if value}
