"""SyNeg's ablation on a CPU: one dense retriever, trained with negatives from different sources, over several seeds.

    python benchmarks/syneg.py FOLDER [FOLDER ...] [--seeds 0 1 2] [--rows base retrieved ...] [--json FILE]

Each FOLDER is a corpus in the BEIR layout. Without a language model: queries and synthetic negatives are those of the
extractive engine, whose negatives are the query's own passage with what the query names broken. The encoder is built
from the corpus (`dense.model` of type scratch). Rows:

- base: the encoder before training.
- in-batch: trained with the other passages of the batch as negatives, and no explicit ones.
- random, retrieved, synthetic, hybrid (50:50), adjusted (hybrid, its share moved by validation): explicit negatives.
- debiased: retrieved negatives with the debiased contrastive loss, the stronger baseline of SyNeg's tables.

Seeds change the encoder, the draw of queries, the order and the negatives. Prints NDCG@10 and HIT@10 in per cent, mean
and standard deviation over the seeds, the difference in NDCG@10 to the base by seed, and how hybrid stands to each
other row.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import torch
from transformers.utils import logging

from genret import tables
from genret.config import (
    CorpusConfig,
    DenseConfig,
    EvaluationConfig,
    ExtractiveConfig,
    NegativesConfig,
    RetrievalConfig,
    ScratchEncoder,
    SynthesisConfig,
)
from genret.corpus.prepare import prepare_corpus
from genret.evaluation.measures import evaluate
from genret.examples.contrastive import build_contrastive_examples, by_query, hard_negatives, sample_queries
from genret.llm.extractive import CorpusStatistics, ExtractiveEngine
from genret.retrieval.base import retrieve_run
from genret.retrieval.bm25 import Bm25Retriever
from genret.retrieval.dense import DenseRetriever
from genret.retrieval.vectors import DenseIndex, quantise
from genret.synthesis.build import synthesize
from genret.synthesis.negatives import write_negatives
from genret.training.base import passage_texts
from genret.training.dense import train_dense
from genret.training.encoder import Encoder, build_scratch_encoder

MEASURES = ("NDCG@10", "HIT@10")
EVALUATION = EvaluationConfig(measures=MEASURES, bootstrap_samples=100)
RETRIEVAL = RetrievalConfig()
SYNTHESIS = SynthesisConfig(chunk_queries=4, sentence_queries=1, max_sentences=4, preference_queries=0)
ENGINE = ExtractiveConfig(background_noise=0.8, min_terms=6, max_terms=24)
HYBRID = "hybrid"
ROWS: dict[str, tuple[NegativesConfig, str]] = {
    "in-batch": (NegativesConfig(source="none"), "contrastive"),
    "random": (NegativesConfig(source="random"), "contrastive"),
    "retrieved": (NegativesConfig(source="retrieved"), "contrastive"),
    "synthetic": (NegativesConfig(source="synthetic"), "contrastive"),
    HYBRID: (NegativesConfig(source="hybrid"), "contrastive"),
    "adjusted": (NegativesConfig(source="hybrid", adjust_share=True), "contrastive"),
    "debiased": (NegativesConfig(source="retrieved"), "debiased"),
}
Values = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Prepared:
    """What all rows of a seed share.

    Attributes:
        corpus: The corpus' tables.
        queries: Table `queries`, those to train with.
        run: What BM25 found for them.
        written: Table `negatives`.
    """

    corpus: dict[str, pa.Table]
    queries: pa.Table
    run: pa.Table
    written: pa.Table


def main() -> None:
    """Train every row on every corpus with every seed, and print the tables."""
    arguments = parse_arguments()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    collected = {}
    for folder in arguments.folders:
        values: Values = {name: [] for name in ("base", *arguments.rows)}
        begin = time.perf_counter()
        for seed in arguments.seeds:
            measure(folder, seed, arguments, values)
        print(f"\n## {folder.name} ({(time.perf_counter() - begin) / 60:.1f} minutes)\n")
        print("\n".join(lines(values)), flush=True)
        collected[folder.name] = values
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(collected, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--queries-a-passage", type=int, default=2)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--split", default="test")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def measure(folder: Path, seed: int, arguments: argparse.Namespace, values: Values) -> None:
    """Add what one seed gives to the values of each row."""
    prepared = prepare(folder, seed, arguments)
    passages = prepared.corpus["passages"]
    config = DenseConfig(
        model=ScratchEncoder(dimensions=arguments.dimensions),
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        checkpoints=0,
    )
    base = build_scratch_encoder(config, passage_texts(passages), seed)
    start = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    values["base"].append(quality(base, prepared.corpus))
    for name in arguments.rows:
        negatives, loss = ROWS[name]
        base.model.load_state_dict(start)
        examples = build_contrastive_examples(
            negatives, prepared.queries, prepared.run, prepared.written, passages, seed
        )["contrastive_examples"]
        with TemporaryDirectory(prefix="genret-benchmark-") as output:
            train_dense(
                config.model_copy(update={"loss": loss}), negatives, base, examples, passages, Path(output), seed=seed
            )
        values[name].append(quality(base, prepared.corpus))
        print(f"{folder.name}, seed {seed}, {name}: {values[name][-1]}", flush=True)


def prepare(folder: Path, seed: int, arguments: argparse.Namespace) -> Prepared:
    """Queries, what BM25 finds for them, and written negatives."""
    corpus = prepare_corpus(CorpusConfig(path=str(folder), split=arguments.split))
    passages = corpus["passages"]
    engine = ExtractiveEngine(ENGINE, CorpusStatistics.fit(tables.passages_from_table(passages)), seed)
    queries = sample_queries(
        synthesize(SYNTHESIS, passages, engine, None, ())["queries"], arguments.queries_a_passage, seed
    )
    settings = NegativesConfig()
    bm25 = Bm25Retriever.build(passages, RETRIEVAL)
    run = retrieve_run(bm25, queries.select(["query_id", "text"]), settings.candidates)
    own = dict(zip(queries.column("query_id").to_pylist(), queries.column("passage_id").to_pylist(), strict=True))
    found = {
        query_id: hard_negatives(ranking, own[query_id], settings.max_score_ratio)
        for query_id, ranking in by_query(run).items()
    }
    written = write_negatives(queries, passages, found, settings.count, engine, None)["negatives"]
    return Prepared(corpus, queries, run, written)


def quality(encoder: Encoder, corpus: dict[str, pa.Table]) -> dict[str, float]:
    """The measures of an encoder on the test queries."""
    passages = corpus["passages"]
    vectors = encoder.encode(passage_texts(passages), queries=False)
    index = DenseIndex(quantise(vectors, "fp16"))
    retriever = DenseRetriever(encoder, index, passages.column("passage_id"), "dense", 64)
    run = retrieve_run(retriever, corpus["test_queries"], 10)
    found = evaluate(EVALUATION, run, corpus["qrels"], corpus["test_queries"], passages, retrievers=("dense",), seed=0)
    return {row["measure"]: row["value"] for row in found["measures"].to_pylist()}


def lines(values: Values) -> list[str]:
    """The table of one corpus."""
    head = ["negatives", *(f"{name} (spread)" for name in MEASURES), "NDCG@10 less the base, by seed"]
    rows = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, of_row in values.items():
        cells = []
        for measured in MEASURES:
            numbers = [100 * value[measured] for value in of_row]
            spread = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
            cells.append(f"{statistics.mean(numbers):.1f} ({spread:.1f})")
        gains = [100 * (value["NDCG@10"] - base["NDCG@10"]) for value, base in zip(of_row, values["base"], strict=True)]
        rows.append(f"| {name} | {' | '.join(cells)} | {', '.join(f'{gain:+.1f}' for gain in gains)} |")
    return [*rows, "", *standings(values)] if HYBRID in values else rows


def standings(values: Values) -> list[str]:
    """NDCG@10 of the hybrid less that of each other row, seed by seed."""
    found = []
    for name, of_row in values.items():
        gains = [100 * (own["NDCG@10"] - other["NDCG@10"]) for own, other in zip(values[HYBRID], of_row, strict=True)]
        spread = f" ± {statistics.stdev(gains):.2f}" if len(gains) > 1 else ""
        if name != HYBRID:
            not_below = sum(gain >= 0 for gain in gains)
            found.append(
                f"- {HYBRID} less {name}: {statistics.mean(gains):+.2f}{spread}, not below with {not_below} of "
                f"{len(gains)} seeds"
            )
    return found


if __name__ == "__main__":
    main()
