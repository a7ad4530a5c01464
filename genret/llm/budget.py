"""What asking a language model will take, before it is asked: prompts, tokens, money, time."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from genret.config import HttpConfig, VllmConfig
from genret.llm.base import Request, RequestKind
from genret.llm.journal import IdSet
from genret.llm.prompts import Form, Prompt, nothing_to_ask, render

ANSWER_SHARE = 0.4
"""Which part of the longest useful answer (`Prompt.max_tokens`, two to three times what English takes) and of the
tokens for thinking an answer is reckoned to have."""

_REQUESTS_A_BATCH = 1024
# Of each kind, all of the first prompts are counted in tokens and one in so many of the others: tokenizers are slow.
_COUNTED_AT_FIRST = 200
_COUNTED_AFTERWARDS = 50
_MILLION = 1_000_000
_SECONDS_AN_HOUR = 3600.0
_SECONDS_A_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Share:
    """What the prompts of one kind, or all of them, take.

    Attributes:
        kind: Of requests; `all` for the sum.
        prompts: Different prompts.
        kept: Prompts among them whose completion is kept from an earlier run, so that they cost nothing.
        prompt_tokens: Of the prompts that have to be sent, about.
        answer_tokens: Of their answers, by `ANSWER_SHARE`.
        most_answer_tokens: No more than this, as each answer is bounded.
    """

    kind: str
    prompts: int
    kept: int
    prompt_tokens: int
    answer_tokens: int
    most_answer_tokens: int

    @property
    def sent(self) -> int:
        """Prompts that have to be sent."""
        return self.prompts - self.kept


@dataclass(frozen=True, slots=True)
class Expense:
    """What a number of prompts and tokens costs. None: the configuration names no price, or no rate.

    Attributes:
        price: In the currency of the configured prices.
        seconds: By the configured rates and limits; start-up, failures and what else holds things up not included.
    """

    price: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Budget:
    """What lies ahead.

    Attributes:
        model: Which model is asked.
        shares: One a kind, in the order in which they come up.
        counted: How the prompts' tokens were counted, to be shown.
        expected: With answers as long as they are reckoned to be.
        most: With every answer as long as it may be.
    """

    model: str
    shares: tuple[Share, ...]
    counted: str
    expected: Expense
    most: Expense

    @property
    def total(self) -> Share:
        """The sum of all kinds."""
        return total_share(self.shares)


def make_budget(
    config: HttpConfig | VllmConfig,
    requests: Iterable[Request],
    name_of: Callable[[Prompt], str],
    kept: Callable[[Sequence[str]], np.ndarray],
    counter: tuple[Callable[[Prompt], int], str],
    form: Form = "list",
) -> Budget:
    """Reckon up what requests will take. Nothing is sent.

    Args:
        config: The `llm` section: its prices, rates and limits.
        requests: All that will be asked; they are drawn once and not kept.
        name_of: The digest under which a prompt's completion is kept (`genret.llm.prompts.prompt_digest`).
        kept: Which digests have a completion already: one bool each (`genret.llm.journal.Journal.done`).
        counter: What counts a prompt's tokens, and how it does so (`genret.llm.tokens.token_counter`).
        form: The form of answers that prompts ask for (`genret.llm.sending.Sender.form`).

    Returns:
        The budget. Prompts are counted exactly, equal ones once. Their tokens are counted for the first 200 of a kind
        and for every fiftieth of the others, and reckoned by the number of bytes for the rest.
    """
    count_tokens, counted = counter
    tallies: dict[RequestKind, _Tally] = defaultdict(_Tally)
    for kind, prompt, is_kept in _prompts(requests, form, name_of, kept):
        tallies[kind].add(prompt, is_kept, config.thinking_tokens, count_tokens)
    shares = tuple(tally.share(kind) for kind, tally in tallies.items())
    total = total_share(shares)
    return Budget(
        model=config.model,
        shares=shares,
        counted=counted,
        expected=expense(config, total.sent, total.prompt_tokens, total.answer_tokens),
        most=expense(config, total.sent, total.prompt_tokens, total.most_answer_tokens),
    )


def total_share(shares: Iterable[Share]) -> Share:
    """The sum of several kinds."""
    rows = list(shares)
    return Share(
        "all",
        sum(share.prompts for share in rows),
        sum(share.kept for share in rows),
        sum(share.prompt_tokens for share in rows),
        sum(share.answer_tokens for share in rows),
        sum(share.most_answer_tokens for share in rows),
    )


def expense(config: HttpConfig | VllmConfig, prompts: int, prompt_tokens: int, answer_tokens: int) -> Expense:
    """What prompts and tokens cost by a configuration's prices, rates and limits.

    Args:
        config: The `llm` section.
        prompts: Prompts to be sent.
        prompt_tokens: Their tokens.
        answer_tokens: Those of the answers.

    Returns:
        For `http`: the tokens at their prices; the longest of the times that `tokens_a_second` and the two limits a
        minute ask for. For `vllm`: the tokens shared out among `max_replicas`, and the price of these for so long.
    """
    tokens = prompt_tokens + answer_tokens
    if isinstance(config, VllmConfig):
        if not config.tokens_a_second:
            return Expense(None, None)
        seconds = tokens / (config.tokens_a_second * config.max_replicas)
        hours = seconds / _SECONDS_AN_HOUR
        return Expense(hours * config.max_replicas * config.price_an_hour if config.price_an_hour else None, seconds)
    price = None
    if config.price_of_prompts or config.price_of_answers:
        price = (prompt_tokens * config.price_of_prompts + answer_tokens * config.price_of_answers) / _MILLION
    times = [
        amount * unit / rate
        for amount, unit, rate in (
            (tokens, 1.0, config.tokens_a_second),
            (prompts, _SECONDS_A_MINUTE, config.requests_per_minute),
            (tokens, _SECONDS_A_MINUTE, config.tokens_per_minute),
        )
        if rate
    ]
    return Expense(price, max(times) if times else None)


def _prompts(
    requests: Iterable[Request],
    form: Form,
    name_of: Callable[[Prompt], str],
    kept: Callable[[Sequence[str]], np.ndarray],
) -> Iterator[tuple[RequestKind, Prompt, bool]]:
    """The different prompts of requests, each with its kind and whether its completion is kept."""
    seen = IdSet()
    remaining = iter(requests)
    while batch := list(islice(remaining, _REQUESTS_A_BATCH)):
        rendered = [(request.kind, render(request, form)) for request in batch if not nothing_to_ask(request)]
        names = [name_of(prompt) for _, prompt in rendered]
        rows = zip(rendered, seen.add(names), kept(names), strict=True)
        yield from ((kind, prompt, bool(done)) for (kind, prompt), new, done in rows if new)


@dataclass
class _Tally:
    """What is known of the prompts of one kind."""

    prompts: int = 0
    kept: int = 0
    size: int = 0
    counted_size: int = 0
    counted_tokens: int = 0
    most_answer_tokens: int = 0

    def add(self, prompt: Prompt, kept: bool, thinking: int, count_tokens: Callable[[Prompt], int]) -> None:
        self.prompts += 1
        if kept:
            self.kept += 1
            return
        sent = self.prompts - self.kept
        size = len(prompt.system.encode()) + len(prompt.user.encode("utf-8", "replace"))
        self.size += size
        self.most_answer_tokens += prompt.max_tokens + thinking
        if sent <= _COUNTED_AT_FIRST or sent % _COUNTED_AFTERWARDS == 0:
            self.counted_size += size
            self.counted_tokens += count_tokens(prompt)

    def share(self, kind: str) -> Share:
        return Share(
            kind=kind,
            prompts=self.prompts,
            kept=self.kept,
            prompt_tokens=round(self.counted_tokens * self.size / max(1, self.counted_size)),
            answer_tokens=round(ANSWER_SHARE * self.most_answer_tokens),
            most_answer_tokens=self.most_answer_tokens,
        )
