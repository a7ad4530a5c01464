"""Tree attention: a prompt is in the cache once, and hypotheses are appended to the same sequence.

Every appended token sees the prompt, its own ancestors and itself, by a mask, and has its own position. So
nothing in the cache is copied or reordered when hypotheses branch (the technique of SpecInfer, arXiv
2305.09781).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer

from genret.decoding.trie import ranges
from genret.errors import InputError

# The cache of a batch is made smaller once no more than this share of its queries is still searched.
KEEP_SHARE = 0.75
# Free room for appended tokens in a new cache; it grows by half when that is used up.
FIRST_ROOM = 64
# How far the same computation may stray when it is done in another order, relative to its largest value.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
LOW_PRECISION_TOLERANCE = 5e-2
ATTENTION = ("sdpa", "eager")
LAYER_TYPES = {"full_attention", "sliding_attention"}

Ints = npt.NDArray[np.int64]


class _RoomyLayer(DynamicLayer):
    """Keys and values of one layer in a buffer with room to grow: appending writes in place.

    `keys` and `values`, `[batch, heads, length, head_dim]`, are views of the part in use.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = (self._empty(key_states, FIRST_ROOM), self._empty(value_states, FIRST_ROOM))
            self._length = 0
        stop = self._length + key_states.shape[-2]
        if stop > self._room[0].shape[-2]:
            extra = max(stop, self._length * 3 // 2) - self._length
            old = (self._room[0][:, :, : self._length], self._room[1][:, :, : self._length])
            self._room = (self._empty(old[0], extra), self._empty(old[1], extra))
            self._write(0, *old)
        self._write(self._length, key_states, value_states)
        self._length = stop
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._room = (self._room[0][indices], self._room[1][indices])
        self._show()

    @staticmethod
    def _empty(like: torch.Tensor, extra: int) -> torch.Tensor:
        batch, heads, length, width = like.shape
        return like.new_empty(batch, heads, length + extra, width)

    def _write(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        stop = start + keys.shape[-2]
        self._room[0][:, :, start:stop] = keys
        self._room[1][:, :, start:stop] = values

    def _show(self) -> None:
        self.keys = self._room[0][:, :, : self._length]
        self.values = self._room[1][:, :, : self._length]


class TreeDecoder:
    """A causal language model seen as: tokens under an ancestor mask in, states out, and a head on states.

    States are the decoder's last hidden states where `head(states)` are the model's logits. Where a model
    does more to its logits (softcapping, scaling), or its head is not a plain linear layer, `head` is None
    and states are the logits themselves: correct for any model, at the price of computing all of them.

    Attributes:
        head: The output layer, or None.
        dtype: Of the model.
        device: Of the model.
        vocabulary_size: Tokens that the model can both read and predict.
    """

    head: nn.Linear | None

    def __init__(self, model: Any) -> None:
        """Take a model, and check on a few tokens that its attention can be steered.

        Args:
            model: A Hugging Face causal language model with `attn_implementation` "sdpa" or "eager", and full
                or sliding-window attention in every layer.

        Raises:
            InputError: Another attention implementation or kind of layer, or a model that does not heed 4-D
                masks and position ids.
        """
        self.model = model
        self.decoder = model.get_decoder()
        self.config = self.decoder.config
        self.dtype, self.device = model.dtype, model.device
        self.layer_types = _layer_types(self.config)
        self.window: int | None = self.config.sliding_window if "sliding_attention" in self.layer_types else None
        self.eager = self.config._attn_implementation == "eager"
        if self.config._attn_implementation not in ATTENTION:
            raise InputError(
                f"{type(model).__name__}: expected attn_implementation {' or '.join(ATTENTION)}, found "
                f"{self.config._attn_implementation!r}: tree attention needs masks of its own"
            )
        self.vocabulary_size = int(model.get_input_embeddings().num_embeddings)
        with self.evaluating():
            self.head = self._find_head()
            if self.head is not None:
                self.vocabulary_size = min(self.vocabulary_size, self.head.out_features)
            self._check_tree()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients; the model's own mode comes back afterwards."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(training)

    def begin(
        self, prompts: Sequence[npt.ArrayLike], prefix: npt.ArrayLike, pad: int
    ) -> tuple["TreeSession", torch.Tensor]:
        """Put prompts, and tokens that follow all of them, into a cache.

        Rows are padded on the right, where causal attention cannot see: no mask is needed, so that the
        fastest attention kernel serves this pass.

        Args:
            prompts: Token ids, at least one a prompt.
            prefix: Token ids `[f]` that every identifier begins with; may be empty.
            pad: A token id to pad with; its value has no influence.

        Returns:
            The session, and states `[len(prompts), 1 + f, width]`: those of the last prompt token and of the
            prefix.
        """
        rows = [np.concatenate((np.asarray(prompt, np.int64), np.asarray(prefix, np.int64))) for prompt in prompts]
        total = np.array([len(row) for row in rows])
        ids = np.full((len(rows), total.max()), pad, dtype=np.int64)
        valid = np.arange(ids.shape[1]) < total[:, None]
        ids[valid] = np.concatenate(rows)
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        cache = Cache(layer_class_to_replicate=_RoomyLayer)
        states = self.forward(ids, positions, None, cache)
        n_prefix = np.size(prefix)
        wanted = total[:, None] - 1 - n_prefix + np.arange(n_prefix + 1)
        rows_index = torch.arange(len(rows), device=self.device)[:, None]
        session = TreeSession(self, cache, total - n_prefix, valid, pad)
        return session, states[rows_index, self.tensor(wanted)]

    def forward(
        self, ids: Ints, positions: Ints, mask: dict[str, npt.NDArray[np.bool_]] | None, cache: Cache
    ) -> torch.Tensor:
        """One pass; `mask` holds a boolean `[batch, new, total]` for each kind of layer, or is None for
        causal.
        """
        module = self.model if self.head is None else self.decoder
        output = module(
            input_ids=self.tensor(ids),
            position_ids=self.tensor(positions),
            attention_mask=None if mask is None else self._attention_mask(mask),
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits if self.head is None else output.last_hidden_state

    def tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """The array on the model's device."""
        # A copy: read-only arrays, such as memory maps, cannot be shared with torch.
        return torch.tensor(array, device=self.device)

    def _attention_mask(self, masks: dict[str, npt.NDArray[np.bool_]]) -> Any:
        ready = {kind: self._one_mask(mask) for kind, mask in masks.items()}
        # Models with layers of two kinds look masks up by kind; others take the mask itself.
        return ready if len(ready) > 1 else next(iter(ready.values()))

    def _one_mask(self, mask: npt.NDArray[np.bool_]) -> torch.Tensor:
        visible = self.tensor(mask)[:, None]
        if not self.eager:
            return visible
        # Eager attention adds its mask to the scores.
        nothing = torch.zeros((), dtype=self.dtype, device=self.device)
        return torch.where(visible, nothing, torch.finfo(self.dtype).min)

    def _find_head(self) -> nn.Linear | None:
        """The output layer, if nothing happens to states before it and nothing to logits after it.

        A hook looks at what goes into the layer and replaces what comes out by numbers that are known, and
        large, so that scaling or softcapping after it shows at any size of the model's own logits.
        """
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
            return None
        seen: list[torch.Tensor] = []

        def replace(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            ramp = torch.linspace(-1000, 1000, output.shape[-1], dtype=output.dtype, device=output.device)
            seen.extend((inputs[0], ramp.expand_as(output)))
            return seen[1]

        ids = torch.arange(3, device=self.device)[None] % self.vocabulary_size
        hook = head.register_forward_hook(replace)
        try:
            logits = self.model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        states = self.decoder(input_ids=ids, use_cache=False).last_hidden_state
        if len(seen) != 2 or states.shape != seen[0].shape or logits.shape != seen[1].shape:
            return None
        same = self._close(seen[0], states) and torch.equal(logits.to(seen[1].dtype), seen[1])
        return head if same else None

    def _check_tree(self) -> None:
        """Two prompts of different length, each with two continuations: as one tree, and as plain
        sequences.
        """
        token = np.arange(5) % self.vocabulary_size
        prompts = [token[:2], token[:1]]
        session, _ = self.begin(prompts, token[:0], 0)
        query = np.array([0, 0, 1, 1])
        paths = np.full((4, 2), -1, dtype=np.int32)
        tails = np.concatenate([token[2:4], token[3:5], token[3:5], token[2:4]])
        try:
            states = session.append(query, np.zeros(4, np.int64), np.full(4, 2), tails, paths)
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            raise InputError(f"{self._refusal()} ({error})") from error
        for number, row in enumerate(query):
            plain = np.concatenate((prompts[row], tails[2 * number : 2 * number + 2]))[None]
            cache = Cache(layer_class_to_replicate=_RoomyLayer)
            expected = self.forward(plain, np.arange(plain.shape[1])[None], None, cache)[0, -2:]
            if not self._close(states[2 * number : 2 * number + 2], expected):
                raise InputError(self._refusal())

    def _refusal(self) -> str:
        return (
            f"{type(self.model).__name__}: expected a decoder that heeds a mask and a position id for each token, "
            "found one that does not; its hypotheses cannot share a cache"
        )

    def _close(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        tolerance = TOLERANCE.get(self.dtype, LOW_PRECISION_TOLERANCE)
        difference = (found.double() - expected.double()).abs().max()
        return bool(difference <= tolerance * expected.double().abs().max())


class TreeSession:
    """A batch of prompts in the cache, and the hypotheses appended to them so far."""

    def __init__(
        self, decoder: TreeDecoder, cache: Cache, lengths: Ints, valid: npt.NDArray[np.bool_], pad: int
    ) -> None:
        """Start from a cache that holds the prompts.

        Args:
            decoder: The model.
            cache: With one row a query.
            lengths: `[queries]`, tokens of each prompt: position of its first identifier token.
            valid: `[queries, columns]`, which columns hold the prompt (and the shared prefix) and not
                padding.
            pad: A token id to pad with.
        """
        self.decoder, self.cache, self.lengths, self.pad = decoder, cache, lengths, pad
        self.columns = valid.shape[1]
        # By row of the cache; a query's row changes when others leave the batch.
        self.prompt = valid
        self.positions = np.broadcast_to(np.arange(self.columns), valid.shape)
        self.row_of = np.arange(len(lengths))

    def append(
        self, query: Ints, start: Ints, length: Ints, tokens: Ints, paths: npt.NDArray[np.int32]
    ) -> torch.Tensor:
        """Append a run of tokens to each of some hypotheses, in one pass.

        Args:
            query: `[h]`, the query of each hypothesis, ascending. A query that is not among them has left: it
                cannot come back in a later pass.
            start: `[h]`, how many identifier tokens stand before the run.
            length: `[h]`, tokens in each run, at least one.
            tokens: `[length.sum()]`, the runs, one after the other.
            paths: int32 `[h, depth]`, the columns of each hypothesis's earlier tokens by their place in the
                identifier, -1 where they are part of the shared prefix or there are none; those of the run
                are filled in.

        Returns:
            States `[length.sum(), width]`, on the model's device.
        """
        self._leave(query)
        rows = self.row_of[query]
        run = np.repeat(np.arange(len(query)), length)
        token_row = rows[run]
        # Runs of a row stand side by side in the new columns.
        in_row = np.bincount(rows, weights=length, minlength=len(self.prompt)).astype(np.int64)
        place = np.arange(len(token_row)) - (np.cumsum(in_row) - in_row)[token_row]
        depth = ranges(start, length)
        column = self.columns + place
        paths[run, depth] = column
        width = int(in_row.max())
        ids = np.full((len(self.prompt), width), self.pad, dtype=np.int64)
        ids[token_row, place] = tokens
        positions = np.zeros(ids.shape, dtype=np.int64)
        positions[token_row, place] = self.lengths[query][run] + depth
        mask = self._mask(token_row, place, depth, column, paths[run, : int(depth.max()) + 1], width)
        self.positions = np.concatenate((self.positions, positions), axis=1)
        states = self.decoder.forward(ids, positions, self._by_kind(mask, positions), self.cache)
        self.columns += width
        return states.reshape(-1, states.shape[-1])[self.decoder.tensor(token_row * width + place)]

    def _mask(
        self, row: Ints, place: Ints, depth: Ints, column: Ints, paths: npt.NDArray[np.int32], width: int
    ) -> npt.NDArray[np.bool_]:
        mask = np.zeros((len(self.prompt), width, self.columns + width), dtype=bool)
        mask[:, :, : self.prompt.shape[1]] = self.prompt[:, None]
        is_ancestor = (np.arange(paths.shape[1]) <= depth[:, None]) & (paths >= 0)
        mask[row[:, None], place[:, None], np.where(is_ancestor, paths, column[:, None])] = True
        return mask

    def _by_kind(self, mask: npt.NDArray[np.bool_], positions: Ints) -> dict[str, npt.NDArray[np.bool_]]:
        window = self.decoder.window
        if window is None or self.positions.max() < window:
            return {"full_attention": mask}
        near = positions[:, :, None] - self.positions[:, None, :] < window
        return {kind: mask & near if kind == "sliding_attention" else mask for kind in self.decoder.layer_types}

    def _leave(self, query: Ints) -> None:
        """Take the rows of queries that are done out of the cache, once that spares enough."""
        present = np.unique(query)
        if len(present) > KEEP_SHARE * len(self.prompt):
            return
        rows = self.row_of[present]
        self.cache.batch_select_indices(self.decoder.tensor(rows))
        self.prompt, self.positions = self.prompt[rows], self.positions[rows]
        self.row_of = np.full(len(self.lengths), -1)
        self.row_of[present] = np.arange(len(present))


def _layer_types(config: Any) -> list[str]:
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        kinds = ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]
    unknown = set(kinds) - LAYER_TYPES
    if unknown:
        raise InputError(f"{config.model_type}: expected layers of {sorted(LAYER_TYPES)}, found {sorted(unknown)}")
    return sorted(set(kinds))
