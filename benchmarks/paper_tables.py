"""The tables of arXiv 2502.17957 as grids of configurations: ours beside the paper's figures.

    python benchmarks/paper_tables.py --table N [N ...] [--scale cpu|paper] [--data FOLDER] [--runs FOLDER]
                                      [--datasets NAME ...] [--seeds N ...] [--json FILE] [--plan] [--set a.b=c]

N is 2 to 8, or 11.

- cpu: a small decoder from scratch, extractive queries, three seeds, and the corpora under --data (default:
  $GENRET_DATA) that stand for the paper's. They are small and partly other texts: figures are not comparable with the
  paper's, only the directions of the effects are. With --datasets a table can be made of a corpus that the paper does
  not have in it, scifact among them.
- paper: the paper's models and settings: the presets multihop-rag, allsides, agnews and nq; one run, as in the paper.
  Expects the corpora under --data in the BEIR layout, in folders of the same names, GPUs, and a model hub. Table 6
  compares two engines: what stands for docT5query is given by --engine, as the `llm` section. A model of table 11
  whose weights on the hub are pickles (Contriever) is read from what `genret convert` makes of it: --copy NAME=FOLDER.

With --plan the grid is printed with what it takes, and nothing is run.

Runs on one corpus share a folder, and so all stages that they have in common, in one table and between tables; what was
run before is not run again. Prints a Markdown table for each corpus, means and standard deviations over the seeds, and
where each effect of the paper is seen; keeps the same, every seed by itself, in a JSON file beside the run folders.
"""

import argparse
import json
import os
import time
from contextlib import ExitStack
from pathlib import Path

from paper_parts.figures import MEASURES, SCIFACT, TABLES, PaperTable, Row, paper_table
from paper_parts.grid import Sharing, configurations, corpora, differs, measures_of, plan
from paper_parts.printing import Values, lines
from rich.console import Console

from genret.cluster import connected
from genret.config import RunConfig
from genret.evaluation.similarity import win_rates
from genret.pipeline import run
from genret.runs import RunStore, StageRecord
from genret.terminal import TerminalReporter

SEEDS = {"cpu": [0, 1, 2], "paper": [0]}


def main() -> None:
    """Run the grids that were asked for, or print them."""
    arguments = parse_arguments()
    sharing = {corpus: Sharing() for corpus in MEASURES}
    collected: dict[str, object] = {}
    for number in arguments.table:
        table = paper_table(number, arguments.scale)
        for corpus in corpora(table, arguments.datasets):
            print(f"\n## Table {number}, {corpus}, scale {arguments.scale}\n", flush=True)
            if not differs(table, corpus, arguments):
                print("The rows do not differ here: each is the same configuration.", flush=True)
                continue
            if arguments.plan:
                print("\n".join(plan(table, corpus, arguments, sharing[corpus])), flush=True)
                continue
            begin = time.perf_counter()
            ours, closest = run_grid(table, corpus, arguments)
            minutes = (time.perf_counter() - begin) / 60
            print("\n".join([*lines(table, corpus, ours), *closest]), f"\n\n{minutes:.1f} minutes", flush=True)
            collected[f"table {number}, {corpus}"] = {
                "scale": arguments.scale,
                "seeds": arguments.seeds,
                "measures": measures_of(corpus),
                "ours": ours,
                "paper": {row.name: row.paper.get(corpus) for row in table.rows},
                "minutes": minutes,
            }
            keep(collected, arguments)


def keep(collected: dict[str, object], arguments: argparse.Namespace) -> None:
    """Write what was found so far."""
    numbers = "-".join(map(str, arguments.table))
    path = arguments.json or arguments.runs / f"tables-{numbers}-{arguments.scale}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(collected, indent=2) + "\n", encoding="utf-8")
    print(f"kept in {path}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", type=int, choices=[*TABLES, 11], required=True)
    parser.add_argument("--scale", choices=list(SEEDS), default="cpu")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GENRET_DATA", ".")))
    parser.add_argument("--runs", type=Path, default=Path("runs/paper-tables"), help="folder of the run folders")
    parser.add_argument("--datasets", nargs="+", choices=list(MEASURES), help="default: all that the paper has")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2 at the scale cpu, else 0")
    parser.add_argument("--engine", help="table 6 at the scale paper: the other engine, {type: http, ...}")
    parser.add_argument("--copy", action="append", default=[], metavar="NAME=FOLDER", help="of a retriever's model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: RUNS/tables-N-N-SCALE.json")
    parser.add_argument("--plan", action="store_true", help="print the grid, run nothing")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change all rows")
    arguments = parser.parse_args()
    arguments.seeds = arguments.seeds or SEEDS[arguments.scale]
    if wrong := next((copy for copy in arguments.copy if "=" not in copy), None):
        parser.error(f"--copy: expected NAME=FOLDER, found {wrong!r}")
    arguments.copies = dict(copy.split("=", 1) for copy in arguments.copy)
    if arguments.scale == "paper" and SCIFACT in (arguments.datasets or ()):
        parser.error(f"--datasets: expected corpora of the paper at the scale paper, found {SCIFACT}")
    if arguments.scale == "paper" and 6 in arguments.table and not arguments.engine:
        parser.error("--engine: expected an `llm` section, as table 6 compares two of them, found none")
    return arguments


def run_grid(table: PaperTable, corpus: str, arguments: argparse.Namespace) -> tuple[Values, list[str]]:
    """The measures of all rows with all seeds; and, where engines are compared, lines about their queries."""
    ours: Values = {}
    closest: list[str] = []
    with ExitStack() as stack:
        for seed in arguments.seeds:
            grid = configurations(table, corpus, arguments, seed)
            if arguments.scale == "cpu":  # one Ray for all runs; with a language model each asks for what it needs
                stack.enter_context(connected(next(iter(grid.values())).compute))
            done = {}
            for row in (row for row in table.rows if row.name in grid):
                store, done[row.name] = run_row(grid[row.name], corpus, arguments.runs)
                ours.setdefault(row.name, []).append(measures(store, done[row.name], row))
            if table.engines:
                closest.append(compare_queries(store, done, seed))
    return ours, closest


def run_row(config: RunConfig, corpus: str, runs: Path) -> tuple[RunStore, dict[str, StageRecord]]:
    """Run a configuration in the folder of its corpus."""
    store = RunStore(runs / f"{config.name}-{corpus}")
    reporter = TerminalReporter(Console(stderr=True))
    try:
        return store, run(config, store, reporter, "evaluation")
    finally:
        reporter.close()


def measures(store: RunStore, records: dict[str, StageRecord], row: Row) -> dict[str, float]:
    """The measures of a row's retriever in per cent."""
    return {
        entry["measure"]: 100 * entry["value"]
        for entry in store.read_table(records["evaluation"], "measures").to_pylist()
        if entry["retriever"] == row.retriever
    }


def compare_queries(store: RunStore, done: dict[str, dict[str, StageRecord]], seed: int) -> str:
    """The win rates of the rows' synthetic queries over each other (figure 2 of the paper)."""
    records = next(iter(done.values()))
    corpus = {name: store.read_table(records["corpus"], name) for name in ("test_queries", "qrels", "passages")}
    sets = {name: store.read_table(of_row["synthesis"], "queries") for name, of_row in done.items()}
    found = win_rates({name: queries.select(["passage_id", "text"]) for name, queries in sets.items()}, **corpus)
    shares = [f"{row['set_a']} {100 * row['win_rate']:.1f} %" for row in found.to_pylist()]
    return f"- closer to the test queries, seed {seed}: {', '.join(shares)}"


if __name__ == "__main__":
    main()
