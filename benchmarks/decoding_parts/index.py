"""Many identifiers, and building their trie in a process of its own, so that its peak memory can be read.

    python -m decoding_parts.index generate FOLDER --roots N
    python -m decoding_parts.index build FOLDER

The identifiers are four keywords of one to three tokens with separators and an end: 8 to 16 tokens. The first keyword
is one of N, and each of the three others one of eight that depend on all keywords before it. All words begin with
tokens of their own, so that the only choices are the first tokens of the four keywords. Whatever N is, a search goes
through four choices, and behind the first one the fan-out is eight.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genret.decoding.trie import Trie

END, SEPARATOR, FIRST_WORD_TOKEN = 2, 3, 4
VOCABULARY = 32_000
FAN_OUT = 8
BELOW_ROOT = FAN_OUT**3
# Of an index with few first keywords, and of one in which all words are first keywords.
SMALL_IDENTIFIERS, MOST_IDENTIFIERS = 20 * BELOW_ROOT, (VOCABULARY - FIRST_WORD_TOKEN) * BELOW_ROOT
SEED = 0
# Identifiers that are made at a time.
BLOCK = 1 << 20
TOKENS, OFFSETS, INDEX = "tokens.npy", "offsets.npy", "trie"

Ints = npt.NDArray[np.int64]


def generate(folder: Path, roots: int) -> None:
    """Write the tokens and the offsets of `roots * BELOW_ROOT` identifiers in random order."""
    random = np.random.default_rng(SEED)
    words = word_table(random)
    order = random.permutation(roots * BELOW_ROOT)
    tokens, lengths = [], []
    for at in range(0, len(order), BLOCK):
        rows = identifier_rows(order[at : at + BLOCK], words)
        tokens.append(rows[rows >= 0])
        lengths.append((rows >= 0).sum(axis=1))
    np.save(folder / TOKENS, np.concatenate(tokens))
    np.save(folder / OFFSETS, np.concatenate(([0], np.cumsum(np.concatenate(lengths)))))


def word_table(random: np.random.Generator) -> npt.NDArray[np.int32]:
    """`[words, 4]`: one to three tokens, the first different for each word, and a separator; -1 behind it."""
    first = random.permutation(np.arange(FIRST_WORD_TOKEN, VOCABULARY))
    table = random.integers(FIRST_WORD_TOKEN, VOCABULARY, size=(len(first), 4))
    table[:, 0] = first
    place, length = np.arange(4), random.integers(1, 4, size=(len(first), 1))
    table[np.broadcast_to(place == length, table.shape)] = SEPARATOR
    table[place > length] = -1
    return table.astype(np.int32)


def identifier_rows(number: Ints, words: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """`[n, 16]`, the tokens of identifiers by number, with -1 wherever a word is shorter than it could be."""
    parts = [words[number // BELOW_ROOT]]
    for below in (FAN_OUT**2, FAN_OUT, 1):
        prefix, digit = number // (below * FAN_OUT), number // below % FAN_OUT
        # Scattered over all words, and different for the eight that share a prefix.
        parts.append(words[(prefix * 2_654_435_761 + below + digit * 3_001) % len(words)])
    parts[-1] = np.where(parts[-1] == SEPARATOR, END, parts[-1]).astype(np.int32)
    return np.concatenate(parts, axis=1)


def build(folder: Path) -> dict[str, Any]:
    """Build and save the trie; what it took."""
    tokens, offsets = np.load(folder / TOKENS), np.load(folder / OFFSETS)
    begin = time.perf_counter()
    trie = Trie.build(tokens, offsets)
    seconds = time.perf_counter() - begin
    trie.save(folder / INDEX)
    return {
        "identifiers": len(offsets) - 1,
        "token_bytes": len(tokens) * 4,
        "input_bytes": tokens.nbytes + offsets.nbytes,
        "index_bytes": sum(file.stat().st_size for file in (folder / INDEX).iterdir()),
        "build_seconds": seconds,
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """The most memory that this process held at a time."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux counts the parent's memory at the fork into ru_maxrss, but not into this.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Generate or build, and print what came of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["generate", "build"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--roots", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "generate":
        generate(arguments.folder, arguments.roots)
    else:
        print(json.dumps(build(arguments.folder)))


if __name__ == "__main__":
    main()
