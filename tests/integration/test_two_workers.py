"""Training with two Ray Train workers beside one."""

from pathlib import Path

import pytest
from silent import Silent

from genret.config import load_config
from genret.pipeline import run
from genret.runs import RunStore


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_workers_train_both_stages_as_one_does(tiny_settings: list[str], tmp_path: Path) -> None:
    settings = [*tiny_settings, "sft.micro_batch_size=16", "rpo.micro_batch_size=4", "sft.epochs=1"]
    first_losses, steps = {}, {}
    for workers in (1, 2):
        store = RunStore(tmp_path / str(workers))
        records = run(
            load_config("scratch-semantic", [*settings, f"compute.training_workers={workers}"]), store, Silent(), "rpo"
        )
        logs = {stage: store.read_table(records[stage], "training_log").to_pylist() for stage in ("sft", "rpo")}
        steps[workers] = {stage: rows[-1]["step"] for stage, rows in logs.items()}
        first_losses[workers] = {stage: rows[0]["loss"] for stage, rows in logs.items()}
    # The workers share out the same global batch: before the first step both runs have the same model.
    assert first_losses[2]["sft"] == pytest.approx(first_losses[1]["sft"], abs=1e-3)
    assert steps[2]["sft"] == steps[1]["sft"]
    assert steps[2]["rpo"] > 0
