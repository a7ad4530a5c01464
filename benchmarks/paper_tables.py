"""The tables of arXiv 2502.17957 as grids of configurations: ours beside the paper's figures.

    python benchmarks/paper_tables.py --table N [N ...] [--scale cpu|paper] [--data FOLDER] [--runs FOLDER]
                                      [--datasets NAME ...] [--json FILE] [--plan] [--set a.b=c]

N is 2, 3, 4, 5, 7, 8 or 11. Table 6 compares two language models that write queries: give another `llm` section by
--set and compare runs of table 2.

- cpu: a small decoder from scratch, extractive queries, and the corpora under --data (default: $GENRET_DATA) that
  stand for the paper's. They are small and partly other texts: figures are not comparable with the paper's, only the
  directions of the effects are.
- paper: the paper's models and settings: the presets multihop-rag, allsides, agnews and nq. Expects the corpora under
  --data in the BEIR layout, in folders of the same names, GPUs, and a model hub.

With --plan the grid is printed and nothing is run.

Rows of one corpus share a run folder, and so all stages that they have in common; what was run before is not run
again. Prints a Markdown table for each corpus and whether each effect of the paper has the same direction.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from genret.config import RunConfig, load_config
from genret.pipeline import planned as planned_stages
from genret.pipeline import run, stage_fingerprint
from genret.runs import RunStore, StageRecord
from genret.terminal import TerminalReporter

Figures = dict[str, tuple[float, ...]]
MULTIHOP, ALLSIDES, AGNEWS, NQ = "multihop-rag", "allsides", "agnews", "nq"
MEASURES = {
    MULTIHOP: ("HIT@4", "HIT@10", "MAP@10", "MRR@10"),
    ALLSIDES: ("HIT@1", "HIT@5", "HIT@10"),
    AGNEWS: ("HIT@1", "HIT@5", "HIT@10"),
    NQ: ("HIT@1", "HIT@5", "HIT@10", "MRR@10"),
}
# What stands for the paper's corpora at the scale cpu, and the metadata that constraint queries name there.
CPU_FOLDERS = {
    MULTIHOP: "multihop_rag_evidence500", ALLSIDES: "pir_allsides", AGNEWS: "pir_agnews", NQ: "xquad_en",
}  # fmt: skip
CPU_FIELDS = {MULTIHOP: "[source, category]", ALLSIDES: "[polarity]", AGNEWS: "[location, subtopic]", NQ: "[]"}
NO_PREFERENCE = ("synthesis.preference_queries=0", "retrieval.retrievers=[sft]")
PREFERENCE = ("retrieval.retrievers=[rpo]", "mining.candidates=10")
NO_CONSTRAINTS = ("synthesis.constraint_queries=0",)
NO_SENTENCES = ("synthesis.sentence_queries=0",)
NO_CONTEXT = ("examples.context2id=none",)
ATOMIC = ("identifiers.type=atomic",)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: As in the paper.
        changes: What differs from the full recipe.
        paper: The paper's figures in per cent, by corpus, in the order of `MEASURES`.
        retriever: Whose measures are the row.
    """

    name: str
    changes: tuple[str, ...]
    paper: Figures
    retriever: str = "sft"


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        rows: Its rows.
        effects: Pairs of rows: the first is better in the paper.
        changes: Changes of all rows.
    """

    rows: tuple[Row, ...]
    effects: tuple[tuple[str, str], ...]
    changes: tuple[str, ...] = field(default=NO_PREFERENCE)


FULL = (69.98, 88.34, 24.85, 52.29)
NQ_FULL = (70.71, 86.48, 89.85, 77.54)
CHUNK_AND_SENTENCE = (61.64, 81.69, 22.13, 47.20)
TABLES: dict[int, PaperTable] = {
    2: PaperTable(
        (
            Row("chunk", NO_CONSTRAINTS + NO_SENTENCES, {MULTIHOP: (43.64, 66.65, 13.98, 31.14)}),
            Row("+ sentence", NO_CONSTRAINTS, {MULTIHOP: CHUNK_AND_SENTENCE}),
        ),
        (("+ sentence", "chunk"),),
    ),
    3: PaperTable(
        (
            Row(
                "w/o constraints",
                NO_CONSTRAINTS,
                {MULTIHOP: CHUNK_AND_SENTENCE, ALLSIDES: (10.19, 29.63, 47.22), AGNEWS: (59.91, 83.94, 88.11)},
            ),
            Row(
                "w/ constraints",
                (),
                {MULTIHOP: FULL, ALLSIDES: (14.20, 38.58, 51.85), AGNEWS: (62.19, 83.78, 88.24)},
            ),
        ),
        (("w/ constraints", "w/o constraints"),),
    ),
    4: PaperTable(
        (
            Row(
                "w/o Context2ID",
                NO_CONTEXT,
                {MULTIHOP: (41.33, 69.31, 14.45, 31.25), NQ: (69.72, 85.58, 89.01, 76.57)},
            ),
            Row("w/ Context2ID", (), {MULTIHOP: FULL, NQ: NQ_FULL}),
        ),
        (("w/ Context2ID", "w/o Context2ID"),),
    ),
    5: PaperTable(
        (
            Row("concat", ("examples.mix=concat",), {MULTIHOP: (44.30, 72.77, 15.64, 33.59)}),
            Row("interleave", ("examples.mix=interleave",), {MULTIHOP: FULL}),
        ),
        (("interleave", "concat"),),
    ),
    7: PaperTable(
        (
            Row("all", ATOMIC, {MULTIHOP: (74.32, 88.03, 29.71, 59.26)}),
            Row("w/o Context2ID", ATOMIC + NO_CONTEXT, {MULTIHOP: (72.15, 86.21, 28.54, 57.50)}),
            Row("w/o sentence", ATOMIC + NO_SENTENCES, {MULTIHOP: (58.40, 75.17, 21.51, 44.76)}),
            Row("w/o constraints", ATOMIC + NO_CONSTRAINTS, {MULTIHOP: (68.34, 83.73, 26.28, 53.83)}),
        ),
        (("all", "w/o Context2ID"), ("all", "w/o sentence"), ("all", "w/o constraints")),
    ),
    8: PaperTable(
        (
            Row("SFT", ("retrieval.retrievers=[sft]",), {MULTIHOP: FULL, NQ: NQ_FULL}),
            Row(
                "random 5",
                (*PREFERENCE, "mining.strategy=random", "mining.negatives=5"),
                {MULTIHOP: (58.94, 82.88, 20.88, 43.53), NQ: (70.19, 86.48, 89.50, 77.17)},
                "rpo",
            ),
            Row(
                "top-5 negative",
                (*PREFERENCE, "mining.negatives=5"),
                {MULTIHOP: (71.53, 89.62, 26.36, 55.40), NQ: (71.02, 87.32, 90.04, 78.02)},
                "rpo",
            ),
            Row(
                "top-10 negative",
                (*PREFERENCE, "mining.negatives=10"),
                {MULTIHOP: (71.88, 89.80, 26.23, 54.94), NQ: (71.22, 87.41, 89.97, 78.14)},
                "rpo",
            ),
        ),
        (("top-5 negative", "SFT"), ("top-10 negative", "SFT"), ("top-5 negative", "random 5")),
        (),
    ),
}
BM25_FIGURES: Figures = {
    MULTIHOP: (64.35, 78.31, 26.30, 58.32), NQ: (32.82, 53.70, 60.92, 42.45),
    ALLSIDES: (5.86, 26.85, 36.42), AGNEWS: (38.70, 67.47, 77.63),
}  # fmt: skip
OURS_FIGURES: Figures = {
    MULTIHOP: (71.88, 89.80, 26.23, 54.94), NQ: (71.22, 87.41, 89.97, 78.14),
    ALLSIDES: (14.20, 38.58, 51.85), AGNEWS: (62.19, 83.78, 88.24),
}  # fmt: skip
# Hub name, family (instructions) and the figures of table 11.
DENSE_MODELS: dict[str, tuple[str, Figures]] = {
    "BAAI/bge-large-en-v1.5": (
        "bge",
        {
            MULTIHOP: (58.80, 78.36, 19.96, 42.57), NQ: (55.59, 76.58, 81.75, 64.45),
            ALLSIDES: (6.94, 27.32, 34.11), AGNEWS: (54.14, 80.57, 86.53),
        },
    ),
    "facebook/contriever-msmarco": (
        "contriever",
        {
            MULTIHOP: (55.25, 75.08, 19.28, 40.69), NQ: (53.79, 76.16, 81.69, 63.36),
            ALLSIDES: (6.64, 25.77, 38.43), AGNEWS: (52.69, 80.40, 85.79),
        },
    ),
    "intfloat/e5-mistral-7b-instruct": (
        "e5-mistral",
        {
            MULTIHOP: (54.01, 79.56, 19.11, 40.77), NQ: (59.07, 80.08, 85.28, 68.11),
            ALLSIDES: (8.18, 28.24, 39.82), AGNEWS: (57.32, 85.90, 88.98),
        },
    ),
    "Alibaba-NLP/gte-Qwen2-7B-instruct": (
        "gte-qwen2",
        {
            MULTIHOP: (63.24, 83.55, 22.02, 47.50), NQ: (60.45, 80.87, 85.72, 69.30),
            ALLSIDES: (9.11, 34.11, 49.07), AGNEWS: (57.65, 83.37, 88.57),
        },
    ),
}  # fmt: skip

CPU = (
    "name=cpu", "identifiers.keywords=3", "identifiers.order=distinctive",
    "llm.background_noise=0.8", "llm.min_terms=6", "llm.max_terms=24",
    "synthesis.chunk_queries=10", "synthesis.sentence_queries=10", "synthesis.constraint_queries=10",
    "synthesis.preference_queries=4", "synthesis.max_sentences=8", "examples.context_tokens=128",
    "examples.context_share=0.5",
    "sft.model={type: scratch, vocabulary_size: 8000, hidden_size: 384, intermediate_size: 128, layers: 1, heads: 6}",
    "sft.scoring=trie", "sft.epochs=2", "sft.learning_rate=2e-4", "sft.adam_beta2=0.98", "sft.max_tokens=160",
    "sft.checkpoints=0", "rpo.learning_rate=5e-6", "rpo.checkpoints=0", "evaluation.bootstrap_samples=200",
)  # fmt: skip
PAPER_ATOMIC = "sft.model.name=mistralai/Mistral-7B-v0.3"


def main() -> None:
    """Run the grids that were asked for, or print them."""
    arguments = parse_arguments()
    collected: dict[str, object] = {}
    for number in arguments.table:
        table = table_eleven(arguments.scale) if number == 11 else TABLES[number]
        for corpus in corpora(table, arguments.datasets):
            configurations = {row.name: configuration(table, row, corpus, arguments) for row in table.rows}
            print(f"\n## Table {number}, {corpus}, scale {arguments.scale}\n", flush=True)
            if arguments.plan:
                print("\n".join(plan(table, configurations)), flush=True)
                continue
            begin = time.perf_counter()
            ours = {row.name: measure(row, corpus, configurations[row.name], arguments.runs) for row in table.rows}
            minutes = (time.perf_counter() - begin) / 60
            print("\n".join(lines(table, corpus, ours)), f"\n\n{minutes:.1f} minutes", flush=True)
            collected[f"table {number}, {corpus}"] = {
                "scale": arguments.scale,
                "measures": MEASURES[corpus],
                "ours": ours,
                "paper": {row.name: row.paper.get(corpus) for row in table.rows},
                "minutes": minutes,
            }
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(collected, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", type=int, choices=[*TABLES, 11], required=True)
    parser.add_argument("--scale", choices=["cpu", "paper"], default="cpu")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GENRET_DATA", ".")))
    parser.add_argument("--runs", type=Path, default=Path("runs/paper-tables"), help="folder of the run folders")
    parser.add_argument("--datasets", nargs="+", choices=list(MEASURES), help="default: all of the table")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plan", action="store_true", help="print the grid, run nothing")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change all rows")
    return parser.parse_args()


def table_eleven(scale: str) -> PaperTable:
    """Table 11: retrievers off the shelf beside ours; at the scale cpu a dense one trained on the same queries."""
    ours = Row("ours", ("retrieval.retrievers=[rpo]",), OURS_FIGURES, "rpo")
    bm25 = Row("BM25", ("retrieval.retrievers=[bm25]",), BM25_FIGURES, "bm25")
    if scale == "cpu":
        dense = Row("dense, from scratch", ("retrieval.retrievers=[dense]",), {}, "dense")
        return PaperTable((bm25, dense, ours), (("ours", "BM25"),), ())
    models = tuple(
        Row(
            name.rpartition("/")[2],
            (
                "retrieval.retrievers=[dense]",
                f"dense.model={{type: pretrained, name: {name}, family: {family}}}",
                "dense.epochs=0",
            ),
            figures,
            "dense",
        )
        for name, (family, figures) in DENSE_MODELS.items()
    )
    return PaperTable((bm25, *models, ours), tuple(("ours", row.name) for row in (bm25, *models)), ())


def corpora(table: PaperTable, chosen: list[str] | None) -> list[str]:
    """The corpora of a table, in the order of `MEASURES`."""
    there = [corpus for corpus in MEASURES if any(corpus in row.paper for row in table.rows)]
    return [corpus for corpus in there if chosen is None or corpus in chosen]


def configuration(table: PaperTable, row: Row, corpus: str, arguments: argparse.Namespace) -> RunConfig:
    """The configuration of a row on a corpus."""
    measures = ", ".join((*MEASURES[corpus], "NDCG@10"))
    rows = [f"evaluation.measures=[{measures}]", *table.changes, *row.changes]
    if arguments.scale == "paper":
        # The preset of the same name has the paper's models and settings.
        atomic = [PAPER_ATOMIC] if "identifiers.type=atomic" in row.changes else []
        return load_config(corpus, [f"corpus.path={arguments.data / corpus}", *rows, *atomic, *arguments.set])
    fields = CPU_FIELDS[corpus]
    shared = [*CPU, f"corpus.path={arguments.data / CPU_FOLDERS[corpus]}", f"synthesis.constraint_fields={fields}"]
    shared += ["synthesis.constraint_queries=0"] if fields == "[]" else []
    return load_config("scratch-semantic", [*shared, *rows, *arguments.set])


def plan(table: PaperTable, configurations: dict[str, RunConfig]) -> list[str]:
    """The rows with what they change, and which stages they do not share with a row above."""
    seen: set[str] = set()
    found = ["| row | changes | stages of its own |", "| --- | --- | --- |"]
    for row in table.rows:
        config = configurations[row.name]
        own, records = [], dict[str, StageRecord]()
        for stage in planned_stages(config):
            # The corpus need not be there to plan.
            mark = "corpus" if stage.name == "corpus" else stage_fingerprint(stage, config, records)
            records[stage.name] = StageRecord(stage.name, mark, "", {}, {}, {}, {})
            if mark not in seen:
                own.append(stage.name)
            seen.add(mark)
        found.append(f"| {row.name} | {'; '.join(row.changes) or 'none'} | {', '.join(own)} |")
    return found


def measure(row: Row, corpus: str, config: RunConfig, runs: Path) -> dict[str, float]:
    """Run a row; its measures in per cent."""
    store = RunStore(runs / f"{config.name}-{corpus}")
    reporter = TerminalReporter(Console(stderr=True))
    try:
        records = run(config, store, reporter)
    finally:
        reporter.close()
    return {
        entry["measure"]: 100 * entry["value"]
        for entry in store.read_table(records["evaluation"], "measures").to_pylist()
        if entry["retriever"] == row.retriever
    }


def lines(table: PaperTable, corpus: str, ours: dict[str, dict[str, float]]) -> list[str]:
    """Ours beside the paper's figures, and the effects."""
    measures = MEASURES[corpus]
    found = [f"| | {' | '.join(f'{name} ours | paper' for name in measures)} |"]
    found.append(f"| --- |{' ---: |' * (2 * len(measures))}")
    for row in table.rows:
        paper = row.paper.get(corpus)
        cells = [
            f"{ours[row.name][name]:.2f} | {f'{paper[place]:.2f}' if paper else '–'}"
            for place, name in enumerate(measures)
        ]
        found.append(f"| {row.name} | {' | '.join(cells)} |")
    found.append("")
    figures = {row.name: row.paper.get(corpus) for row in table.rows}
    for better, worse in table.effects:
        first, second = figures[better], figures[worse]
        if first is None or second is None:
            continue
        here = [name for name in measures if ours[better][name] > ours[worse][name]]
        there = [name for name, one, other in zip(measures, first, second, strict=True) if one > other]
        in_paper, in_ours = ", ".join(there) or "none", ", ".join(here) or "none"
        found.append(f"- {better} above {worse}: in the paper in {in_paper}; here in {in_ours}")
    return found


if __name__ == "__main__":
    main()
