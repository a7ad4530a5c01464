"""How a training uses the machine: packages that it needs, and what DeepSpeed and the trackers are told."""

import pytest

from genret.errors import InputError
from genret.training import setup as module
from genret.training.setup import Setup, check_packages, machine_arguments, zero_config


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (Setup(zero_stage=2), r"compute\.zero_stage: expected 0 or the package deepspeed.*pip install"),
        (
            Setup(report_to=("wandb",)),
            "wandb needs the package wandb, found none; pip install wandb",
        ),
        (Setup(report_to=("mlflow",)), "mlflow needs the package mlflow"),
        (Setup(report_to=("tensorboard",)), "tensorboard needs the package tensorboardX"),
    ],
)
def test_missing_packages_are_named_with_the_command(monkeypatch, setup, message) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=message):
        check_packages(setup)


def test_nothing_more_is_needed_without_extras(monkeypatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    check_packages(Setup(workers=8, gradient_checkpointing=True))


def test_trackers_get_their_names() -> None:
    arguments = machine_arguments(Setup(report_to=("wandb", "mlflow"), run_name="nq-sft"), "bf16")
    assert (arguments["report_to"], arguments["run_name"], arguments["bf16"]) == (["wandb", "mlflow"], "nq-sft", True)
    assert machine_arguments(Setup(), "fp32")["report_to"] == "none"
    assert "deepspeed" not in arguments


@pytest.mark.parametrize(
    ("stage", "offload", "optimizer", "parameters"),
    [(2, "none", False, False), (2, "optimizer", True, False), (3, "none", False, False), (3, "all", True, True)],
)
def test_zero_keeps_in_the_host_what_it_shall(stage, offload, optimizer, parameters) -> None:
    zero = zero_config(Setup(zero_stage=stage, offload=offload))["zero_optimization"]
    assert zero["stage"] == stage
    assert ("offload_optimizer" in zero, "offload_param" in zero) == (optimizer, parameters)
    # The weights are gathered whole in 32 bits at the end, not by DeepSpeed in 16.
    assert zero.get("stage3_gather_16bit_weights_on_model_save", False) is False
