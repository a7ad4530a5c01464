"""A small decoder made from the corpus: its tokenizer, and weights that already retrieve before training.

The untrained network computes a truncated-SVD approximation of BM25. Let W be the matrix of BM25 weights of
token features in passages, W ~ U S V'. A query's score for a passage is the sum of its features' rows of
U sqrt(S), times the passage's row of V sqrt(S). The pieces are laid into a stock Mistral architecture:

* input embedding of a token: the direction of its row of U sqrt(S), and the row's log-norm in a dimension of its
  own, padded to unit root mean square so that RMSNorm, which would wipe out norms, changes nothing;
* first layer: every head's query reads a constant, its key the log-norm, both on the slowest rotary pair, so
  that attention weights are proportional to the rows' norms whatever the positions; value and output
  projections pass the directions on, so that the separator's state is the sum wanted;
* all other blocks add nothing at first (their output projections are zero);
* output rows: the passages' rows of V sqrt(S).

Latent semantic analysis: Deerwester et al., 1990. BM25 weights: Robertson and Zaragoza, 2009, with Lucene's idf.
Training starts from there, where random weights need hours on a CPU.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse
import Stemmer
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from genret.config import ScratchModel
from genret.decoding.trie import Trie
from genret.errors import InputError
from genret.training.batches import IdentifierTokens, find_branchings
from genret.training.likelihood import TrieChildren, decision_states, trie_log_probs

PADDING, UNKNOWN, SEPARATOR, END = "<pad>", "<unk>", "<sep>", "<eos>"
_SPECIAL = (PADDING, UNKNOWN, SEPARATOR, END)
_WORD_START = "▁"

# BM25's usual constants.
_K1, _B = 1.2, 0.75

# Dimensions that hold no meaning: log-norm, separator flag, padding to unit size, and some free ones.
_RESERVED = 8
_LOG_NORM, _FLAG, _SLACK = 0, 1, 2

_EMBEDDING_SCALE = 0.05
_SEPARATOR_SCALE = 0.3
_OUTPUT_SCALE = 0.05
_ATTENTION_GAIN = 4.0
_FIRST_TOKEN_WEIGHT = 30.0
# Log-norm of special tokens: their attention weight is next to nothing.
_SILENT = -12.0


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer over lower-cased, NFKC-normalised words of the corpus.

    Args:
        texts: Passages and identifiers; every character in them becomes known.
        vocabulary_size: Most tokens, special ones included (more only where the alphabet alone is larger).
        max_tokens: Length at which the tokenizer itself cuts.

    Returns:
        The tokenizer. It adds no special tokens by itself.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # A mark before each word, as a character of its own: the end-of-word suffix of the library would give
    # another vocabulary at each training (its ids follow the order of a hash table).
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace(replacement=_WORD_START, prepend_scheme="always")]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocabulary_size, special_tokens=list(_SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        unk_token=UNKNOWN,
        sep_token=SEPARATOR,
        eos_token=END,
        model_max_length=max_tokens,
        padding_side="left",
    )


@dataclass(frozen=True)
class LatentFactors:
    """The truncated SVD of the BM25 matrix.

    Attributes:
        tokens: float32 `(vocabulary, rank)`; the row of U sqrt(S) of each token's feature, zero for tokens that
            the corpus does not have.
        passages: float32 `(n_passages, rank)`; rows of V sqrt(S), divided by the norm of the passage's row of
            V S, so that long passages are not favoured.
    """

    tokens: Tensor
    passages: Tensor


def latent_factors(
    encoded: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerFast,
    rank: int,
    language: str,
    seed: int,
) -> LatentFactors:
    """Factorise the BM25 weights of the corpus.

    Args:
        encoded: Token ids of every passage.
        tokenizer: Whose tokens they are. Whole-word tokens with one stem share a feature.
        rank: Most dimensions; never more than the matrix has.
        language: Snowball language of the stems.
        seed: Seed of the randomised SVD (Halko et al., 2011).

    Returns:
        The factors, turned by one random rotation so that no dimension carries more than another.
    """
    feature = token_features(tokenizer, language)
    matrix = bm25_matrix(encoded, feature)
    rank = min(rank, *matrix.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        coordinates = matrix.tocoo()
        indices = torch.from_numpy(np.stack([coordinates.row, coordinates.col]).astype(np.int64))
        sparse = torch.sparse_coo_tensor(
            indices, torch.from_numpy(coordinates.data), matrix.shape, check_invariants=False
        ).coalesce()
        oversampled = min(rank + 20, *matrix.shape)
        left, values, right = (part[..., :rank] for part in torch.svd_lowrank(sparse, q=oversampled, niter=3))
        rotation = torch.linalg.qr(torch.randn(rank, rank)).Q
    passages = right * values.sqrt() / (right * values).norm(dim=1, keepdim=True).clamp_min(1e-6)
    rows = torch.cat([left * values.sqrt(), torch.zeros(1, rank)]) @ rotation
    return LatentFactors(rows[torch.from_numpy(feature)], passages @ rotation)


def token_features(tokenizer: PreTrainedTokenizerFast, language: str, field: str = "sft.model.language") -> np.ndarray:
    """Feature of every token, int64 `(vocabulary,)`; -1 for special tokens.

    Args:
        tokenizer: From `train_tokenizer`.
        language: Snowball language: tokens that are words of one stem are one feature.
        field: The field of the configuration that names it.

    Raises:
        InputError: The language is unknown.
    """
    if language not in Stemmer.algorithms():
        known = ", ".join(sorted(Stemmer.algorithms()))
        raise InputError(f"{field}: expected one of {known}, found {language!r}")
    stemmer = Stemmer.Stemmer(language)
    vocabulary = tokenizer.get_vocab()
    numbers: dict[str, int] = {}
    feature = np.full(len(tokenizer), -1, dtype=np.int64)
    for token, index in sorted(vocabulary.items(), key=lambda entry: entry[1]):
        if token in _SPECIAL:
            continue
        word = token.removeprefix(_WORD_START)
        key = _WORD_START + stemmer.stemWord(word) if token.startswith(_WORD_START) and word.isalpha() else token
        feature[index] = numbers.setdefault(key, len(numbers))
    return feature


def bm25_matrix(encoded: Sequence[Sequence[int]], feature: np.ndarray) -> scipy.sparse.csr_matrix:
    """BM25 weights, sparse float32 `(n_features, n_passages)`; see `bm25_weights`."""
    return bm25_weights(encoded, feature)[0]


def bm25_weights(encoded: Sequence[Sequence[int]], feature: np.ndarray) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """BM25 weights, sparse float32 `(n_features, n_passages)`, and the idf of every feature, float32.

    idf(f) tf (k1 + 1) / (tf + k1 (1 - b + b length / average length)), idf(f) = log(1 + (N - df + 0.5) / (df + 0.5)).

    Args:
        encoded: Token ids of every passage.
        feature: Feature of every token; -1 leaves a token out.
    """
    found = [feature[np.asarray(ids, dtype=np.int64)] for ids in encoded]
    counts = [Counter(features[features >= 0].tolist()) for features in found]
    n_features = max(1, int(feature.max(initial=-1)) + 1)
    rows = np.fromiter((key for count in counts for key in count), dtype=np.int64)
    frequency = np.fromiter((value for count in counts for value in count.values()), dtype=np.float64)
    columns = np.repeat(np.arange(len(counts)), [len(count) for count in counts])
    length = np.array([sum(count.values()) for count in counts], dtype=np.float64)
    document_frequency = np.bincount(rows, minlength=n_features)
    idf = np.log1p((len(counts) - document_frequency + 0.5) / (document_frequency + 0.5))
    norm = _K1 * (1 - _B + _B * length[columns] / max(length.mean(), 1e-9))
    weight = idf[rows] * frequency * (_K1 + 1) / (frequency + norm)
    matrix = scipy.sparse.csr_matrix((weight.astype(np.float32), (rows, columns)), shape=(n_features, len(counts)))
    return matrix, idf.astype(np.float32)


def build_scratch_model(
    config: ScratchModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    identifiers: IdentifierTokens,
    trie: Trie,
    identifier_type: Literal["semantic", "atomic"],
    seed: int,
) -> MistralForCausalLM:
    """A Mistral-architecture decoder for this corpus.

    Args:
        config: Its size, and how it is initialised.
        tokenizer: From `train_tokenizer`.
        texts: Title and text of every passage.
        identifiers: Token sequences, one a passage in the same order.
        trie: Over the identifiers.
        identifier_type: `atomic` adds one row a passage beyond the vocabulary.
        seed: Seed of the weights.

    Returns:
        The model, in 32 bits, with untied embeddings.
    """
    rows = len(tokenizer) + (len(texts) if identifier_type == "atomic" else 0)
    settings = MistralConfig(
        vocab_size=rows,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.hidden_size // config.heads,
        # The longest prompt, and behind it the longest identifier.
        max_position_embeddings=tokenizer.model_max_length + trie.max_length,
        sliding_window=None,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MistralForCausalLM(settings)
    if config.initialisation == "svd":
        encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        factors = latent_factors(encoded, tokenizer, config.hidden_size - _RESERVED, config.language, seed)
        _lay_in(model, factors, tokenizer.convert_tokens_to_ids(SEPARATOR), config.heads)
        _lay_in_outputs(model, factors, identifiers, trie)
    return model


@torch.no_grad()
def calibrate(model: MistralForCausalLM, batch: Mapping[str, Any], children: TrieChildren) -> float:
    """Scale the initial scores so that they are likelihoods as good as they can be on examples.

    Multiplies the final norm by the factor, of a geometric grid from 0.25 to 181, with the least cross-entropy of
    the trie's choices. Too small or too large a factor costs the first hundreds of steps.

    Args:
        model: From `build_scratch_model`.
        batch: Examples, from a collator with `trie` scoring.
        children: The trie's children.

    Returns:
        The factor.
    """
    states = decision_states(model, batch)
    weight = model.lm_head.weight

    def loss(factor: float) -> float:
        return -trie_log_probs(states * factor, batch["node"], batch["target"], weight, children).mean().item()

    factor = min((0.25 * 2 ** (step / 2) for step in range(20)), key=loss) if len(states) else 1.0
    model.model.norm.weight.mul_(factor)
    return factor


@torch.no_grad()
def _lay_in(model: MistralForCausalLM, factors: LatentFactors, separator: int, heads: int) -> None:
    """Put the tokens' factors into the embedding and the first layer, and silence all other blocks."""
    hidden, rank = model.config.hidden_size, factors.tokens.shape[1]
    first = hidden - _RESERVED
    embedding = _embedding_rows(factors.tokens, hidden, separator)
    model.model.embed_tokens.weight[: len(embedding)] = embedding
    attention = model.model.layers[0].self_attn
    # The last rotary pair turns slowest: by less than a hundredth of a radian over 64 positions.
    slow = torch.arange(heads) * (hidden // heads) + hidden // heads // 2 - 1
    attention.q_proj.weight.mul_(0.05)
    attention.k_proj.weight.mul_(0.05)
    attention.q_proj.weight[slow] = 0.0
    attention.k_proj.weight[slow] = 0.0
    row = embedding[separator]
    constant = row[first + _SLACK] / row.square().mean().sqrt()
    attention.q_proj.weight[slow, first + _SLACK] = math.sqrt(hidden // heads) / constant
    attention.k_proj.weight[slow, first + _LOG_NORM] = 1.0 / _log_norm_unit(hidden)
    attention.v_proj.weight.copy_(torch.eye(hidden))
    passed = torch.zeros(hidden)
    passed[:rank] = _ATTENTION_GAIN * _EMBEDDING_SCALE
    attention.o_proj.weight.copy_(torch.diag(passed))
    for number, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.weight.zero_()
        if number:
            layer.self_attn.o_proj.weight.zero_()


def _log_norm_unit(hidden: int) -> float:
    """Size of one unit of log-norm in a row: the most silent one takes an eighth of the row's energy."""
    return min(1.0, math.sqrt(hidden / 8) / -_SILENT)


def _embedding_rows(tokens: Tensor, hidden: int, separator: int) -> Tensor:
    """Input rows of unit root mean square, times a scale; half of each row's energy is its direction."""
    norm = tokens.norm(dim=1)
    known = norm > 0
    log_norm = torch.full_like(norm, _SILENT)
    if known.any():
        log_norm[known] = (norm[known] / norm[known].max()).clamp_min(1e-4).log()
    rows = torch.zeros(len(tokens), hidden)
    rows[:, : tokens.shape[1]] = F.normalize(tokens, dim=1) * math.sqrt(hidden / 2)
    first = hidden - _RESERVED
    rows[:, first + _LOG_NORM] = log_norm * _log_norm_unit(hidden)
    rows[separator, first + _FLAG] = math.sqrt(hidden / 4)
    rows[:, first + _SLACK] = (hidden - rows.square().sum(1)).clamp_min(0).sqrt()
    rows *= _EMBEDDING_SCALE
    rows[separator] *= _SEPARATOR_SCALE
    return rows


@torch.no_grad()
def _lay_in_outputs(
    model: MistralForCausalLM, factors: LatentFactors, identifiers: IdentifierTokens, trie: Trie
) -> None:
    """Output row of each token that decides between passages: the mean of those that it leads to.

    With atomic identifiers that is the passage's own row. A passage counts more for the token that its
    identifier begins with: there the whole choice is still open.
    """
    branchings = find_branchings(trie, identifiers)
    owner = np.repeat(np.arange(len(identifiers)), np.diff(branchings.indptr))
    token = torch.from_numpy(identifiers.tokens[identifiers.offsets[owner] + branchings.depth])
    share = torch.where(torch.from_numpy(branchings.depth) == 0, _FIRST_TOKEN_WEIGHT, 1.0)
    weight = model.lm_head.weight
    total = torch.zeros(len(weight), factors.passages.shape[1]).index_add(
        0, token, factors.passages[torch.from_numpy(owner)] * share.unsqueeze(1)
    )
    count = torch.zeros(len(weight)).index_add(0, token, share).clamp_min(1.0)
    rows = total / count.unsqueeze(1)
    used = rows.norm(dim=1) > 0
    weight.zero_()
    if used.any():
        size = rows[used].square().mean().sqrt()
        weight[used, : rows.shape[1]] = rows[used] * (_OUTPUT_SCALE / size)
