"""The engine with a sender that answers in this process: what is sent, kept, counted and answered."""

from collections.abc import Callable, Generator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genret.config import ComputeConfig, HttpConfig
from genret.errors import EngineError, InputError
from genret.llm.base import Request, pair_responses
from genret.llm.completion import CompletionEngine, Counts
from genret.llm.http import HttpSender
from genret.llm.journal import Completion, JournalWriter
from genret.llm.prompts import prompt_digest, render
from genret.llm.reasons import short_reason
from genret.llm.sending import OUTCOME_SCHEMA, PROMPT_SCHEMA, Outcome

Answer = Callable[[dict[str, object]], Completion | Outcome]


class LocalSender:
    """Answers prompts by a function, in blocks, the last block first."""

    model = "local"
    form = "list"

    def __init__(self, answer: Answer, **sampling: object) -> None:
        self.answer = answer
        self.sampling = sampling
        self.sent: list[dict[str, object]] = []
        self.proven: list[bool] = []
        self.closed = 0

    def send(self, prompts: str, journal: str, session: str, proven: bool) -> Generator[pa.Table, None, None]:
        self.proven.append(proven)
        table = pq.read_table(prompts)
        assert table.schema == PROMPT_SCHEMA
        rows = table.to_pylist()
        writer = JournalWriter(journal, session)
        try:
            for start in range(0, len(rows), 3)[::-1]:
                outcomes = []
                for row in rows[start : start + 3]:
                    self.sent.append(row)
                    answer = self.answer(row)
                    if isinstance(answer, Completion):
                        writer.append(answer)
                        reason = short_reason(answer.error) if answer.error else ""
                        answer = Outcome(answer.id, "failed" if answer.error else "done", 10, 2, reason=reason)
                    outcomes.append(asdict(answer))
                yield pa.Table.from_pylist(outcomes, schema=OUTCOME_SCHEMA)
        finally:
            self.closed += 1
            writer.close()


def echo(row: dict[str, object]) -> Completion:
    """Two queries that tell which prompt they are of."""
    return Completion(row["id"], f"- What is {row['id'][:8]}?\n- Where is {row['id'][:8]}?")


def engine_of(folder: Path, sender: LocalSender, progress: Callable[[int, int], None] = lambda *_: None):
    return CompletionEngine(sender, str(folder / "completions"), str(folder / "scratch"), progress)


def request(number: int, text: str = "", **others) -> Request:
    return Request(f"r{number}", others.pop("kind", "chunk"), 5, "title", text or f"the text number {number}", **others)


def digest(asked: Request, sender: LocalSender) -> str:
    return prompt_digest(render(asked), sender.model, sender.sampling)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_responses_come_in_the_order_of_the_requests(tmp_path):
    sender = LocalSender(echo)
    asked = [request(number) for number in range(20)]
    pairs = list(pair_responses(engine_of(tmp_path, sender), asked))
    for one, response in pairs:
        mark = digest(one, sender)[:8]
        assert [item.text for item in response.items] == [f"What is {mark}?", f"Where is {mark}?"]
    assert [row["id"] for row in sender.sent[-3:]] == [digest(one, sender) for one in asked[:3]], "sent as it liked"
    assert sender.sent[-1]["user"] == render(asked[2]).user
    assert not files(tmp_path / "scratch"), "nothing is left but the journal"
    assert sender.closed == 1


def test_equal_prompts_are_sent_once_and_what_is_done_never_again(tmp_path):
    sender = LocalSender(echo)
    engine = engine_of(tmp_path, sender)
    twins = [request(0, "same"), request(1, "other"), request(2, "same"), request(3, "same")]
    first = list(engine.generate(twins))
    assert len(sender.sent) == 2
    assert first[0].items == first[2].items == first[3].items != first[1].items
    assert engine.counts == Counts(4, 2, 0, 2, 0, 20, 4, 0)
    assert list(engine.generate(twins)) == first
    assert len(sender.sent) == 2
    assert engine.counts == Counts(4, 2, 2, 0, 0, 0, 0, 0)
    list(engine.generate([*twins, request(4)]))
    assert len(sender.sent) == 3
    assert sender.proven == [False, True]


def test_a_changed_prompt_asks_anew_what_it_concerns_and_further_documents_themselves(tmp_path):
    sender = LocalSender(echo)
    kinds = ("keywords", "chunk", "sentence", "preference")

    def asked(documents: int, chunk_queries: int) -> list[Request]:
        numbers = {"chunk": chunk_queries}
        return [
            Request(f"{kind}{number}", kind, numbers.get(kind, 5), "", f"document {number}")
            for number in range(documents)
            for kind in kinds
        ]

    engine = engine_of(tmp_path, sender)
    list(engine.generate(asked(3, 10)))
    assert len(sender.sent) == 12
    list(engine.generate(asked(3, 15)))
    assert len(sender.sent) == 12 + 3, "only the kind whose number changed"
    list(engine.generate(asked(5, 15)))
    assert len(sender.sent) == 12 + 3 + 2 * 4, "only the two documents more"
    list(engine.generate(asked(5, 10)))
    assert len(sender.sent) == 12 + 3 + 2 * 4 + 2, "going back costs what was not asked before"
    sender.form = "json"
    list(engine.generate(asked(1, 10)))
    assert len(sender.sent) == 12 + 3 + 2 * 4 + 2 + 4, "another form is another prompt"


def test_reasons_and_tokens_are_counted_as_they_come(tmp_path):
    def answer(row: dict[str, object]) -> Outcome:
        failed = "number 1" in str(row["user"])
        return Outcome(row["id"], "refused", reason="HTTP 400") if failed else Outcome(row["id"], "done", 10, 2)

    class Kept(LocalSender):
        """Writes what it counts as done, too."""

        def send(self, prompts, journal, session, proven):
            writer = JournalWriter(journal, session)
            for row in pq.read_table(prompts).to_pylist():
                writer.append(Completion(row["id"], "- What is it?"))
            writer.close()
            yield from super().send(prompts, journal, session, proven)

    seen = []
    engine = engine_of(tmp_path, Kept(answer), lambda done, total: seen.append((done, total)))
    list(engine.generate([request(number) for number in range(8)]))
    assert engine.counts.reasons == {"HTTP 400": 1}
    assert seen == [(2, 8), (5, 8), (8, 8)]
    assert engine.counts.tokens_a_second == (7 * 12) / engine.counts.seconds


def test_another_model_or_sampling_asks_anew(tmp_path):
    asked = [request(number) for number in range(3)]
    first, second, third = LocalSender(echo), LocalSender(echo, seed=1), LocalSender(echo)
    third.model = "larger"
    for sender in (first, second, third):
        engine = engine_of(tmp_path, sender)
        assert engine.name == sender.model
        list(engine.generate(asked))
        assert len(sender.sent) == 3


def test_a_request_without_anything_to_ask_is_an_error_and_costs_nothing(tmp_path):
    sender = LocalSender(echo)
    asked = [
        Request("blank", "chunk", 3, " ", "\n"),
        request(1, kind="constraint"),
        request(2, kind="multihop"),
        request(3),
    ]
    responses = list(engine_of(tmp_path, sender).generate(asked))
    assert [response.error for response in responses] == [
        "no title and no text", "no constraints in the request", "no related passages in the request", "",
    ]  # fmt: skip
    assert len(sender.sent) == 1


def test_no_requests_start_nothing(tmp_path):
    sender = LocalSender(echo)
    assert list(engine_of(tmp_path, sender).generate([])) == []
    assert not sender.proven


def test_errors_are_responses_and_are_asked_again(tmp_path):
    asked = [request(number) for number in range(6)]
    bad = {digest(one, LocalSender(echo)) for one in asked[::2]}
    sender = LocalSender(
        lambda row: Completion(row["id"], error="HTTP 400: too long") if row["id"] in bad else echo(row)
    )
    engine = engine_of(tmp_path, sender)
    responses = list(engine.generate(asked))
    assert [response.error for response in responses] == ["HTTP 400: too long", ""] * 3
    assert (engine.counts.answered, engine.counts.failed) == (3, 3)
    sender.answer = echo
    assert not any(response.error for response in engine.generate(asked))
    assert (engine.counts.reused, engine.counts.answered) == (3, 3)


def test_what_cannot_be_read_is_an_error_with_the_text_and_is_kept(tmp_path):
    sender = LocalSender(lambda row: Completion(row["id"], "", finished=True))
    engine = engine_of(tmp_path, sender)
    [response] = engine.generate([request(0)])
    assert response.error and not response.items
    assert list(engine.generate([request(0)])) == [response]
    assert len(sender.sent) == 1, "it was paid for"


def test_an_answer_cut_short_loses_its_last_item(tmp_path):
    sender = LocalSender(lambda row: Completion(row["id"], "- What is this?\n- Where is th", finished=False))
    [response] = engine_of(tmp_path, sender).generate([request(0)])
    assert [item.text for item in response.items] == ["What is this?"]


@pytest.mark.parametrize("mistake", [False, True])
def test_a_given_up_engine_says_what_is_kept_and_how_to_go_on(tmp_path, mistake):
    asked = [request(number) for number in range(20)]
    budget = iter(range(7))
    sender = LocalSender(
        lambda row: (
            echo(row)
            if next(budget, None) is not None
            else Outcome(row["id"], "unsent", stop="the server is gone", mistake=mistake)
        )
    )
    engine = engine_of(tmp_path, sender)
    with pytest.raises(InputError if mistake else EngineError) as caught:
        list(engine.generate(asked))
    assert str(caught.value) == (
        "the server is gone; 7 of 20 prompts are answered and kept, and the same command goes on from there"
    )
    assert sender.closed == 1 and not files(tmp_path / "scratch")
    sender.answer = echo
    assert not any(response.error for response in engine.generate(asked))
    assert engine.counts.reused == 7 and sender.proven == [False, True]


def test_an_engine_that_answers_nothing_ends_the_stage(tmp_path):
    """What a stage made of no answers at all would be taken for done."""
    errors = iter(["HTTP 400: too long", "HTTP 500: no grammar", "HTTP 500: no grammar"])

    def answer(row: dict[str, object]) -> Completion:
        return Completion(row["id"], error=next(errors))

    sender = LocalSender(answer)
    engine = engine_of(tmp_path, sender)
    asked = [request(number) for number in range(3)]
    with pytest.raises(EngineError) as caught:
        list(engine.generate(asked))
    assert str(caught.value) == (
        "local answered none of 3 prompts, mostly: HTTP 500; 0 of 3 prompts are answered and kept, and the same "
        "command goes on from there"
    )
    sender.answer = echo
    assert not any(response.error for response in engine.generate(asked))
    # With an answer, be it an earlier one, the others may well be the prompts' own fault.
    sender.answer = lambda row: Completion(row["id"], error="HTTP 400: too long")
    responses = list(engine.generate([*asked, request(3)]))
    assert [bool(response.error) for response in responses] == [False, False, False, True]
    # As of documents that are added one by one.
    patient = CompletionEngine(sender, str(tmp_path / "more"), str(tmp_path / "scratch"), lambda *_: None, False)
    assert [bool(response.error) for response in patient.generate(asked)] == [True] * 3


def test_completions_that_are_kept_elsewhere_are_missed(tmp_path):
    """As by an actor on a node with a disk of its own."""

    class Elsewhere(LocalSender):
        def send(self, prompts, journal, session, proven):
            yield from super().send(prompts, str(tmp_path / "elsewhere"), session, proven)

    folder = tmp_path / "completions"
    with pytest.raises(EngineError, match=rf"^{folder}: expected the completions .* storage that all nodes share$"):
        list(engine_of(tmp_path, Elsewhere(echo)).generate([request(number) for number in range(7)]))


def test_prompts_that_get_lost_are_missed(tmp_path):
    class Losing(LocalSender):
        def send(self, *arguments, **others):
            yield from list(super().send(*arguments, **others))[1:]

    with pytest.raises(EngineError, match=r"^1 prompts got lost on the way .*; 6 of 7 prompts are answered and kept"):
        list(engine_of(tmp_path, Losing(echo)).generate([request(number) for number in range(7)]))


def test_progress_counts_what_is_settled(tmp_path):
    seen = []
    engine = engine_of(tmp_path, LocalSender(echo), lambda done, total: seen.append((done, total)))
    list(engine.generate([request(number) for number in range(7)]))
    assert seen == [(1, 7), (4, 7), (7, 7)]


def test_damaged_lines_are_told_and_asked_again(tmp_path):
    sender = LocalSender(echo)
    engine = engine_of(tmp_path, sender)
    asked = [request(number) for number in range(4)]
    before = list(engine.generate(asked))
    [path] = (tmp_path / "completions").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"junk\n" + b"".join(lines[2:]))
    assert list(engine.generate(asked)) == before
    assert engine.counts.damaged_lines == 1
    assert (engine.counts.reused, engine.counts.answered) == (3, 1)


def test_many_requests_spill_into_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("genret.llm.completion._ROWS_A_FILE", 10)
    monkeypatch.setattr("genret.llm.completion._REQUESTS_A_BATCH", 4)
    sender = LocalSender(echo)
    asked = [request(number % 50) for number in range(60)]
    responses = list(engine_of(tmp_path, sender).generate(asked))
    assert [response.request_id for response in responses] == [one.request_id for one in asked]
    assert len(sender.sent) == 50


def test_requests_come_through_as_they_were(tmp_path):
    texts = []

    def note(row):
        texts.append(row["user"])
        return echo(row)

    asked = [
        Request("a", "constraint", 2, "é", "你好", {"year": "1999", "half \ud800": "x"}),
        Request("b", "negative", 2, "t", "text", related=("one", "two"), query="which?"),
    ]
    engine = engine_of(tmp_path, LocalSender(note))
    pairs = list(pair_responses(engine, asked))
    assert [one for one, _ in pairs] == asked
    assert sorted(texts) == sorted(render(one).user for one in asked)


def test_what_decides_an_answer_is_part_of_its_name_and_what_does_not_is_not():
    def sampling(seed: int = 0, **settings):
        config = HttpConfig(base_url="http://localhost/v1", model="m", **settings)
        return HttpSender(config, seed, ComputeConfig()).sampling

    assert sampling() == {
        "temperature": 0.7, "top_p": 1.0, "structured": "json_schema", "system_role": True, "thinking_tokens": 0,
        "extra_body": {}, "seed": 0,
    }  # fmt: skip
    assert sampling(seed=1) != sampling()
    assert sampling(seed=1, send_seed=False) == sampling(send_seed=False) != sampling()
    same = {
        "api_key_variable": "A", "token_limit_field": "max_completion_tokens", "concurrency": 1,
        "requests_per_minute": 1, "tokens_per_minute": 1, "timeout_seconds": 1, "max_attempts": 1, "give_up_seconds": 1,
        "tokenizer": "t", "price_of_prompts": 1, "price_of_answers": 1, "tokens_a_second": 1,
    }  # fmt: skip
    assert sampling(**same) == sampling()
    assert set(same) | {"base_url"} == HttpConfig.INCIDENTAL
