"""Passages of random words to write queries for."""

import random
from collections.abc import Iterator

from genret.llm.base import Request, Requests

_TEXT = (
    "river flood bridge bank delta glacier bread dough oven flour yeast crust train rail signal freight timetable soil "
    "seed bee hedge mulch sonata chord melody pedal tempo moon crater orbit eclipse tide probe"
)


def requests(count: int, words: int) -> Requests:
    """So many passages of so many words, each asking for one query; made as they are drawn."""

    def draw() -> Iterator[Request]:
        rng, words_known = random.Random(0), _TEXT.split()
        for number in range(count):
            text = " ".join(rng.choices(words_known, k=words))
            yield Request(f"r{number}", "chunk", 1, f"Passage {number}", text)

    return Requests(draw)
