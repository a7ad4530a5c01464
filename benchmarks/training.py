"""What SFT costs on this machine: beside a plain loop, without packing, and stage by stage.

    python benchmarks/training.py RUN [--steps 8] [--repeats 3]

RUN is a finished run of the quickstart (`genret run quickstart`). Prints tokens a second of genret's SFT stage and of a
plain torch loop over the same packed batches with the same model and optimiser; tokens a second packed and unpacked (a
row a sequence, padded to the longest); what a step of the plain loop spends its time on; and the time of each stage of
the run. Both sides of a ratio are measured in turn, and medians are shown.
"""

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import torch
from trl.trainer.utils import add_fused_lm_head

from genret.config import RunConfig, parse_config
from genret.runs import RunStore
from genret.training.base import load_for_training
from genret.training.batches import Layout, trie_children
from genret.training.bundle import Bundle
from genret.training.likelihood import identifier_log_probs
from genret.training.sft import SftCollator, build_sft_dataset, make_collator, train_sft

PARTS = ("batch", "forward", "backward", "optimiser")


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    store = RunStore.open_existing(arguments.run)
    config = parse_config(store.read_file("config.yaml"), "config.yaml")
    records = store.current()
    folder = store.local_folder(records["base"], "base")
    size = config.sft.batch_size
    examples = store.read_table(records["examples"], "sft_examples").slice(0, (arguments.steps + 1) * size)

    def stage() -> float:
        return stage_speed(config, load_for_training(folder, None, "sft"), examples)

    spent: list[dict[str, float]] = []

    def plain() -> float:
        speed, parts = loop_speed(config, load_for_training(folder, None, "sft"), examples, "rows")
        spent.append(parts)
        return speed

    def unpacked() -> float:
        return loop_speed(config, load_for_training(folder, None, "sft"), examples, "single")[0]

    print(f"{torch.get_num_threads()} threads, {arguments.steps} steps of {size} examples\n")
    compare("SFT stage", stage, "plain loop, same batches", plain, arguments.repeats)
    compare("packed", plain, "a row a sequence", unpacked, arguments.repeats)
    print("| part of a step | per cent of its time |\n| --- | ---: |")
    for name in PARTS:
        print(f"| {name} | {statistics.median(100 * parts[name] / sum(parts.values()) for parts in spent):.1f} |")
    print("\n| stage | seconds | rows |\n| --- | ---: | --- |")
    for name, record in records.items():
        rows = ", ".join(f"{table} {entry['rows']}" for table, entry in record.tables.items())
        print(f"| {name} | {record.details['seconds']:.1f} | {rows} |")


def compare(name: str, measured: Callable[[], float], other: str, reference: Callable[[], float], repeats: int) -> None:
    """Print the medians of two speeds, measured in turn, and the median of their ratios."""
    pairs = [(measured(), reference()) for _ in range(repeats)]
    ratio = statistics.median(first / second for first, second in pairs)
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"| | tokens a second |\n| --- | ---: |\n| {name} | {ours:,.0f} |\n| {other} | {theirs:,.0f} |")
    print(f"| ratio | {ratio:.2f} |\n", flush=True)


def stage_speed(config: RunConfig, bundle: Bundle, examples: pa.Table) -> float:
    """Tokens a second of the SFT stage, after its first step."""
    section = config.sft.model_copy(update={"epochs": 1.0, "checkpoints": 0})
    with TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
        log = train_sft(section, bundle, examples, Path(output), seed=config.seed)
    later = log[1:]
    return sum(row["tokens"] for row in later) / (later[-1]["seconds"] - log[0]["seconds"])


def loop_speed(config: RunConfig, bundle: Bundle, examples: pa.Table, layout: Layout) -> tuple[float, dict[str, float]]:
    """Tokens a second of a plain loop over the batches, after its first step, and the seconds of each of `PARTS`."""
    assert bundle.model is not None
    model, section = bundle.model, config.sft
    if section.scoring == "vocabulary":
        add_fused_lm_head(model)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=section.learning_rate, betas=(0.9, section.adam_beta2), fused=True
    )
    dataset = build_sft_dataset(bundle, examples)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(config.seed)).tolist()
    collator = make_collator(bundle, section.loss)
    collator.layout = layout
    collate = SftCollator(collator)
    children = trie_children(bundle.trie) if section.scoring == "trie" else None
    tokens, clock = 0, Clock()
    for number, start in enumerate(range(0, len(order), section.batch_size)):
        if number == 1:
            tokens, clock = 0, Clock()
        batch: dict[str, Any] = collate(dataset.__getitems__(order[start : start + section.batch_size]))
        clock.stop("batch")
        log_probs = identifier_log_probs(model, batch, section.scoring, children)
        loss = -log_probs.sum() / (batch["labels"][:, 1:] != -100).sum()
        clock.stop("forward")
        loss.backward()
        clock.stop("backward")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        clock.stop("optimiser")
        tokens += int(batch["n_tokens"])
    return tokens / sum(clock.seconds.values()), clock.seconds


class Clock:
    """Adds up what the parts of a step take."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()

    def stop(self, part: str) -> None:
        """Count the time since the last stop."""
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


if __name__ == "__main__":
    main()
