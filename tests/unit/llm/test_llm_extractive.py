import math
import pickle
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from genret.config import ExtractiveConfig
from genret.errors import InputError
from genret.llm.base import Request
from genret.llm.extractive import CorpusStatistics, ExtractiveEngine
from genret.llm.words import split_words
from genret.types import Passage

QUERY_KINDS = ("chunk", "sentence", "preference")


def passage(number, text, title=""):
    return Passage(str(number), str(number), text, title)


CORPUS = [
    passage(
        0,
        "The membrane protein transports calcium. Calcium channels open in the membrane.",
        "Calcium channels",
    ),
    passage(1, "The stars form in clouds of gas. Gas clouds collapse under gravity."),
    passage(2, "The court ruled on the tax law in 1999. The law was changed after the ruling of the court."),
    passage(3, "The protein folds in the cell. Stars and courts have no protein and no tax."),
]


def engine(corpus=CORPUS, seed=0, **settings):
    return ExtractiveEngine(ExtractiveConfig(**settings), CorpusStatistics.fit(corpus), seed)


def request(kind, n=10, text=CORPUS[0].text, title=CORPUS[0].title, name="r", constraints=None):
    return Request(name, kind, n, title, text, constraints or {})


def texts(response):
    return [item.text for item in response.items]


def ask(kind, *, using=None, **arguments):
    return next(iter((using or engine()).generate([request(kind, **arguments)])))


def every_request():
    return [
        request(kind, text=p.text, title=p.title, name=f"{p.passage_id}|{kind}", constraints={"source": "BBC"})
        for p in CORPUS
        for kind in ("keywords", *QUERY_KINDS, "constraint")
    ]


# --- statistics ---


def test_statistics_count_passages_and_occurrences():
    statistics = CorpusStatistics.fit([passage(0, "a b b c", "b"), passage(1, "b a"), passage(2, "")])
    assert statistics.passages == 3
    assert statistics.document_frequency == {"a": 2, "b": 2}
    assert statistics.background.tolist() == [2, 4]
    assert statistics.idf("a") == pytest.approx(math.log(4 / 2))
    assert statistics.idf("c") == pytest.approx(math.log(4 / 1))


def test_statistics_do_not_depend_on_the_order_and_can_be_sent():
    first, second = CorpusStatistics.fit(CORPUS), CorpusStatistics.fit(CORPUS[::-1])
    sent = pickle.loads(pickle.dumps(first))  # noqa: S301
    for other in (second, sent):
        assert list(first.document_frequency.items()) == list(other.document_frequency.items())
        assert first.background.tolist() == other.background.tolist()
        assert first.passages == other.passages


# --- keywords ---


def test_keywords_are_those_of_a_naive_tf_idf():
    stop = {"the", "in", "on", "was", "after", "of", "and", "have", "no", "under"}
    for entry in CORPUS:
        counts = Counter(split_words(entry.text) + split_words(entry.title) * 2)
        frequency = {word: sum(word in split_words(f"{p.title} {p.text}") for p in CORPUS) for word in counts}
        score = {
            word: (1 + math.log(count)) * math.log((len(CORPUS) + 1) / frequency[word])
            for word, count in counts.items()
            if word not in stop and len(word) > 2 and not word.isdecimal()
        }
        found = texts(ask("keywords", n=100, text=entry.text, title=entry.title))
        assert sorted(found) == sorted(score)
        assert [score[word] for word in found] == pytest.approx(sorted(score.values(), reverse=True))


def test_no_more_keywords_than_wanted():
    assert texts(ask("keywords", n=2)) == texts(ask("keywords", n=50))[:2]


@pytest.mark.parametrize(
    ("text", "keywords"),
    [
        ("Of the is to", ["of", "the", "is", "to"]),
        ("42 the", ["the"]),
        ("1234 5678 1234", ["1234", "5678"]),
        ("日本語", ["日本", "本語"]),
    ],
)
def test_keywords_are_relaxed_where_nothing_is_left(text, keywords):
    assert sorted(texts(ask("keywords", text=text, title=""))) == sorted(keywords)


# --- every kind ---


@pytest.mark.parametrize("kind", ["keywords", *QUERY_KINDS, "constraint"])
@pytest.mark.parametrize("text", ["", "  \n ", "... !?", "😀 ___ \x00"])
def test_a_text_without_words_is_an_error_and_not_an_exception(kind, text):
    response = ask(kind, text=text, title="-", constraints={"source": "BBC"})
    assert response.items == ()
    assert response.error == "no words in title or text"


def test_answers_do_not_depend_on_order_partition_or_other_requests():
    requests = every_request()
    alone = {r.request_id: next(iter(engine().generate([r]))) for r in requests}
    shuffled = random.Random(1).sample(requests, len(requests))
    together = list(engine().generate(shuffled))
    assert [response.request_id for response in together] == [r.request_id for r in shuffled]
    assert {response.request_id: response for response in together} == alone


def test_the_seed_and_the_request_id_change_queries():
    for kind in QUERY_KINDS:
        first = texts(ask(kind))
        assert first != texts(ask(kind, using=engine(seed=1)))
        assert first != texts(ask(kind, name="another"))


def test_queries_of_a_request_differ():
    for response in engine().generate(every_request()):
        assert len(set(texts(response))) == len(response.items)
        assert all(text.strip() for text in texts(response))


@pytest.mark.parametrize("kind", QUERY_KINDS)
def test_as_many_queries_as_wanted_where_the_text_is_long_enough(kind):
    text = " ".join(f"word{number}" for number in range(200))
    assert len(ask(kind, n=50, text=text).items) == 50


@pytest.mark.parametrize("kind", QUERY_KINDS)
def test_a_text_with_one_word_ends_with_fewer_queries(kind):
    response = ask(kind, n=100, text="calcium", title="", using=engine(background_noise=0.0, language="none"))
    assert texts(response) == ["calcium"]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.text(max_size=30), st.sampled_from([*QUERY_KINDS, "keywords", "constraint"]))
def test_any_text_is_answered(text, title, kind):
    response = ask(kind, text=text, title=title, constraints={"pole": "süd"})
    assert bool(response.items) != bool(response.error)
    assert len(response.items) <= 10
    assert all(item.text.strip() for item in response.items)


def test_a_corpus_of_one_passage_works():
    only = engine(CORPUS[:1])
    for kind in ("keywords", *QUERY_KINDS):
        found = texts(ask(kind, using=only))
        assert found
        # Without a second passage there is no background to draw from.
        if kind == "preference":
            own = set(split_words(f"{CORPUS[0].title} {CORPUS[0].text}"))
            assert all(set(split_words(text)) <= own for text in found)


def test_a_megabyte_is_no_trouble():
    rng = random.Random(0)
    text = " ".join(f"w{rng.randrange(30_000)}" for _ in range(170_000))
    assert len(text) > 1_000_000
    for kind in ("keywords", "chunk", "preference"):
        assert len(ask(kind, n=5, text=text).items) == 5


# --- what queries are made of ---

OWN = [f"own{number}" for number in range(40)]
SHARED = [f"shared{number}" for number in range(20)]
NOISY_CORPUS = [passage(0, " ".join(OWN)), *(passage(n, " ".join(SHARED)) for n in range(1, 10))]


def noisy_words(kind, noise, n=400):
    """The words of each query on the passage of own words; titles, spans and prefixes are switched off."""
    using = engine(NOISY_CORPUS, background_noise=noise, language="none")
    response = ask(kind, n=n, text=" ".join(OWN), title="", using=using)
    return [split_words(text) for text in texts(response) if not len(split_words(text)) > 12]


def test_without_noise_every_word_is_the_passages():
    for kind in ("chunk", "preference"):
        assert all(set(words) <= set(OWN) for words in noisy_words(kind, 0.0))


def test_noise_replaces_half_of_its_greatest_share_on_average():
    queries = noisy_words("chunk", 0.9)
    shares = [sum(word in SHARED for word in words) / len(words) for words in queries]
    # Uniform up to 0.9, less the one word of a query that always stays.
    assert 0.3 < sum(shares) / len(shares) < 0.45
    assert min(shares) == 0.0
    assert max(shares) > 0.7
    assert all(set(words) <= set(OWN) | set(SHARED) and set(words) & set(OWN) for words in queries)


def test_preference_queries_are_noisier_and_shorter():
    chunk, preference = noisy_words("chunk", 0.6), noisy_words("preference", 0.6)

    def noise(queries):
        return sum(word in SHARED for words in queries for word in words) / sum(map(len, queries))

    def length(queries):
        return sum(map(len, queries)) / len(queries)

    assert noise(preference) > 1.2 * noise(chunk)
    assert length(preference) < length(chunk)


def test_preference_words_are_spread_over_the_passage():
    for words in noisy_words("preference", 0.0, n=100):
        places = sorted(OWN.index(word) for word in words)
        for stretch, place in enumerate(places):
            assert len(OWN) * stretch // len(places) <= place < len(OWN) * (stretch + 1) // len(places)
        assert len(places) >= 3


def test_rare_words_are_drawn_more_often():
    corpus = [passage(0, "common rare filler other more less"), *(passage(n, "common") for n in range(1, 50))]
    using = engine(corpus, background_noise=0.0, language="none", min_terms=2, max_terms=2)
    counts: Counter[str] = Counter()
    for number in range(300):
        words = split_words(texts(ask("chunk", n=1, text=corpus[0].text, title="", name=str(number), using=using))[0])
        if len(words) == 2:  # not a span, which is all of the text here
            counts.update(words)
    assert counts["rare"] > 5 * counts["common"]
    assert counts["rare"] > 50


def test_the_number_of_terms_is_bounded():
    using = engine(NOISY_CORPUS, language="none", min_terms=4, max_terms=6)
    lengths = {
        len(split_words(text)) for text in texts(ask("sentence", n=200, text=" ".join(OWN), title="", using=using))
    } - {32}  # the sentence itself, cut
    assert lengths == {4, 5, 6}


def test_chunk_queries_hold_the_title_spans_and_questions():
    long_text = " ".join(f"Word{number}," for number in range(100))
    found = texts(ask("chunk", n=300, text=long_text, title="A  Fine Title", using=engine(background_noise=0.0)))
    assert found.count("A Fine Title") == 1
    spans = [text for text in found if "," in text and len(text.split()) == 30]
    assert 10 < len(spans) < 60
    assert all(span in f"A  Fine Title {long_text}" or span.startswith("A Fine") for span in spans)
    questions = [text for text in found if text.startswith(("what ", "how ", "can ", "is there", "why is"))]
    assert 30 < len(questions) < 150


def test_titles_spans_and_sentences_have_noise_too():
    long_text = " ".join(f"Word{number}," for number in range(100))
    background = set(CorpusStatistics.fit(CORPUS).document_frequency)
    for kind, title in (("chunk", "A Fine Title"), ("sentence", "")):
        found = texts(ask(kind, n=300, text=long_text, title=title))
        stretches = [words for words in (text.split() for text in found) if len(words) >= 30]
        assert len(stretches) > 10
        own = set(long_text.split()) | set(title.split())
        assert all(set(words) <= own | background and set(words) & own for words in stretches)
        assert any(set(words) & background for words in stretches)
        # Noise is drawn anew for each: some stretches have little, some much.
        shares = [sum(word in background for word in words) / len(words) for words in stretches]
        assert min(shares) < 0.1 < 0.4 < max(shares)


def test_only_english_gets_question_words():
    for text in texts(ask("sentence", n=200, using=engine(background_noise=0.0, language="german"))):
        assert set(split_words(text)) <= set(split_words(f"{CORPUS[0].text} {CORPUS[0].title}"))


def test_sentence_queries_hold_the_sentence_once():
    sentence = "Calcium channels   open in the membrane of a cell."
    found = texts(ask("sentence", n=40, text=sentence, title="", using=engine(background_noise=0.0)))
    assert found.count("Calcium channels open in the membrane of a cell.") == 1


def test_a_script_without_spaces_gives_short_spans():
    found = texts(ask("chunk", n=60, text="日本語の文章を検索する" * 50, title=""))
    assert all(len(text) <= 60 or " " in text for text in found)
    assert any(len(text) == 60 for text in found)


# --- constraints ---


def test_constraint_queries_name_one_or_more_values():
    constraints = {"source": "Daily Planet", "publish_time": "2023-10-01", "author": "Lois\nLane"}
    found = texts(ask("constraint", n=100, constraints=constraints))
    values = ("Daily Planet", "2023-10-01", "Lois Lane")
    named = [sum(value in text for value in values) for text in found]
    assert set(named) == {1, 2, 3}
    assert all(any(value in text for text in found) for value in values)
    assert any("publish time" in text for text in found)
    assert not any("publish_time" in text for text in found)


def test_braces_in_metadata_are_text():
    found = texts(ask("constraint", n=5, constraints={"a{0}": "{value} {x!r}"}))
    assert all("{value} {x!r}" in text for text in found)


def test_a_constraint_request_without_constraints_is_an_error():
    assert ask("constraint").error == "no constraints in the request"


# --- preference ---


def test_what_needs_understanding_is_an_error_of_the_request():
    responses = list(engine().generate([request("multihop"), request("chunk", name="next")]))
    assert (responses[0].items, responses[0].error) == ((), "multihop: not supported by the extractive engine")
    assert responses[1].items


def test_answers_are_keywords_that_the_query_does_not_name():
    keywords = texts(ask("keywords", n=100))
    for item in ask("preference", n=20).items:
        assert item.answer in keywords
        assert item.answer not in split_words(item.text)


def test_an_unknown_language_is_named():
    with pytest.raises(InputError, match=r"llm\.language: expected one of .*'english'.*, found 'klingon'"):
        engine(language="klingon")


def test_fewer_terms_at_most_than_at_least_are_refused():
    with pytest.raises(ValidationError, match=r"max_terms: expected at least min_terms \(5\), found 4"):
        ExtractiveConfig(min_terms=5, max_terms=4)
