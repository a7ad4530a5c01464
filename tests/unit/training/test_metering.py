"""What a step costs, counted by hand."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from genret.training.metering import flops_a_token, matmul_rate, peak_memory

WIDTH, INNER, ROWS = 16, 24, 100
# Queries, keys, values and outputs; gate, up and down.
BLOCK = 4 * WIDTH * WIDTH + 3 * WIDTH * INNER
HEAD = ROWS * WIDTH


def llama(tied: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=ROWS,
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_count_six_times_and_tables_not_at_all(tied: bool) -> None:
    assert flops_a_token(llama(tied)) == 6 * (2 * BLOCK + HEAD)
    assert flops_a_token(llama(tied), whole_head=False) == 6 * 2 * BLOCK


def test_frozen_weights_count_four_times() -> None:
    adapted = get_peft_model(llama(False), LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    small = 3 * (4 * 2 * WIDTH + 3 * (WIDTH + INNER))
    assert flops_a_token(adapted) == 4 * (2 * BLOCK + HEAD) + 6 * 2 * small
    assert flops_a_token(adapted, whole_head=False) == 4 * 2 * BLOCK + 6 * 2 * small


def test_a_bag_of_words_multiplies_nothing() -> None:
    assert flops_a_token(nn.EmbeddingBag(50, 8)) == 0


def test_the_machine_does_something_and_needs_memory() -> None:
    assert matmul_rate(torch.device("cpu"), torch.float32) > 1e8
    assert peak_memory(torch.device("cpu")) > 2**20
