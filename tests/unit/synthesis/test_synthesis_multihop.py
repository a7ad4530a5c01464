import pytest

from genret.config import RetrievalConfig
from genret.errors import InputError
from genret.retrieval.bm25 import Bm25Retriever
from genret.synthesis.multihop import multihop_requests
from genret.synthesis.queries import passage_of
from genret.tables import passages_to_table
from genret.types import Passage

CORPUS = [
    Passage("fjord-1", "fjord", "A glacier carved the deep fjord in Norway.", "Fjords"),
    Passage("fjord-2", "fjord", "The fjord in Norway is deep where the glacier was."),
    Passage("lake", "lake", "A glacier carved the lake in Sweden.", "Lakes"),
    Passage("ice", "ice", "The glacier in Norway melts."),
    Passage("bread", "bread", "Bakers knead flour and yeast."),
    Passage("cake", "cake", "Flour, sugar and eggs."),
    Passage("moon", "moon", "Craters everywhere."),
]
TABLE = passages_to_table(CORPUS)


@pytest.fixture(scope="module")
def bm25():
    return Bm25Retriever.build(TABLE, RetrievalConfig())


class Counting:
    """Counts what it is asked; finds nothing."""

    name = "counting"

    def __init__(self):
        self.queries = 0

    def retrieve(self, queries, k):
        self.queries += len(queries)
        return [[] for _ in queries]


def groups(requests):
    return {passage_of(request): request.related for request in requests}


def test_a_group_is_a_passage_and_its_neighbours_from_other_documents(bm25):
    requests = list(multihop_requests(4, TABLE, bm25))
    assert [(r.request_id, r.kind, r.n) for r in requests[:1]] == [("fjord-1|multihop", "multihop", 4)]
    assert (requests[0].title, requests[0].text) == ("Fjords", "A glacier carved the deep fjord in Norway.")
    assert set(requests[0].related) == {"Lakes\nA glacier carved the lake in Sweden.", "The glacier in Norway melts."}
    # Only flour is shared: groups of two. Nothing is shared with the moon.
    assert groups(requests)["bread"] == ("Flour, sugar and eggs.",)
    assert "moon" not in groups(requests)


def test_each_group_is_asked_about_once(bm25):
    found = groups(multihop_requests(1, TABLE, bm25))
    assert "bread" in found and "cake" not in found
    texts = {f"{p.title}\n{p.text}".strip(): p.passage_id for p in CORPUS}
    members = [frozenset({name, *(texts[text] for text in related)}) for name, related in found.items()]
    assert len(set(members)) == len(members)
    assert all(len(group) in (2, 3) for group in members)


def test_groups_of_two(bm25):
    assert {len(related) for related in groups(multihop_requests(1, TABLE, bm25, group_size=2)).values()} == {1}


def test_requests_are_in_the_order_of_the_passages(bm25):
    order = [passage.passage_id for passage in CORPUS]
    found = list(groups(multihop_requests(1, TABLE, bm25)))
    assert found == sorted(found, key=order.index)


def test_no_queries_wanted_means_nothing_is_retrieved():
    retriever = Counting()
    assert list(multihop_requests(0, TABLE, retriever)) == []
    assert retriever.queries == 0
    assert list(multihop_requests(1, TABLE, retriever)) == []
    assert retriever.queries == len(CORPUS)


def test_more_passages_than_a_block(bm25, monkeypatch):
    whole = list(multihop_requests(1, TABLE, bm25))
    monkeypatch.setattr("genret.synthesis.multihop._BLOCK", 2)
    assert list(multihop_requests(1, TABLE, bm25)) == whole


@pytest.mark.parametrize("size", [1, 4])
def test_other_sizes_are_an_error(bm25, size):
    with pytest.raises(InputError, match=f"groups of 2 or 3 passages, found {size}"):
        list(multihop_requests(1, TABLE, bm25, group_size=size))


def test_a_retriever_of_another_corpus_is_an_error(bm25):
    with pytest.raises(InputError, match=r"retriever bm25 to find passages of the table, found '.+'"):
        list(multihop_requests(1, TABLE.slice(0, 1), bm25))
