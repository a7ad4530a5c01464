"""The sections of the training stages."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genret.config.section import Section


class ScratchModel(Section):
    """A small Mistral-architecture decoder, initialised from the corpus."""

    type: Literal["scratch"] = "scratch"
    """`scratch`: as below. `pretrained`: by name, with other fields."""
    vocabulary_size: int = Field(16000, ge=300, le=200_000)
    """Size of the byte-level BPE vocabulary that is trained on the corpus (at most)."""
    hidden_size: int = Field(256, ge=16, le=8192)
    """Width of the model; a multiple of twice `heads`, as rotary embeddings turn pairs of numbers."""
    intermediate_size: int = Field(512, ge=16, le=65536)
    """Width inside the feed-forward blocks."""
    layers: int = Field(2, ge=1, le=64)
    """Number of decoder layers."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads (each also a key-value head)."""
    initialisation: Literal["svd", "random"] = "svd"
    """`svd`: truncated SVD of the term-passage matrix, so that the untrained model ranks about as latent
    semantic analysis does. `random`: the architecture's own."""

    @model_validator(mode="after")
    def _check_heads(self) -> "ScratchModel":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size: expected a multiple of twice heads (2 x {self.heads}), found {self.hidden_size}"
            )
        return self

    language: str = Field("english", pattern=r"^[a-z]+$")
    """`svd`: Snowball language in which words of one stem start alike."""


class PretrainedModel(Section):
    """Any Hugging Face causal language model, by name or path."""

    type: Literal["pretrained"] = "pretrained"
    """`pretrained`: as below. `scratch`: a small one, with other fields."""
    name: str = Field(min_length=1)
    """Hub name or local folder, with weights in safetensors and without code of its own. Of a folder the content
    decides, not where it lies."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    prompt_suffix: str = Field("\nIdentifier: ", min_length=1)
    """Text between the query and the identifier."""


ModelConfig = Annotated[ScratchModel | PretrainedModel, Field(discriminator="type")]


class TuningConfig(Section):
    """Which weights are trained."""

    method: Literal["full", "lora"] = "full"
    """`full`: all weights (the paper's). `lora`: small matrices beside the frozen ones, which are added to them at the
    end (Hu et al., arXiv 2106.09685), and with atomic identifiers the output head; only for a pretrained model."""
    rank: int = Field(16, ge=1, le=1024)
    """`lora`: rank of the matrices."""
    alpha: int = Field(32, ge=1, le=4096)
    """`lora`: their product counts `alpha` / `rank` times."""


class SftConfig(Section):
    """Supervised fine-tuning: Context2ID and Query2ID (paper, section 3.1 and appendix A)."""

    INCIDENTAL = frozenset({"validation_queries", "checkpoints"})

    model: ModelConfig = ScratchModel()
    """What is trained."""
    scoring: Literal["trie", "vocabulary"] = "trie"
    """How P(identifier | query) is normalised, in training and in decoding: over the children of each trie
    node, or over the whole vocabulary (the paper's)."""
    loss: Literal["completion", "all"] = "completion"
    """Which tokens count with `vocabulary` scoring: the identifier's, or the input's too (paper, 3.1).
    `trie` scoring needs `completion`."""
    epochs: float = Field(2.0, gt=0.0, le=1000.0)
    """Passes over the examples (paper: 2)."""
    batch_size: int = Field(256, ge=1, le=65536)
    """Examples an optimiser step, over all workers (paper: 256)."""
    micro_batch_size: int = Field(256, ge=1, le=65536)
    """Most examples a forward pass of one worker; with several workers each takes its share."""
    learning_rate: float = Field(2e-5, gt=0.0, le=1.0)
    """Highest learning rate (paper: 2e-5)."""
    warmup_ratio: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the steps in which the rate rises (paper: 0.1)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    weight_decay: float = Field(0.01, ge=0.0, le=1.0)
    """AdamW's weight decay."""
    adam_beta2: float = Field(0.999, ge=0.5, lt=1.0)
    """AdamW's decay of the squared gradients; short trainings want less memory, such as 0.98."""
    max_tokens: int = Field(700, ge=8, le=131072)
    """Longest example (paper: 700; NQ 450); a longer prompt is cut at its end."""
    tuning: TuningConfig = TuningConfig()
    """Which weights are trained."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the computation (paper: bf16)."""
    validation_queries: int = Field(200, ge=0, le=100_000)
    """Ten times in training, the loss on so many of the preference queries, from which nothing is learned here, is
    measured for the report; 0: never. A change of it trains nothing anew."""
    checkpoints: int = Field(5, ge=0, le=1000)
    """How often to save a checkpoint to resume from; 0: never. A change of it trains nothing anew."""

    @model_validator(mode="after")
    def _check_loss(self) -> "SftConfig":
        if self.scoring == "trie" and self.loss != "completion":
            raise ValueError(f"loss: expected completion with the scoring trie, found {self.loss}")
        if self.tuning.method == "lora" and isinstance(self.model, ScratchModel):
            raise ValueError("tuning.method: expected full with a model from scratch, found lora")
        return self


class PreferenceConfig(Section):
    """How often the model learns from its own false positives."""

    rounds: Literal[1, 2] = 1
    """1: mining and RPO once (the paper's). 2: mining and RPO again, with the model that the first RPO made, which is
    also the reference."""


class MiningConfig(Section):
    """Which false positives become negatives (paper, section 4.3)."""

    negatives: int = Field(5, ge=1, le=100)
    """At most so many candidates ranked above the positive become negatives (k: 1, 3, 5, 10)."""
    strategy: Literal["top", "random"] = "top"
    """`top`: the model's own false positives. `random`: as many random passages (the paper's ablation)."""
    candidates: int = Field(10, ge=2, le=1000)
    """How many passages the model retrieves a query (paper: 10)."""


class RpoConfig(Section):
    """Regularised preference optimisation (paper, section 4.1 and appendix A)."""

    INCIDENTAL = frozenset({"checkpoints"})

    beta: float = Field(0.5, gt=0.0, le=10.0)
    """Strength of the pull to the reference model (paper: 0.5)."""
    alpha: float = Field(1.0, ge=0.0, le=100.0)
    """Weight of the likelihood term (paper: 1.0); 0 is plain DPO."""
    epochs: float = Field(1.0, gt=0.0, le=100.0)
    """Passes over the pairs (paper: 1)."""
    batch_size: int = Field(64, ge=1, le=65536)
    """Pairs an optimiser step, over all workers (paper: 64)."""
    micro_batch_size: int = Field(64, ge=1, le=65536)
    """Most pairs a forward pass of one worker; with several workers each takes its share."""
    learning_rate: float = Field(1e-7, gt=0.0, le=1.0)
    """Highest learning rate (paper: 1e-7)."""
    warmup_ratio: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the steps in which the rate rises."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    tuning: TuningConfig = TuningConfig()
    """Which weights are trained."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the computation."""
    checkpoints: int = Field(3, ge=0, le=1000)
    """How often to save a checkpoint to resume from; 0: never. A change of it trains nothing anew."""
