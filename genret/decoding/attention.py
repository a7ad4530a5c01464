"""Tree attention: a prompt is in the cache once, and hypotheses are appended to the same sequence.

Every appended token sees the prompt, its own ancestors and itself, and has its own position. So
nothing in the cache is copied or reordered when hypotheses branch (the technique of SpecInfer, arXiv
2305.09781).

The tokens of all queries go through the model as one row: only attention itself lays them out by query, in a function
of our own that transformers calls in every layer (https://huggingface.co/docs/transformers/attention_interface).
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from genret.decoding.arrays import IntArray, Ints, ranges
from genret.decoding.bare import BareDecoder, is_bare
from genret.decoding.cache import LayerCache, Pass, RowGroup
from genret.decoding.limits import longest_sequence
from genret.decoding.native import Tree, kernels
from genret.decoding.packed import Projections, can_pack, keeps_parameters, precise_linear
from genret.errors import InputError

# The name under which transformers knows our attention function.
TREE_ATTENTION = "genret_tree"
# The cache of a batch is made smaller once no more than this share of its queries is still searched.
KEEP_SHARE = 0.75
# Room for appended tokens in a new cache, where nobody says how many there will be; it grows by half when used up.
FIRST_ROOM = 64
# How far the same computation may stray when it is done in another order, relative to its largest value, in a model of
# two layers. Rounding adds up from layer to layer, about as the square root of how many there are.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
LOW_PRECISION_TOLERANCE = 5e-2
# Logits of the whole vocabulary are made on a CPU for so many tokens at a time. With fewer, products of a few states
# take longer; with so many, logits of `scoring.CHUNK_STATES` states are 8 MB in single precision.
SLAB = 16384
# Rows of a pass attend together if the longest has less than `ALIKE` times the tokens of the shortest; all do where
# there are fewer attention scores than is worth another call.
ALIKE = 1.5
WORTH_GROUPS = {"cpu": 1 << 16}
OTHER_WORTH_GROUPS = 1 << 24
# Masks have rows of a multiple of this many columns: CUDA's attention would copy others to such rows in every layer.
COLUMN_STEP = {"cpu": 1}
OTHER_COLUMN_STEP = 8
# Our own attention makes scores of all columns. Where a row of the cache holds more appended tokens than these, torch's
# takes its place, and the columns that a pass sees are gathered if they and the prompt's are no more than half of all:
# best-first search leaves most of what it read behind.
FEW_APPENDED = 256
# Prompts of so many tokens at most are read with our own attention, which makes scores of later tokens too.
LONG_PROMPT = 512
LAYER_TYPES = {"full_attention", "sliding_attention"}

Mask = npt.NDArray[np.bool_]


_CURRENT: ContextVar[Pass] = ContextVar("the pass that a model is in")


def _tree_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over the cache of the current pass; called by transformers.

    Args:
        module: The layer's attention module.
        query: `[1, heads, tokens, head_dim]`.
        key: `[1, key_heads, tokens, head_dim]`, `key_heads` a divisor of `heads`.
        value: As `key`.
        attention_mask: None: the pass has its own.
        scaling: Factor of the scores.
        softcap: Bound of the scores, as Gemma 2 has it.

    Returns:
        `[1, tokens, heads, head_dim]`, and no attention weights.
    """
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    return _CURRENT.get().attend(module.layer_idx, query, key, value, scaling, softcap)[None], None


AttentionInterface.register(TREE_ATTENTION, _tree_attention)


class TreeDecoder:
    """A causal language model seen as: tokens that see their ancestors in, states out, and a head on states.

    States are the decoder's last hidden states where `head(states)` are the model's logits. Where a model
    does more to its logits (softcapping, scaling), or its head is not a plain linear layer, `head` is None
    and states are the logits themselves: correct for any model, at the price of computing all of them.

    Attributes:
        head: The output layer, or None.
        bare: The decoder as plain operations, where it is of a shape that allows it, or None.
        dtype: Of the model.
        device: Of the model.
        vocabulary_size: Tokens that the model can both read and predict.
        longest: Tokens of the longest sequence that the model reads, None for any length.
    """

    head: nn.Linear | None

    def __init__(self, model: Any) -> None:
        """Take a model, and check on a few tokens that its attention can be replaced.

        Args:
            model: A Hugging Face causal language model that uses transformers' attention interface, with full or
                sliding-window attention in every layer.

        Raises:
            InputError: Another kind of layer, weights on several devices, or a model that computes something else with
                our attention than with its own, such as one without the interface or with position biases.
        """
        devices = sorted({str(parameter.device) for parameter in model.parameters()})
        if len(devices) > 1:
            raise InputError(f"{type(model).__name__}: expected weights on one device, found {', '.join(devices)}")
        self.model = model
        self.decoder = model.get_decoder()
        self.config = self.decoder.config
        self.dtype, self.device = model.dtype, model.device
        self.windows, self.longest = _windows(self.config), longest_sequence(self.config)
        self.bare: BareDecoder | None = None
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.vocabulary_size = int(model.get_input_embeddings().num_embeddings)
        with self.evaluating():
            self.head = self._find_head()
            if self.head is not None:
                self.vocabulary_size = min(self.vocabulary_size, self.head.out_features)
                self.bare = BareDecoder(self.decoder) if is_bare(self.decoder) else None
            self._check_tree()

    @cached_property
    def slabs(self) -> list[Projections]:
        """The head in parts of the vocabulary, of at most `SLAB` tokens; one part on a GPU."""
        assert self.head is not None
        count = -(-self.head.out_features // SLAB) if self.device.type == "cpu" else 1
        size = -(-self.head.out_features // count)
        packed = keeps_parameters(self.head) and can_pack(list(self.head.parameters()))
        return [
            Projections([self.head], packed, slice(at, at + size), multiply=precise_linear)
            for at in range(0, size * count, size)
        ]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, no gradients, packed weights as they are now; modules' own modes come back afterwards."""
        # A bare decoder calls no module that has modes, and to look takes a while.
        training = [module for module in self.model.modules() if module.training] if self.bare is None else []
        for module in training:
            module.training = False
        try:
            with torch.inference_mode(), self._kernels():
                self._follow()
                yield
        finally:
            for module in training:
                module.training = True

    def _kernels(self) -> AbstractContextManager[None]:
        """Torch's attention without cuDNN's, which prepares each shape that it meets: passes hardly share any.

        Which of them torch may use is a setting of the whole process, and comes back afterwards.
        """
        if self.device.type != "cuda":
            return nullcontext()
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])

    def _follow(self) -> None:
        """Lay out anew what training has changed of packed weights."""
        if self.bare is not None:
            self.bare.follow()
        for slab in vars(self).get("slabs", ()):  # where they were made
            slab.follow()

    def begin(
        self, prompts: Sequence[npt.ArrayLike], prefix: npt.ArrayLike, room: int = FIRST_ROOM
    ) -> tuple["TreeSession", torch.Tensor]:
        """Put prompts, and tokens that follow all of them, into a cache.

        This pass is plain causal attention: no mask is needed, so that torch's fastest attention serves long prompts.

        Args:
            prompts: Token ids, at least one a prompt.
            prefix: Token ids `[f]` that every identifier begins with; may be empty.
            room: About how many tokens will be appended to a prompt: the cache has room for them.

        Returns:
            The session, and states `[len(prompts), 1 + f, width]`: those of the last prompt token and of the
            prefix.
        """
        rows = [np.concatenate((np.asarray(prompt, np.int64), np.asarray(prefix, np.int64))) for prompt in prompts]
        n_prefix = np.size(prefix)
        session = TreeSession(self, np.array([len(row) for row in rows]), n_prefix, room)
        wanted = np.cumsum([len(row) for row in rows])[:, None] - 1 - n_prefix + np.arange(n_prefix + 1)
        states = session.begin(np.concatenate(rows), wanted.ravel())
        return session, states.unflatten(0, wanted.shape)

    def forward(self, ids: Ints, positions: Ints, current: Pass, wanted: Ints | None = None) -> torch.Tensor:
        """The states of tokens `[tokens]` that stand at `positions` of their sequences.

        Those of all, `[tokens, width]`, or of tokens at the places `wanted` among them, `[len(wanted), width]`.
        """
        places = None if wanted is None else self.tensor(wanted)
        if self.bare is not None:
            return self.bare.forward(self.tensor(ids), self.tensor(positions), current.attend, places)
        module, more = self.model if self.head is None else self.decoder, {}
        if self.head is None and self._keeps_logits and places is not None:
            # Logits of all tokens of long prompts would take gigabytes.
            more, places = {"logits_to_keep": places}, None
        own = self.config._attn_implementation
        token = _CURRENT.set(current)
        self.config._attn_implementation = TREE_ATTENTION
        try:
            output = module(
                input_ids=self.tensor(ids)[None], position_ids=self.tensor(positions)[None], use_cache=False, **more
            )
        finally:
            self.config._attn_implementation = own
            _CURRENT.reset(token)
        states = (output.logits if self.head is None else output.last_hidden_state)[0]
        return states if places is None else states.index_select(0, places)

    def tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """The array on the model's device."""
        # A copy: read-only arrays, such as memory maps, cannot be shared with torch. Numpy's takes a third of the time.
        return torch.from_numpy(np.array(array, order="C")).to(self.device)

    def mask(self, visible: Mask) -> torch.Tensor:
        """What is added to attention scores `[rows, 1, width, columns]`, from what each token of a row sees."""
        if self.device.type == "cpu":
            added = np.where(visible, np.float32(0), np.float32(-np.inf))
            return torch.from_numpy(added)[:, None].to(self.dtype)
        # A byte for each travels to the device.
        shown = self.tensor(visible)[:, None]
        return torch.zeros_like(shown, dtype=self.dtype).masked_fill_(~shown, -torch.inf)

    @property
    def own_attention(self) -> bool:
        """Whether our own attention can be its."""
        own = kernels() if self.device.type == "cpu" and self.dtype == torch.float32 else None
        return own is not None and self.bare is not None and own.fits(self.bare.head_dim)

    def _find_head(self) -> nn.Linear | None:
        """The output layer, if nothing happens to states before it and nothing to logits after it.

        A hook looks at what goes into the layer and what comes out, which it replaces by numbers that are known, and
        large, so that scaling or softcapping after it shows at any size of the model's own logits.
        """
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
            return None
        seen: list[torch.Tensor] = []

        def replace(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            ramp = torch.linspace(-1000, 1000, output.shape[-1], dtype=output.dtype, device=output.device)
            seen.extend((inputs[0], ramp.expand_as(output), output))
            return seen[1]

        ids = torch.arange(3, device=self.device)[None] % self.vocabulary_size
        hook = head.register_forward_hook(replace)
        try:
            logits = self.model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        states = self.decoder(input_ids=ids, use_cache=False).last_hidden_state
        if len(seen) != 3 or states.shape != seen[0].shape or logits.shape != seen[1].shape:
            return None
        same = self._close(seen[0], states) and torch.equal(logits.to(seen[1].dtype), seen[1])
        return head if same and _is_product(head, seen[0], seen[2]) else None

    def _check_tree(self) -> None:
        """Two prompts of different length, each with two continuations: as one tree, and by the model itself."""
        token = np.arange(5) % self.vocabulary_size
        prompts = [token[:2], token[:1]]
        query = np.array([0, 0, 1, 1])
        tails = np.concatenate([token[2:4], token[3:5], token[3:5], token[2:4]])
        try:
            session, first = self.begin(prompts, token[:0])
            paths = np.full((4, 2), -1, dtype=np.int32)
            states = session.append(query, np.zeros(4, np.int64), np.full(4, 2), tails, paths)
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            raise InputError(f"{self._refusal()} ({error})") from error
        module = self.model if self.head is None else self.decoder
        for number, row in enumerate(query):
            plain = np.concatenate((prompts[row], tails[2 * number : 2 * number + 2]))
            output = module(input_ids=self.tensor(plain)[None], use_cache=False)
            expected = (output.logits if self.head is None else output.last_hidden_state)[0, -3:]
            found = torch.cat((first[row], states[2 * number : 2 * number + 2]))
            if not self._close(found, expected, len(self.windows)):
                raise InputError(self._refusal())

    def _refusal(self) -> str:
        return (
            f"{type(self.model).__name__}: expected a decoder that uses transformers' attention interface and heeds a "
            "position id for each token, found one that does not; its hypotheses cannot share a cache"
        )

    def _close(self, found: torch.Tensor, expected: torch.Tensor, layers: int = 2) -> bool:
        """Whether two results are one but for rounding in so many layers, done in another order."""
        tolerance = TOLERANCE.get(self.dtype, LOW_PRECISION_TOLERANCE)
        return _close(found, expected, tolerance * max(1, layers / 2) ** 0.5)


def _is_product(head: nn.Linear, states: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether a layer only multiplies: other hooks, and classes made of the plain layer, may do more."""
    if head.weight.device != states.device or head.weight.shape != (logits.shape[-1], states.shape[-1]):
        return False
    # The same operation once more: hardly any difference is allowed for.
    tolerance = max(1e-5, 2 * torch.finfo(logits.dtype).eps)
    return _close(logits, nn.functional.linear(states, head.weight, head.bias), tolerance)


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Whether numbers differ by little relative to the largest, and are not finite at the same places."""
    found, expected = found.double(), expected.double()
    finite = expected.isfinite()
    if not torch.allclose(found[~finite], expected[~finite], equal_nan=True):
        return False
    found, expected = found[finite], expected[finite]
    return not expected.numel() or bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@dataclass(frozen=True)
class _Tokens:
    """Tokens of a pass.

    Attributes:
        row: `[tokens]`, in the cache.
        place: Among the tokens of their row in this pass.
        column: In the cache.
        position: In their sequence.
        depth: Its place in its identifier, after what all of them share; -1 in prompts.
        seen: int32 `[tokens, depths]`, columns of its identifier's tokens up to each, by their places in it, -1 for
            none; for groups of rows their places among the columns that are looked at. None in prompts, where all
            before it in its row are seen.
    """

    row: Ints
    place: Ints
    column: Ints
    position: Ints
    depth: Ints
    seen: IntArray | None

    def among(self, members: Ints) -> "_Tokens":
        """Some of them."""
        row, place, column = self.row[members], self.place[members], self.column[members]
        seen = None if self.seen is None else self.seen[members]
        return _Tokens(row, place, column, self.position[members], self.depth[members], seen)


class TreeSession:
    """A batch of prompts in the cache, and the hypotheses appended to them so far."""

    def __init__(self, decoder: TreeDecoder, totals: Ints, n_prefix: int, room: int) -> None:
        """Make room for prompts.

        Args:
            decoder: The model.
            totals: `[queries]`, tokens of each prompt and the prefix that follows all of them.
            n_prefix: Tokens of that prefix.
            room: About how many tokens will be appended to each.
        """
        self.decoder = decoder
        # Position of each query's first identifier token.
        self.lengths, self._n_prefix = totals - n_prefix, n_prefix
        self._layers = [LayerCache() for _ in decoder.windows]
        # By row of the cache; a query's row changes when others leave the batch.
        self._prompt = self._used = totals
        self._row_of = np.arange(len(totals))
        self._column_step = COLUMN_STEP.get(decoder.device.type, OTHER_COLUMN_STEP)
        self._room = self._rounded(int(totals.max()) + room)
        # By row and column, where a window needs them.
        self._positions = np.zeros((len(totals), self._room if any(decoder.windows) else 0), dtype=np.int64)

    def begin(self, ids: Ints, wanted: Ints) -> torch.Tensor:
        """Read the prompts, which stand one after the other in `ids`; states `[len(wanted), width]` of those wanted."""
        row = np.repeat(np.arange(len(self._prompt)), self._prompt)
        place = ranges(np.zeros_like(self._prompt), self._prompt)
        return self._pass(ids, _Tokens(row, place, place, place, np.full_like(place, -1), None), wanted)

    def append(
        self,
        query: Ints,
        start: Ints,
        length: Ints,
        tokens: Ints,
        paths: npt.NDArray[np.int32],
        wanted: Ints | None = None,
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
            wanted: `[w]`, the places among `tokens` of those whose states are wanted; None for all.

        Returns:
            States `[w, width]`, or `[length.sum(), width]`, on the model's device.
        """
        self._leave(query)
        run = np.repeat(np.arange(len(query)), length)
        row = self._row_of[query][run]
        # Runs of a row stand side by side in the new columns.
        in_row = np.bincount(row, minlength=len(self._prompt))
        place = ranges(np.zeros_like(in_row), in_row)
        depth = ranges(start, length)
        column = self._used[row] + place
        paths[run, depth] = column
        self._used = self._used + in_row
        path, after = paths[run, self._n_prefix : int(depth.max()) + 1], depth - self._n_prefix
        seen = np.where(np.arange(path.shape[1]) <= after[:, None], path, np.int32(-1))
        return self._pass(tokens, _Tokens(row, place, column, self.lengths[query][run] + depth, after, seen), wanted)

    def _pass(self, ids: Ints, tokens: _Tokens, wanted: Ints | None) -> torch.Tensor:
        columns, rows = int(self._used.max()), len(self._prompt)
        if columns > self._room:
            self._room = self._rounded(columns * 3 // 2)
        room, tensor = self._room, self.decoder.tensor
        if any(self.decoder.windows):
            missing = room - self._positions.shape[1]
            self._positions = np.pad(self._positions, ((0, 0), (0, missing))) if missing else self._positions
            self._positions[tokens.row, tokens.column] = tokens.position
        in_row = np.bincount(tokens.row, minlength=rows)
        slots = tensor(tokens.row * room + tokens.column)
        if self._has_own_attention(tokens, columns):
            tree = self._tree(tokens, in_row, slots)
            current = Pass(self._layers, self.decoder.windows, rows, room, slots, (), None, tree)
            return self.decoder.forward(ids, tokens.position, current, wanted)
        groups = self._groups(in_row)
        members: list[Ints | None] = [None]
        order = None
        if len(groups) > 1:
            theirs = [np.flatnonzero(np.isin(tokens.row, group)) for group in groups]
            members, order = [*theirs], tensor(np.argsort(np.concatenate(theirs)))
        current = Pass(
            layers=self._layers,
            windows=self.decoder.windows,
            rows=rows,
            room=room,
            slots=slots,
            groups=[self._group(tokens, group, member) for group, member in zip(groups, members, strict=True)],
            order=order,
        )
        return self.decoder.forward(ids, tokens.position, current, wanted)

    def _has_own_attention(self, tokens: _Tokens, columns: int) -> bool:
        """Whether our own attention is worth it: it makes scores of all `columns`, for long prompts too many."""
        if not self.decoder.own_attention:
            return False
        prompt = int(self._prompt.max())
        return prompt <= LONG_PROMPT if tokens.seen is None else columns - prompt <= FEW_APPENDED

    def _tree(self, tokens: _Tokens, in_row: Ints, slots: torch.Tensor) -> Tree:
        """What tokens see, of which so many are in each row."""
        tensor, seen = self.decoder.tensor, tokens.seen
        return Tree(
            begin=tensor(np.concatenate(([0], np.cumsum(in_row)))),
            used=tensor(self._used),
            slots=slots,
            first=tensor(tokens.place + 1 if seen is None else self._prompt[tokens.row]),
            depth=tensor(tokens.depth),
            seen=tensor(np.empty((len(tokens.row), 0), dtype=np.int32) if seen is None else seen),
        )

    def _groups(self, width: Ints) -> list[Ints]:
        """All rows; or, if worth it, groups of those with tokens, about as many each, from how many tokens each has."""
        scores = len(width) * int(width.max()) * int(self._used.max())
        if len(width) == 1 or scores < WORTH_GROUPS.get(self.decoder.device.type, OTHER_WORTH_GROUPS):
            return [np.arange(len(width))]
        rows = np.flatnonzero(width)
        level = np.floor(np.log(width.max() / width[rows]) / np.log(ALIKE))
        return [rows[level == number] for number in np.unique(level)]

    def _group(self, tokens: _Tokens, rows: Ints, members: Ints | None) -> RowGroup:
        """Some rows, and which of the tokens are theirs; None for all."""
        if members is not None:
            tokens = tokens.among(members)
        if tokens.seen is not None:
            # There is always something to see: the token itself.
            tokens = replace(tokens, seen=np.where(tokens.seen < 0, tokens.column[:, None], tokens.seen))
        everything = len(rows) == len(self._prompt)
        row = tokens.row if everything else np.searchsorted(rows, tokens.row)
        width, tensor = int(tokens.place.max()) + 1, self.decoder.tensor
        looked_at, seen = self._looked_at(tokens, rows, row)
        columns = self._columns(tokens, rows) if looked_at is None else looked_at.shape[1]
        tokens = replace(tokens, seen=seen)
        return RowGroup(
            rows=None if everything else tensor(rows),
            tokens=None if members is None else tensor(members),
            count=len(rows),
            width=width,
            columns=columns,
            slots=None if looked_at is None else tensor((rows[:, None] * self._room + looked_at).ravel()),
            places=None if len(row) == len(rows) * width else tensor(row * width + tokens.place),
            masks=self._masks(tokens, rows, row, (len(rows), width, columns), looked_at),
        )

    def _rounded(self, columns: int) -> int:
        return -(-columns // self._column_step) * self._column_step

    def _columns(self, tokens: _Tokens, rows: Ints) -> int:
        """How many columns a group looks at, from the first one on; those that hold nothing yet are not seen."""
        used = int(self._used[rows].max())
        # Causal attention looks at as many as there are places.
        return used if tokens.seen is None else self._rounded(used)

    def _looked_at(self, tokens: _Tokens, rows: Ints, row: Ints) -> tuple[Ints | None, IntArray | None]:
        """The columns `[rows, columns]` that a group's tokens look at, prompts first; `tokens.seen` as places there.

        None for all columns, where gathering would not leave out half of them; then places are columns.
        """
        columns, prompt = int(self._used[rows].max()), self._prompt[rows]
        if tokens.seen is None or columns - int(prompt.max()) <= FEW_APPENDED:
            return None, tokens.seen
        found, number = np.unique(row[:, None] * columns + tokens.seen, return_inverse=True)
        owner, column = np.divmod(found, columns)
        place = ranges(prompt, np.bincount(owner, minlength=len(rows)))
        count = max(int(prompt.max()), int(place.max()) + 1)
        if 2 * count > columns:
            return None, tokens.seen
        count = self._rounded(count)
        # Rows that look at fewer get any others, which they do not see.
        looked_at = np.tile(np.arange(count), (len(rows), 1))
        looked_at[owner, place] = column
        return looked_at, place[number].reshape(tokens.seen.shape)

    def _visible(self, tokens: _Tokens, rows: Ints, row: Ints, shape: tuple[int, int, int]) -> Mask:
        """Which of the columns that a group looks at each place of its rows sees, `[rows, width, columns]`."""
        if tokens.seen is None:
            return np.broadcast_to(np.tri(shape[1], dtype=bool), shape)
        # Places without a token see their prompt too: attention to nothing is not a number.
        visible = np.broadcast_to((np.arange(shape[2]) < self._prompt[rows, None])[:, None], shape).copy()
        visible[row[:, None], tokens.place[:, None], tokens.seen] = True
        return visible

    def _masks(
        self, tokens: _Tokens, rows: Ints, row: Ints, shape: tuple[int, int, int], looked_at: Ints | None
    ) -> dict[int | None, torch.Tensor | None]:
        masks: dict[int | None, torch.Tensor | None] = dict.fromkeys(self.decoder.windows)
        beyond = self._beyond_window(int(tokens.position.max()))
        if tokens.seen is None and not beyond:
            return masks
        visible = self._visible(tokens, rows, row, shape)
        masks = dict.fromkeys(masks, self.decoder.mask(visible))
        for window in [window for window in masks if window is not None and beyond]:
            asking = np.zeros(shape[:2], dtype=np.int64)
            asking[row, tokens.place] = tokens.position
            columns = np.arange(shape[2])[None] if looked_at is None else looked_at
            near = asking[:, :, None] - self._positions[rows[:, None], columns][:, None] < window
            masks[window] = self.decoder.mask(visible & near)
        return masks

    def _beyond_window(self, position: int) -> bool:
        return any(window is not None and position >= window for window in self.decoder.windows)

    def _leave(self, query: Ints) -> None:
        """Take the rows of queries that are done out of the cache, once that spares enough."""
        if (self._row_of[query] < 0).any():
            raise ValueError("a query that has left the batch cannot come back")
        if len(self._prompt) == 1:
            return
        present = np.unique(query)
        if len(present) > KEEP_SHARE * len(self._prompt):
            return
        rows = self._row_of[present]
        kept = self.decoder.tensor(rows)
        for layer in self._layers:
            layer.keep(kept)
        self._prompt, self._used, self._positions = self._prompt[rows], self._used[rows], self._positions[rows]
        self._row_of = np.full(len(self.lengths), -1)
        self._row_of[present] = np.arange(len(present))


def _windows(config: Any) -> list[int | None]:
    """How far back each layer looks."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        kinds = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    unknown = set(kinds) - LAYER_TYPES
    if unknown:
        raise InputError(f"{config.model_type}: expected layers of {sorted(LAYER_TYPES)}, found {sorted(unknown)}")
    return [window if kind == "sliding_attention" else None for kind in kinds]
