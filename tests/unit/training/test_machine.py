"""What the machine allows: which attention, and how sequences must lie for it."""

import pytest
import torch

from genret.training import machine
from genret.training.machine import batch_layout, choose_attention


@pytest.mark.parametrize(
    ("precision", "gpu", "package", "expected"),
    [
        ("bf16", True, True, "flash_attention_2"),
        ("fp32", True, True, "sdpa"),
        ("bf16", False, True, "sdpa"),
        ("bf16", True, False, "sdpa"),
    ],
)
def test_flash_attention_is_chosen_where_it_can_run(monkeypatch, precision, gpu, package, expected) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(machine, "is_flash_attn_2_available", lambda: package)
    assert choose_attention(precision) == expected


def test_flash_attention_gets_one_line_and_others_rows() -> None:
    assert batch_layout("flash_attention_2") == "line"
    assert batch_layout("sdpa") == "rows"
