"""What jobs are submitted with."""

import tomllib
from pathlib import Path

import pytest

from genret.job import job_metadata, parse_submission, run_job, runtime_environment
from genret.runs import RunStore

PROJECT = Path(__file__).parents[2]


def test_a_runtime_environment_names_the_packages_of_the_project_and_its_lock() -> None:
    environment = runtime_environment(PROJECT, ["s3"], dependencies=True)
    table = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    *packages, lock = environment["pip"]["packages"]
    assert packages == [*table["dependencies"], *table["optional-dependencies"]["s3"]]
    assert lock.endswith("/constraints.txt") and lock.startswith("-c ")
    assert environment["working_dir"] == str(PROJECT)
    assert "runs" in environment["excludes"] and "constraints.txt" not in environment["excludes"]
    with pytest.raises(KeyError):
        runtime_environment(PROJECT, ["no-such-extra"], dependencies=True)


def test_a_runtime_environment_holds_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    environment = runtime_environment(PROJECT)
    assert "very-secret" not in str(environment)
    assert "pip" not in environment


def test_metadata_say_what_a_job_does() -> None:
    arguments = ["--config", "quickstart", "--set", "seed=1", "--run", "s3://b/r"]
    assert job_metadata("sft", arguments) == {
        "genret_job": "sft",
        "genret_config": "quickstart",
        "genret_run": "s3://b/r",
    }


def test_the_submission_keeps_its_options_and_hands_on_the_rest() -> None:
    options, rest = parse_submission(
        ["sft", "--config", "a.yaml", "--install", "--extra", "s3", "--set", "a=1"], ["sft"]
    )
    assert (options.script, options.install, options.extra, options.no_wait) == ("sft", True, ["s3"], False)
    assert rest == ["--config", "a.yaml", "--set", "a=1"]
    with pytest.raises(SystemExit):
        parse_submission(["no_such_script"], ["sft"])


def test_a_job_does_what_its_stage_needs_and_ends_with_a_code_that_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "title": "River", "text": "Water flows."}\n')
    arguments = ["--config", "scratch-atomic", "--run", str(tmp_path / "run")]
    for setting in ("corpus.type=jsonl", f"corpus.path={tmp_path / 'corpus.jsonl'}"):
        arguments += ["--set", setting]
    for expected in ("started", "done before"):
        with pytest.raises(SystemExit) as ended:
            run_job("corpus", arguments)
        assert ended.value.code == 0
        assert expected in capsys.readouterr().err
    assert list(RunStore(tmp_path / "run").current()) == ["corpus"]
    with pytest.raises(SystemExit) as ended:
        run_job("corpus", ["--config", "no-such-preset"])
    assert ended.value.code == 2
    assert "no-such-preset" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["scratch-atomic", "--config", "quickstart"]])
def test_a_job_without_one_configuration_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_job(None, arguments)
    assert ended.value.code == 2
    assert "expected one PRESET|FILE" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_preset_may_stand_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_job("corpus", ["no-such-preset", "--run", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "no-such-preset" in capsys.readouterr().err
