import os
import subprocess
import sys

import pyarrow as pa
import pytest
from pydantic import ValidationError

from genret.config import ExtractiveConfig, IdentifiersConfig
from genret.identifiers.build import build_identifiers
from genret.identifiers.semantic import extend_semantic_identifiers
from genret.llm.base import Item, Response
from genret.llm.extractive import CorpusStatistics, ExtractiveEngine
from genret.llm.filters import Limits
from genret.tables import SCHEMAS, passages_to_table
from genret.types import Passage


class ListEngine:
    """Gives each passage the keywords that its text lists."""

    name = "lists"

    def generate(self, requests):
        for request in requests:
            assert request.kind == "keywords"
            if request.text.startswith("!"):
                yield Response(request.request_id, (), request.text[1:], "raw answer")
            else:
                yield Response(request.request_id, tuple(Item(part) for part in request.text.split("|")))


class SilentEngine:
    name = "silent"

    def generate(self, requests):
        raise AssertionError("atomic identifiers need no engine")


def passages(*texts):
    return passages_to_table(Passage(f"p{n}", f"d{n}", text) for n, text in enumerate(texts))


def build(*texts, **settings):
    return build_identifiers(IdentifiersConfig(**settings), passages(*texts), ListEngine())


def names(outputs):
    return outputs["identifiers"].column("identifier").to_pylist()


def test_words_are_joined_by_spaces():
    outputs = build("alpha|beta|gamma", "delta|epsilon", keywords=2)
    assert outputs["identifiers"].to_pylist() == [
        {"passage_id": "p0", "identifier": "alpha beta", "source": "llm"},
        {"passage_id": "p1", "identifier": "delta epsilon", "source": "llm"},
    ]
    assert outputs["identifiers"].schema == SCHEMAS["identifiers"]
    assert outputs["rejects"].num_rows == 0


def test_keywords_of_a_language_model_are_judged_and_the_unfit_are_counted():
    texts = ["Glaciers carve deep valleys.|fjord|...|...|It is about ice and snow.", "!none", "...", "lake|Lake"]
    outputs = build_identifiers(IdentifiersConfig(keywords=2), passages(*texts), ListEngine(), Limits())
    assert names(outputs)[0] == "fjord" and names(outputs)[3] == "lake"
    assert [(row["input_id"], row["reason"], row["raw"]) for row in outputs["rejects"].to_pylist()] == [
        (
            "p0",
            "unfit keywords: 2 × a sentence, not a keyword; 2 × no word in it",
            "Glaciers carve deep valleys.; ...; ...; It is about ice and snow.",
        ),
        ("p1", "none", "raw answer"),
        ("p2", "unfit keywords: 1 × no word in it", "..."),
        ("p2", "no keywords", "..."),
    ]
    # Without limits, nothing is judged.
    assert names(build(*texts, keywords=2))[0] == "Glaciers carve deep valleys., fjord"


def test_phrases_anywhere_put_commas_everywhere():
    assert names(build("machine learning|search", "delta|epsilon", keywords=2)) == [
        "machine learning, search",
        "delta, epsilon",
    ]


def test_keywords_are_cleaned():
    outputs = build(" alpha \n|ALPHA||\u200b|be\tta|Bé ta|gamma", keywords=3)
    assert names(outputs) == ["alpha, be ta, gamma"]


def test_a_keyword_that_is_no_unicode_is_left_out():
    class Broken:
        name = "broken"

        def generate(self, requests):
            for request in requests:
                yield Response(request.request_id, (Item("half\ud83d"), Item("whole")))

    outputs = build_identifiers(IdentifiersConfig(), passages("text"), Broken())
    assert names(outputs) == ["whole"]


def test_a_passage_without_keywords_is_numbered_and_rejected():
    outputs = build("!timeout", "alpha", "\u200b| ", keywords=1)
    assert outputs["identifiers"].column("source").to_pylist() == ["ordinal", "llm", "ordinal"]
    assert names(outputs) == ["1", "alpha", "2"]
    assert outputs["rejects"].to_pylist() == [
        {"stage": "identifiers", "input_id": "p0", "reason": "timeout", "raw": "raw answer"},
        {"stage": "identifiers", "input_id": "p2", "reason": "no keywords", "raw": "\u200b| "},
    ]


def test_collisions_are_extended():
    outputs = build("a|b|c", "a|b|d", "a|b|d", keywords=2, max_keywords=3)
    assert names(outputs) == ["a b", "a b d", "a b d 2"]
    assert outputs["identifiers"].column("source").to_pylist() == ["llm", "extended", "ordinal"]


@pytest.mark.parametrize("kind", ["semantic", "atomic"])
def test_no_passages(kind):
    outputs = build(type=kind)
    assert outputs["identifiers"].num_rows == outputs["rejects"].num_rows == 0
    assert outputs["identifiers"].schema == SCHEMAS["identifiers"]


def test_atomic_identifiers_count_from_zero():
    outputs = build_identifiers(IdentifiersConfig(type="atomic"), passages("x", "", "x"), SilentEngine())
    assert names(outputs) == ["0", "1", "2"]
    assert outputs["identifiers"].column("source").to_pylist() == ["ordinal"] * 3
    assert outputs["identifiers"].column("passage_id").to_pylist() == ["p0", "p1", "p2"]
    assert outputs["rejects"].schema == SCHEMAS["rejects"]


def test_tables_in_several_chunks_keep_their_order():
    table = pa.concat_tables([passages("alpha"), passages("beta").slice(0, 0), passages("gamma")])
    for kind, expected in (("semantic", ["alpha", "gamma"]), ("atomic", ["0", "1"])):
        outputs = build_identifiers(IdentifiersConfig(type=kind), table, ListEngine())
        assert names(outputs) == expected


def extend(existing, *texts, limits=None, **settings):
    return extend_semantic_identifiers(IdentifiersConfig(**settings), passages(*texts), ListEngine(), existing, limits)


def test_further_identifiers_are_made_as_the_first_ones_were():
    assert extend(["alpha beta"], "gamma|delta|epsilon", keywords=2) == ["gamma delta"]
    assert extend(["deep learning, search"], "gamma|delta|epsilon", keywords=2) == ["gamma, delta"]
    assert extend(["alpha beta"], "no sentence is one.|gamma", keywords=2, limits=Limits()) == ["gamma"]
    assert extend([], "alpha") == ["alpha"]
    assert extend(["alpha"]) == []


def test_no_identifier_is_given_again():
    existing = ["Alphá beta", "gamma", "gamma 2", "1", "3"]
    texts = ["alpha|beta|delta", "alpha|beta|delta", "alpha|beta|delta", "gamma", "!none", "!none"]
    expected = ["alpha beta delta", "alpha beta delta 2", "alpha beta delta 3", "gamma 3", "2", "4"]
    assert extend(existing, *texts, keywords=2, max_keywords=3) == expected
    assert existing == ["Alphá beta", "gamma", "gamma 2", "1", "3"], "which stay as they are"


def test_a_further_identifier_begins_as_few_others_do():
    existing = ["alpha beta", "Alpha gamma", "delta gamma"]
    texts = ["alpha|delta|epsilon"] * 3
    settings = {"keywords": 2, "max_keywords": 3, "order": "distinctive"}
    assert extend(existing, *texts, **settings) == ["epsilon alpha", "delta alpha", "epsilon alpha delta"]
    assert extend(existing, texts[0], keywords=2) == ["alpha delta"], "as they were given, else"


def test_with_the_extractive_engine_every_passage_has_an_identifier():
    table_rows = [
        Passage("en", "en", "Calcium channels open in the membrane.", "Channels"),
        Passage("copy", "copy", "Calcium channels open in the membrane.", "Channels"),
        Passage("zh", "zh", "日本語の文章を検索する"),
        Passage("none", "none", "!!! ..."),
        Passage("empty", "empty", ""),
    ]
    engine = ExtractiveEngine(ExtractiveConfig(), CorpusStatistics.fit(table_rows), 0)
    outputs = build_identifiers(IdentifiersConfig(), passages_to_table(table_rows), engine)
    assert len(set(names(outputs))) == 5
    assert outputs["rejects"].column("input_id").to_pylist() == ["none", "empty"]
    assert names(outputs)[3:] == ["1", "2"]


def test_identifiers_do_not_depend_on_the_hash_seed():
    script = (
        "from genret.config import *; from genret.types import Passage; from genret.tables import *\n"
        "from genret.llm.extractive import *; from genret.identifiers.build import build_identifiers\n"
        "from genret.synthesis.build import synthesize\n"
        "p = [Passage(str(n), str(n), ' '.join(f'w{(n * k) % 17}' for k in range(12))) for n in range(20)]\n"
        "e = ExtractiveEngine(ExtractiveConfig(), CorpusStatistics.fit(p), 0); t = passages_to_table(p)\n"
        "print(build_identifiers(IdentifiersConfig(), t, e)['identifiers'].to_pylist())\n"
        "print(synthesize(SynthesisConfig(), t, e)['queries'].to_pylist())\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop()) > 1000


def test_fewer_keywords_at_most_than_at_least_are_refused():
    with pytest.raises(ValidationError, match=r"max_keywords: expected at least keywords \(5\), found 4"):
        IdentifiersConfig(keywords=5, max_keywords=4)
