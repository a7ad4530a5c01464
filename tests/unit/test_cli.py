"""The command line: what it prints, and that every mistake ends in a message and exit code 2."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from genret import __version__
from genret.cli import main
from genret.cluster import connected
from genret.config import ComputeConfig, load_config, parse_config, preset_names
from genret.errors import EngineError
from genret.pipeline import planned, run, stage_fingerprint
from genret.retrieval.bm25 import Bm25Retriever
from genret.runs import RunStore
from genret.tables import table_from_rows
from genret.terminal import TerminalReporter

DOCUMENTS = [
    {"_id": "d0", "title": "Lakes", "text": "The glacier feeds the lake. It freezes in winter.", "region": "Alps"},
    {"_id": "d1", "title": "", "text": "Bakers knead [bold]dough[/b] and bake bread in the oven."},
    {"_id": "d2", "title": "Trains", "text": "The night train carries mail to the capital."},
]
QUERIES = [{"_id": "q0", "text": "frozen lake"}, {"_id": "q1", "text": "bread"}]
QRELS = ["query-id\tcorpus-id\tscore", "q0\td0\t1", "q1\td1\t1"]


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_corpus(folder: Path, documents: list[dict] = DOCUMENTS, queries=QUERIES, qrels=QRELS) -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text(json_lines(documents), encoding="utf-8")
    (folder / "queries.jsonl").write_text(json_lines(queries), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("\n".join(qrels) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


Called = tuple[int, str, str]


@pytest.fixture
def genret(capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    """Runs a command line in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> Called:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return (end.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def prepare(genret, corpus: Path, run_folder: Path) -> Callable[..., Called]:
    """Runs `genret prepare` on the corpus with overrides."""

    def call(*overrides: str) -> Called:
        flags = [part for override in (f"corpus.path={corpus}", *overrides) for part in ("--set", override)]
        return genret("prepare", "scratch-semantic", "--run", run_folder, *flags)

    return call


def check_refused(called: Called, message: str, run_folder: Path) -> None:
    """Exit code 2, one message, no traceback, and no stage that looks finished."""
    code, output, errors = called
    assert code == 2
    assert output == ""
    assert "Traceback" not in errors
    assert re.search(message, errors), errors
    assert errors.count("error: ") == 1
    assert not list(run_folder.glob("stages/*"))
    assert not list(run_folder.glob("tables/*/*"))


# --- the corpus ---


def insert(file: str, line: int, text: str) -> Callable[[Path], None]:
    """Puts a line into a file of the corpus, so that it becomes line `line`."""

    def change(corpus: Path) -> None:
        lines = (corpus / file).read_text(encoding="utf-8").splitlines()
        lines.insert(line - 1, text)
        (corpus / file).write_text("\n".join(lines) + "\n", encoding="utf-8")

    return change


def overwrite(file: str, content: bytes) -> Callable[[Path], None]:
    def change(corpus: Path) -> None:
        (corpus / file).write_bytes(content)

    return change


BAD_CORPORA = {
    "no JSON": (
        insert("corpus.jsonl", 2, "{'_id': 1}"),
        r"corpus.jsonl, line 2: expected a JSON object, found \"\{'_id': 1\}\"",
    ),
    "a list": (insert("corpus.jsonl", 3, "[1]"), r"corpus.jsonl, line 3: expected a JSON object, found '\[1\]'"),
    "cut short": (insert("queries.jsonl", 3, '{"_id": "q2", '), r"queries.jsonl, line 3: expected a JSON object"),
    "no id": (
        insert("corpus.jsonl", 1, '{"text": "x"}'),
        r"corpus.jsonl, line 1, field '_id': expected an id .*, found only the fields \['text'\]",
    ),
    "no text field": (
        insert("corpus.jsonl", 2, '{"_id": "x", "body": "x"}'),
        r"corpus.jsonl, line 2, field 'text': expected text, found only the fields \['_id', 'body'\]",
    ),
    "a number for a text": (
        insert("corpus.jsonl", 4, '{"_id": "x", "text": 5}'),
        r"corpus.jsonl, line 4, field 'text': expected text, found 5",
    ),
    "duplicate ids": (
        insert("corpus.jsonl", 4, '{"_id": "d1", "text": "again"}'),
        r"corpus.jsonl, line 4, field '_id': expected an id of its own, found 'd1', which .*corpus.jsonl, line 2 has",
    ),
    "duplicate queries": (
        insert("queries.jsonl", 3, '{"_id": "q0", "text": "again"}'),
        r"queries.jsonl, line 3, field '_id': expected an id of its own, found 'q0'",
    ),
    "no tabs": (insert("qrels/test.tsv", 2, "q0 d0 1"), r"test.tsv, line 2: expected .* with tabs .*, found 'q0 d0 1'"),
    "no number": (
        insert("qrels/test.tsv", 3, "q0\td2\thigh"),
        r"test.tsv, line 3, field 'score': expected a whole number, found 'high'",
    ),
    "judgements of other things": (
        overwrite("qrels/test.tsv", b"q8\td0\t1\nq0\td8\t1\n"),
        r"expected judgements on the corpus's documents and queries, found 2 judgements of split 'test', none of them",
    ),
    "no UTF-8": (
        overwrite("corpus.jsonl", b'{"_id": "d0", "text": "na\xefve"}\n'),
        r"corpus.jsonl, line 1: expected UTF-8, found the byte 0xef at byte 25",
    ),
    "an empty file": (overwrite("corpus.jsonl", b""), r"expected documents, found none \(0 without text\)"),
    "documents without text only": (
        overwrite("corpus.jsonl", b'{"_id": "d0", "text": ""}\n{"_id": "d1", "text": " "}\n'),
        r"expected documents, found none \(2 without text\)",
    ),
}


@pytest.mark.parametrize("kind", BAD_CORPORA)
def test_a_bad_corpus_is_refused(prepare, corpus: Path, run_folder: Path, kind: str) -> None:
    change, message = BAD_CORPORA[kind]
    change(corpus)
    check_refused(prepare(), message, run_folder)


BAD_SETTINGS = {
    "corpus.path=": r"corpus.path: a corpus of type beir needs a path, found none",
    "corpus.path=/nowhere/at/all": r"corpus.path: expected a BEIR folder, found nothing at /nowhere/at/all",
    "corpus.path=s3//typo": r"corpus.path: expected a BEIR folder, found nothing at s3//typo",
    "corpus.path=nosuch://bucket/key": r"nosuch://bucket/key: expected a local path or a URL",
    "corpus.split=train": r"corpus.split: expected one of \['test'\] of .*, found 'train'",
    "corpus.pth=x": r"override 'corpus.pth=x': corpus.pth: unknown key; did you mean path\?",
    "sft.learning_rat=1": r"sft.learning_rat: unknown key; did you mean learning_rate\?",
    "corpus.chunk_tokens=3": r"corpus.chunk_tokens: expected a whole number from 16 to 8192, found 3",
    "sft.learning_rate=fast": r"sft.learning_rate: expected a number above 0 and at most 1, found \"fast\"",
    "seed=-1": r"seed: expected a whole number from 0 to 2147483647, found -1",
    "identifiers.type=atomik": r"identifiers.type: expected one of semantic, atomic, found \"atomik\"; did",
    "no equals sign": r"override 'no equals sign': expected section.field=value",
}


@pytest.mark.parametrize("override", BAD_SETTINGS)
def test_a_bad_setting_is_refused(prepare, run_folder: Path, override: str) -> None:
    check_refused(prepare(override), BAD_SETTINGS[override], run_folder)


def test_a_missing_jsonl_file_is_refused(prepare, corpus: Path, run_folder: Path) -> None:
    called = prepare("corpus.type=jsonl", f"corpus.path={corpus}/documents.jsonl")
    check_refused(called, r"documents.jsonl: expected a file, found nothing", run_folder)


def test_a_bad_configuration_file_is_refused(genret, tmp_path: Path, run_folder: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nsynthesis:\n  chunk_querys: 3\n", encoding="utf-8")
    called = genret("run", file, "--run", run_folder)
    check_refused(called, r"mine.yaml, line 3: synthesis.chunk_querys: unknown key; did you mean chunk_", run_folder)
    called = genret("run", "quickstrat", "--run", run_folder)
    check_refused(called, r"quickstrat: expected a YAML file or one of the presets .*; did you mean quick", run_folder)


def test_a_run_cannot_be_a_file(genret, corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    called = genret("prepare", "scratch-semantic", "--run", file, "--set", f"corpus.path={corpus}")
    check_refused(called, f"{file}: expected a folder for the run, found a file", tmp_path / "run")


# --- with Ray ---


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests here; commands use what is there."""
    with connected(ComputeConfig(cpu_workers=1)):
        yield


@pytest.fixture
def synthesize(cluster, genret, corpus: Path, run_folder: Path) -> Callable[..., Called]:
    """Runs `genret synthesize` on the corpus with overrides."""

    def call(*overrides: str) -> Called:
        settings = (f"corpus.path={corpus}", "compute.cpu_workers=1", "synthesis.chunk_queries=3", *overrides)
        flags = [part for override in settings for part in ("--set", override)]
        return genret("synthesize", "scratch-semantic", "--run", run_folder, *flags)

    return call


def test_a_corpus_of_one_passage_gets_identifier_and_examples(synthesize, corpus: Path, run_folder: Path) -> None:
    write_corpus(corpus, DOCUMENTS[:1], QUERIES[:1], QRELS[:2])
    code, _, errors = synthesize()
    assert code == 0, errors
    store = RunStore(run_folder)
    records = store.current()
    assert list(records) == ["corpus", "identifiers", "synthesis", "examples"]
    (identifier,) = store.read_table(records["identifiers"], "identifiers").to_pylist()
    assert identifier["passage_id"] == "d0"
    examples = store.read_table(records["examples"], "sft_examples").to_pylist()
    assert {row["completion"] for row in examples} == {identifier["identifier"]}
    assert {row["kind"] for row in examples} == {"query2id", "context2id"}


UNICODE = {
    "chinese": "湖水在冬天结冰。面包师揉面团。",
    "thai": "ทะเลสาบเป็นน้ำแข็งในฤดูหนาว",
    "hindi": "झील सर्दियों में जम जाती है।",
    "arabic": "تتجمد البحيرة في الشتاء.",
    "emoji": "👩‍👩‍👧‍👦 🏔️ 🥖",
    "combining": "Z̷̢a̶̧l̴g̵o text, naïve and naïve, ﬁne ½ Ǆ ß İ",
    "controls": "\x00 nul \x1b[31m red \u202e right to left \ufeff mark \u2028 line \r carriage",
    "astral": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𒀀 \U0010fffd",
    "quotes": "\"'`\\ $(x) {y} %s [/bold] </s> <sep>",
}


def test_unicode_long_and_empty_documents_go_on_and_are_counted(synthesize, corpus: Path, run_folder: Path) -> None:
    """One run of every odd thing that is no error."""
    documents = [{"_id": name, "text": text} for name, text in UNICODE.items()]
    documents += [{"_id": "long", "text": "The lake freezes. " * 60_000}, {"_id": "word", "text": "x" * 1_000_000}]
    documents += [{"_id": "empty", "text": ""}, {"_id": "blank", "text": " \n\t"}]
    documents += [{"_id": "title", "title": "T", "text": ""}]
    qrels = [*QRELS, "q0\tchinese\t1", "unknown\tchinese\t1", "q0\tunknown\t1"]
    write_corpus(corpus, [*DOCUMENTS, *documents], [*QUERIES, {"_id": "q2", "text": "nobody judged this"}], qrels)
    with (corpus / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "half", "text": "half \\ud800 of a pair"}\n')
    code, _, errors = synthesize("synthesis.max_sentences=3")
    assert code == 0, errors
    assert re.search(r"corpus .* 16 passages, 2 test queries, 4 qrels, 4 rejects", errors)

    store = RunStore(run_folder)
    records = store.current()
    texts = {row["passage_id"]: row["text"] for row in store.read_table(records["corpus"], "passages").to_pylist()}
    assert {name: texts[name] for name in UNICODE} == UNICODE
    assert len(texts["word"]) == 1_000_000
    assert texts["half"] == "half \ufffd of a pair"
    reasons = [row["reason"] for row in store.read_table(records["corpus"], "rejects").to_pylist()]
    assert sum("expected a text or a title, found none" in reason for reason in reasons) == 2
    assert sum("expected a query of the corpus, found no such id" in reason for reason in reasons) == 1
    assert sum("judged documents that the corpus lacks: 1, 'unknown' first" in reason for reason in reasons) == 1
    names = store.read_table(records["identifiers"], "identifiers").column("identifier").to_pylist()
    assert len(set(names)) == len(names) == 16
    queries = store.read_table(records["synthesis"], "queries").column("text").to_pylist()
    assert max(map(len, queries)) < 5000, "no query is a megabyte"
    examples = store.read_table(records["examples"], "sft_examples")
    assert set(examples.column("completion").to_pylist()) == set(names)


def test_a_metadata_field_that_no_document_has_is_refused(synthesize, run_folder: Path) -> None:
    code, output, errors = synthesize("synthesis.constraint_queries=1", "synthesis.constraint_fields=[regoin]")
    assert (code, output) == (2, "")
    message = r"error: synthesis.constraint_fields: no passage has the field 'regoin'; the passages have \['region'\]"
    assert re.search(message, errors), errors
    assert "Traceback" not in errors
    finished = sorted(path.name.partition("-")[0] for path in run_folder.glob("stages/*"))
    assert finished == ["corpus", "identifiers"]
    assert not list(run_folder.glob("tables/queries/*"))
    assert list(RunStore(run_folder).current()) == ["corpus", "identifiers"]


# --- the plan ---


def test_a_dry_run_says_what_would_be_asked_and_stops(genret, corpus: Path, run_folder: Path) -> None:
    model = "llm={type: http, base_url: 'http://localhost:1/v1', model: m, price_of_prompts: 2, tokens_a_second: 10}"
    arguments = ("run", "scratch-semantic", "--run", run_folder, "--set", f"corpus.path={corpus}", "--dry-run")
    code, output, errors = genret(*arguments, "--set", model)
    assert code == 0, errors
    assert "corpus" in errors and "identifiers" not in errors
    assert re.search(r"^all +\d+ +0 +\d+", output, re.MULTILINE)
    assert re.search(r"^cost: about 0\.\d\d, at most 0\.\d\d$", output, re.MULTILINE)
    assert re.search(r"^time: about \d+ min \d+ s", output, re.MULTILINE)
    assert not RunStore(run_folder).current(), "nobody asked for this run yet"
    assert not list((run_folder / "completions").iterdir())
    code, output, _ = genret(*arguments)
    assert (code, output) == (0, "nothing to ask: llm.type extractive has no language model\n")


# --- asking a run ---


@pytest.fixture
def searchable(corpus: Path, run_folder: Path) -> Path:
    """A run with a corpus and a BM25 index."""
    config = load_config("scratch-semantic", [f"corpus.path={corpus}"])
    store = RunStore(run_folder)
    records = run(config, store, TerminalReporter(Console(file=io.StringIO())), "corpus")
    (stage,) = (stage for stage in planned(config) if stage.name == "bm25")
    writer = store.begin("bm25", stage_fingerprint(stage, config, records))
    retriever = Bm25Retriever.build(store.read_table(records["corpus"], "passages"), config.retrieval)
    retriever.save(run_folder.parent / "index")
    writer.write_folder("bm25", run_folder.parent / "index")
    records["bm25"] = writer.commit({"seconds": 1.0})
    store.set_current({name: record.fingerprint for name, record in records.items()})
    return run_folder


def test_query_answers_as_json(genret, searchable: Path) -> None:
    code, output, errors = genret("query", searchable, "frozen LAKE in winter", "-k", "2", "--json")
    assert (code, errors) == (0, "")
    (row,) = map(json.loads, output.splitlines())
    assert row["score"] > 0
    del row["score"]
    assert row == {
        "rank": 1,
        "passage_id": "d0",
        "doc_id": "d0",
        "title": "Lakes",
        "text": "The glacier feeds the lake. It freezes in winter.",
        "metadata": {"region": "Alps"},
    }


def test_query_answers_as_a_table(genret, searchable: Path) -> None:
    code, output, errors = genret("query", searchable, "bread or a train")
    assert (code, errors) == (0, "")
    assert "[bold]dough[/b]" in output, "text is shown as it is"
    assert re.search(r"^2 passages by bm25 in \d+ ms$", output, re.MULTILINE)


def test_a_query_without_words_finds_nothing(genret, searchable: Path) -> None:
    for text in ("", "the", "\udcff"):
        code, output, _ = genret("query", searchable, text, "--json")
        assert (code, output) == (0, "")


BAD_QUERIES = {
    ("-k", "0"): r"-k: expected a whole number from 1 to 1000, found 0",
    ("-k", "1001"): r"-k: expected a whole number from 1 to 1000, found 1001",
    ("-k", "few"): r"Invalid value for '-k': .* integer",
    ("--retriever", "rpo"): r"retriever: expected one of \['bm25'\], found 'rpo'",
    ("--retriever", "bm52"): r"retriever: expected one of \['bm25'\], found 'bm52'",
    ("--kay", "3"): r"No such option: --kay",
    ("more", "words"): r"Got unexpected extra argument\(s\) \(more words\)",
}


@pytest.mark.parametrize("flags", BAD_QUERIES)
def test_a_bad_query_is_refused(genret, searchable: Path, flags: tuple[str, ...]) -> None:
    code, output, errors = genret("query", searchable, "lake", *flags)
    assert (code, output) == (2, "")
    assert re.search(BAD_QUERIES[flags], unboxed(errors)), errors
    assert "Traceback" not in errors


def unboxed(text: str) -> str:
    """The words of a message that typer put into a box."""
    return " ".join(re.sub(r"[^\x00-\x7f]", " ", text).split())


def test_a_folder_that_is_no_run_is_refused(genret, tmp_path: Path) -> None:
    for command in (("query", tmp_path, "lake"), ("report", tmp_path), ("report", tmp_path / "nothing")):
        code, output, errors = genret(*command)
        assert (code, output) == (2, "")
        assert errors == f"error: no run at {command[1]}; expected run.json in that folder\n"
    assert not (tmp_path / "nothing").exists()


def test_a_run_without_a_retriever_is_refused(genret, searchable: Path) -> None:
    store = RunStore(searchable)
    store.set_current({"corpus": store.current()["corpus"].fingerprint})
    code, _, errors = genret("query", searchable, "lake")
    assert code == 2
    assert "no retriever in this run yet; expected a run that was trained" in errors


def test_a_damaged_run_is_refused(genret, searchable: Path) -> None:
    (searchable / "run.json").write_text("{", encoding="utf-8")
    for command in (("query", searchable, "lake"), ("report", searchable)):
        code, _, errors = genret(*command)
        assert code == 2
        assert "run.json: damaged" in errors


def test_no_report_before_the_evaluation(genret, searchable: Path) -> None:
    code, output, errors = genret("report", searchable)
    assert (code, output) == (2, "")
    expected = f"{searchable}: not evaluated yet; expected the stage evaluation to be done, found corpus, bm25"
    assert errors == f"error: {expected}\n"


def write_measures(folder: Path, rows: list[dict]) -> None:
    store = RunStore(folder)
    writer = store.begin("evaluation", "0123456789abcdef")
    writer.write_table("measures", table_from_rows("measures", rows))
    writer.commit({"seconds": 1.0})
    store.set_current({"evaluation": "0123456789abcdef"})


def test_report_shows_the_comparison(genret, run_folder: Path) -> None:
    row = {"retriever": "bm25", "measure": "HIT@1", "value": 0.125, "n_queries": 8, "ci_low": 0.0, "ci_high": 0.5}
    write_measures(run_folder, [row])
    code, output, _ = genret("report", run_folder)
    assert code == 0
    assert "HIT@1" in output
    assert re.search(r"bm25 +12\.5", output)


def test_report_marks_significant_differences(genret, run_folder: Path) -> None:
    store = RunStore(run_folder)
    writer = store.begin("evaluation", "0123456789abcdef")
    figures = {"measure": "HIT@1", "n_queries": 8, "ci_low": 0.0, "ci_high": 0.5}
    rows = [figures | {"retriever": name, "value": value} for name, value in (("fusion", 0.25), ("bm25", 0.125))]
    pair = {"measure": "HIT@1", "retriever_a": "fusion", "retriever_b": "bm25", "n_queries": 8}
    writer.write_table("measures", table_from_rows("measures", rows))
    writer.write_table(
        "significance", table_from_rows("significance", [pair | {"difference": 0.125, "p": 0.01, "p_holm": 0.01}])
    )
    writer.commit({"seconds": 1.0})
    store.set_current({"evaluation": "0123456789abcdef"})
    code, output, _ = genret("report", run_folder)
    assert code == 0
    assert re.search(r"fusion +25\.0†", output)
    assert "† better than bm25 (p < 0.05" in " ".join(output.split())


def test_report_of_a_corpus_without_queries_says_so(genret, run_folder: Path) -> None:
    write_measures(run_folder, [])
    code, output, _ = genret("report", run_folder)
    assert (code, output) == (0, "nothing to compare: the corpus has no queries with a relevant document\n")


# --- the rest ---


def test_config_can_be_read_back(genret) -> None:
    for name in preset_names():
        code, output, errors = genret("config", name, "--set", "seed=7")
        assert (code, errors) == (0, "")
        assert parse_config(output, "output") == load_config(name, ["seed=7"])


def test_presets_and_version(genret) -> None:
    assert genret("presets") == (0, "".join(f"{name}\n" for name in preset_names()), "")
    assert genret("version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian",), "No such command 'trian'"),
        (("run",), "Missing argument 'PRESET|FILE'"),
        (("query", "somewhere"), "expected a run and a query, or a query with --url"),
        (("run", "quickstart", "--set"), "Option '--set' requires an argument"),
    ],
)
def test_wrong_usage_is_explained(genret, arguments: tuple[str, ...], message: str) -> None:
    code, output, errors = genret(*arguments)
    assert (code, output) == (2, "")
    assert message in unboxed(errors)


def test_no_command_prints_help(genret) -> None:
    code, output, errors = genret()
    assert code == 2
    assert "synthesize" in output + errors
    code, output, _ = genret("query", "--help")
    assert code == 0
    assert "--retriever" in output


class InterruptingStream(io.StringIO):
    """Ctrl-C, at the moment at which a stage says that it begins."""

    def write(self, text: str) -> int:
        if "started" in text:
            raise KeyboardInterrupt
        return super().write(text)


def test_an_interrupt_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, corpus: Path, run_folder: Path) -> None:
    stream = InterruptingStream()
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(SystemExit) as end:
        main(["prepare", "scratch-semantic", "--run", str(run_folder), "--set", f"corpus.path={corpus}"])
    assert end.value.code == 130
    assert stream.getvalue() == "interrupted: what is done stays done, and the same command goes on from there\n"
    assert not run_folder.exists()


def test_an_engine_that_gives_up_ends_in_one_line(
    genret, monkeypatch: pytest.MonkeyPatch, corpus: Path, run_folder: Path
) -> None:
    def give_up(*_: object) -> None:
        raise EngineError("no answer; 3 of 9 prompts are kept")

    monkeypatch.setattr("genret.pipeline.run", give_up)
    code, output, errors = genret("run", "scratch-semantic", "--run", run_folder, "--set", f"corpus.path={corpus}")
    assert (code, output, errors) == (1, "", "error: no answer; 3 of 9 prompts are kept\n")


def test_a_server_that_is_not_there_is_refused(prepare, run_folder: Path) -> None:
    code, _, errors = prepare("llm={type: http, base_url: 'http://127.0.0.1:9/v1', model: tiny}")
    assert code == 2
    assert re.search(r"error: llm.base_url: expected a server at http://127.0.0.1:9/v1, found none \(.*\)", errors)
    assert not list(run_folder.glob("stages/identifiers*"))


def test_the_module_is_the_command(corpus: Path, run_folder: Path) -> None:
    """Another process, as a person starts it."""
    insert("corpus.jsonl", 2, "no JSON")(corpus)
    command = ["run", "scratch-semantic", "--run", str(run_folder), "--set", f"corpus.path={corpus}"]
    result = subprocess.run([sys.executable, "-m", "genret", *command], capture_output=True, text=True, timeout=120)
    lines = result.stderr.splitlines()
    assert lines[-1].startswith(f"error: {corpus}/corpus.jsonl, line 2: expected a JSON object, found 'no JSON'")
    check_refused((result.returncode, result.stdout, result.stderr), "error: ", run_folder)


@pytest.mark.parametrize("retrievers", ["bm25", "bm25, dense"])
def test_training_what_is_not_trained_is_refused(genret, corpus: Path, run_folder: Path, retrievers: str) -> None:
    flags = [f"corpus.path={corpus}", f"retrieval.retrievers=[{retrievers}]", "dense.epochs=0"]
    settings = [part for flag in flags for part in ("--set", flag)]
    code, _, error = genret("train", "scratch-semantic", "--run", run_folder, *settings)
    assert code == 2
    assert f"expected sft, rpo or, with dense.epochs above 0, dense to train, found {retrievers}" in error
