"""What the search is compared with: transformers' `generate`, and a masked beam search.

Nothing here uses the package's own trie: prefixes are held in dictionaries, or in the arrays of `PrefixArrays`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from decoding_parts.data import END, PAD, Identifiers, Ints, matrix

Scoring = Literal["trie", "vocabulary"]
SCORINGS: tuple[Scoring, ...] = ("vocabulary", "trie")
WIDTH = 10

Floats = npt.NDArray[np.float64]


class Found(NamedTuple):
    """Identifiers found for one prompt, best first: positions `[k]` and log-probabilities `[k]`."""

    indices: Ints
    scores: Floats


@dataclass(frozen=True)
class Agreement:
    """How far two lists of results agree.

    Attributes:
        same: Queries with the same identifiers in the same order.
        queries: All queries.
        gap: The largest difference of two scores at the same rank.
    """

    same: int
    queries: int
    gap: float

    def __str__(self) -> str:
        return f"{self.same}/{self.queries}"


def agreement(ours: Sequence[Any], others: Sequence[Any]) -> Agreement:
    """Compare anything with `indices` and `scores`, query by query."""
    pairs = list(zip(ours, others, strict=True))
    same = sum(bool(np.array_equal(one.indices, two.indices)) for one, two in pairs)
    gaps = [np.abs(one.scores[: len(two.scores)] - two.scores[: len(one.scores)]).max(initial=0) for one, two in pairs]
    return Agreement(same, len(pairs), float(max(gaps, default=0)))


class GenerateSearch:
    """transformers' own beam search, with a dictionary as the trie.

    `generate(num_beams, num_return_sequences, length_penalty=0.0, prefix_allowed_tokens_fn)`, and
    `renormalize_logits=True` for trie scoring: the usual code of generative retrieval.
    """

    def __init__(self, model: Any, identifiers: Identifiers, scoring: Scoring) -> None:
        self.model, self.renormalise = model, scoring == "trie"
        self.longest = max(map(len, identifiers))
        self.position = {tuple(tokens): number for number, tokens in enumerate(identifiers)}
        self.root: dict[int, Any] = {}
        for tokens in identifiers:
            node = self.root
            for token in tokens:
                node = node.setdefault(token, {})

    def search(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Generate the ten best identifiers of a beam of ten, and nothing that is not needed for it."""
        return self._generate(prompts, output_scores=False)

    def found(self, prompts: Sequence[Sequence[int]]) -> list[Found]:
        """The same with scores, for which transformers keeps the log-probabilities of all beams at every token."""
        output = self._generate(prompts, output_scores=True)
        sequences = output.sequences[:, max(map(len, prompts)) :].tolist()
        indices = np.array([self.position.get(tuple(row[: row.index(END) + 1]), -1) for row in sequences])
        scores = output.sequences_scores.double().cpu().numpy()
        return [Found(*pair) for pair in zip(indices.reshape(-1, WIDTH), scores.reshape(-1, WIDTH), strict=True)]

    def _generate(self, prompts: Sequence[Sequence[int]], output_scores: bool) -> Any:
        ids, mask = left_padded(prompts, self.model.device)
        start = ids.shape[1]

        def allowed(_: int, sentence: torch.Tensor) -> list[int]:
            node = self.root
            for token in sentence[start:].tolist():
                node = node.get(token, {})
            return list(node) or [END]

        return self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            num_beams=WIDTH,
            num_return_sequences=WIDTH,
            length_penalty=0.0,
            max_new_tokens=self.longest,
            prefix_allowed_tokens_fn=allowed,
            renormalize_logits=self.renormalise,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=output_scores,
        )


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask `[prompts, longest]`, padded on the left."""
    longest = max(map(len, prompts))
    ids = [[PAD] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@dataclass(frozen=True)
class PrefixArrays:
    """Every distinct prefix of some identifiers as a state, in compressed sparse rows.

    States are numbered depth by depth, and in sorted order within one; state 0 is the empty prefix. So edge `e`, to a
    prefix that is one token longer, leads to state `e + 1`, and the edges of a state are contiguous.

    Attributes:
        indptr: `[states + 1]`, where each state's edges begin.
        token: `[edges]`, of each edge.
        parent: `[states]`, the state one token shorter; -1 for state 0.
        identifier: `[states]`, the identifier that a state is, or -1 where it goes on.
        levels: `[depths + 1]`, the first state of each depth.
    """

    indptr: Ints
    token: Ints
    parent: Ints
    identifier: Ints
    levels: Ints

    @classmethod
    def build(cls, identifiers: Identifiers) -> "PrefixArrays":
        """From identifiers of which none is a prefix of another."""
        padded, lengths = matrix(identifiers)
        order = np.lexsort(padded.T[::-1])
        padded, lengths = padded[order], lengths[order]
        differs = np.ones(padded.shape, dtype=bool)
        differs[1:] = np.logical_or.accumulate(padded[1:] != padded[:-1], axis=1)
        levels, parents, tokens = [0, 1], [np.array([-1])], []
        state = np.zeros(len(padded), dtype=np.int64)
        identifier = [np.array([-1])]
        for depth in range(padded.shape[1]):
            new = np.flatnonzero(differs[:, depth] & (depth < lengths))
            parents.append(state[new])
            tokens.append(padded[new, depth])
            identifier.append(np.where(lengths[new] == depth + 1, order[new], -1))
            state = levels[-1] + np.searchsorted(new, np.arange(len(padded)), side="right") - 1
            levels.append(levels[-1] + len(new))
        parent = np.concatenate(parents)
        fan_out = np.bincount(parent[1:], minlength=len(parent))
        return cls(
            indptr=np.concatenate(([0], np.cumsum(fan_out))),
            token=np.concatenate(tokens),
            parent=parent,
            identifier=np.concatenate(identifier),
            levels=np.array(levels),
        )

    @property
    def fan_out(self) -> Ints:
        """`[states]`, the edges of each state."""
        return np.diff(self.indptr)


class MaskedBeamSearch:
    """Masked beam search with a trie in compressed sparse rows, one token a step.

    After STATIC (arXiv 2602.22647, https://github.com/youtube/static-constraint-decoding), of which it takes these
    ideas: the prefix tree is flattened into arrays of transitions; the allowed tokens of all beams are read at once,
    padded to the widest fan-out, and with them the log-probabilities and the next states; beams, scores and states are
    tensors on the model's device. STATIC's dense tables for the first two tokens are left out: over a vocabulary of
    32,000 they would have 10^9 entries. It reads identifiers of one length and keeps the best beams; here they end
    where they end, and complete ones are kept aside, so that the results are those of transformers' beam search.

    A usual implementation otherwise, without its needless costs: prompts are read once and their cache is then
    expanded to beams; logits come for all beams over the whole vocabulary; vocabulary scoring takes the full
    log-softmax of them, trie scoring that of the allowed ones; and each step copies the beams' cache into its new
    order.

    Attributes:
        trail: Of the last search, by depth from 1 on: the states of the open hypotheses, `[queries, beams]`, and
            which of them are none.
    """

    def __init__(self, model: Any, prefixes: PrefixArrays, scoring: Scoring) -> None:
        self.model, self.over_vocabulary = model, scoring == "vocabulary"
        self.identifier = prefixes.identifier
        self.indptr = torch.from_numpy(prefixes.indptr).to(model.device)
        self.token = torch.from_numpy(prefixes.token).to(model.device)
        self.is_leaf = torch.from_numpy(prefixes.identifier >= 0).to(model.device)
        self.trail: list[tuple[torch.Tensor, torch.Tensor]] = []

    @torch.inference_mode()
    def search(self, prompts: Sequence[Sequence[int]], k: int = WIDTH, width: int = WIDTH) -> list[Found]:
        """The k best identifiers of a beam."""
        beams = _Beams(self.model, prompts)
        queries = len(prompts)
        state = torch.zeros((queries, 1), dtype=torch.long, device=self.model.device)
        score = torch.zeros((queries, 1), device=self.model.device)
        result = torch.full((queries, k), -torch.inf, device=self.model.device)
        result_state = torch.zeros((queries, k), dtype=torch.long, device=self.model.device)
        self.trail = []
        while True:
            best, row, token, state = self._best(beams.logits, state, score, 2 * width)
            complete = self.is_leaf[state]
            # Complete hypotheses among the first `width` are results; of the others the first `width` go on.
            arrived = best[:, :width].masked_fill(~complete[:, :width], -torch.inf)
            result, place = torch.cat((result, arrived), dim=1).topk(k)
            result_state = torch.cat((result_state, state[:, :width]), dim=1).gather(1, place)
            score, place = best.masked_fill(complete, -torch.inf).topk(min(width, best.shape[1]))
            row, token, state = row.gather(1, place), token.gather(1, place), state.gather(1, place)
            # Scores only fall: what is no better than the results is done. Its beams are read on as long as any other
            # is, as in `generate`.
            score = score.masked_fill(score <= result[:, -1:], -torch.inf)
            self.trail.append((state, score.isneginf()))
            if bool(score.isneginf().all()):
                return self._found(result, result_state)
            beams.go_on(row, token)

    def _best(
        self, logits: torch.Tensor, state: torch.Tensor, score: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The best candidates of each query: score, beam, token and state, `[queries, count]` or fewer."""
        queries = len(state)
        state, score = state.flatten(), score.flatten()
        first = self.indptr[state]
        fan_out = torch.where(score.isneginf(), 0, self.indptr[state + 1] - first)
        place = torch.arange(int(fan_out.max()), device=state.device)
        possible = place < fan_out[:, None]
        edge = (first[:, None] + place).clamp_(max=len(self.token) - 1)
        token = self.token[edge]
        if self.over_vocabulary:
            logprob = logits.log_softmax(-1).gather(1, token)
        else:
            logprob = logits.gather(1, token).masked_fill_(~possible, -torch.inf).log_softmax(-1)
        candidates = torch.where(possible, score[:, None] + logprob, -torch.inf).view(queries, -1)
        best, at = candidates.topk(min(count, candidates.shape[1]))
        token, edge = token.view(queries, -1).gather(1, at), edge.view(queries, -1).gather(1, at)
        return best, at // len(place), token, edge + 1

    def _found(self, result: torch.Tensor, state: torch.Tensor) -> list[Found]:
        scores, states = result.double().cpu().numpy(), state.cpu().numpy()
        there = scores > -np.inf
        return [
            Found(self.identifier[states[query]][there[query]], scores[query][there[query]])
            for query in range(len(scores))
        ]


class _Beams:
    """The model's side of a masked beam search: cache, positions, and the logits of each beam's next token."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self.model = model
        ids, mask = left_padded(prompts, model.device)
        self.cache = DynamicCache(config=model.config)
        # Without padding there is nothing to mask, and attention is faster.
        self.mask = None if bool(mask.all()) else mask
        self.position = mask.sum(1)
        self.logits = self._read(ids, (mask.cumsum(1) - 1).clamp_(min=0))

    def go_on(self, row: torch.Tensor, token: torch.Tensor) -> None:
        """Append `token[query, i]` to beam `row[query, i]` of each query; beams may come more or less often."""
        queries, beams = row.shape
        index = (row + torch.arange(queries, device=row.device)[:, None] * (len(self.position) // queries)).flatten()
        self.cache.reorder_cache(index)
        self.position = self.position[index]
        if self.mask is not None:
            self.mask = torch.cat((self.mask[index], self.mask.new_ones(queries * beams, 1)), dim=1)
        self.logits = self._read(token.reshape(-1, 1), self.position[:, None])
        self.position = self.position + 1

    def _read(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        # Sums of exponentials want single precision at least.
        return output.logits[:, -1].float()
