"""BM25: ranking by the words that query and passage share."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import bm25s
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import Stemmer

from genret.config import RetrievalConfig
from genret.corpus.stop_words import STOP_WORDS
from genret.errors import InputError
from genret.retrieval.base import BatchedRetriever
from genret.tables import check_table
from genret.types import Passage, ScoredPassage

_Numbers = TypeVar("_Numbers", np.float64, npt.NDArray[np.float64])
_WORD = re.compile(r"\w+")
_SETTINGS_FILE = "retriever.json"
_PASSAGE_IDS_FILE = "passage_ids.arrow"
_OKAPI_EPSILON = 0.25
_INDEX_FILES = (
    "data.csc.index.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "vocab.index.json",
    "params.index.json",
)


class WordAnalyzer:
    """Turns text into the words that BM25 counts: lower case, without stop words, stemmed on demand.

    A word is a run of letters, digits and underscores, one letter too ("vitamin D"). Stop words go before
    stemming. Languages written without spaces are not segmented, and no Unicode normalisation is done.

    Attributes:
        language: Language of the stop words and of the stemmer.
        stemming: Whether words are stemmed (Snowball).
    """

    def __init__(self, language: str, stemming: bool) -> None:
        known = sorted(set(STOP_WORDS) & set(Stemmer.algorithms())) if stemming else sorted(STOP_WORDS)
        if language not in known:
            kind = "with stemming" if stemming else "without stemming"
            raise InputError(f"BM25: language: expected ({kind}) one of {', '.join(known)}, found {language!r}")
        self.language = language
        self.stemming = stemming
        self._stop_words = frozenset(STOP_WORDS[language])

    def words(self, texts: Iterable[str]) -> list[list[str]]:
        """The words of each text, in the text's order, repeated as often as they occur."""
        kept = [[word for word in _WORD.findall(text.lower()) if word not in self._stop_words] for text in texts]
        if not self.stemming:
            return kept
        # A stemmer must not be shared between threads; a new one costs microseconds.
        stemmer = Stemmer.Stemmer(self.language)
        return [stemmer.stemWords(words) for words in kept]


@dataclass(frozen=True)
class _Late:
    """Passages that came after the index was built, and rows of it that are gone.

    Attributes:
        passage_ids: Of the added passages.
        words: How often each has each word.
        lengths: How many words each has.
        mean_length: Words of a passage, in the mean over the index.
        least_idf: What Okapi's idf is where it would be negative; see `_least_okapi_idf`.
        gone: bool `[rows of the index + added]`.
    """

    passage_ids: tuple[str, ...]
    words: tuple[Counter[str], ...]
    lengths: tuple[int, ...]
    mean_length: float
    least_idf: float
    gone: npt.NDArray[np.bool_]


class Bm25Retriever(BatchedRetriever):
    """BM25 over titles and texts, with an index that is computed once and memory-mapped after.

    The variant is Lucene's: idf = ln(1 + (N - df + 0.5) / (df + 0.5)), which is never negative, times
    tf / (tf + k1 * (1 - b + b * length / mean length)), summed over the words of the query. The factor k1 + 1
    of other variants is left out: it changes no ranking. Source: Kamphuis et al., "Which BM25 Do You Mean?",
    ECIR 2020, as bm25s computes it (`method="lucene"`). With `retrieval.variant` okapi, scores are those of the package
    rank-bm25; words of most passages may then count nothing or less.

    Scores are computed in single precision. Passages with the same score rank in the order in which they
    were indexed. A passage that shares no word with the query is not returned, so that a query of unknown
    words gets an empty ranking.
    """

    def __init__(
        self,
        index: bm25s.BM25,
        passage_ids: pa.ChunkedArray,
        analyzer: WordAnalyzer,
        name: str,
        batch_size: int,
        variant: str,
        mean_length: float | None,
    ) -> None:
        """Wrap a finished index; `build` and `load` are the ways to get one.

        Args:
            index: The index over word numbers.
            passage_ids: The id of each row of the index (string).
            analyzer: What the passages were cut into words with.
            name: What the tables call this retriever.
            batch_size: Most queries analysed together.
            variant: Whose scores the index holds, `lucene` or `okapi`.
            mean_length: Words a passage of the index; None where it is not known, and `changed` has to count them.
        """
        super().__init__(name, batch_size)
        self._index = index
        self._variant = variant
        self._mean_length = mean_length
        self._passage_ids = passage_ids
        self._analyzer = analyzer
        self._late: _Late | None = None

    @classmethod
    def build(cls, passages: pa.Table, config: RetrievalConfig, name: str = "bm25") -> "Bm25Retriever":
        """Index passages: title and text together.

        Args:
            passages: Table `passages`.
            config: `variant`, `language`, `stemming`, `k1`, `b` and `batch_size` count here.
            name: What the tables call this retriever.

        Raises:
            InputError: The table does not fit its schema or holds no word to search for, or the language is
                unknown.
        """
        analyzer = WordAnalyzer(config.language, config.stemming)
        passages = check_table("passages", passages)
        documents = _documents(analyzer, passages)
        # Sorted, so that the same passages always give the same files.
        vocabulary = {word: number for number, word in enumerate(sorted(set().union(*documents)))}
        if not vocabulary:
            raise InputError(
                f"BM25: expected passages with words that are not stop words ({config.language}), "
                f"found none in {passages.num_rows} passages"
            )
        numbers = [[vocabulary[word] for word in words] for words in documents]
        index = bm25s.BM25(k1=config.k1, b=config.b, method="lucene", backend="numpy")
        index.index((numbers, vocabulary), create_empty_token=False, show_progress=False)
        if config.variant == "okapi":
            _to_okapi(index.scores, len(documents), config.k1)
        passage_ids = pa.chunked_array([passages.column("passage_id").combine_chunks()])
        mean_length = _mean_length(documents)
        return cls(index, passage_ids, analyzer, name, config.batch_size, config.variant, mean_length)

    def save(self, folder: Path) -> None:
        """Write the index to a folder: NumPy arrays, JSON and one Arrow file, no pickle.

        The folder is made where it is missing; files of an older index are overwritten. A writer that is
        killed leaves an incomplete folder: who needs all or nothing writes beside and renames.
        """
        self._index.save(folder, allow_pickle=False, show_progress=False)
        ids = pa.table({"passage_id": self._passage_ids})
        with (
            pa.OSFile(str(folder / _PASSAGE_IDS_FILE), "wb") as file,
            pa.ipc.new_file(file, ids.schema) as writer,
        ):
            writer.write_table(ids)
        settings = {
            "name": self.name,
            "language": self._analyzer.language,
            "stemming": self._analyzer.stemming,
            "batch_size": self.batch_size,
            "variant": self._variant,
            "mean_length": self._mean_length,
        }
        (folder / _SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Bm25Retriever":
        """Open what `save` wrote. Arrays and passage ids are memory-mapped; the words are read.

        Raises:
            InputError: A file is missing, or the files do not belong together.
        """
        for file in (*_INDEX_FILES, _PASSAGE_IDS_FILE, _SETTINGS_FILE):
            if not (folder / file).is_file():
                raise InputError(f"BM25 index {folder}: expected the file {file}, found none")
        settings = json.loads((folder / _SETTINGS_FILE).read_text(encoding="utf-8"))
        index = bm25s.BM25.load(folder, mmap=True, allow_pickle=False, show_progress=False)
        ids = pa.ipc.open_file(pa.memory_map(str(folder / _PASSAGE_IDS_FILE))).read_all().column("passage_id")
        if len(ids) != index.scores["num_docs"]:
            raise InputError(f"BM25 index {folder}: expected {index.scores['num_docs']} passage ids, found {len(ids)}")
        analyzer = WordAnalyzer(settings["language"], settings["stemming"])
        # An index of a version that did not keep its variant is taken for one of the default's.
        variant, mean_length = settings.get("variant", "lucene"), settings.get("mean_length")
        return cls(index, ids, analyzer, settings["name"], settings["batch_size"], variant, mean_length)

    def __len__(self) -> int:
        """Rows: the index's, and those of added passages; removed ones with them."""
        return len(self._passage_ids) + (len(self._late.passage_ids) if self._late else 0)

    def passage_id(self, row: int) -> str:
        """The passage of a row."""
        known = len(self._passage_ids)
        if row < known:
            return str(self._passage_ids[row].as_py())
        assert self._late is not None  # there are no such rows otherwise
        return self._late.passage_ids[row - known]

    def find(
        self, queries: Sequence[str], k: int, allowed: npt.NDArray[np.bool_] | None = None
    ) -> list[list[ScoredPassage]]:
        """Rank passages for some queries.

        Args:
            queries: Query texts.
            k: How many passages a query, at least 1.
            allowed: bool `[len(self)]` by row: others are not returned. Scores are the same with and without.

        Returns:
            A ranking a query.
        """
        rankings = []
        for words in self._analyzer.words(queries):
            scores = self._scores(words)
            if allowed is not None:
                scores = np.where(allowed, scores, 0)
            rankings.append(
                [ScoredPassage(self.passage_id(row), float(scores[row])) for row in top_positive(scores, k).tolist()]
            )
        return rankings

    def changed(self, added: Sequence[Passage], removed: Collection[str], indexed: pa.Table) -> "Bm25Retriever":
        """The same index with passages added and removed.

        Added ones are scored with the document frequencies and the mean length of the index as it was built, which
        removed ones stay part of; so no other passage's score changes. (Built anew, the index would count them.) A word
        that the index lacks counts as one that none of its passages has. A query costs time for each added passage:
        build it anew before there are many thousands.

        Args:
            added: Passages that the retriever lacks.
            removed: Ids of passages that it shall not find any more; those that it lacks are ignored. One that is
                added too is replaced.
            indexed: Table `passages` that the index was built of.

        Returns:
            Another retriever; this one stays as it is.
        """
        other = copy(self)
        late = self._late or self._nothing_late(indexed)
        gone = late.gone.copy()
        wanted = frozenset(removed)
        if wanted:
            rows = (row for row in range(len(gone)) if self.passage_id(row) in wanted)
            gone[np.fromiter(rows, np.int64)] = True
        words = self._analyzer.words(f"{passage.title}\n{passage.text}" for passage in added)
        other._late = _Late(
            (*late.passage_ids, *(passage.passage_id for passage in added)),
            (*late.words, *map(Counter, words)),
            (*late.lengths, *map(len, words)),
            late.mean_length,
            late.least_idf,
            np.append(gone, np.zeros(len(added), dtype=np.bool_)),
        )
        return other

    def _nothing_late(self, indexed: pa.Table) -> _Late:
        least_idf = _least_okapi_idf(self._index.scores["num_docs"], np.diff(self._index.scores["indptr"]))
        gone = np.zeros(len(self._passage_ids), dtype=np.bool_)
        mean_length = self._mean_length
        if mean_length is None:  # minutes for a large corpus: an index of a version that did not keep it
            mean_length = _mean_length(_documents(self._analyzer, indexed))
        return _Late((), (), (), mean_length, least_idf, gone)

    def _scores(self, words: list[str]) -> np.ndarray:
        scores = self._index.get_scores_from_ids(self._index.get_tokens_ids(words))
        if self._late is None:
            return scores
        weights = {word: self._weight(word) for word in set(words)}
        added = [
            math.fsum(weights[word] * self._saturation(counts[word], length) for word in words)
            for counts, length in zip(self._late.words, self._late.lengths, strict=True)
        ]
        scores = np.append(scores, np.array(added, dtype=scores.dtype))
        scores[self._late.gone] = 0
        return scores

    def _saturation(self, count: int, length: int) -> float:
        """What a word's weight is multiplied with where an added passage of some length has it so many times."""
        if not count:
            return 0.0
        assert self._late is not None  # there are no such passages otherwise
        b, k1 = self._index.b, self._index.k1
        return float(count / (count + k1 * (1 - b + b * length / self._late.mean_length)))

    def _weight(self, word: str) -> float:
        """What a word counts in an added passage: its idf in the index, with Okapi times k1 + 1."""
        assert self._late is not None
        total, indptr = self._index.scores["num_docs"], self._index.scores["indptr"]
        number = self._index.vocab_dict.get(word)
        frequency = np.float64(0 if number is None else indptr[number + 1] - indptr[number])
        if self._variant == "lucene":
            return float(_lucene_idf(total, frequency))
        idf = float(_okapi_idf(total, frequency))
        return (idf if idf >= 0 else self._late.least_idf) * (self._index.k1 + 1)

    def _retrieve_batch(self, queries: list[str], k: int) -> list[list[ScoredPassage]]:
        return self.find(queries, k)


def _documents(analyzer: WordAnalyzer, passages: pa.Table) -> list[list[str]]:
    """The words of each passage: of title and text together."""
    titles, texts = passages.column("title").to_pylist(), passages.column("text").to_pylist()
    return analyzer.words(f"{title}\n{text}" for title, text in zip(titles, texts, strict=True))


def _mean_length(documents: Sequence[Sequence[str]]) -> float:
    return sum(map(len, documents)) / len(documents)


def _to_okapi(scores: dict[str, np.ndarray], n_documents: int, k1: float) -> None:
    """Turn the variant's scores into Okapi's, word by word, in place.

    idf = ln(N - df + 0.5) - ln(df + 0.5), where that is negative a quarter of the mean idf, times k1 + 1: what
    `rank_bm25.BM25Okapi` computes (https://github.com/dorianbrown/rank_bm25, version 0.2.2, epsilon 0.25).
    """
    counts = np.diff(scores["indptr"])
    frequency = counts.astype(np.float64)
    idf = _okapi_idf(n_documents, frequency)
    idf[idf < 0] = _least_okapi_idf(n_documents, counts)
    factor = np.repeat(idf * (k1 + 1) / _lucene_idf(n_documents, frequency), counts)
    scores["data"] = (scores["data"] * factor).astype(np.float32)


def _lucene_idf(n_documents: int, frequency: _Numbers) -> _Numbers:
    return np.log1p((n_documents - frequency + 0.5) / (frequency + 0.5))


def _okapi_idf(n_documents: int, frequency: _Numbers) -> _Numbers:
    return np.log(n_documents - frequency + 0.5) - np.log(frequency + 0.5)


def _least_okapi_idf(n_documents: int, counts: np.ndarray) -> float:
    """A quarter of the mean idf of the words that there are, given in how many passages each is."""
    return _OKAPI_EPSILON * float(_okapi_idf(n_documents, counts[counts > 0].astype(np.float64)).mean())


def top_positive(scores: np.ndarray, k: int) -> np.ndarray:
    """The places of the k highest scores above zero, highest first; equal scores in their order.

    Args:
        scores: One score a passage, shape (n,), any float dtype.
        k: How many, at least 1.

    Returns:
        Places in `scores`, shape (at most k,), int64.
    """
    places = np.flatnonzero(scores > 0)
    if len(places) > k:
        # All that tie with the k-th stay in until the stable sort: a partition keeps an arbitrary one.
        kth = np.partition(scores[places], -k)[-k]
        places = places[scores[places] >= kth]
    return places[np.argsort(-scores[places], kind="stable")][:k]
