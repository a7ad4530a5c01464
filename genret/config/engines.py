"""The sections of the engines that write keywords and queries."""

import json
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from genret.config.section import Section, refuse


class ExtractiveConfig(Section):
    """The engine without a model: keywords by tf-idf, queries sampled from the passage's own terms."""

    type: Literal["extractive"] = "extractive"
    """Which engine."""
    background_noise: float = Field(0.6, ge=0.0, le=0.95)
    """Greatest share of a query's terms that is replaced by words drawn from the whole corpus. Plays the part
    of smoothing in a query-likelihood model; without it a small model overfits within a minute."""
    min_terms: int = Field(3, ge=1, le=50)
    """Fewest terms sampled for a query."""
    max_terms: int = Field(12, ge=1, le=100)
    """Most terms sampled for a query."""
    language: str = Field("english", pattern=r"^[a-z]+$")
    """Language of the stop words (those of bm25s; an unknown one is an error); `none` has none. Only English
    queries begin as questions."""

    @model_validator(mode="after")
    def _check_terms(self) -> "ExtractiveConfig":
        if self.max_terms < self.min_terms:
            raise ValueError(f"max_terms: expected at least min_terms ({self.min_terms}), found {self.max_terms}")
        return self


class HttpConfig(Section):
    """A language model behind any server with OpenAI's chat completions: vLLM, SGLang, Ollama, hosted ones."""

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset(
        {
            "base_url", "api_key_variable", "token_limit_field", "concurrency", "requests_per_minute",
            "tokens_per_minute", "timeout_seconds", "max_attempts", "give_up_seconds", "tokenizer", "price_of_prompts",
            "price_of_answers", "tokens_a_second",
        }
    )  # fmt: skip

    type: Literal["http"] = "http"
    """Which engine."""
    base_url: str = Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#@]*)?$")
    """Where the server is, up to and including the version: http://localhost:8000/v1. No user names or
    passwords."""
    model: str = Field(min_length=1)
    """Name of the model, as the server knows it. What it wrote is kept under this name: when another model takes
    it over, delete the run's folder `completions`."""
    api_key_variable: str = Field("", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    """The environment variable (of the process that is started) that holds the key; empty: none is sent."""
    temperature: float = Field(0.7, ge=0.0, le=2.0)
    """Sampling temperature (arXiv 2502.17957, appendix A: 0.7)."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Sample from the most probable tokens that have this much probability together; sent where below 1."""
    send_seed: bool = True
    """Send the run's seed, so that answers are repeatable as far as the server can; another seed then asks
    everything anew. Some servers refuse it."""
    structured: Literal["json_schema", "regex", "none"] = "json_schema"
    """How the form of the answer is forced. `json_schema`: OpenAI's response_format. `regex`: vLLM's
    structured_outputs. `none`: it is only asked for."""
    system_role: bool = True
    """Whether the model knows a system message; if not, its text comes before the user's."""
    thinking_tokens: int = Field(0, ge=0, le=1_000_000)
    """Tokens beyond those of the longest useful answer, for models that think before they answer."""
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the bound on an answer's tokens; OpenAI's newer models want the longer name."""
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of every request, such as {top_k: 20}."""
    concurrency: int = Field(64, ge=1, le=10_000)
    """Requests under way at a time, over all actors. Some more than the server works on at a time keep it busy: they
    wait there, where a slot would else wait for the network."""
    requests_per_minute: int = Field(0, ge=0)
    """Most requests a minute, over all actors; 0: all that `concurrency` lets through."""
    tokens_per_minute: int = Field(0, ge=0)
    """Most tokens a minute, of prompts and answers, over all actors; 0: all. A prompt's are estimated until the
    server says what it counted."""
    timeout_seconds: float = Field(180.0, gt=0.0, le=86_400.0)
    """How long a request may take."""
    max_attempts: int = Field(4, ge=1, le=100)
    """How often a prompt may time out, break the server (status 500) or get an answer that cannot be read, while
    the server answers others. The server being away or busy counts for no prompt."""
    give_up_seconds: float = Field(900.0, gt=0.0, le=604_800.0)
    """End the run when the server has answered nothing for so long; what it answered before is kept."""
    tokenizer: str = ""
    """For the plan before the start: hub name or local folder of the model's tokenizer; empty: its tokens are
    estimated, four bytes each."""
    price_of_prompts: float = Field(0.0, ge=0.0, le=1e6, allow_inf_nan=False)
    """For the plan: price of a million tokens of prompts, in any currency; 0 with `price_of_answers` 0: not known."""
    price_of_answers: float = Field(0.0, ge=0.0, le=1e6, allow_inf_nan=False)
    """For the plan: price of a million tokens of answers, in the same currency."""
    tokens_a_second: float = Field(0.0, ge=0.0, le=1e9, allow_inf_nan=False)
    """For the plan: how many tokens, of prompts and answers together, the server gets done a second; 0: not known."""

    @model_validator(mode="after")
    def _check_requests(self) -> "HttpConfig":
        refuse(_http_problems(self))
        return self


def _http_problems(config: HttpConfig) -> Iterator[str]:
    if own := sorted(_OWN_BODY_FIELDS & config.extra_body.keys()):
        yield f"extra_body: expected fields that no other setting decides, found {', '.join(own)}"
    yield from _not_finite("extra_body", config.extra_body)


def _not_finite(name: str, values: dict[str, JsonValue]) -> Iterator[str]:
    try:
        json.dumps(values, allow_nan=False)
    except ValueError:
        yield f"{name}: expected finite numbers, found infinity or no number"


_OWN_BODY_FIELDS = {
    "model", "messages", "stream", "n", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens",
}  # fmt: skip


class VllmConfig(Section):
    """A language model in engines of our own: vLLM on Ray's actors, with GPUs or without."""

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset(
        {
            "min_replicas", "max_replicas", "tensor_parallel_size", "gpus_a_worker", "cpus_a_worker", "kv_cache_gib",
            "engine_arguments", "batch_size", "max_concurrent_batches", "give_up_seconds", "price_an_hour",
            "tokens_a_second",
        }
    )  # fmt: skip

    type: Literal["vllm"] = "vllm"
    """Which engine."""
    model: str = Field(min_length=1, pattern=r"^\S(.*\S)?$")
    """Hub name, local folder (the same on all nodes), or s3:// or gs:// URL of a model, with weights in safetensors.
    What it wrote is kept under this name: when another model takes it over, delete the run's folder `completions`."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    lora: str = ""
    """Hub name or local folder (the same on all nodes) of a LoRA adapter, with weights in safetensors, that is laid
    over the model; empty: none. One of a rank above 16 needs {max_lora_rank: 64} or the like among the
    `engine_arguments`."""
    quantization: str = Field("", pattern=r"^[\w-]*$")
    """How the weights are quantised, in vLLM's words (fp8, awq, bitsandbytes ...); empty: as the model says."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the computation; `auto`: the model's own."""
    max_model_len: int = Field(0, ge=0, le=10_000_000)
    """Most tokens of a prompt and its answer together; 0: as many as the model was made for, which on a CPU or a
    small GPU may be more than there is memory for. A longer prompt is rejected. A change of it asks those anew that
    failed; answers stay."""
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    """Workers that a model is split over; together they are a replica."""
    gpus_a_worker: float = Field(0.0, ge=0.0, le=1.0)
    """GPUs of each worker; 0: vLLM's CPU build is used. Less than 1 needs a {gpu_memory_utilization: ...} to match
    among the `engine_arguments`."""
    cpus_a_worker: float = Field(1.0, gt=0.0, le=256.0)
    """CPUs of each worker; without a GPU also its number of threads."""
    kv_cache_gib: float = Field(4.0, gt=0.0, le=4096.0)
    """Without a GPU: memory of each worker for keys and values."""
    min_replicas: int = Field(1, ge=1, le=10_000)
    """Fewest copies of the model that work side by side."""
    max_replicas: int = Field(1, ge=1, le=10_000)
    """Most of them: there are as many as the work and the cluster have room for."""
    engine_arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Further arguments of vLLM's engine, such as {gpu_memory_utilization: 0.8}: those that say how the work is
    done. A change of them asks nothing anew."""
    temperature: float = Field(0.7, ge=0.0, le=2.0)
    """Sampling temperature (arXiv 2502.17957, appendix A: 0.7)."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Sample from the most probable tokens that have this much probability together."""
    seeded: bool = True
    """Sample each answer with a seed of its own, which depends on the run's seed and on the prompt, so that it does
    not depend on what else is asked."""
    structured: bool = True
    """Force the form of the answer. If not, it is only asked for."""
    system_role: bool = True
    """Whether the model's chat template knows a system message; if not, its text comes before the user's. A model
    without a template gets both as plain text."""
    chat_template_arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Further arguments of the model's chat template, such as {enable_thinking: false}."""
    thinking_tokens: int = Field(0, ge=0, le=1_000_000)
    """Tokens beyond those of the longest useful answer, for models that think before they answer. With a forced
    form they need a {reasoning_parser: ...} among the `engine_arguments`."""
    batch_size: int = Field(32, ge=1, le=10_000)
    """Prompts that a replica gets together."""
    max_concurrent_batches: int = Field(8, ge=1, le=1000)
    """Batches that a replica works on at a time. With `batch_size` more prompts than vLLM runs at a time
    (max_num_seqs), or the replica idles."""
    give_up_seconds: float = Field(1800.0, gt=0.0, le=604_800.0)
    """End the run when no batch was done for so long, loading the model included; what was done is kept."""
    price_an_hour: float = Field(0.0, ge=0.0, le=1e6, allow_inf_nan=False)
    """For the plan before the start: price of a replica for an hour, in any currency; 0: not known."""
    tokens_a_second: float = Field(0.0, ge=0.0, le=1e9, allow_inf_nan=False)
    """For the plan: how many tokens, of prompts and answers together, a replica gets done a second (a run tells);
    0: not known."""

    @model_validator(mode="after")
    def _check_engine(self) -> "VllmConfig":
        refuse(_vllm_problems(self))
        return self


def _vllm_problems(config: VllmConfig) -> Iterator[str]:
    if config.max_replicas < config.min_replicas:
        yield f"max_replicas: expected at least min_replicas ({config.min_replicas}), found {config.max_replicas}"
    if config.tensor_parallel_size > 1 and config.gpus_a_worker not in (0.0, 1.0):
        yield (
            "gpus_a_worker: expected 1 (or 0, without GPUs) where a model is split over "
            f"{config.tensor_parallel_size} workers, found {config.gpus_a_worker:g}"
        )
    if "trust_remote_code" in config.engine_arguments:
        yield "engine_arguments: trust_remote_code stays off: it runs code that comes with a model"
    if str(layout := config.engine_arguments.get("load_format")).lower() in _MAYBE_PICKLES:
        yield f"engine_arguments: expected a load_format that reads no pickles, found {layout!r}: they may run code"
    if own := sorted(_OWN_ENGINE_ARGUMENTS & config.engine_arguments.keys()):
        yield f"engine_arguments: expected arguments that no other setting decides, found {', '.join(own)}"
    for name in ("engine_arguments", "chat_template_arguments"):
        yield from _not_finite(name, getattr(config, name))


_OWN_ENGINE_ARGUMENTS = {
    "model", "revision", "tokenizer_revision", "code_revision", "enable_lora", "quantization", "dtype",
    "max_model_len", "tensor_parallel_size", "seed", "runner", "task_type",
}  # fmt: skip

# Formats of vLLM, which are the same to it in any case, that read pickles, or whatever is there.
_MAYBE_PICKLES = ("auto", "hf", "pt", "npcache")


LlmConfig = Annotated[ExtractiveConfig | HttpConfig | VllmConfig, Field(discriminator="type")]
