"""Ten million identifiers: building, size, opening, and the cost of a search against ten thousand."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from decoding_parts.baselines import SCORINGS, WIDTH
from decoding_parts.data import prompts, random_model, shape
from decoding_parts.index import BELOW_ROOT, FAN_OUT, INDEX, SMALL_IDENTIFIERS, VOCABULARY
from decoding_parts.settings import Settings
from decoding_parts.speed import FEWEST_PROMPTS, in_turn
from decoding_parts.tables import Table
from decoding_parts.timing import interleave
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie

BUILD_NOTE = f"""\
Identifiers of four keywords, 8 to 16 tokens, in random order. "build" is the time to sort them and to find the nodes,
without reading them or writing the index; "peak" the most memory that a fresh process held until the index was
written, with the interpreter, libraries and the input; "beyond input" is that without the bytes of the input arrays
alone. "by tokens": the bytes of the saved index by those of the identifiers' own tokens, four bytes each. "open" maps
the saved index, whose files the system's cache still holds, and "ready" makes a `TrieSearch` of it; medians. The first
keyword is one of as many as there are identifiers by {BELOW_ROOT}, each later one is one of {FAN_OUT}."""
SEARCH_NOTE = f"""\
Beam search over memory-mapped indexes, which take turns; medians, in ms a batch; at batch 1 eight prompts one after
the other. In both, a search meets four choices, and behind the first one every fan-out is {FAN_OUT}: the depth and
what there is to choose from on a path are the same, only the first keyword is one of as many more as there are more
identifiers. Expansions: stretches of tokens that the model read a query."""

MODEL = (2, 256, VOCABULARY)
QUICK_IDENTIFIERS = 100_000
BATCHES = (1, 32)


def run(settings: Settings) -> list[Table]:
    """Build both indexes and search them."""
    count = min(settings.identifiers, QUICK_IDENTIFIERS) if settings.quick else settings.identifiers
    model = random_model(shape(*MODEL))
    building, searching = Table("Large indexes", BUILD_NOTE), Table("Search in a large index", SEARCH_NOTE)
    with TemporaryDirectory(prefix="decoding-benchmark-") as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        for place, roots in ((small, SMALL_IDENTIFIERS // BELOW_ROOT), (large, -(-count // BELOW_ROOT))):
            add_index(building, place, roots, model, settings)
        for scoring in SCORINGS:
            searches = {
                name: TrieSearch(model, Trie.load(place / INDEX), scoring)
                for name, place in (("small", small), ("large", large))
            }
            for batch in BATCHES:
                add_search(searching, searches, scoring, batch, settings)
    return [building, searching]


def add_index(table: Table, folder: Path, roots: int, model: Any, settings: Settings) -> None:
    """Generate identifiers, build their index, open it, and add the row."""
    folder.mkdir()
    in_fresh_process("generate", folder, "--roots", str(roots))
    built = json.loads(in_fresh_process("build", folder))
    opened = interleave({"open": lambda: Trie.load(folder / INDEX)}, settings.limits)["open"]
    ready = interleave({"ready": lambda: TrieSearch(model, opened.answer, "trie")}, settings.limits)["ready"]
    table.add(
        identifiers=built["identifiers"],
        tokens_MB=built["token_bytes"] / 1e6,
        build_s=built["build_seconds"],
        peak_MB=built["peak_bytes"] / 1e6,
        beyond_input_MB=(built["peak_bytes"] - built["input_bytes"]) / 1e6,
        index_MB=built["index_bytes"] / 1e6,
        index_by_tokens=built["index_bytes"] / built["token_bytes"],
        open_ms=1000 * opened.median,
        ready_ms=1000 * ready.median,
        first_choices=len(opened.answer.children(0)[0]),
        nodes=len(opened.answer.node_depth),
    )


def add_search(table: Table, searches: dict[str, TrieSearch], scoring: str, batch: int, settings: Settings) -> None:
    """Add the row of one scoring and batch size."""
    queries = prompts(max(batch, FEWEST_PROMPTS), VOCABULARY)
    batches = [queries[at : at + batch] for at in range(0, len(queries), batch)]
    sides = {name: in_turn(partial(search.search, k=WIDTH, beam=WIDTH), batches) for name, search in searches.items()}
    runs = interleave(sides, settings.limits)
    columns: dict[str, Any] = {"scoring": scoring, "batch": batch}
    for name, search in searches.items():
        columns[f"{len(search.trie):,}_identifiers_ms"] = 1000 * runs[name].median / len(batches)
    columns["ratio"] = runs["large"].median / runs["small"].median
    for name, search in searches.items():
        expansions = float(np.mean([result.expansions for result in runs[name].answer]))
        columns[f"expansions_at_{len(search.trie):,}"] = expansions
    table.add(**columns)


def in_fresh_process(*arguments: str | Path) -> str:
    """What `python -m decoding_parts.index` prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "decoding_parts.index", *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout
