"""What a model trained from scratch on a CPU reaches, beside BM25 in the same run, and how long each stage took.

    python benchmarks/scratch.py FOLDER [FOLDER ...] [--preset scratch-atomic] [--split test] [--set a.b=c]

Each FOLDER is a corpus in the BEIR layout. With --split train the queries of the training split, which nothing is
trained on, serve as a development set; with --set corpus.train_split=train they are trained on, and the last columns
have NDCG@10 on test queries with and without a relevant passage that people wrote training queries for. Prints one
Markdown table for all runs.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from genret.config import load_config
from genret.evaluation.slices import NO, TRAINED_ON, YES
from genret.pipeline import run
from genret.runs import RunStore, StageRecord
from genret.terminal import TerminalReporter

MEASURES = ("HIT@1", "HIT@10", "MRR@10", "NDCG@10")


def main() -> None:
    """Run every preset on every corpus, and print what came out."""
    arguments = parse_arguments()
    columns = (*MEASURES, "ms a query", "training minutes", "minutes in all", "trained on", "not trained on")
    print(f"| corpus | preset | retriever | {' | '.join(columns)} |")
    print(f"| --- | --- | --- |{' ---: |' * len(columns)}")
    for folder in arguments.folders:
        for preset in arguments.preset:
            for line in measure(folder, preset, arguments.split, arguments.set or []):
                print(line, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--preset", nargs="+", default=["scratch-atomic", "scratch-semantic"])
    parser.add_argument("--split", default="test")
    parser.add_argument("--set", action="append", metavar="a.b=c")
    return parser.parse_args()


def measure(folder: Path, preset: str, split: str, overrides: list[str]) -> list[str]:
    """Rows of the table for one corpus and one preset."""
    config = load_config(preset, [f"corpus.path={folder}", f"corpus.split={split}", *overrides])
    reporter = TerminalReporter(Console(stderr=True))
    with TemporaryDirectory(prefix="genret-benchmark-") as place:
        store = RunStore(place)
        try:
            records = run(config, store, reporter)
        finally:
            reporter.close()
        values = {
            (row["retriever"], row["measure"]): row["value"]
            for row in store.read_table(records["evaluation"], "measures").to_pylist()
        }
        latency = {
            row["retriever"]: row["milliseconds_a_query"]
            for row in store.read_table(records["retrieval"], "latencies").to_pylist()
        }
        shares = training_slices(store.read_table(records["evaluation"], "slice_measures").to_pylist())
    training, everything = minutes(records, ("base", "sft", "rpo")), minutes(records, tuple(records))
    return [
        f"| {folder.name} | {preset} | {retriever} | "
        + " | ".join(f"{100 * values[retriever, measure]:.1f}" for measure in MEASURES)
        + f" | {latency[retriever]:.1f} | {training:.1f} | {everything:.1f}"
        + "".join(f" | {shares.get((retriever, name), '–')}" for name in (YES, NO))
        + " |"
        for retriever in config.retrieval.retrievers
    ]


def training_slices(rows: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """NDCG@10 by retriever and slice, with the number of queries."""
    return {
        (row["retriever"], row["slice"]): f"{100 * row['value']:.1f} ({row['n_queries']})"
        for row in rows
        if row["slice_by"] == TRAINED_ON and row["measure"] == "NDCG@10"
    }


def minutes(records: dict[str, StageRecord], stages: tuple[str, ...]) -> float:
    """Minutes that these stages took."""
    return sum(records[stage].details["seconds"] for stage in stages if stage in records) / 60


if __name__ == "__main__":
    main()
