"""The engine without a model: keywords by tf-idf, queries sampled from the passage's own words.

A query is what a smoothed unigram model of the passage would say (Zhai and Lafferty, 2004): words of the
passage, drawn by their idf, some of them replaced by words of the whole corpus, as in Jelinek-Mercer
smoothing. It writes no question that needs understanding, its answers to `preference` queries are mere
keywords, and `multihop` requests get an error.

A `negative` is the passage with some of its attributes broken: half of the words that the query names, and every
number, replaced by words and numbers of other texts. It stands in for what a language model does when it plans which
attributes to break (SyNeg, arXiv 2412.17250); it is no fluent text, and a word that only a synonym of the query's
betrays stays whole.
"""

import math
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from random import Random

import numpy as np

from genret.config import ExtractiveConfig
from genret.corpus.stop_words import DESCRIPTION_STOP_WORDS
from genret.errors import InputError
from genret.llm.base import Item, Request, Response
from genret.llm.words import join_words, replace_words, split_words
from genret.types import Passage

# These need understanding.
_UNSUPPORTED = frozenset({"multihop"})

# How English questions begin. Real queries have these words, which say nothing about the passage: a model
# that has never seen them takes them for content.
_QUESTION_PREFIXES = (
    "what is", "what are the", "what", "how do", "how does", "how can i", "is there", "can i", "should i",
    "why is", "when should", "which", "where", "do", "does", "are",
)  # fmt: skip
_PREFIX_SHARE = 0.4

# Ways to name a metadata field that read tolerably whatever the field is.
_ENGLISH_CONSTRAINTS = ("{field} {value}", "from {value}", "{value}", "with {field} {value}")
_CONSTRAINTS = ("{field} {value}", "{value}")
_ANOTHER_CONSTRAINT = 0.3

# What a query is, beside words sampled from the text.
_SPAN_SHARE = 0.10
_TITLE_SHARE = 0.07
_SENTENCE_SHARE = 0.15
_ORDERED_SHARE = 0.6
_SPAN_WORDS = 30
_SPAN_CHARACTERS = 60  # where the words are longer than any script with spaces has them
_LONGEST_MEAN_WORD = 20
_MOST_WORDS = 32  # of a title or a sentence that becomes a query
# Longer words (characters; mostly encoded data) are cut: a megabyte of it in one query is repeated in every epoch.
_LONGEST_WORD = 64

# Added to the idf, so that words that every passage has are drawn too; stop words count a quarter.
_WEIGHT_FLOOR = 0.1
_STOP_WORD_FACTOR = 0.25
# An occurrence in the title counts as so many in the text.
_TITLE_WEIGHT = 2
# Of a negative: words that are broken at least, and keywords of related texts that may take their place.
_FEWEST_BROKEN = 2
_REPLACEMENTS = 20
_MOST_DIGITS = 18
# A query that was already drawn is drawn anew, so often at most.
_ATTEMPTS = 4


@dataclass(frozen=True)
class WordCounts:
    """The words of some passages.

    Attributes:
        passages: Number of passages.
        frequency: Number of passages that have the word.
        occurrences: Of the word in all of them.
    """

    passages: int
    frequency: dict[str, int]
    occurrences: dict[str, int]

    @classmethod
    def of(cls, passages: Iterable[tuple[str, str]]) -> "WordCounts":
        """Count the words of titles and texts."""
        number = 0
        frequency: Counter[str] = Counter()
        occurrences: Counter[str] = Counter()
        for title, text in passages:
            number += 1
            words = split_words(f"{title}\n{text}")
            occurrences.update(words)
            frequency.update(set(words))
        return cls(number, dict(frequency), dict(occurrences))


@dataclass(frozen=True)
class CorpusStatistics:
    """What the engine knows of the whole corpus.

    Words of a single passage are left out: they are most of the vocabulary, and their document frequency is
    known without a table. So background words never come from one passage alone.

    Attributes:
        passages: Number of passages.
        document_frequency: Number of passages that have the word, for words in at least two; sorted by word.
        background: int64, aligned with `document_frequency`: occurrences of the word in the corpus.
    """

    passages: int
    document_frequency: dict[str, int]
    background: np.ndarray

    @classmethod
    def fit(cls, passages: Iterable[Passage]) -> "CorpusStatistics":
        """Count the words of titles and texts."""
        return cls.of([WordCounts.of((passage.title, passage.text) for passage in passages)])

    @classmethod
    def of(cls, parts: Iterable[WordCounts]) -> "CorpusStatistics":
        """Those of a corpus whose parts were counted one by one."""
        number = 0
        frequency: Counter[str] = Counter()
        occurrences: Counter[str] = Counter()
        for part in parts:
            number += part.passages
            frequency.update(part.frequency)
            occurrences.update(part.occurrences)
        shared = sorted(word for word, count in frequency.items() if count > 1)
        background = np.array([occurrences[word] for word in shared], dtype=np.int64)
        return cls(number, {word: frequency[word] for word in shared}, background)

    def idf(self, word: str) -> float:
        """Inverse document frequency: log((N + 1) / df)."""
        return math.log((self.passages + 1) / self.document_frequency.get(word, 1))


@dataclass(frozen=True)
class _Words:
    """The words of a text in order, and the running sum of their weights."""

    words: list[str]
    cumulative: list[float]

    def draw(self, rng: Random, k: int) -> list[int]:
        """At most `k` places of different words, drawn by weight."""
        if len(self.words) <= k:
            return list({word: place for place, word in enumerate(self.words)}.values())
        # Drawing some more with replacement and dropping repetitions is drawing without replacement.
        places = rng.choices(range(len(self.words)), cum_weights=self.cumulative, k=4 * k)
        drawn: dict[str, int] = {}
        for place in places:
            drawn.setdefault(self.words[place], place)
            if len(drawn) == k:
                break
        return list(drawn.values())

    def draw_spread(self, rng: Random, k: int) -> list[int]:
        """At most `k` places of different words, one from each of `k` equal stretches of the text."""
        bounds = [len(self.words) * stretch // k for stretch in range(k + 1)]
        drawn: dict[str, int] = {}
        for low, high in pairwise(bounds):
            if low < high:
                start = self.cumulative[low - 1] if low else 0.0
                point = start + rng.random() * (self.cumulative[high - 1] - start)
                place = min(bisect(self.cumulative, point, low, high), high - 1)
                drawn.setdefault(self.words[place], place)
        return list(drawn.values())


class ExtractiveEngine:
    """Writes keywords and queries with the words of the text alone.

    What it answers depends on the configuration, the statistics, the seed and the request alone: not on the
    other requests, their order, or the process that runs it.
    """

    name = "extractive"

    def __init__(self, config: ExtractiveConfig, statistics: CorpusStatistics, seed: int) -> None:
        """Prepare word weights.

        Args:
            config: The `llm` section.
            statistics: Of the corpus that the requests come from.
            seed: Seed of everything random.

        Raises:
            InputError: There are no stop words for the language.
        """
        if config.language not in DESCRIPTION_STOP_WORDS:
            known = sorted(DESCRIPTION_STOP_WORDS)
            raise InputError(f"llm.language: expected one of {known}, found {config.language!r}")
        self._config = config
        self._seed = seed
        self._english = config.language == "english"
        # "don't" is two words here.
        stop_words = DESCRIPTION_STOP_WORDS[config.language]
        self._stop_words = frozenset(word for entry in stop_words for word in split_words(entry))
        self._idf = {word: statistics.idf(word) for word in statistics.document_frequency}
        self._rare_idf = math.log(statistics.passages + 1)
        self._background = list(statistics.document_frequency)
        self._background_cumulative = np.cumsum(statistics.background).tolist()

    def generate(self, requests: Iterable[Request]) -> Iterator[Response]:
        """One response for each request, in their order; see `genret.llm.base.Engine`."""
        return map(self.respond, requests)

    def respond(self, request: Request) -> Response:
        """The response to one request."""
        if request.kind in _UNSUPPORTED:
            return Response(request.request_id, error=f"{request.kind}: not supported by the extractive engine")
        words = [word[:_LONGEST_WORD] for word in split_words(f"{request.title}\n{request.text}")]
        if not words:
            return Response(request.request_id, error="no words in title or text")
        if request.kind == "constraint" and not request.constraints:
            return Response(request.request_id, error="no constraints in the request")
        rng = Random(f"{self._seed}|{request.request_id}")
        if request.kind == "keywords":
            items = [Item(word) for word in self._keywords(words, request.title)[: request.n]]
        elif request.kind == "preference":
            items = self._preference_items(request, words, rng)
        elif request.kind == "negative":
            items = self._negative_items(request, words, rng)
        else:
            items = [Item(text) for text in _distinct(self._drawer(request, words, rng), request.n)]
        return Response(request.request_id, tuple(items))

    # --- keywords ---

    def _keywords(self, words: Sequence[str], title: str) -> list[str]:
        """All keywords, by falling (1 + log tf) * log((N + 1) / df); ties stay in the order of the text."""
        counts = Counter(words)
        for word in split_words(title):
            counts[word] += _TITLE_WEIGHT - 1
        candidates = (
            [word for word in counts if self._describes(word)]
            or [word for word in counts if not word.isdecimal()]
            or list(counts)
        )
        score = {word: (1 + math.log(counts[word])) * self._idf.get(word, self._rare_idf) for word in candidates}
        return sorted(candidates, key=score.__getitem__, reverse=True)

    def _describes(self, word: str) -> bool:
        # Two letters say little in an alphabet; from the Thai block on, they may be a whole word.
        long_enough = len(word) > 2 or word[0] >= "\u0e00"
        return long_enough and not word.isdecimal() and word not in self._stop_words

    # --- queries ---

    def _drawer(self, request: Request, words: list[str], rng: Random) -> Callable[[], str]:
        """A function that draws one query of the request's kind."""
        weighted = _Words(words, self._weights(words))

        def sample() -> str:
            return self._sample(weighted, rng)

        if request.kind == "sentence":
            sentence = _first_words(request.text)
            return lambda: self._blur(sentence, rng) if sentence and rng.random() < _SENTENCE_SHARE else sample()
        if request.kind == "constraint":
            return lambda: self._constrain(sample(), request, rng)
        title = _first_words(request.title)

        def draw() -> str:
            form = rng.random()
            if form < _SPAN_SHARE:
                return self._blur(_span(f"{request.title} {request.text}", rng), rng)
            if form < _SPAN_SHARE + _TITLE_SHARE and title:
                return self._blur(title, rng)
            return sample()

        return draw

    def _weights(self, words: Iterable[str], power: int = 1) -> list[float]:
        """The running sum of the words' weights."""
        idf, rare, stop = self._idf, self._rare_idf, self._stop_words
        weights = (
            (idf.get(word, rare) + _WEIGHT_FLOOR) * (_STOP_WORD_FACTOR if word in stop else 1.0) for word in words
        )
        return list(accumulate(weight**power for weight in weights))

    def _sample(self, weighted: _Words, rng: Random) -> str:
        """Words of the text, some replaced by words of the corpus, sometimes as a question."""
        config = self._config
        places = weighted.draw(rng, rng.randint(config.min_terms, config.max_terms))
        if rng.random() < _ORDERED_SHARE:
            places.sort()
        words = self._replace_some([weighted.words[place] for place in places], rng.random(), rng)
        query = join_words(words)
        if self._english and rng.random() < _PREFIX_SHARE:
            return f"{rng.choice(_QUESTION_PREFIXES)} {query}"
        return query

    def _blur(self, text: str, rng: Random) -> str:
        """A stretch of text with some of its words replaced by words of the corpus."""
        words = [word[:_LONGEST_WORD] for word in text.split()]
        return " ".join(self._replace_some(words, rng.random(), rng))

    def _replace_some(self, words: list[str], level: float, rng: Random) -> list[str]:
        """The words with a share of `level * background_noise` replaced; one at least stays."""
        share = level * self._config.background_noise
        if not self._background or not share:
            return words
        keep = rng.randrange(len(words))
        return [
            word if place == keep or rng.random() >= share else self._background_word(rng)
            for place, word in enumerate(words)
        ]

    def _background_word(self, rng: Random) -> str:
        point = rng.random() * self._background_cumulative[-1]
        return self._background[bisect(self._background_cumulative, point, 0, len(self._background) - 1)]

    def _constrain(self, query: str, request: Request, rng: Random) -> str:
        """The query with one or more of the request's constraints before or behind it."""
        count = 1
        while count < len(request.constraints) and rng.random() < _ANOTHER_CONSTRAINT:
            count += 1
        templates = _ENGLISH_CONSTRAINTS if self._english else _CONSTRAINTS
        for field in rng.sample(sorted(request.constraints), count):
            named = rng.choice(templates).format(
                field=field.replace("_", " "), value=" ".join(request.constraints[field].split())
            )
            query = f"{query} {named}" if rng.random() < _ORDERED_SHARE else f"{named} {query}"
        return query

    # --- negatives ---

    def _negative_items(self, request: Request, words: Sequence[str], rng: Random) -> list[Item]:
        """The text with attributes broken: in every item half of what the query names of it, another half each time.

        What takes their place comes from the related texts, which are about something near, else from the corpus.
        """
        asked = set(split_words(request.query))
        named = [word for word in self._keywords(words, request.title) if word in asked]
        if not named:
            named = self._keywords(words, request.title)[: 2 * _FEWEST_BROKEN]
        own = set(words)
        related = [word[:_LONGEST_WORD] for text in request.related for word in split_words(text) if word not in own]
        others = self._keywords(related, "") if related else []
        text = f"{request.title}\n{request.text}" if request.title else request.text
        return [
            Item(broken)
            for broken in _distinct(lambda: self._break(text, named, others[:_REPLACEMENTS], rng), request.n)
            if broken != text
        ]

    def _break(self, text: str, named: Sequence[str], others: Sequence[str], rng: Random) -> str:
        """A text in which some named words and all numbers are others."""
        count = min(len(named), max(_FEWEST_BROKEN, -(-len(named) // 2)))
        broken = {word: self._other(word, others, rng) for word in rng.sample(named, count)}
        return replace_words(
            text, lambda word: _other_number(word, rng) if word.isdecimal() else broken.get(word.casefold())
        )

    def _other(self, word: str, others: Sequence[str], rng: Random) -> str:
        if others:
            return rng.choice(others)
        for _ in range(_ATTEMPTS if self._background else 0):
            other = self._background_word(rng)
            if other != word and self._describes(other):
                return other
        return ""

    # --- preference pairs ---

    def _preference_items(self, request: Request, words: list[str], rng: Random) -> list[Item]:
        """Difficult queries, each with the best keyword that it does not name as its answer.

        Fewer words than other queries have, one from each of several stretches of the passage, in any order,
        and at least half of the background noise: the model must know the whole passage to rank it first.
        """
        config = self._config
        weighted = _Words(words, self._weights(words, power=2))
        keywords = self._keywords(words, request.title)
        most = max(config.min_terms, (config.min_terms + config.max_terms) // 2)

        def draw() -> str:
            places = weighted.draw_spread(rng, rng.randint(config.min_terms, most))
            rng.shuffle(places)
            level = 0.5 + 0.5 * rng.random()
            return join_words(self._replace_some([words[place] for place in places], level, rng))

        items = []
        for text in _distinct(draw, request.n):
            named = set(split_words(text))
            items.append(Item(text, next((word for word in keywords if word not in named), keywords[0])))
        return items


def _distinct(draw: Callable[[], str], n: int) -> list[str]:
    """At most `n` different texts: what is drawn twice is drawn anew, a few times."""
    texts: dict[str, None] = {}
    for _ in range(n):
        for _ in range(_ATTEMPTS):
            text = draw()
            if text not in texts:
                texts[text] = None
                break
    return list(texts)


def _other_number(digits: str, rng: Random) -> str:
    """Another number of as many digits; longer than a number has them, it stays as it is."""
    if len(digits) > _MOST_DIGITS:
        return digits
    return str((int(digits) + rng.randrange(1, 10 ** len(digits))) % 10 ** len(digits)).zfill(len(digits))


def _first_words(text: str) -> str:
    return " ".join(text.split(maxsplit=_MOST_WORDS)[:_MOST_WORDS])


def _span(text: str, rng: Random) -> str:
    """A stretch of the text as it stands, punctuation and all."""
    words = text.split()
    joined = " ".join(words)
    if len(words) * _LONGEST_MEAN_WORD < len(joined):  # a script without spaces
        start = rng.randrange(max(1, len(joined) - _SPAN_CHARACTERS + 1))
        return joined[start : start + _SPAN_CHARACTERS].strip()
    start = rng.randrange(max(1, len(words) - _SPAN_WORDS + 1))
    return " ".join(words[start : start + _SPAN_WORDS])
