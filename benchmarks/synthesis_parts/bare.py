"""vLLM alone in a process of its own: reads prompts from a file, and writes answers and seconds into another.

python -m synthesis_parts.bare WORK.json RESULT.json
"""

import json
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from genret.config import VllmConfig
from genret.llm.tokens import prompt_tokens
from genret.llm.vllm import engine_arguments, sampling_parameters


def main() -> None:
    """Answer all prompts at once, as vLLM's own offline interface does."""
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    config = VllmConfig(**work["config"])
    # No logging of its own, as little as possible beside the work.
    llm = LLM(model=config.model, disable_log_stats=True, **engine_arguments(config))
    begun = time.perf_counter()
    tokenizer, rows = llm.get_tokenizer(), work["rows"]
    prompts = [{"prompt_token_ids": prompt_tokens(config, tokenizer, row["system"], row["user"])} for row in rows]
    outputs = llm.generate(prompts, [_sampling(config, row) for row in rows], use_tqdm=False)
    seconds = time.perf_counter() - begun
    texts = {row["id"]: output.outputs[0].text for row, output in zip(rows, outputs, strict=True)}
    Path(sys.argv[2]).write_text(json.dumps({"seconds": seconds, "texts": texts}), encoding="utf-8")


def _sampling(config: VllmConfig, row: dict) -> SamplingParams:
    parameters = sampling_parameters(config, row)
    pattern = parameters.pop("structured_outputs")["regex"]
    return SamplingParams(**parameters, structured_outputs=StructuredOutputsParams(regex=pattern))


if __name__ == "__main__":
    main()
