"""Two processes train what one trains: plain, with ZeRO-2 and with ZeRO-3, all weights or adapters. No Ray."""

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from service import free_port

from genret.config import RpoConfig, SftConfig, TuningConfig
from genret.tables import table_from_rows
from genret.training.bundle import Bundle
from genret.training.rpo import train_rpo
from genret.training.setup import SINGLE, Setup
from genret.training.sft import train_sft

# Sums in another order: AdamW's first steps turn the last bit of a gradient near zero into a change of this size.
TOLERANCE = 2e-5
LORA = TuningConfig(method="lora", rank=4, alpha=8)
# How the bundle scores, and the training. The seven examples leave the last batch of a pass short.
CASES: dict[str, tuple[str, SftConfig | RpoConfig]] = {
    "sft": ("trie", SftConfig(epochs=2, batch_size=4, micro_batch_size=1, learning_rate=1e-3, checkpoints=0)),
    "rpo": ("trie", RpoConfig(epochs=2, batch_size=4, micro_batch_size=1, learning_rate=1e-3, checkpoints=0)),
    "rpo-lora": (
        "vocabulary",
        RpoConfig(epochs=1, batch_size=4, micro_batch_size=2, learning_rate=1e-3, checkpoints=0, tuning=LORA),
    ),
}
PROCESSES = 2
# DeepSpeed comes last.
SETUPS = {
    "ddp": Setup(workers=PROCESSES),
    "zero-2": Setup(workers=PROCESSES, zero_stage=2),
    "zero-3": Setup(workers=PROCESSES, zero_stage=3),
    "zero-3-offload": Setup(workers=PROCESSES, zero_stage=3, offload="all"),
}
Trained = tuple[dict[str, torch.Tensor], list[float]]


def examples_of(section: SftConfig | RpoConfig, prompts: list[str], names: list[str]) -> pa.Table:
    if isinstance(section, SftConfig):
        return table_from_rows(
            "sft_examples",
            (
                {"prompt": prompt, "completion": name, "kind": "context2id"}
                for prompt, name in zip(prompts, names, strict=True)
            ),
        )
    return table_from_rows(
        "preference_pairs",
        (
            {
                "query_id": str(number),
                "prompt": prompt,
                "chosen": names[number],
                "rejected": names[number - 1],
                "positive_rank": 2,
                "negative_rank": 1,
            }
            for number, prompt in enumerate(prompts)
        ),
    )


def train_case(name: str, folder: Path, output: Path, setup: Setup) -> None:
    """Train a saved bundle, and save what the first worker has."""
    section, bundle = CASES[name][1], Bundle.load(folder / name)
    examples = pq.read_table(folder / f"{name}.parquet")
    if isinstance(section, SftConfig):
        log = train_sft(section, bundle, examples, output / "checkpoints", seed=3, setup=setup)
    else:
        log = train_rpo(section, bundle, examples, output / "checkpoints", seed=3, setup=setup)
    if int(os.environ.get("RANK", "0")) == 0:
        bundle.save(output / name)
        (output / f"{name}.json").write_text(json.dumps([row["loss"] for row in log]))


def train_all(rank: int, port: int, folder: Path, output: Path) -> None:
    """What each process does: all trainings in all setups, with the others. Its start takes longer than they do."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for name, setup in SETUPS.items():
        if setup.zero_stage and find_spec("deepspeed") is None:
            continue
        # Transformers tells Accelerate of DeepSpeed there, for good.
        with patch.dict(os.environ):
            for case in CASES:
                train_case(case, folder, output / name, setup)
    # The first process saves. Then they leave at once, as Ray's workers do: taking down the interpreter beside Gloo's
    # and DeepSpeed's threads aborts now and then ("terminate called without an active exception").
    torch.distributed.barrier()
    os._exit(0)


def read_trained(output: Path) -> dict[str, Trained]:
    return {
        name: (load_file(output / name / "model.safetensors"), json.loads((output / f"{name}.json").read_text()))
        for name in CASES
    }


@pytest.fixture(scope="module")
def single(
    make_bundle: Callable[..., Bundle], passages: pa.Table, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Trained]]:
    """The folder with what is to be trained, and what one process makes of it."""
    folder, output = tmp_path_factory.mktemp("start"), tmp_path_factory.mktemp("single")
    for name, (scoring, section) in CASES.items():
        bundle = make_bundle("semantic", scoring, "random")
        bundle.save(folder / name)
        names = bundle.passages.column("identifier").to_pylist()
        examples = examples_of(section, passages.column("text").to_pylist(), names)
        pq.write_table(examples, folder / f"{name}.parquet")
        train_case(name, folder, output, SINGLE)
    return folder, read_trained(output)


@pytest.fixture(scope="module")
def together(single: tuple[Path, dict[str, Trained]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two processes make of it, in each setup."""
    output = tmp_path_factory.mktemp("together")
    for name in SETUPS:
        (output / name).mkdir()
    torch.multiprocessing.spawn(train_all, (free_port(), single[0], output), nprocs=PROCESSES, daemon=True)
    return output


def assert_same(found: dict[str, Trained], expected: dict[str, Trained]) -> None:
    for case, (weights, losses) in found.items():
        assert len(losses) > 1 and losses == pytest.approx(expected[case][1], abs=1e-5), case
        assert weights.keys() == expected[case][0].keys()
        for name, weight in weights.items():
            assert (weight - expected[case][0][name]).abs().max() < TOLERANCE, f"{case}: {name}"


@pytest.mark.slow
def test_two_processes_train_as_one_does(single, together: Path) -> None:
    assert_same(read_trained(together / "ddp"), single[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SETUPS if name != "ddp"])
def test_zero_trains_as_one_process_does(deepspeed, single, together: Path, name: str) -> None:
    assert_same(read_trained(together / name), single[1])
