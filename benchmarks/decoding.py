"""What decoding costs and whether it is right, beside transformers' `generate` and other references in the same run.

    python benchmarks/decoding.py [--part speed floor weights exact scale filters additions gpu] [--quick]
                                  [--cells PATTERN] [--run FOLDER] [--queries N] [--identifiers N] [--repeats N]
                                  [--budget SECONDS] [--threads N] [--json FILE] [--write FILE] [--remark TEXT]

- speed: queries a second against `generate` and a masked beam search, on the CPU, and whether the results agree.
- floor: time outside the model's forward passes, and the whole search against the passes alone on the bare model.
- weights: what reading the weights and multiplying with them takes, one query at a time on the large model.
- exact: exact search against brute force, and what beam search misses; with --run for a trained model also.
- scale: ten million identifiers: time and memory to build, size, time to open, search against ten thousand.
- filters: what metadata filters cost, and whether they hold.
- additions: what it takes to add identifiers to an index, beside building it anew, and to search what was added to.
- gpu: a model of seven billion parameters on a GPU, if there is one.

Prints Markdown tables as it goes. All weights, identifiers and prompts are random, from fixed seeds, but for those of a
run. `--budget` ends the repeats of a comparison once one of its sides has taken so long.
"""

import argparse
import importlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import torch
from decoding_parts.index import MOST_IDENTIFIERS, SMALL_IDENTIFIERS
from decoding_parts.settings import Settings
from decoding_parts.tables import Table, machine, update_file
from decoding_parts.timing import Limits
from transformers.utils import logging

PARTS = ("speed", "floor", "weights", "exact", "scale", "filters", "additions", "gpu")


def main() -> None:
    """Run the parts, and keep what they found."""
    arguments = parse_arguments()
    logging.set_verbosity_error()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    limits = Limits(arguments.repeats, arguments.budget)
    settings = Settings(
        limits, arguments.quick, arguments.run, arguments.identifiers, arguments.cells, arguments.queries
    )
    print(f"{machine()}; at most {limits.repeats} repeats and {limits.budget_seconds:g} s a side")
    collected: dict[str, list[Table]] = {}
    for name in arguments.part:
        # Only the parts that run are imported: a GPU machine need not have what finished runs are read with.
        collected[name] = importlib.import_module(f"decoding_parts.{name}").run(settings)
        if arguments.json is not None:
            write_json(arguments.json, collected)
        if arguments.write is not None and collected[name]:
            text = section(name, collected[name], settings, arguments.remark)
            update_file(arguments.write, f"decoding {title(name, settings)}", text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="the small model and few identifiers only")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a finished run, for the part exact")
    parser.add_argument("--identifiers", type=int, default=10_000_000, help="of the part scale (default: 10,000,000)")
    parser.add_argument(
        "--cells", type=re.compile, default="", metavar="PATTERN",
        help='cells of the part speed: "MODEL VOCABULARY IDENTIFIERS SCORING BATCH", as in "^2x256" or "5000 trie 32$"',
    )  # fmt: skip
    parser.add_argument("--queries", type=int, default=200, help="of the part exact (default: 200)")
    parser.add_argument("--repeats", type=int, default=5, help="measured runs of each side (default: 5)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of a side that end the repeats")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables into this Markdown file")
    parser.add_argument("--remark", metavar="TEXT", help="what the file should say about the machine")
    arguments = parser.parse_args()
    if not SMALL_IDENTIFIERS < arguments.identifiers <= MOST_IDENTIFIERS:
        parser.error(f"--identifiers: expected {SMALL_IDENTIFIERS + 1} to {MOST_IDENTIFIERS}")
    return arguments


def write_json(path: Path, collected: dict[str, list[Table]]) -> None:
    """All tables by part, with the machine."""
    tables = {name: [asdict(table) for table in of_part] for name, of_part in collected.items()}
    path.write_text(json.dumps({"machine": machine(), "parts": tables}, indent=2) + "\n", encoding="utf-8")


def title(name: str, settings: Settings) -> str:
    """Of a part, or of some cells of it."""
    return f"{name} {settings.cells.pattern}" if name == "speed" and settings.cells.pattern else name


def section(name: str, of_part: list[Table], settings: Settings, remark: str | None) -> str:
    """The tables of one part under the command that makes them."""
    command = f"python benchmarks/decoding.py --part {name}"
    if name != "exact":  # which measures once
        command += f" --repeats {settings.limits.repeats} --budget {settings.limits.budget_seconds:g}"
    command += " --quick" if settings.quick else ""
    command += f" --cells '{settings.cells.pattern}'" if name == "speed" and settings.cells.pattern else ""
    command += f" --threads {torch.get_num_threads()}"
    command += f" --queries {settings.queries}" if name == "exact" else ""
    command += f" --run {settings.run.name}" if settings.run is not None and name == "exact" else ""
    command += f" --identifiers {settings.identifiers}" if name == "scale" else ""
    about = f"{machine()}. Seeds are fixed.{f' {remark}' if remark else ''}"
    head = f"## Decoding: {title(name, settings)}\n\n    {command}\n\n{about}\n"
    return "\n".join([head, *(table.markdown() for table in of_part)])


if __name__ == "__main__":
    main()
