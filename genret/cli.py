"""The command line: `genret run`, one command a stage, `query`, `report` and `config`.

A command imports what it alone needs, so that nobody who asks for help waits for PyTorch or Ray.
"""

import json
import math
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from genret import __version__
from genret.config import RunConfig, dump_config, load_config, parse_config, preset_names
from genret.errors import EngineError, InputError, RunBusyError
from genret.retrieval.names import retriever_names
from genret.runs import RunStore
from genret.tables import passages_from_table
from genret.types import Passage, ScoredPassage

if TYPE_CHECKING:
    from genret.placement import NodeGroup
    from genret.rates import Rate

# What shells and typer say of a process that was interrupted from the keyboard: 128 + SIGINT.
_INTERRUPTED = 130
_BUSY = 3
# Of tables that go to a file or a pipe.
_LOG_WIDTH = 120
_EXCERPT_CHARACTERS = 200
_MOST_PASSAGES = 1000
_API_KEY_VARIABLE = "GENRET_API_KEY"
_RECORD = ("rank", "passage_id", "doc_id", "score", "title", "text", "metadata")

app = typer.Typer(
    name="genret",
    help="Turn documents into a search engine that generates document identifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Source = Annotated[str, typer.Argument(help="A preset's name, or a YAML file.", metavar="PRESET|FILE")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field: section.field=value. May be given often.", metavar="a.b=c"),
]
RunFolder = Annotated[
    str | None, typer.Option("--run", help="Folder or URL of the run. Default: runs/NAME.", metavar="DIR|URL")
]
FinishedRun = Annotated[str, typer.Argument(help="Folder or URL of a run.", metavar="RUN")]


@app.command("run")
def run_command(
    source: Source,
    overrides: Overrides = None,
    folder: RunFolder = None,
    runs_folder: Annotated[Path, typer.Option(help="Where runs lie for which no --run is given.")] = Path("runs"),
    until: Annotated[str | None, typer.Option(help="Stop after this stage.", metavar="STAGE")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the corpus, say what a language model would be asked, and stop.")
    ] = False,
) -> None:
    """Run everything that is not done: corpus to report."""
    config, store = _open(source, overrides, folder, runs_folder)
    if dry_run:
        _plan(config, store, until)
        return
    _run(config, store, until)
    if until is None:
        _show_results(store)


@app.command()
def prepare(source: Source, overrides: Overrides = None, folder: RunFolder = None) -> None:
    """Read the corpus, cut it into passages and give them identifiers."""
    _run_until(source, overrides, folder, "identifiers")


@app.command()
def synthesize(source: Source, overrides: Overrides = None, folder: RunFolder = None) -> None:
    """Write synthetic queries and training examples (and what comes before)."""
    _run_until(source, overrides, folder, "examples")


@app.command()
def train(source: Source, overrides: Overrides = None, folder: RunFolder = None) -> None:
    """Train the retrievers, generative and dense (and what comes before)."""
    from genret.pipeline import trained

    config, store = _open(source, overrides, folder)
    stages = trained(config)
    if not stages:
        raise InputError(
            "retrieval.retrievers: expected sft, rpo or, with dense.epochs above 0, dense to train, "
            f"found {', '.join(config.retrieval.retrievers)}"
        )
    _run(config, store, stages[-1])


@app.command()
def evaluate(source: Source, overrides: Overrides = None, folder: RunFolder = None) -> None:
    """Compare the retrievers on the corpus's own queries (and what comes before)."""
    config, store = _open(source, overrides, folder)
    _run(config, store, "evaluation")
    _show_results(store)


@app.command("plan")
def plan_command(
    source: Source,
    overrides: Overrides = None,
    cluster: Annotated[
        Path | None, typer.Option(help="A cluster launcher's file, for its kinds of nodes.", metavar="FILE")
    ] = None,
    prices: Annotated[
        list[str] | None,
        typer.Option(
            "--price",
            help="An hour of a node of a kind of --cluster, of a GPU or a CPU. May be given often.",
            metavar="KIND=AMOUNT",
        ),
    ] = None,
    rates: Annotated[
        list[str] | None,
        typer.Option("--rate", help="Work a second of a stage's worker. May be given often.", metavar="STAGE=WORK"),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(help="A finished run whose rates count, for the same work on the same devices.", metavar="RUN"),
    ] = None,
    passages: Annotated[int, typer.Option(help="Do not read the corpus: it has so many passages ...", min=0)] = 0,
    words: Annotated[float, typer.Option(help="... of so many words ...", min=1)] = 100.0,
    queries: Annotated[int, typer.Option(help="... and so many queries to evaluate with.", min=0)] = 1000,
    parameters: Annotated[float, typer.Option(help="Of a pretrained model whose name does not tell.", min=0)] = 0.0,
) -> None:
    """Say what each stage would take: rows, GPU hours, time, disk, memory, price. Nothing is run."""
    from genret.asking import ASKING_STAGES, budget_of
    from genret.corpus.prepare import prepare_corpus
    from genret.pipeline import planned
    from genret.planning import assume_corpus, measure_corpus, plan
    from genret.rates import UNITS
    from genret.terminal import show_stages

    config = load_config(source, overrides or ())
    groups, _ = _kinds_of_nodes(cluster) if cluster is not None else ((), 0)
    given = _amounts("--rate", rates, UNITS)
    priced = _amounts("--price", prices, ["CPU", "GPU", *(group.name for group in groups)])
    if passages:
        size = assume_corpus(config, passages, words, queries)
        corpus = None
    else:
        corpus = prepare_corpus(config.corpus)
        size = measure_corpus(config, corpus["passages"], corpus["test_queries"].num_rows)
    known = _rates_of(like, config, parameters) if like is not None else {}
    budget = None
    if corpus is not None and config.llm.type != "extractive":
        with TemporaryDirectory(prefix="genret-plan-") as empty:
            asking = [stage.name for stage in planned(config) if stage.name in ASKING_STAGES]
            budget = budget_of(config, corpus["passages"], empty, asking) if asking else None
    stages = plan(
        config,
        size,
        rates=given,
        like=known,
        budget=budget,
        parameters=parameters,
        groups=groups,
        prices=priced,
    )
    console = Console()
    show_stages(console if console.is_terminal else Console(width=_LOG_WIDTH), stages)


def _rates_of(folder: str, planned: RunConfig, parameters: float) -> dict[str, "Rate"]:
    """The rates of a finished run; its model has the `parameters` if it is that of the plan, or its name is silent."""
    from genret.planning import measure_corpus, measured_rates, named_parameters

    store = RunStore.open_existing(folder)
    records = store.current()
    if not {"corpus", "report"} <= records.keys():
        raise InputError(f"--like: expected a finished run, found {', '.join(records) or 'no stage'} in {folder}")
    config = _saved_config(store)
    passages = store.read_table(records["corpus"], "passages")
    size = measure_corpus(config, passages, records["corpus"].tables["test_queries"]["rows"])
    model = config.sft.model
    told = parameters if model == planned.sft.model or not named_parameters(model) else 0.0
    return measured_rates(config, size, records, told)


def _kinds_of_nodes(file: Path) -> tuple[Sequence["NodeGroup"], float]:
    from genret.placement import node_groups

    try:
        return node_groups(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--cluster: expected a cluster launcher's file, found {file}: {error}") from error


def _amounts(option: str, settings: list[str] | None, known: Collection[str]) -> dict[str, float]:
    """Numbers by name, from settings of the form NAME=NUMBER; other names than the known ones are refused."""
    found = {}
    for setting in settings or []:
        name, _, text = setting.partition("=")
        try:
            found[name] = float(text)
        except ValueError:
            raise InputError(f"{option}: expected NAME=NUMBER, found {setting!r}") from None
        if name not in known:
            raise InputError(f"{option}: expected one of {', '.join(known)}, found {name!r}")
        if not 0 < found[name] < math.inf:
            raise InputError(f"{option}: expected a number above 0, found {setting!r}")
    return found


@app.command()
def query(
    folder: Annotated[str, typer.Argument(help="Folder or URL of a run; with --url none.", metavar="RUN")],
    text: Annotated[str | None, typer.Argument(help="The query.", metavar="TEXT")] = None,
    k: Annotated[int, typer.Option("-k", help=f"How many passages, from 1 to {_MOST_PASSAGES}.")] = 10,
    retriever: Annotated[str | None, typer.Option(help="Which retriever; default: the best trained one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
    url: Annotated[
        str | None,
        typer.Option(help=f"Ask a service (genret serve) instead; its key from {_API_KEY_VARIABLE}.", metavar="URL"),
    ] = None,
) -> None:
    """Ask a finished run, or a service."""
    if not 1 <= k <= _MOST_PASSAGES:
        raise InputError(f"-k: expected a whole number from 1 to {_MOST_PASSAGES}, found {k}")
    if url is not None:
        if text is not None:
            raise InputError(f"query: expected either a run or --url, found {folder!r} and {url!r}")
        found = _ask_service(url, _characters(folder), k, retriever)
    elif text is not None:
        found = _ask_run(folder, _characters(text), k, retriever)
    else:
        raise InputError("query: expected a run and a query, or a query with --url; found one argument")
    if as_json:
        for record in found.records:
            typer.echo(json.dumps(record, ensure_ascii=False))
        return
    console = Console()
    console.print(_ranking_table(found.records))
    noun = "passage" if len(found.records) == 1 else "passages"
    console.print(f"{len(found.records)} {noun} by {found.retriever} in {found.milliseconds:.0f} ms", highlight=False)


@app.command()
def serve(
    folder: FinishedRun,
    overrides: Overrides = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at. Default: this machine only.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen at. Default: 8000.")] = None,
    write_config: Annotated[
        Path | None, typer.Option(help="Write a file for `serve deploy` and stop.", metavar="FILE")
    ] = None,
) -> None:
    """Answer over HTTP, with a page at /, until interrupted."""
    from genret.serving.app import serve_until_stopped, write_serve_config

    given = [f"serving.{name}={value}" for name, value in (("host", host), ("port", port)) if value is not None]
    store = RunStore.open_existing(folder)
    config = parse_config(store.read_file("config.yaml"), store.address("config.yaml"), [*(overrides or ()), *given])
    if write_config is not None:
        write_serve_config(write_config, store.url, config.serving)
        return
    serve_until_stopped(folder, config, lambda address: typer.echo(f"ready: {address}", err=True))


@app.command("export")
def export_command(
    folder: FinishedRun,
    target: Annotated[Path, typer.Argument(help="Folder to make.", metavar="DIR")],
    retriever: Annotated[
        str | None, typer.Option(help="rpo, sft or dense; default: the first of these that the run has.")
    ] = None,
) -> None:
    """Copy a trained retriever out of a run, as a Hugging Face folder with a model card."""
    from genret.exporting import export_retriever

    store = RunStore.open_existing(folder)
    chosen = export_retriever(store, _saved_config(store), target, retriever)
    typer.echo(f"{chosen}: {target}")


@app.command()
def convert(
    name: Annotated[str, typer.Argument(help="Hub name or local folder of a model.", metavar="MODEL")],
    target: Annotated[Path, typer.Argument(help="Folder to make.", metavar="DIR")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit on the hub.")] = "main",
) -> None:
    """Copy a pretrained model whose weights are pickles, with its weights in safetensors."""
    from genret.training.converting import convert_model

    for file in convert_model(name, revision, target):
        typer.echo(f"{target / file}")


@app.command()
def report(folder: FinishedRun) -> None:
    """Print a run's comparison and where its report lies."""
    _show_results(RunStore.open_existing(folder))


@app.command("config")
def config_command(source: Source, overrides: Overrides = None) -> None:
    """Print a configuration with the meaning of every field."""
    typer.echo(dump_config(load_config(source, overrides or ())))


@app.command()
def presets() -> None:
    """List the presets that ship with genret."""
    for name in preset_names():
        typer.echo(name)


@app.command("version")
def version_command() -> None:
    """Print genret's version."""
    typer.echo(__version__)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: a user's mistake ends in one message and exit code 2, never in a traceback.

    Args:
        arguments: Of the command line; those of the process where none are given.

    Raises:
        SystemExit: Always. 0: done; 1: a server that the run needs gave up; 2: wrong usage or bad input; 3: another
            process works on the run; 130: interrupted from the keyboard.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of transformers, which would draw over ours
    try:
        app(args=arguments)
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(_BUSY if isinstance(error, RunBusyError) else 2)
    except EngineError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            typer.echo("interrupted: what is done stays done, and the same command goes on from there", err=True)
        raise
    sys.exit(0)


def _open(
    source: str, overrides: list[str] | None, folder: str | None, runs_folder: Path = Path("runs")
) -> tuple[RunConfig, RunStore]:
    config = load_config(source, overrides or ())
    return config, RunStore(folder if folder is not None else runs_folder / config.name)


def _run_until(source: str, overrides: list[str] | None, folder: str | None, stage: str) -> None:
    config, store = _open(source, overrides, folder)
    _run(config, store, stage)


def _run(config: RunConfig, store: RunStore, until: str | None) -> None:
    from genret.pipeline import run
    from genret.terminal import TerminalReporter

    reporter = TerminalReporter(Console(stderr=True))
    try:
        run(config, store, reporter, until, reporter.show_plan)
    finally:
        reporter.close()


def _plan(config: RunConfig, store: RunStore, until: str | None) -> None:
    from genret.pipeline import plan
    from genret.terminal import TerminalReporter, show_plan

    reporter = TerminalReporter(Console(stderr=True))
    try:
        budget = plan(config, store, reporter, until)
    finally:
        reporter.close()
    if budget is not None:
        show_plan(Console(), budget)
    elif config.llm.type == "extractive":
        typer.echo("nothing to ask: llm.type extractive has no language model")
    else:
        typer.echo("nothing to ask: what a language model writes is there already")


def _saved_config(store: RunStore) -> RunConfig:
    """The configuration that a run was last started with."""
    return parse_config(store.read_file("config.yaml"), store.address("config.yaml"))


def _show_results(store: RunStore) -> None:
    from genret.evaluation.table import comparison_table

    records = store.current()
    if "evaluation" not in records:
        found = ", ".join(records) or "none"
        raise InputError(
            f"{store.address()}: not evaluated yet; expected the stage evaluation to be done, found {found}"
        )
    console = Console()
    measures = store.read_table(records["evaluation"], "measures")
    significance = None
    if "significance" in records["evaluation"].tables:
        significance = store.read_table(records["evaluation"], "significance")
    if measures.num_rows:
        console.print(comparison_table(measures, significance=significance))
    else:
        console.print("nothing to compare: the corpus has no queries with a relevant document")
    if "report" in records:
        console.print(f"report: {store.address('report.html')}", highlight=False, markup=False, soft_wrap=True)


class _Found(NamedTuple):
    """An answer to a query: one record a passage, best first."""

    retriever: str
    records: list[dict[str, Any]]
    milliseconds: float


def _characters(text: str) -> str:
    """The text without bytes that are no characters, which a terminal in another encoding leaves."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _ask_run(folder: str, text: str, k: int, retriever: str | None) -> _Found:
    from genret.retrieval.opening import load_retriever

    store = RunStore.open_existing(folder)
    records = store.current()
    config = _saved_config(store)
    names = retriever_names(records, config.retrieval)
    if not names or "corpus" not in records:
        raise InputError(f"{folder}: no retriever in this run yet; expected a run that was trained")
    chosen = load_retriever(store, records, retriever or names[0], config.retrieval)
    passages = {
        passage.passage_id: passage for passage in passages_from_table(store.read_table(records["corpus"], "passages"))
    }
    begin = time.perf_counter()
    ranking = chosen.retrieve([text], k)[0]
    milliseconds = (time.perf_counter() - begin) * 1000
    found = [_as_record(rank, place, passages[place.passage_id]) for rank, place in enumerate(ranking, start=1)]
    return _Found(chosen.name, found, milliseconds)


def _ask_service(url: str, text: str, k: int, retriever: str | None) -> _Found:
    from genret.client import Client

    with Client(url, api_key=os.environ.get(_API_KEY_VARIABLE)) as client:
        begin = time.perf_counter()
        response = client.retrieve_all([text], k, retriever=retriever)
        milliseconds = (time.perf_counter() - begin) * 1000
    records = [{name: getattr(hit, name) for name in _RECORD} for hit in response.results[0].hits]
    return _Found(response.retriever, records, milliseconds)


def _ranking_table(records: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=True)
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("passage", no_wrap=True, overflow="ellipsis", max_width=36)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for record in records:
        # As Text, so that no square bracket is read as markup, and without what steers a terminal.
        excerpt = " ".join(_plain(record["text"]).split())[:_EXCERPT_CHARACTERS]
        table.add_row(str(record["rank"]), f"{record['score']:.3f}", Text(_plain(record["passage_id"])), Text(excerpt))
    return table


def _plain(text: str) -> str:
    return "".join(character for character in text if character.isprintable() or character.isspace())


def _as_record(rank: int, place: ScoredPassage, passage: Passage) -> dict[str, Any]:
    values = (
        rank,
        passage.passage_id,
        passage.doc_id,
        place.score,
        passage.title,
        passage.text,
        dict(passage.metadata),
    )
    return dict(zip(_RECORD, values, strict=True))
