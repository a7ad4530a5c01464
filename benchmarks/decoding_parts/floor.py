"""How much of a search is the model's own work, and how little work it could be.

First, where the time of a search goes. Then the search beside a replay of forward passes on the bare model that knows
beforehand what there is to read: it builds no masks, looks nothing up, chooses nothing and scores nothing.

It makes the *necessary passes*: what a search that goes token by token cannot do without, found from the open
hypotheses of the masked beam search. After the prompts, a depth is necessary for a query where one of its hypotheses
has a choice; elsewhere nothing can be pruned, and tokens of several depths fit into one pass. Each such depth is one
pass: of the hypotheses that have a choice there under trie scoring, and of all open ones under vocabulary scoring,
where every token counts; with them come the tokens before them that are not read yet, without which the model could
not read these. Under vocabulary scoring a last pass reads what stands behind the last choice. The first passes of all
queries make one batch, and so do the second ones, and so on, and the tokens of a batch are spread evenly over its rows,
as if none were lost to padding. Prompts are read by length, so that there too next to nothing is lost. The search may
make fewer passes than that where it reads ahead, and read more tokens.

The replay applies the output layer where vocabulary scoring needs probabilities, to the states that are scored there.
Under trie scoring it leaves it out altogether.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import DynamicCache

from decoding_parts.baselines import SCORINGS, WIDTH, MaskedBeamSearch, PrefixArrays, Scoring
from decoding_parts.data import keyword_identifiers, prompts, random_model, shape
from decoding_parts.settings import Settings
from decoding_parts.tables import Table
from decoding_parts.timing import interleave
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Trie

SHARES_NOTE = """\
Where the time of a search goes: "decoder" is the model's layers, "output layer" its products with states: of all tokens
of the vocabulary, or of those that the trie allows; both together are the model's forward passes. "log-probabilities"
are made of what they gave; sums of exponentials are among them where products do not make them. "outside" is everything
else: trie, masks, hypotheses, pruning. "beyond forward": the last two together. Medians over the repeats, after a
search to warm up, in ms for the whole and in % of it."""
FLOOR_NOTE = """\
The whole search beside a replay of the necessary forward passes on the bare model, with no search at all: the prompts'
own, and one for each depth at which some open hypothesis has a choice, of the tokens that a search token by token must
have read there. The output layer is applied to the states that vocabulary scoring needs, and not at all under trie
scoring. Passes count the prompts' own as one; tokens are those of the later passes, without padding. Both take turns
after a run of each to warm up; times are medians."""

BATCH = 32
LARGE = (12, 768, 32_000, 100_000)
SMALL = (2, 256, 32_000, 5_000)
# Prompts of about the same length that the replay reads together.
PROMPTS_TOGETHER = 8


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
        tokens: Of each of its passes.
        seconds: In the decoder's layers ("decoder"), in the output layer ("head"), in the scorer, which calls the
            output layer ("scorer"), and in all ("whole").
    """

    tokens: list[int] = field(default_factory=list)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds what happens meanwhile."""
        begin = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begin

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def called(*arguments: Any, **more: Any) -> Any:
            with self.timed(name):
                return function(*arguments, **more)

        return called

    def shares(self) -> dict[str, float]:
        """Of the whole, in percent."""
        part = self.seconds
        seconds = {
            "decoder": part["decoder"],
            "output_layer": part["head"],
            "log-probabilities": part["scorer"] - part["head"],
            "outside": part["whole"] - part["decoder"] - part["scorer"],
            "beyond_forward": part["whole"] - part["decoder"] - part["head"],
        }
        return {f"{name}_percent": 100 * value / part["whole"] for name, value in seconds.items()}


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
        record, decoder, scorer = Record(), self.search.decoder, self.search.scorer
        forward = record.around("decoder", decoder.forward)

        def passed(ids: Any, *arguments: Any) -> torch.Tensor:
            record.tokens.append(len(ids))
            return forward(ids, *arguments)

        replaced: list[tuple[Any, str, Any]] = [
            (decoder, "forward", passed),
            (scorer, "score", record.around("scorer", scorer.score)),
        ]
        replaced += [
            (scorer, name, record.around("head", getattr(scorer, name))) for name in ("_narrow", "_child_logits")
        ]
        if scorer.over_vocabulary:
            replaced.append((decoder, "slabs", [_TimedSlab(slab, record) for slab in decoder.slabs]))
        with ExitStack() as stack:
            for owner, name, replacement in replaced:
                stack.enter_context(mock.patch.object(owner, name, replacement))
            with record.timed("whole"):
                self.find()
        return record


class _TimedSlab:
    """A part of the output layer, timed."""

    def __init__(self, slab: Any, record: Record) -> None:
        self._multiply, self.padded, self.follow = record.around("head", slab), slab.padded, slab.follow
        self.summed = record.around("head", slab.summed)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return self._multiply(states)


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
    shares = [record.shares() for record in records]
    table.add(
        scoring=case.scoring,
        whole_ms=1000 * float(np.median([record.seconds["whole"] for record in records])),
        **{name: float(np.median([one[name] for one in shares])) for name in shares[0]},
        passes=len(records[0].tokens),
        repeats=len(records),
    )


def add_floor(table: Table, case: Case, prefixes: PrefixArrays, settings: Settings) -> None:
    """Add the row that compares a search with the replay."""
    record = case.recorded()
    masked = MaskedBeamSearch(case.model, prefixes, case.scoring)
    masked.search(case.queries)
    necessary = necessary_passes(prefixes, open_states(masked.trail), case.scoring)
    head = case.model.lm_head if case.scoring == "vocabulary" else None
    lengths = [len(query) for query in case.queries]
    sides = {"whole": case.find, "necessary": replay(case.model.get_decoder(), head, lengths, necessary)}
    runs = interleave(sides, settings.limits)
    whole, of_necessary = runs["whole"].median, runs["necessary"].median
    table.add(
        scoring=case.scoring,
        whole_ms=1000 * whole,
        passes=len(record.tokens),
        tokens=sum(record.tokens[1:]),
        necessary_passes=1 + len(necessary),
        necessary_tokens=sum(one.rows * one.columns for one in necessary),
        necessary_ms=1000 * of_necessary,
        whole_by_necessary=whole / of_necessary,
        repeats=len(runs["whole"].seconds),
    )


def replay(decoder: Any, head: Any, lengths: Sequence[int], later: Sequence[Pass]) -> Callable[[], None]:
    """A function that makes these passes on the bare model.

    The later ones stand one behind the other in one cache, each with a mask, made beforehand, in which everything is
    visible: without one transformers would make its own in each pass.

    Args:
        decoder: The model's.
        head: Its output layer, or None where it is not asked.
        lengths: Tokens of each prompt; a state of each is scored.
        later: The passes after the prompts'.
    """
    random = np.random.default_rng(0)

    def tokens(*size: int) -> torch.Tensor:
        return torch.from_numpy(random.integers(decoder.config.vocab_size, size=size))

    by_length = sorted(lengths)
    groups = [by_length[at : at + PROMPTS_TOGETHER] for at in range(0, len(by_length), PROMPTS_TOGETHER)]
    prompts_together = [tokens(len(group), max(group)) for group in groups]
    before = np.cumsum([round(float(np.mean(lengths))), *(one.columns for one in later)]).tolist()
    ids = [tokens(one.rows, one.columns) for one in later]
    masks = [
        torch.ones((one.rows, 1, one.columns, start + one.columns), dtype=torch.bool)
        for one, start in zip(later, before, strict=False)
    ]
    read = DynamicCache(config=decoder.config)
    with torch.inference_mode():
        decoder(input_ids=tokens(len(lengths), before[0]), past_key_values=read, use_cache=True)
    layers = [(layer.keys, layer.values) for layer in read.layers]

    @torch.inference_mode()
    def run_passes() -> None:
        last = [
            decoder(input_ids=prompt, past_key_values=DynamicCache(config=decoder.config), use_cache=True)[0][:, -1]
            for prompt in prompts_together
        ]
        if head is not None:
            head(torch.cat(last))
        # Nothing is copied: appending makes new tensors.
        cache = DynamicCache(layers)
        rows = len(lengths)
        for number, one in enumerate(later):
            if one.rows < rows:
                cache.batch_select_indices(torch.arange(one.rows))
                rows = one.rows
            hidden = decoder(
                input_ids=ids[number], attention_mask=masks[number], past_key_values=cache, use_cache=True
            )[0]
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
