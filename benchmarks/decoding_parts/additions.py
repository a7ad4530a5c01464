"""Identifiers that are added to an index: what it takes beside building all anew, and what a search over both takes."""

from functools import partial

import numpy as np

from decoding_parts.baselines import SCORINGS, WIDTH, agreement
from decoding_parts.data import prompts, random_model, shape
from decoding_parts.index import BELOW_ROOT, SEED, VOCABULARY, identifier_rows, word_table
from decoding_parts.settings import Settings
from decoding_parts.tables import Table
from decoding_parts.timing import Limits, interleave
from genret.decoding.overlay import GrownTrie
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie

ADDING_NOTE = """\
"build": one index of all identifiers, made anew; "add": the added ones laid over the index of the others, of which
nothing is copied; "remove": as many of the others taken out. The three take turns; medians."""
SEARCH_NOTE = """\
Beam search over the index with the overlay and over the one that was built anew, which take turns; medians, in ms a
batch. "same": queries with the same ten identifiers in the same order; "gap": the largest difference of two scores at
the same rank."""

MODEL = (2, 256, VOCABULARY)
ROOTS, QUICK_ROOTS = 2_000, 100
ADDED = (1, 100, 10_000)
BATCH = 32


def run(settings: Settings) -> list[Table]:
    """Add one identifier, a hundred and ten thousand."""
    roots = QUICK_ROOTS if settings.quick else ROOTS
    size = shape(*MODEL)
    where = f"{roots * BELOW_ROOT:,} identifiers of 8 to 16 tokens in all."
    adding = Table("Additions", f"{ADDING_NOTE} {where}")
    searching = Table("Search with additions", f"{SEARCH_NOTE} Model {size}, batch {BATCH}; {where}")
    rows = all_identifiers(roots)
    model, queries = random_model(size), prompts(BATCH, VOCABULARY)
    for count in ADDED:
        base, grown, anew = add_changes(adding, rows, count, settings.limits)
        for scoring in SCORINGS:
            over_base = TrieSearch(model, base, scoring)
            searches = {"with": over_base.over(grown), "anew": over_base.over(anew)}
            sides = {name: partial(one.search, queries, k=WIDTH, beam=WIDTH) for name, one in searches.items()}
            runs = interleave(sides, settings.limits)
            compared = agreement(runs["with"].answer, runs["anew"].answer)
            searching.add(
                added=count,
                scoring=scoring,
                with_overlay_ms=1000 * runs["with"].median,
                built_anew_ms=1000 * runs["anew"].median,
                ratio=runs["with"].median / runs["anew"].median,
                same=str(compared),
                gap=compared.gap,
            )
    return [adding, searching]


def all_identifiers(roots: int) -> np.ndarray:
    """`[roots * BELOW_ROOT, 16]`, identifiers in random order, padded with -1."""
    random = np.random.default_rng(SEED)
    words = word_table(random)
    return identifier_rows(random.permutation(roots * BELOW_ROOT), words)


def flat(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and offsets of padded rows."""
    return rows[rows >= 0], np.concatenate(([0], np.cumsum((rows >= 0).sum(axis=1))))


def add_changes(table: Table, rows: np.ndarray, count: int, limits: Limits) -> tuple[Trie, GrownTrie, Trie]:
    """Add the row of one number of added identifiers; the index of the others, with the overlay, and of all."""
    everything, added = flat(rows), flat(rows[-count:])
    base = Trie.build(*flat(rows[:-count]))
    bare = GrownTrie.grow(base)
    removed = np.random.default_rng(SEED).choice(len(base), size=count, replace=False)
    runs = interleave(
        {
            "build": lambda: Trie.build(*everything),
            "add": lambda: bare.with_added(*added),
            "remove": lambda: bare.with_removed(removed),
        },
        limits,
    )
    build, add, remove = (runs[name].median for name in ("build", "add", "remove"))
    table.add(
        added=count,
        build_ms=1000 * build,
        add_ms=1000 * add,
        times_build=build / add,
        remove_ms=1000 * remove,
    )
    return base, runs["add"].answer, runs["build"].answer
