"""How fast prompts go through the engines, beside a bare engine or client with the same prompts in the same run.

    python benchmarks/synthesis.py [--part vllm http memory] [--rows N] [--repeats N] [--json FILE] [--write FILE] ...

- vllm: rows a second through Ray Data (`genret.llm.vllm`) against vLLM's own `LLM.generate` in its own process, on a
  random model of about 100 million parameters (--hidden, --layers, --intermediate) on a CPU. Start-up is apart.
- http: rows a second through the actors of `genret.llm.http` against one bare aiohttp client, on a server that works on
  --slots requests at a time and takes --latency seconds for each. Goal: 0.95 of its capacity, slots / latency.
- memory: the most memory of driver and actors, and the time, for --sizes prompts. Goals: flat, and linear.

Prints Markdown tables as it goes: medians over the repeats. The goal of the vllm part is a ratio of 0.9.
"""

import argparse
import importlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from decoding_parts.tables import Table, machine, update_file

PARTS = ("vllm", "http", "memory")


def main() -> None:
    """Run the parts, and keep what they found."""
    arguments = parse_arguments()
    # Ray's workers would stand back behind all else on the machine, the bare sides among it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    print(machine())
    collected: dict[str, list[Table]] = {}
    for name in arguments.part:
        # Each in a module of its own: a machine without vLLM can run the other.
        collected[name] = importlib.import_module(f"synthesis_parts.{name}_rows").run(arguments)
        if arguments.write is not None:
            head = f"## Synthesis: {name}\n\n    {command(name, arguments)}\n\n{machine()}. Seeds are fixed.\n"
            update_file(
                arguments.write,
                f"synthesis {name}",
                "\n".join([head, *(table.markdown() for table in collected[name])]),
            )
    if arguments.json is not None:
        tables = {name: [asdict(table) for table in of_part] for name, of_part in collected.items()}
        arguments.json.write_text(json.dumps({"machine": machine(), "parts": tables}, indent=2) + "\n")


def command(name: str, arguments: argparse.Namespace) -> str:
    """What makes a part again."""
    own = {
        "vllm": ("rows", "words", "hidden", "layers", "intermediate", "dtype", "threads", "batch_size", "repeats"),
        "http": ("requests", "slots", "concurrency", "actors", "latency", "repeats"),
        "memory": ("memory_engines", "sizes", "memory_slots", "memory_latency", "actors"),
    }
    flags = [f"--{flag.replace('_', '-')} {_shown(getattr(arguments, flag))}" for flag in own[name]]
    return f"python benchmarks/synthesis.py --part {name} {' '.join(flags)}"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=3, help="measured runs of each side (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables into this Markdown file")
    engine = parser.add_argument_group("vllm")
    engine.add_argument("--rows", type=int, default=256, help="prompts (default: 256)")
    engine.add_argument("--words", type=int, default=100, help="words of a passage (default: 100)")
    engine.add_argument("--hidden", type=int, default=768)
    engine.add_argument("--layers", type=int, default=12)
    engine.add_argument("--intermediate", type=int, default=2048)
    engine.add_argument("--dtype", default="float32")
    engine.add_argument("--threads", type=int, default=1, help="of the engine (default: 1)")
    engine.add_argument("--batch-size", type=int, default=32, help="llm.batch_size (default: 32)")
    server = parser.add_argument_group("http")
    server.add_argument("--requests", type=int, default=3200, help="prompts (default: 3200)")
    server.add_argument("--slots", type=int, default=64, help="of the server (default: 64)")
    server.add_argument(
        "--concurrency", type=int, nargs="+", default=[64, 80], help="llm.concurrency, each in turn (default: 64 80)"
    )
    server.add_argument("--actors", type=int, default=2, help="compute.cpu_workers (default: 2)")
    server.add_argument("--latency", type=float, default=0.2, help="seconds that the server takes (default: 0.2)")
    memory = parser.add_argument_group("memory")
    memory.add_argument("--memory-engines", nargs="+", choices=("extractive", "http"), default=["extractive", "http"])
    memory.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 200_000], help="prompts")
    memory.add_argument("--memory-slots", type=int, default=128, help="of the server (default: 128)")
    memory.add_argument("--memory-latency", type=float, default=0.05, help="seconds (default: 0.05)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
