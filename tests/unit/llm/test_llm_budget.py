"""What asking will take: exact numbers of prompts, tokens by a sample, money and time by the configuration."""

import numpy as np
import pytest

from genret.config import HttpConfig, VllmConfig
from genret.llm.base import Request
from genret.llm.budget import ANSWER_SHARE, Expense, expense, make_budget
from genret.llm.prompts import Prompt, prompt_digest, render
from genret.llm.tokens import ESTIMATED, estimated_tokens

COUNTER = estimated_tokens, ESTIMATED


def http(**fields) -> HttpConfig:
    return HttpConfig(base_url="http://localhost/v1", model="m", **fields)


def vllm(**fields) -> VllmConfig:
    return VllmConfig(model="m", **fields)


def name_of(prompt: Prompt) -> str:
    return prompt_digest(prompt, "m", {})


def none_kept(names) -> np.ndarray:
    return np.zeros(len(names), dtype=bool)


def request(number: int, kind: str = "chunk", n: int = 2, text: str = "", **others) -> Request:
    return Request(f"r{number}", kind, n, "", text or f"the text number {number}", **others)


def test_each_kind_has_its_prompts_and_tokens():
    asked = [request(0), request(1), request(2, "keywords", 3)]
    budget = make_budget(http(), asked, name_of, none_kept, COUNTER)
    chunk, keywords = budget.shares
    prompts = [render(one) for one in asked]
    assert (chunk.kind, chunk.prompts, chunk.kept, chunk.sent) == ("chunk", 2, 0, 2)
    assert chunk.prompt_tokens == sum(map(estimated_tokens, prompts[:2]))
    assert chunk.most_answer_tokens == prompts[0].max_tokens + prompts[1].max_tokens
    assert chunk.answer_tokens == round(ANSWER_SHARE * chunk.most_answer_tokens)
    assert keywords.most_answer_tokens == prompts[2].max_tokens
    assert (budget.total.kind, budget.total.prompts) == ("all", 3)
    assert budget.total.prompt_tokens == chunk.prompt_tokens + keywords.prompt_tokens
    assert (budget.model, budget.counted) == ("m", ESTIMATED)


def test_equal_prompts_and_what_cannot_be_asked_count_once_and_never():
    asked = [request(0, text="same"), request(1, text="same"), request(2, "constraint"), request(3, text=" ")]
    asked[3] = Request("blank", "chunk", 1, " ", "")
    assert make_budget(http(), asked, name_of, none_kept, COUNTER).total.prompts == 1


def test_what_is_kept_costs_nothing():
    asked = [request(number) for number in range(4)]
    kept = {name_of(render(one)) for one in asked[:3]}
    budget = make_budget(
        http(price_of_prompts=1e6), asked, name_of, lambda names: np.array([name in kept for name in names]), COUNTER
    )
    assert (budget.total.prompts, budget.total.kept, budget.total.sent) == (4, 3, 1)
    assert budget.total.prompt_tokens == estimated_tokens(render(asked[3])) == budget.expected.price


def test_tokens_of_many_prompts_are_reckoned_from_some():
    counted = []

    def count(prompt: Prompt) -> int:
        counted.append(prompt)
        return len(prompt.user) // 3

    asked = [request(number, text=f"text {number} " + "word " * (number % 40)) for number in range(5000)]
    total = make_budget(http(), iter(asked), name_of, none_kept, (count, "counted")).total
    exact = sum(len(render(one).user) // 3 for one in asked)
    assert total.prompts == 5000
    assert len(counted) == 200 + 4800 // 50
    assert total.prompt_tokens == pytest.approx(exact, rel=0.02)


def test_thinking_is_part_of_an_answer():
    plain = make_budget(http(), [request(0)], name_of, none_kept, COUNTER).total
    thinking = make_budget(http(thinking_tokens=1000), [request(0)], name_of, none_kept, COUNTER).total
    assert thinking.most_answer_tokens == plain.most_answer_tokens + 1000


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (http(), Expense(None, None)),
        (http(price_of_prompts=2.0), Expense(6.0, None)),
        (http(price_of_prompts=2.0, price_of_answers=10.0), Expense(16.0, None)),
        (http(tokens_a_second=1000.0), Expense(None, 4000.0)),
        (http(tokens_a_second=1000.0, requests_per_minute=6), Expense(None, 10_000.0)),
        (http(tokens_per_minute=600_000), Expense(None, 400.0)),
        (vllm(), Expense(None, None)),
        (vllm(price_an_hour=3.6), Expense(None, None)),
        (vllm(tokens_a_second=1000.0), Expense(None, 4000.0)),
        # Twice the replicas: half the time, the same price.
        (vllm(tokens_a_second=1000.0, price_an_hour=3.6), Expense(4.0, 4000.0)),
        (vllm(tokens_a_second=1000.0, price_an_hour=3.6, max_replicas=2), Expense(4.0, 2000.0)),
    ],
)
def test_prices_and_rates(config, expected):
    found = expense(config, 1000, 3_000_000, 1_000_000)
    assert found.price == (expected.price and pytest.approx(expected.price))
    assert found.seconds == (expected.seconds and pytest.approx(expected.seconds))


def test_no_requests_cost_nothing():
    budget = make_budget(http(price_of_prompts=1.0, tokens_a_second=5.0), [], name_of, none_kept, COUNTER)
    assert budget.shares == () and budget.expected == budget.most == Expense(0.0, 0.0)
