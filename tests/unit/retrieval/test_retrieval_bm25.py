"""BM25 against the formula, against rank_bm25, and on SciFact."""

import csv
import gzip
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import pytrec_eval
import Stemmer
from hypothesis import given
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from genret.config import RetrievalConfig
from genret.corpus.stop_words import STOP_WORDS
from genret.errors import InputError
from genret.retrieval.base import retrieve_run
from genret.retrieval.bm25 import Bm25Retriever, WordAnalyzer, top_positive
from genret.tables import passages_to_table, table_from_rows
from genret.types import Passage

TEXTS = [
    "The cat sat on the mat.",
    "Cats and dogs are running in the garden; a cat runs faster.",
    "Dogs bark.",
    "Vitamin D is made in the skin.",
    "Vitamin C is not.",
    "The garden, the garden, the garden!",
]

VARIANTS = get_args(RetrievalConfig.model_fields["variant"].annotation)


def passages_of(texts: list[str], titles: list[str] | None = None) -> pa.Table:
    return passages_to_table(
        Passage(passage_id=f"p{number}", doc_id=f"d{number}", text=text, title=titles[number] if titles else "")
        for number, text in enumerate(texts)
    )


def found(retriever: Bm25Retriever, query: str, k: int = 10) -> list[str]:
    (ranking,) = retriever.retrieve([query], k)
    return [place.passage_id for place in ranking]


def lucene_scores(documents: list[list[str]], query: list[str], k1: float, b: float) -> list[float]:
    """The formula, in double precision and without a data structure."""
    mean_length = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts = Counter(document)
        score = 0.0
        for word in query:
            holding = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            tf = counts[word]
            score += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean_length)) if tf else 0.0
        scores.append(score)
    return scores


words = st.sampled_from("abcdefgh")


@given(
    documents=st.lists(st.lists(words, max_size=12), min_size=1, max_size=8).filter(any),
    query=st.lists(st.sampled_from("abcdefghxyz"), max_size=6),
    k1=st.floats(0, 3),
    b=st.floats(0, 1),
)
def test_scores_follow_the_formula(documents: list[list[str]], query: list[str], k1: float, b: float) -> None:
    # Danish has no stop word of one of these letters, which English has.
    config = RetrievalConfig(stemming=False, language="danish", k1=k1, b=b)
    retriever = Bm25Retriever.build(passages_of([" ".join(document) for document in documents]), config)
    (ranking,) = retriever.retrieve([" ".join(query)], len(documents))
    expected = lucene_scores(documents, query, k1, b)
    got = {place.passage_id: place.score for place in ranking}
    assert set(got) == {f"p{number}" for number, score in enumerate(expected) if score > 0}
    assert [got[f"p{number}"] for number, score in enumerate(expected) if score > 0] == pytest.approx(
        [score for score in expected if score > 0], rel=1e-5
    )
    assert [place.score for place in ranking] == sorted(got.values(), reverse=True)


def test_scores_agree_with_rank_bm25_given_the_same_idf() -> None:
    config = RetrievalConfig()
    documents = WordAnalyzer("english", stemming=True).words(TEXTS)
    okapi = BM25Okapi(documents, k1=config.k1, b=config.b)
    for word in okapi.idf:
        holding = sum(word in document for document in documents)
        okapi.idf[word] = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
    retriever = Bm25Retriever.build(passages_of(TEXTS), config)
    for query in ("cat", "running cats in gardens", "vitamin d", "dogs dogs garden"):
        (query_words,) = WordAnalyzer("english", stemming=True).words([query])
        expected = okapi.get_scores(query_words) / (config.k1 + 1)
        (ranking,) = retriever.retrieve([query], len(TEXTS))
        got = np.zeros(len(TEXTS))
        for place in ranking:
            got[int(place.passage_id[1:])] = place.score
        assert got == pytest.approx(expected, rel=1e-5)


def test_single_words_rank_as_in_unchanged_rank_bm25() -> None:
    documents = WordAnalyzer("english", stemming=True).words(TEXTS)
    okapi = BM25Okapi(documents, k1=1.2, b=0.75)
    retriever = Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig())
    for word in sorted(set().union(*documents)):
        scores = okapi.get_scores([word])
        expected = sorted(np.flatnonzero(scores > 0), key=lambda number: (-scores[number], number))
        assert found(retriever, word) == [f"p{number}" for number in expected]


@pytest.mark.parametrize("repeats", [1, 5])
def test_okapi_has_the_scores_of_rank_bm25(repeats: int) -> None:
    texts = TEXTS * repeats + ["A bird is on a roof.", "The fish is in the sea.", "Nothing here is of any use."]
    config = RetrievalConfig(variant="okapi", k1=1.5)
    okapi = BM25Okapi(WordAnalyzer("english", stemming=True).words(texts), k1=1.5, b=config.b)
    retriever = Bm25Retriever.build(passages_of(texts), config)
    for query in ("cat", "running cats in gardens", "vitamin d", "dogs dogs garden", "bird in the sea"):
        (query_words,) = WordAnalyzer("english", stemming=True).words([query])
        expected = okapi.get_scores(query_words)
        (ranking,) = retriever.retrieve([query], len(texts))
        got = np.zeros(len(texts))
        for place in ranking:
            got[int(place.passage_id[1:])] = place.score
        assert got == pytest.approx(np.maximum(expected, 0), abs=1e-5)


def test_title_and_text_are_both_searched() -> None:
    retriever = Bm25Retriever.build(passages_of(["one", "two"], titles=["apples", "pears"]), RetrievalConfig())
    assert found(retriever, "pear") == ["p1"]
    assert found(retriever, "one") == ["p0"]


def test_stemming_can_be_left_out() -> None:
    assert found(Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig()), "barking") == ["p2"]
    assert found(Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig(stemming=False)), "barking") == []


def test_one_letter_words_count() -> None:
    assert found(Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig()), "vitamin D")[0] == "p3"


@pytest.mark.parametrize("query", ["", "   ", "the of and", "zebra", "\x00", "?!", "\U0001f600"])
def test_unknown_words_find_nothing(query: str) -> None:
    assert found(Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig()), query) == []


@pytest.mark.parametrize("query", ["Wo fährt der Nachtzug ab?", "夜行列車はどこから", "поезд"])
def test_a_query_of_another_language_finds_nothing_and_leaves_the_others_theirs(query: str) -> None:
    retriever = Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig())
    foreign, other = retriever.retrieve([query, "barking dogs"], 3)
    assert foreign == []
    assert other == retriever.retrieve(["barking dogs"], 3)[0] != []


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_query_of_ten_thousand_words_is_read_whole(variant: str) -> None:
    retriever = Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig(variant=variant))
    (once,) = retriever.retrieve(["vitamin garden skin bark"], 6)
    (ranking,) = retriever.retrieve(["vitamin garden skin bark " * 2500], 6)
    assert len(once) == 5
    assert {place.passage_id: place.score for place in ranking} == pytest.approx(
        {place.passage_id: 2500 * place.score for place in once}, rel=1e-3
    )
    # The last words count as well, and what no passage holds costs nothing.
    assert found(retriever, "zebra " * 9_999 + "barks") == ["p2"]


def test_passages_without_a_shared_word_are_not_returned() -> None:
    retriever = Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig())
    assert found(retriever, "garden zebra", k=1000) == ["p5", "p1"]


def test_ties_rank_in_the_order_of_the_passages() -> None:
    retriever = Bm25Retriever.build(passages_of(["same text"] * 50 + ["same same text"]), RetrievalConfig())
    assert found(retriever, "same", k=4) == ["p50", "p0", "p1", "p2"]


@given(scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), max_size=40), k=st.integers(1, 50))
def test_top_positive_is_a_stable_sort(scores: list[float], k: int) -> None:
    expected = sorted((place for place, score in enumerate(scores) if score > 0), key=lambda place: -scores[place])
    assert top_positive(np.array(scores, dtype=np.float32), k).tolist() == expected[:k]


def test_language_decides_stop_words_and_stems() -> None:
    config = RetrievalConfig(language="german")
    retriever = Bm25Retriever.build(passages_of(["Die Häuser stehen leer", "Der Hund"]), config)
    assert found(retriever, "die der das") == []
    assert found(retriever, "dem haus") == ["p0"]


def test_unknown_language_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"\(with stemming\) one of danish, dutch, english, .*'klingon'"):
        Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig(language="klingon"))
    with pytest.raises(InputError, match="found 'korean'"):
        WordAnalyzer("korean", stemming=True)
    assert WordAnalyzer("korean", stemming=False).words(["서울 그리고"]) == [["서울"]]


def test_half_of_a_surrogate_pair_is_no_word() -> None:
    retriever = Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig())
    assert found(retriever, "bark \ud800") == ["p2"]


def test_every_stop_word_list_is_lower_case() -> None:
    for language, listed in STOP_WORDS.items():
        assert len(listed) > 20, language
        assert WordAnalyzer(language, stemming=False).words(listed[:1]) == [[]], language
    assert len(set(STOP_WORDS) & set(Stemmer.algorithms())) == 12


@pytest.mark.parametrize("texts", [[], ["", "the of"]])
def test_passages_without_words_are_an_error(texts: list[str]) -> None:
    with pytest.raises(InputError, match=f"found none in {len(texts)} passages"):
        Bm25Retriever.build(passages_of(texts), RetrievalConfig())


def test_an_empty_passage_is_never_found() -> None:
    retriever = Bm25Retriever.build(passages_of(["", "garden"]), RetrievalConfig())
    assert found(retriever, "garden") == ["p1"]


def test_a_saved_index_answers_alike(tmp_path: Path) -> None:
    texts = [*TEXTS, 'quotes " and \\ and naïve 日本 \U0001d4d0bc']
    built = Bm25Retriever.build(passages_of(texts), RetrievalConfig(batch_size=3), name="words")
    built.save(tmp_path / "index")
    loaded = Bm25Retriever.load(tmp_path / "index")
    assert (loaded.name, loaded.batch_size) == ("words", 3)
    queries = ["cats", "naïve 日本", "", "vitamin garden dogs"]
    assert loaded.retrieve(queries, 5) == built.retrieve(queries, 5)
    assert loaded.retrieve(["\U0001d4d0bc"], 5)[0][0].passage_id == "p6"


# Also words of most passages, whose own idf with Okapi is negative, and some that no passage of the index has.
ADDED = ["A cat in the garden is a cat in the garden.", "A zeppelin floats over the dog.", "Vitamin vitamin d, skin"]


def late_score(documents: list[list[str]], added: list[str], query: list[str], variant: str) -> float:
    """The formulas, in double precision, for a passage that the counts are without."""
    holding = Counter(word for document in documents for word in set(document))
    n, mean_length = len(documents), sum(map(len, documents)) / len(documents)
    own = {word: math.log(n - count + 0.5) - math.log(count + 0.5) for word, count in holding.items()}
    score = 0.0
    for word in query:
        count = holding[word]
        tf = added.count(word) / (added.count(word) + 1.5 * (0.25 + 0.75 * len(added) / mean_length))
        if variant == "lucene":
            score += math.log(1 + (n - count + 0.5) / (count + 0.5)) * tf
        else:
            idf = math.log(n - count + 0.5) - math.log(count + 0.5)
            score += (idf if idf >= 0 else 0.25 * sum(own.values()) / len(own)) * tf * 2.5
    return score


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_added_passages_score_by_the_formula_of_the_index(tmp_path: Path, variant: str, is_saved: bool) -> None:
    texts = [f"{text} A cat." for text in TEXTS] + ["A bird is on a roof.", "The fish is in the sea."]
    passages = passages_of(texts)
    retriever = Bm25Retriever.build(passages, RetrievalConfig(variant=variant, k1=1.5))
    if is_saved:
        retriever.save(tmp_path)
        retriever = Bm25Retriever.load(tmp_path)
    late = [Passage(passage_id=f"late{number}", doc_id="late", text=text) for number, text in enumerate(ADDED)]
    # In two steps, as documents come to a running service.
    changed = retriever.changed(late[:1], [], passages).changed(late[1:], ["p2"], passages)
    analyzer = WordAnalyzer("english", stemming=True)
    documents, added = analyzer.words(texts), analyzer.words(ADDED)
    for query in ("cat", "cats in the garden", "zeppelin zeppelin dog", "vitamin d", "submarine"):
        (words,) = analyzer.words([query])
        expected = {f"late{n}": late_score(documents, text, words, variant) for n, text in enumerate(added)}
        (before,), (after,) = retriever.retrieve([query], 20), changed.retrieve([query], 20)
        got = {place.passage_id: place.score for place in after}
        assert {name: score for name, score in got.items() if name in expected} == pytest.approx(
            {name: score for name, score in expected.items() if score > 0}, rel=1e-5
        )
        kept = {place.passage_id: place.score for place in before if place.passage_id != "p2"}
        assert {name: score for name, score in got.items() if name not in expected} == kept


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_added_copy_scores_as_its_passage_does(variant: str) -> None:
    passages = passages_of(TEXTS)
    twins = [Passage(passage_id=f"twin{n}", doc_id=f"twin{n}", text=text) for n, text in enumerate(TEXTS)]
    retriever = Bm25Retriever.build(passages, RetrievalConfig(variant=variant)).changed(twins, [], passages)
    for query in ("cat", "running cats in gardens", "vitamin d", "dogs dogs garden"):
        (ranking,) = retriever.retrieve([query], 20)
        scores = {place.passage_id: place.score for place in ranking}
        assert {f"twin{name[1:]}": score for name, score in scores.items() if name[0] == "p"} == pytest.approx(
            {name: score for name, score in scores.items() if name[0] == "t"}, rel=1e-5
        )


def test_added_passages_have_the_scores_of_rank_bm25(tmp_path: Path) -> None:
    passages, analyzer = passages_of(TEXTS), WordAnalyzer("english", stemming=True)
    Bm25Retriever.build(passages, RetrievalConfig(variant="okapi", k1=1.5)).save(tmp_path)
    late = Passage(passage_id="late", doc_id="late", text="Dogs and cats run in the skin garden.")
    retriever = Bm25Retriever.load(tmp_path).changed([late], [], passages)
    okapi = BM25Okapi(analyzer.words(TEXTS), k1=1.5, b=0.75)
    # One more passage, without any other count being another one.
    (words,) = analyzer.words([late.text])
    okapi.corpus_size, okapi.doc_len = len(TEXTS) + 1, [*okapi.doc_len, len(words)]
    okapi.doc_freqs = [*okapi.doc_freqs, Counter(words)]
    for query in ("cat", "running cats in gardens", "dogs dogs garden", "skin"):
        (ranking,) = retriever.retrieve([query], 20)
        (score,) = [place.score for place in ranking if place.passage_id == "late"]
        assert score == pytest.approx(okapi.get_scores(analyzer.words([query])[0])[-1], rel=1e-5)


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_change_does_not_cut_the_whole_corpus_into_words_again(tmp_path: Path, is_saved: bool) -> None:
    passages = passages_of(TEXTS)
    built = retriever = Bm25Retriever.build(passages, RetrievalConfig())
    if is_saved:
        built.save(tmp_path)
        retriever = Bm25Retriever.load(tmp_path)
    late = [Passage(passage_id="late", doc_id="late", text="A cat in a garden.")]
    # Texts that are not there cannot be read.
    changed, expected = retriever.changed(late, [], passages.slice(0, 0)), built.changed(late, [], passages)
    assert changed.retrieve(["cats in the garden"], 9) == expected.retrieve(["cats in the garden"], 9)


def test_an_index_that_does_not_tell_its_variant_and_mean_length_is_of_the_default_one(tmp_path: Path) -> None:
    passages = passages_of(TEXTS)
    built = Bm25Retriever.build(passages, RetrievalConfig())
    built.save(tmp_path)
    settings = json.loads((tmp_path / "retriever.json").read_text(encoding="utf-8"))
    assert settings.pop("variant") == "lucene" and settings.pop("mean_length") > 0
    (tmp_path / "retriever.json").write_text(json.dumps(settings), encoding="utf-8")
    late = [Passage(passage_id="late", doc_id="late", text="A cat in a garden.")]
    old, new = (retriever.changed(late, [], passages) for retriever in (Bm25Retriever.load(tmp_path), built))
    assert old.retrieve(["cats in the garden"], 9) == new.retrieve(["cats in the garden"], 9)


def test_a_saved_index_holds_no_pickle_and_is_repeatable(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig()).save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {Path(file).suffix for file in files} == {".npy", ".json", ".arrow"}
    for file in files:
        content = (tmp_path / "one" / file).read_bytes()
        assert content == (tmp_path / "two" / file).read_bytes(), file
        if file.endswith(".npy"):
            assert np.load(tmp_path / "one" / file, allow_pickle=False).dtype.kind in "if"
    # Sets of strings come in another order in every process: the words must not be numbered in theirs.
    words = list(json.loads((tmp_path / "one" / "vocab.index.json").read_text(encoding="utf-8")))
    assert words == sorted(words)


def test_loading_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected the file data.csc.index.npy, found none"):
        Bm25Retriever.load(tmp_path)
    Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig()).save(tmp_path)
    other = tmp_path / "other"
    Bm25Retriever.build(passages_of(TEXTS[:2]), RetrievalConfig()).save(other)
    (other / "passage_ids.arrow").replace(tmp_path / "passage_ids.arrow")
    with pytest.raises(InputError, match="expected 6 passage ids, found 2"):
        Bm25Retriever.load(tmp_path)


def test_nothing_is_written_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    retriever = Bm25Retriever.build(passages_of(TEXTS), RetrievalConfig())
    retriever.save(tmp_path)
    Bm25Retriever.load(tmp_path).retrieve(["cat", "dog"], 3)
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def scifact() -> dict[str, pa.Table]:
    if "GENRET_DATA" not in os.environ:
        pytest.skip("GENRET_DATA names no folder with BEIR's SciFact")
    folder = Path(os.environ["GENRET_DATA"]) / "scifact"
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        documents = [json.loads(line) for line in file]
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        judgements = list(csv.DictReader(file, delimiter="\t"))
    with (folder / "queries.jsonl").open(encoding="utf-8") as file:
        texts = {row["_id"]: row["text"] for row in map(json.loads, file)}
    query_ids = dict.fromkeys(row["query-id"] for row in judgements)
    return {
        "passages": passages_to_table(
            Passage(passage_id=row["_id"], doc_id=row["_id"], text=row["text"], title=row["title"]) for row in documents
        ),
        "test_queries": table_from_rows(
            "test_queries", [{"query_id": query_id, "text": texts[query_id]} for query_id in query_ids]
        ),
        "qrels": table_from_rows(
            "qrels",
            [
                {"query_id": row["query-id"], "doc_id": row["corpus-id"], "relevance": int(row["score"])}
                for row in judgements
            ],
        ),
    }


def test_scifact_is_ranked_as_well_as_published(scifact: dict[str, pa.Table]) -> None:
    """NDCG@10 of BM25: 0.665 in the BEIR paper's table 2, 0.679 in Anserini's "flat" regression."""
    retriever = Bm25Retriever.build(scifact["passages"], RetrievalConfig())
    run: dict[str, dict[str, float]] = {}
    for row in retrieve_run(retriever, scifact["test_queries"], 10).to_pylist():
        run.setdefault(row["query_id"], {})[row["passage_id"]] = -float(row["rank"])
    qrels: dict[str, dict[str, int]] = {}
    for row in scifact["qrels"].to_pylist():
        qrels.setdefault(row["query_id"], {})[row["doc_id"]] = row["relevance"]
    results = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "success.10"}).evaluate(run)
    assert len(results) == 300
    assert 0.66 < np.mean([result["ndcg_cut_10"] for result in results.values()]) < 0.70
    assert 0.80 < np.mean([result["success_10"] for result in results.values()]) < 0.86


def test_scifact_ranks_as_rank_bm25_does(scifact: dict[str, pa.Table]) -> None:
    passages = scifact["passages"].slice(0, 600)
    retriever = Bm25Retriever.build(passages, RetrievalConfig())
    analyzer = WordAnalyzer("english", stemming=True)
    documents = analyzer.words(
        f"{row['title']} {row['text']}" for row in passages.select(["title", "text"]).to_pylist()
    )
    okapi = BM25Okapi(documents, k1=1.2, b=0.75)
    holding = Counter(word for document in documents for word in set(document))
    okapi.idf = {word: math.log(1 + (600 - n + 0.5) / (n + 0.5)) for word, n in holding.items()}
    texts = scifact["test_queries"].column("text").to_pylist()[:20]
    for text, ranking in zip(texts, retriever.retrieve(texts, 10), strict=True):
        scores = okapi.get_scores(analyzer.words([text])[0]) / 2.2
        assert [place.score for place in ranking] == pytest.approx(np.sort(scores)[::-1][:10], rel=1e-5)


def test_okapi_on_scifact_equals_rank_bm25(scifact: dict[str, pa.Table]) -> None:
    """Same ten passages and scores, but for the order of those that come out equal."""
    passages, queries = scifact["passages"], scifact["test_queries"].slice(0, 40)
    analyzer = WordAnalyzer("english", stemming=True)
    titles, texts = passages.column("title").to_pylist(), passages.column("text").to_pylist()
    documents = analyzer.words(f"{title}\n{text}" for title, text in zip(titles, texts, strict=True))
    okapi = BM25Okapi(documents, k1=1.2, b=0.75)
    retriever = Bm25Retriever.build(passages, RetrievalConfig(variant="okapi"))
    place_of = {name: place for place, name in enumerate(passages.column("passage_id").to_pylist())}
    asked = queries.column("text").to_pylist()
    for words, ranking in zip(analyzer.words(asked), retriever.retrieve(asked, 10), strict=True):
        expected = okapi.get_scores(words)
        best = np.sort(expected)[::-1][:10]
        assert [place.score for place in ranking] == pytest.approx(best.tolist(), abs=1e-4)
        assert [expected[place_of[place.passage_id]] for place in ranking] == pytest.approx(best.tolist(), abs=1e-4)
