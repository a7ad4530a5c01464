"""A small random language model with a trained tokenizer, as a folder that any engine loads."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import genret

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_checkpoint(
    folder: Path,
    vocabulary: int = 2000,
    hidden: int = 64,
    layers: int = 2,
    intermediate: int = 128,
    haste: float = 5.0,
) -> Path:
    """Write a model of the Llama architecture, with heads of 32 dimensions (vLLM's least on a CPU).

    Haste is how much more likely than others the tokens are that end a line or the answer: without it a random model
    hardly ever writes a list of short items.
    """
    tokenizer = _tokenizer(vocabulary)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    _hasten(model, [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("Ċ")], haste)
    model.save_pretrained(folder)
    return folder


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in sorted(Path(genret.__file__).parent.rglob("*.py"))], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def _hasten(model: LlamaForCausalLM, tokens: list[int], haste: float) -> None:
    """Give all embeddings a direction in common, and these tokens' output rows a part of it."""
    size = model.config.hidden_size
    direction = torch.nn.functional.normalize(torch.randn(size), dim=0)
    with torch.no_grad():
        model.model.embed_tokens.weight += direction / 2
        for token in tokens:
            model.lm_head.weight[token] += direction * haste / size**0.5
