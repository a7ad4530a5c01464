"""BM25 beside rank-bm25 in one run: whether the rankings are the same, and how many queries a second each answers.

    python benchmarks/retrieval.py [--folder FOLDER] [--queries N] [--repeats N] [--json FILE]

Both have the same tokens: those of genret's analyser. FOLDER is a corpus in the BEIR layout (default:
$GENRET_DATA/scifact). Queries a second are medians over repeats; rank-bm25 answers a sample of the queries.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rank_bm25 import BM25Okapi

from genret.config import CorpusConfig, RetrievalConfig
from genret.corpus.prepare import prepare_corpus
from genret.retrieval.bm25 import Bm25Retriever, WordAnalyzer

DEPTH = 10
TOLERANCE = 1e-4


def main() -> None:
    """Compare rankings and speed, and print them."""
    arguments = parse_arguments()
    tables = prepare_corpus(CorpusConfig(path=str(arguments.folder)))
    config = RetrievalConfig(variant="okapi")
    passages, queries = tables["passages"], tables["test_queries"].column("text").to_pylist()[: arguments.queries]
    analyzer = WordAnalyzer(config.language, config.stemming)
    titles, texts = passages.column("title").to_pylist(), passages.column("text").to_pylist()
    documents = analyzer.words(f"{title}\n{text}" for title, text in zip(titles, texts, strict=True))
    okapi = BM25Okapi(documents, k1=config.k1, b=config.b)
    place_of = {name: place for place, name in enumerate(passages.column("passage_id").to_pylist())}
    with TemporaryDirectory(prefix="genret-benchmark-") as folder:
        Bm25Retriever.build(passages, config).save(Path(folder))
        ours = Bm25Retriever.load(Path(folder))
        rows = [
            compare(okapi.get_scores(words), [(place_of[place.passage_id], place.score) for place in ranking])
            for words, ranking in zip(analyzer.words(queries), ours.retrieve(queries, DEPTH), strict=True)
        ]
        sample = queries[: arguments.sample]
        found = {
            "passages": passages.num_rows,
            "queries": len(queries),
            "same_top_10": sum(same for same, _ in rows) / len(rows),
            "largest_score_difference": max(difference for _, difference in rows),
            "queries_a_second": rate(lambda: ours.retrieve(queries, DEPTH), len(queries), arguments.repeats),
            "rank_bm25_queries_a_second": rate(
                lambda: [best(okapi.get_scores(words)) for words in analyzer.words(sample)],
                len(sample),
                arguments.repeats,
            ),
        }
    found["ratio"] = found["queries_a_second"] / found["rank_bm25_queries_a_second"]
    print("| what | found |\n| --- | ---: |")
    for name, value in found.items():
        print(f"| {name.replace('_', ' ')} | {value:,.6g} |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("GENRET_DATA", ".")) / "scifact")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--sample", type=int, default=30, help="queries that rank-bm25 is timed with")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def best(scores: np.ndarray) -> np.ndarray:
    """Places of the ten highest scores, equal ones in their order."""
    return np.argsort(-scores, kind="stable")[:DEPTH]


def compare(expected: np.ndarray, found: list[tuple[int, float]]) -> tuple[bool, float]:
    """Whether both have the same ten passages, and the largest difference of their scores.

    Passages whose scores are closer than the tolerance may change places.
    """
    theirs = [place for place in best(expected) if expected[place] > 0]
    differences = [abs(score - expected[place]) for place, score in found]
    by_rank = [abs(expected[place] - expected[other]) for (place, _), other in zip(found, theirs, strict=False)]
    same = len(theirs) == len(found) and all(difference <= TOLERANCE for difference in by_rank)
    return same, max(differences, default=0.0)


def rate(answer: Callable[[], object], count: int, repeats: int) -> float:
    """Queries a second, the median over repeats."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        answer()
        seconds.append(time.perf_counter() - begin)
    return count / statistics.median(seconds)


if __name__ == "__main__":
    main()
