"""How much of a search is the model's own work, and how little work it could be.

A search is compared with two replays on the bare model, which know beforehand what there is to read: they build no
masks, look nothing up, choose nothing and score nothing.

- *Its passes*: the prompt pass and every later pass of the search with the same number of rows and columns, behind a
  cache of the same length. What the search takes beyond it is spent on searching.
- *Necessary passes*: what a search that goes token by token cannot do without, found from the open hypotheses of the
  masked beam search. A depth is necessary for a query where one of its hypotheses has a choice; elsewhere nothing can
  be pruned, and tokens of several depths fit into one pass. Each such depth is one pass: of the hypotheses that have a
  choice there under trie scoring, and of all open ones under vocabulary scoring, where every token counts; with them
  come the tokens before them that are not read yet, without which the model could not read these. Under vocabulary
  scoring a last pass reads what stands behind the last choice. The first passes of all queries make one batch, and so
  do the second ones, and so on, and the tokens of a batch are spread evenly over its rows, as if none were lost to
  padding. The search may make fewer passes than that where it reads ahead, and read more tokens.

Both replays apply the output layer where vocabulary scoring needs probabilities: to as many states as the search
scored, and to the necessary ones. Under trie scoring they leave it out altogether.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import DynamicCache

from decoding_parts.baselines import SCORINGS, WIDTH, MaskedBeamSearch, PrefixArrays, Scoring
from decoding_parts.data import keyword_identifiers, prompts, random_model, shape
from decoding_parts.passes import passes_alone
from decoding_parts.settings import Settings
from decoding_parts.tables import Table
from decoding_parts.timing import interleave
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie

SHARES_NOTE = """\
Where the time of a search goes: "forward" in the model's decoder (layers without the output layer), "scores" in the
output layer and in the log-probabilities made of it, "outside" in everything else: trie, masks, hypotheses,
pruning. Medians over the repeats, in ms for the whole and in % of it."""
FLOOR_NOTE = """\
The whole search beside two replays of forward passes on the bare model, with no search at all: "its passes" are
those that the search made, with the same tokens behind caches of the same length; "necessary" ones are a prompt
pass and one pass for each depth at which some open hypothesis has a choice, of the tokens that a search token by
token must have read there. Both apply the output layer to the states that vocabulary scoring needs, and not at all
under trie scoring. Passes count the prompts' own; tokens are those of the later passes, with padding for the search
and without for the necessary ones. "packed" is the search's own passes once more, in its own layout with its packed
weights, masks and places in the cache, and under vocabulary scoring with the output layer's products: beyond it the
whole takes what is neither, sums of exponentials among it. All take turns; times are medians."""

BATCH = 32
LARGE = (12, 768, 32_000, 100_000)
SMALL = (2, 256, 32_000, 5_000)


@dataclass(frozen=True)
class Pass:
    """One forward pass: so many rows of so many tokens, and how many of their states are scored."""

    rows: int
    columns: int
    scored: int


@dataclass
class Record:
    """What one search did.

    Attributes:
        sizes: Rows and columns of each of its passes.
        scored: States scored after each of them.
        forward: Seconds in the model's decoder.
        scores: Seconds in the scorer.
        whole: Seconds in all.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    forward: float = 0.0
    scores: float = 0.0
    whole: float = 0.0

    def passes(self) -> list[Pass]:
        """Its passes, the prompts' own first."""
        return [Pass(*size, scored) for size, scored in zip(self.sizes, self.scored, strict=True)]


@dataclass(frozen=True)
class Case:
    """A search, and what it is asked."""

    scoring: Scoring
    model: Any
    search: TrieSearch
    queries: Sequence[Sequence[int]]

    def find(self) -> list[Any]:
        """The results."""
        return self.search.search(self.queries, k=WIDTH, beam=WIDTH)

    def recorded(self) -> Record:
        """Search once, and take down passes and times."""
        record = Record()
        forward, score = self.search.decoder.forward, self.search.scorer.score

        def passed(ids: Any, *arguments: Any) -> torch.Tensor:
            begin = time.perf_counter()
            states = forward(ids, *arguments)
            record.forward += time.perf_counter() - begin
            record.sizes.append((1, len(ids)))
            return states

        def scored(states: torch.Tensor, *arguments: Any, **more: Any) -> Any:
            begin = time.perf_counter()
            scores = score(states, *arguments, **more)
            record.scores += time.perf_counter() - begin
            record.scored.append(len(states))
            return scores

        with (
            mock.patch.object(self.search.decoder, "forward", passed),
            mock.patch.object(self.search.scorer, "score", scored),
        ):
            begin = time.perf_counter()
            self.find()
            record.whole = time.perf_counter() - begin
        return record


def run(settings: Settings) -> list[Table]:
    """Measure both scorings."""
    layers, hidden, vocabulary, count = SMALL if settings.quick else LARGE
    size = shape(layers, hidden, vocabulary)
    where = f"Model {size}, vocabulary {vocabulary:,}, {count:,} identifiers, batch {BATCH}, beam {WIDTH}."
    model, identifiers = random_model(size), keyword_identifiers(count, vocabulary)
    trie, prefixes = Trie.from_sequences(identifiers), PrefixArrays.build(identifiers)
    queries = prompts(BATCH, vocabulary)
    cases = [Case(scoring, model, TrieSearch(model, trie, scoring), queries) for scoring in SCORINGS]
    shares, floors = Table("Time outside the model", f"{SHARES_NOTE} {where}"), Table("Floor", f"{FLOOR_NOTE} {where}")
    for case in cases:
        add_shares(shares, case, settings)
    for case in cases:
        add_floor(floors, case, prefixes, settings)
    return [shares, floors]


def add_shares(table: Table, case: Case, settings: Settings) -> None:
    """Add the row that says where the time of a search goes."""
    case.find()
    records = [case.recorded() for _ in range(settings.limits.repeats)]
    outside = [record.whole - record.forward - record.scores for record in records]
    table.add(
        scoring=case.scoring,
        whole_ms=1000 * float(np.median([record.whole for record in records])),
        forward_percent=_percent([record.forward for record in records], records),
        scores_percent=_percent([record.scores for record in records], records),
        outside_percent=_percent(outside, records),
        outside_ms=1000 * float(np.median(outside)),
        passes=len(records[0].sizes),
    )


def add_floor(table: Table, case: Case, prefixes: PrefixArrays, settings: Settings) -> None:
    """Add the row that compares a search with the two replays."""
    own = case.recorded().passes()
    masked = MaskedBeamSearch(case.model, prefixes, case.scoring)
    masked.search(case.queries)
    longest = max(map(len, case.queries))
    necessary = [
        Pass(len(case.queries), longest, len(case.queries)),
        *necessary_passes(prefixes, open_states(masked.trail), case.scoring),
    ]
    head = case.model.lm_head if case.scoring == "vocabulary" else None
    runs = interleave(
        {
            "whole": case.find,
            "own": replay(case.model.get_decoder(), head, own),
            "necessary": replay(case.model.get_decoder(), head, necessary),
            "packed": passes_alone(case.search, case.find),
        },
        settings.limits,
    )
    whole, of_own, of_necessary, packed = (runs[name].median for name in ("whole", "own", "necessary", "packed"))
    table.add(
        scoring=case.scoring,
        whole_ms=1000 * whole,
        passes=len(own),
        tokens=_tokens(own),
        replay_of_its_passes_ms=1000 * of_own,
        whole_by_its_passes=whole / of_own,
        necessary_passes=len(necessary),
        necessary_tokens=_tokens(necessary),
        replay_of_necessary_ms=1000 * of_necessary,
        whole_by_necessary=whole / of_necessary,
        packed_replay_ms=1000 * packed,
        beyond_packed_percent=100 * (1 - packed / whole),
    )


def replay(decoder: Any, head: Any, passes: Sequence[Pass]) -> Callable[[], None]:
    """A function that makes these passes on the bare model, one behind the other in one cache.

    The first is the prompts', without a mask; the later ones have a mask each, made beforehand, in which everything is
    visible: without one transformers would make its own in each pass.
    """
    random = np.random.default_rng(0)
    before = np.cumsum([0, *(one.columns for one in passes)])
    ids = [torch.from_numpy(random.integers(decoder.config.vocab_size, size=(one.rows, one.columns))) for one in passes]
    masks = [
        None if start == 0 else torch.ones((one.rows, 1, one.columns, start + one.columns), dtype=torch.bool)
        for one, start in zip(passes, before.tolist(), strict=False)
    ]

    @torch.inference_mode()
    def run_passes() -> None:
        cache = DynamicCache(config=decoder.config)
        for number, one in enumerate(passes):
            if number and one.rows < passes[number - 1].rows:
                cache.batch_select_indices(torch.arange(one.rows))
            hidden = decoder(
                input_ids=ids[number], attention_mask=masks[number], past_key_values=cache, use_cache=True
            ).last_hidden_state
            if head is not None:
                head(hidden.reshape(-1, hidden.shape[-1])[: one.scored])

    return run_passes


def open_states(trail: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[list[list[int]]]:
    """The states of the open hypotheses of each query, by depth from 1 on."""
    queries = len(trail[0][0])
    return [
        [state[query][~none[query]].tolist() for state, none in trail if not bool(none[query].all())]
        for query in range(queries)
    ]


def necessary_passes(
    prefixes: PrefixArrays, queries: Sequence[Sequence[Sequence[int]]], scoring: Scoring
) -> list[Pass]:
    """The later passes that a search token by token cannot do without; see the head of this file."""
    fan_out = prefixes.fan_out
    count = _counts_over_trie if scoring == "trie" else _counts_over_vocabulary
    tokens = [count(states, fan_out, prefixes.parent) for states in queries]
    most = max(map(len, tokens))
    together = [[of_query[number] for of_query in tokens if number < len(of_query)] for number in range(most)]
    return [Pass(len(here), -(-sum(here) // len(here)), sum(here)) for here in together]


def _counts_over_trie(depths: Sequence[Sequence[int]], fan_out: np.ndarray, parent: np.ndarray) -> list[int]:
    """Tokens in each pass of one query: hypotheses with a choice, and what stands before them unread."""
    read, counts = {0}, []
    for states in depths:
        already = len(read)
        for chooser in (state for state in states if fan_out[state] > 1):
            state = chooser
            while state not in read:
                read.add(state)
                state = int(parent[state])
        if len(read) > already:
            counts.append(len(read) - already)
    return counts


def _counts_over_vocabulary(depths: Sequence[Sequence[int]], fan_out: np.ndarray, _: np.ndarray) -> list[int]:
    """Tokens in each pass of one query: all open hypotheses, up to and with a depth where one has a choice."""
    counts, waiting = [], 0
    for states in depths:
        waiting += len(states)
        if (fan_out[list(states)] > 1).any():
            counts.append(waiting)
            waiting = 0
    return [*counts, waiting] if waiting else counts


def _percent(parts: Sequence[float], records: Sequence[Record]) -> float:
    return 100 * float(np.median([part / record.whole for part, record in zip(parts, records, strict=True)]))


def _tokens(passes: Sequence[Pass]) -> int:
    return sum(one.rows * one.columns for one in passes[1:])
