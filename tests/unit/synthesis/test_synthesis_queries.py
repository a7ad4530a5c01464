import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.config import SynthesisConfig
from genret.errors import InputError
from genret.llm.base import Request
from genret.synthesis.answers import preference_requests
from genret.synthesis.queries import check_constraint_fields, constraint_value, passage_of, query_requests
from genret.tables import passages_to_table
from genret.types import Passage

TEXT = "The first sentence has six words. No. The third one is here too."
BOTH = passages_to_table(
    [
        Passage("a", "a", TEXT, "Title", {"source": "BBC", "year": 2023, "tags": ["x", "y"], "none": None}),
        Passage("b|chunk", "b", "One sentence only here.", "", {"source": ""}),
    ]
)


def config(**settings):
    return SynthesisConfig(**({"constraint_queries": 0} | settings))


def test_requests_of_all_kinds_in_order():
    wanted = config(
        chunk_queries=3,
        sentence_queries=2,
        constraint_queries=4,
        constraint_fields=("source", "year", "none"),
    )
    requests = list(query_requests(wanted, BOTH))
    assert [(r.request_id, r.kind, r.n) for r in requests] == [
        ("a|chunk", "chunk", 3),
        ("a|sentence|0", "sentence", 2),
        ("a|sentence|2", "sentence", 2),
        ("a|constraint", "constraint", 4),
        ("b|chunk|chunk", "chunk", 3),
        ("b|chunk|sentence|0", "sentence", 2),
    ]
    assert [passage_of(r) for r in requests] == ["a"] * 4 + ["b|chunk"] * 2
    chunk, sentence, _, constraint = requests[:4]
    assert (chunk.title, chunk.text) == (constraint.title, constraint.text) == ("Title", TEXT)
    assert (sentence.title, sentence.text) == ("", "The first sentence has six words.")
    assert constraint.constraints == {"source": "BBC", "year": "2023"}


def test_multihop_requests_come_behind_the_others_of_their_passage():
    asked = [Request(f"{name}|multihop", "multihop", 1, "", "x", related=("y",)) for name in ("a", "b|chunk")]
    wanted = config(chunk_queries=3, sentence_queries=0)
    ids = [r.request_id for r in query_requests(wanted, BOTH, asked)]
    assert ids == ["a|chunk", "a|multihop", "b|chunk|chunk", "b|chunk|multihop"]
    assert [r.request_id for r in query_requests(wanted, BOTH, asked[1:])][-1] == "b|chunk|multihop"
    assert passage_of(asked[1]) == "b|chunk"
    with pytest.raises(ValueError, match=r"'a\|multihop' is not in the order"):
        list(query_requests(wanted, BOTH, asked[::-1]))


def test_a_kind_with_no_queries_is_not_asked_for():
    kinds = {r.kind for r in query_requests(config(chunk_queries=0), BOTH)}
    assert kinds == {"sentence"}
    assert {r.kind for r in query_requests(config(sentence_queries=0), BOTH)} == {"chunk"}
    assert list(preference_requests(config(preference_queries=0), BOTH)) == []


def test_the_number_and_length_of_sentences_is_bounded():
    def numbers(**settings):
        requests = query_requests(config(chunk_queries=0, **settings), BOTH.slice(0, 1))
        return [r.request_id for r in requests]

    assert numbers(max_sentences=2) == ["a|sentence|0"]
    assert numbers(min_sentence_words=1) == ["a|sentence|0", "a|sentence|1", "a|sentence|2"]
    assert numbers(min_sentence_words=7) == []


def test_sentences_without_spaces_are_long_enough():
    table = passages_to_table([Passage("zh", "zh", "今天天气很好我们去公园。他说。")])
    requests = list(query_requests(config(chunk_queries=0), table))
    assert [r.text for r in requests] == ["今天天气很好我们去公园。"]


def test_preference_requests():
    requests = list(preference_requests(config(preference_queries=5), BOTH))
    assert [(r.request_id, r.kind, r.n) for r in requests] == [
        ("a|preference", "preference", 5),
        ("b|chunk|preference", "preference", 5),
    ]
    assert [passage_of(r) for r in requests] == ["a", "b|chunk"]


@given(
    st.lists(
        st.text(st.sampled_from("ab|0123chunksentencepreferenceconstraint"), max_size=25),
        unique=True,
        max_size=6,
    )
)
def test_request_ids_are_unique_whatever_the_passage_ids(passage_ids):
    table = passages_to_table(Passage(name, name, TEXT, "", {"f": 1}) for name in passage_ids)
    wanted = config(constraint_queries=1, constraint_fields=("f",), min_sentence_words=1)
    requests = [*query_requests(wanted, table), *preference_requests(wanted, table)]
    assert len({r.request_id for r in requests}) == len(requests) == 6 * len(passage_ids)
    # Queries add their place: these must be unique too.
    query_ids = {f"{r.request_id}|{place}" for r in requests for place in range(4)}
    assert len(query_ids) == 4 * len(requests)
    assert {passage_of(r) for r in requests} == set(passage_ids)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Daily  Planet\n", "Daily Planet"),
        (7, "7"),
        (0, "0"),
        (2.5, "2.5"),
        (False, "False"),
        (["a", None, "", 3, ["b"]], "a, 3, b"),
        ([], ""),
        ("  ", ""),
        (None, ""),
        ({"a": 1}, ""),
    ],
)
def test_values_of_metadata_as_text(value, text):
    assert constraint_value(value) == text


def test_fields_that_a_passage_has_are_fine():
    check_constraint_fields(config(constraint_queries=1, constraint_fields=("source", "tags")), BOTH)
    check_constraint_fields(config(constraint_fields=("unknown",)), BOTH)
    check_constraint_fields(config(constraint_queries=1, constraint_fields=("x",)), BOTH.slice(0, 0))


@pytest.mark.parametrize("field", ["author", "none"])
def test_a_field_that_no_passage_has_is_named_with_those_that_exist(field):
    wanted = config(constraint_queries=1, constraint_fields=("source", field))
    with pytest.raises(
        InputError,
        match=rf"no passage has the field '{field}'; the passages have \['source', 'tags', 'year'\]",
    ):
        check_constraint_fields(wanted, BOTH)


def test_constraint_queries_without_fields_are_an_error():
    with pytest.raises(InputError, match=r"constraint_fields: expected .* found none; .*'source'"):
        check_constraint_fields(config(constraint_queries=1), BOTH)
    bare = passages_to_table([Passage("a", "a", "text")])
    with pytest.raises(InputError, match="no metadata"):
        check_constraint_fields(config(constraint_queries=1, constraint_fields=("x",)), bare)
