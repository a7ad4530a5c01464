import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from genret.config import VllmConfig, load_config
from genret.errors import InputError
from genret.llm.tokens import prompt_tokens
from genret.llm.vllm import (
    VllmSender,
    adapter_folder,
    check_torchvision,
    demands,
    engine_arguments,
    most_tokens,
    sampling_parameters,
)

ROW = {"id": "00000000000000ff" * 2, "pattern": "- [a-z]{1,9}", "max_tokens": 80}
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if mark %}{{ mark }} {% endif %}bot"


def config(**fields: Any) -> VllmConfig:
    return VllmConfig(model="acme/tiny", **fields)


# --- the section ---


def test_the_section_is_read_from_overrides() -> None:
    overrides = ["llm={type: vllm}", "llm.model=acme/tiny", "llm.engine_arguments={max_num_seqs: 8}", "llm.top_p=0.9"]
    section = load_config("quickstart", overrides).llm
    assert section == config(engine_arguments={"max_num_seqs": 8}, top_p=0.9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, r"max_replicas: expected at least min_replicas \(3\), found 2"),
        ({"gpus_a_worker": 0.5, "tensor_parallel_size": 2}, r"gpus_a_worker: expected 1 .* 2 workers, found 0.5"),
        ({"gpus_a_worker": 1.5}, "less than or equal to 1"),
        ({"engine_arguments": {"trust_remote_code": False}}, "trust_remote_code stays off"),
        ({"engine_arguments": {"seed": 1, "dtype": "auto", "max_num_seqs": 1}}, "decides, found dtype, seed"),
        ({"engine_arguments": {"load_format": "auto"}}, "expected a load_format that reads no pickles, found 'auto'"),
        ({"engine_arguments": {"load_format": "pt"}}, "expected a load_format that reads no pickles, found 'pt'"),
        ({"engine_arguments": {"load_format": "HF"}}, "expected a load_format that reads no pickles, found 'HF'"),
        ({"engine_arguments": {"x": [float("nan")]}}, "engine_arguments: expected finite numbers"),
        ({"chat_template_arguments": {"x": float("inf")}}, "chat_template_arguments: expected finite numbers"),
        ({"model": " "}, "model"),
        ({"kv_cache_gib": 0.0}, "greater than 0"),
        ({"give_up_seconds": 0.0}, "greater than 0"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"max_concurrent_batches": 0}, "greater than or equal to 1"),
        ({"quantization": "a b"}, "pattern"),
    ],
)
def test_values_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VllmConfig(**({"model": "acme/tiny"} | fields))


# --- what decides an answer ---


def test_only_what_decides_an_answer_is_in_its_name() -> None:
    sampling = VllmSender(config(), 7).sampling
    assert sampling["seed"] == 7
    incidental = config(
        min_replicas=2, max_replicas=4, tensor_parallel_size=2, gpus_a_worker=1.0, cpus_a_worker=3.0, kv_cache_gib=9.0,
        max_model_len=99, engine_arguments={"max_num_seqs": 8}, batch_size=1, max_concurrent_batches=1,
        give_up_seconds=5.0, price_an_hour=2.0, tokens_a_second=9.0,
    )  # fmt: skip
    assert VllmSender(incidental, 7).sampling == sampling
    decisive: dict[str, Any] = {
        "revision": "v2", "lora": "acme/lora", "quantization": "fp8", "dtype": "float32", "temperature": 0.0,
        "top_p": 0.5, "structured": False, "system_role": False, "chat_template_arguments": {"a": 1},
        "thinking_tokens": 5, "seeded": False,
    }  # fmt: skip
    assert all(VllmSender(config(**{name: value}), 7).sampling != sampling for name, value in decisive.items())
    assert {*decisive, *VllmConfig.INCIDENTAL, "max_model_len", "type", "model"} == set(VllmConfig.model_fields)
    assert "seed" not in VllmSender(config(seeded=False), 7).sampling


def test_sampling_depends_on_the_prompt_alone() -> None:
    assert sampling_parameters(config(thinking_tokens=20), ROW) == {
        "temperature": 0.7,
        "top_p": 1.0,
        "max_tokens": 100,
        "seed": 0xF,
        "structured_outputs": {"regex": "- [a-z]{1,9}"},
    }
    free = sampling_parameters(config(seeded=False, structured=False, temperature=0.0, top_p=0.5), ROW)
    assert free == {"temperature": 0.0, "top_p": 0.5, "max_tokens": 80}
    longest = sampling_parameters(config(), ROW | {"id": "f" * 32})["seed"]
    assert longest < 2**63, "vLLM's seeds have 64 bits with a sign"
    assert most_tokens(config(thinking_tokens=5), ROW) == 85


# --- what vLLM is told ---


def test_without_a_gpu_vllm_gets_memory_and_threads() -> None:
    section = config(kv_cache_gib=0.5, cpus_a_worker=2.0, min_replicas=2, max_replicas=3)
    arguments = engine_arguments(section)
    assert arguments["kv_cache_memory_bytes"] == 2**29
    assert arguments["enable_chunked_prefill"] is False, "with seeds it kills the engine"
    assert "max_model_len" not in arguments and "quantization" not in arguments and "enable_lora" not in arguments
    assert [(demand.bundle, demand.count) for demand in demands(section)] == [
        ({"CPU": 2.0, "GPU": 0.0}, 2),
        ({"CPU": 1.0}, 1),
    ]
    assert "enable_chunked_prefill" not in engine_arguments(config(seeded=False))
    assert engine_arguments(config(tensor_parallel_size=2))["distributed_executor_backend"] == "mp"


def test_no_pickles_are_read() -> None:
    assert engine_arguments(config())["load_format"] == "safetensors"
    dummy = config(engine_arguments={"load_format": "dummy"})
    assert engine_arguments(dummy)["load_format"] == "dummy"
    # Ray fetches what is not streamed, and vLLM gets a folder.
    assert engine_arguments(VllmConfig(model="s3://models/tiny"))["load_format"] == "safetensors"
    streamed = VllmConfig(model="s3://models/tiny", engine_arguments={"load_format": "runai_streamer"})
    assert engine_arguments(streamed)["load_format"] == "runai_streamer"


# --- adapters ---


def write_adapter(folder: Path, config: str = '{"r": 16}', weights: str = "adapter_model.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(config, encoding="utf-8")
    (folder / weights).touch()
    return folder


@pytest.mark.parametrize(
    ("adapter", "settings", "message"),
    [
        ({"config": '{"r": 32}'}, {}, r"at most rank 16 \(max_lora_rank among .*\), found rank 32: /.*/adapter$"),
        ({"config": '{"r": 128}'}, {"max_lora_rank": 64}, "at most rank 64 .* found rank 128"),
        ({"config": "[]"}, {}, "a JSON object with the rank r, found none: /.*/adapter_config.json"),
        ({"config": "{"}, {}, "a JSON object with the rank r, found none"),
        ({"weights": "adapter_model.bin"}, {}, r"with adapter_model.safetensors, found none: /.*/adapter$"),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_an_adapter_that_vllm_cannot_work_with_is_named_before_it_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    adapter: dict[str, str],
    settings: dict[str, Any],
    message: str,
    relative: bool,
) -> None:
    folder = write_adapter(tmp_path / "adapter", **adapter)
    monkeypatch.chdir(tmp_path)
    section = config(lora="adapter" if relative else str(folder), engine_arguments=settings)
    with pytest.raises(InputError, match=rf"^llm\.lora: expected .*{message}"):
        next(VllmSender(section, 0).send(str(tmp_path / "prompts"), str(tmp_path / "journal"), "s", proven=False))


def test_an_adapter_is_found_where_it_is(tmp_path: Path) -> None:
    folder = str(write_adapter(tmp_path / "adapter", '{"r": 64}'))
    assert adapter_folder(config(lora=folder, engine_arguments={"max_lora_rank": 64})) == folder
    for missing in (str(tmp_path / "none"), "acme/none", "some/where/else"):
        with pytest.raises(InputError, match=r"^llm\.lora: expected .*(none|some/where/else)"):
            adapter_folder(config(lora=missing))


def test_an_adapter_of_the_hub_is_fetched_without_its_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, weights in (("good", "adapter_model.safetensors"), ("pickled", "adapter_model.bin")):
        cached = tmp_path / f"models--acme--{name}"
        write_adapter(cached / "snapshots" / "abc", weights=weights)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("abc")
    assert adapter_folder(config(lora="acme/good")) == str(tmp_path / "models--acme--good/snapshots/abc")
    with pytest.raises(InputError, match=r"^llm\.lora: .* with adapter_model.safetensors, found none"):
        adapter_folder(config(lora="acme/pickled"))


def test_with_gpus_vllm_decides_for_itself() -> None:
    section = config(
        gpus_a_worker=1.0, tensor_parallel_size=4, max_model_len=4096, quantization="fp8", lora="acme/lora",
        revision="v2", dtype="bfloat16", engine_arguments={"gpu_memory_utilization": 0.8},
    )  # fmt: skip
    assert engine_arguments(section) == {
        "revision": "v2",
        "dtype": "bfloat16",
        "load_format": "safetensors",
        "tensor_parallel_size": 4,
        "max_model_len": 4096,
        "quantization": "fp8",
        "enable_lora": True,
        "gpu_memory_utilization": 0.8,
    }
    assert [(demand.bundle, demand.count) for demand in demands(section)] == [
        ({"CPU": 1.0, "GPU": 1.0}, 4),
        ({"CPU": 1.0}, 1),
    ]


def test_own_arguments_come_last() -> None:
    assert engine_arguments(config(engine_arguments={"enable_chunked_prefill": True}))["enable_chunked_prefill"]


# --- prompts ---


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Words are tokens; one more stands at the beginning, as Llama's tokenizers have it."""
    words = ["<s>", "<unk>", "you", "write", "system", "user", "bot", "quiet"]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="<unk>")


def words_of(tokenizer: PreTrainedTokenizerFast, **fields: Any) -> str:
    tokens = prompt_tokens(config(**fields), tokenizer, "you", "write")
    return " ".join(tokenizer.convert_ids_to_tokens(tokens))


def test_a_prompt_takes_the_form_of_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "<s> " + TEMPLATE
    assert words_of(tokenizer) == "<s> system you user write bot", "with one beginning"
    assert words_of(tokenizer, system_role=False) == "<s> user you write bot"
    assert words_of(tokenizer, chat_template_arguments={"mark": "quiet"}) == "<s> system you user write quiet bot"


def test_a_model_without_a_template_gets_plain_text(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.chat_template is None
    assert words_of(tokenizer) == words_of(tokenizer, system_role=False) == "<s> you write"


# --- packages ---


def package(folder: Path, name: str, content: str = "") -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(content, encoding="utf-8")


def test_a_torchvision_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(InputError, match=r"nms does not exist\): pip uninstall -y torchvision torchaudio torchcodec"):
        check_torchvision()


def test_a_replica_without_vllm_names_it_with_the_command_that_installs_it(tmp_path: Path) -> None:
    # A Python that sees the packages that this test needs, and no vLLM.
    code = (
        "import asyncio, sys; from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *rest: None if name == 'vllm' else find(name, *rest)\n"
        "from genret.config import VllmConfig\n"
        "from genret.llm.replica import Replica\n"
        "work = {'config': VllmConfig(model='acme/tiny'), 'journal': sys.argv[1], 'session': 's', 'proven': False}\n"
        "replica = Replica('row', [], work, model='acme/tiny')\n"
        "async def outcomes():\n"
        "    return [row async for row in replica.udf([{'id': '0' * 32, replica.IDX_IN_BATCH_COLUMN: 0}])]\n"
        "(outcome,) = asyncio.run(outcomes())\n"
        "print(outcome['state'], outcome['mistake'], outcome['stop'])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120
    )
    needed = "llm.type: vllm needs a package that is not installed where its workers run: pip install genret[vllm]"
    assert result.stdout.startswith(f"unsent True {needed}"), result.stderr


def test_other_engines_do_not_pay_for_vllm() -> None:
    """Importing the pipeline, which knows all engines, imports neither vLLM nor Ray's part for it."""
    code = "import sys, genret.pipeline; print([name for name in ('vllm', 'ray.data.llm') if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert result.stdout.strip() == "[]"
