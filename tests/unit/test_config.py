import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import genret
from genret.config import (
    CorpusConfig,
    ModelConfig,
    RunConfig,
    ScratchModel,
    Section,
    SftConfig,
    dump_config,
    load_config,
    parse_config,
    preset_names,
    resolved_yaml,
)
from genret.errors import InputError

SMALL = """\
name: small
seed: 3
corpus: {type: python_docs}
identifiers:
  type: atomic
sft:
  model:
    type: scratch
    hidden_size: 64
    heads: 4
  learning_rate: 1e-3
retrieval:
  retrievers: [sft, bm25]
"""

HTTP = "llm: {{type: http, base_url: 'https://host/v1', model: x, {}}}"
PRETRAINED = "sft: {model: {type: pretrained, name: some/model}, scoring: vocabulary}"


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse_config(text, "my.yaml", overrides)
    return str(caught.value).splitlines()


def problem(text: str, *overrides: str) -> str:
    found = problems(text, *overrides)
    assert len(found) == 1, found
    return found[0]


def all_sections(annotation: typing.Any = RunConfig) -> Iterator[type[Section]]:
    """Every section class that a configuration may hold, found through the types alone."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
        for field in annotation.model_fields.values():
            yield from all_sections(field.annotation)
    else:
        for inner in typing.get_args(annotation):
            yield from all_sections(inner)


FIELDS = [
    pytest.param(field, id=f"{section.__name__}.{name}")
    for section in all_sections()
    for name, field in section.model_fields.items()
]


# --- what is read ------------------------------------------------------------------------------------------


def test_a_file_is_read_with_defaults_and_overrides(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    config = load_config(path, ["seed=7", "retrieval.retrievers=[bm25]", "rpo.beta=2", "name=other"])
    assert (config.name, config.seed, config.rpo.beta) == ("other", 7, 2.0)
    assert config.retrieval.retrievers == ("bm25",)
    assert config.sft.model == ScratchModel(hidden_size=64, heads=4)
    assert config.sft.learning_rate == 1e-3
    assert config.mining == RunConfig().mining
    assert load_config(str(path)).seed == 3


def test_an_empty_mapping_is_all_defaults():
    assert parse_config("{}", "my.yaml") == RunConfig()


def test_a_later_override_wins_and_missing_levels_are_created():
    config = parse_config("{}", "my.yaml", ["sft.model={type: pretrained, name: a}", "sft.model.name=b"])
    assert config.sft.model.name == "b"
    assert parse_config("{}", "my.yaml", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-7", 1e-7), ("1.5E+1", 15.0), (".5", 0.5), ("2", 2.0), ("1_0.5", None), ("+1.", 1.0)],
)
def test_numbers_are_those_of_yaml_1_2(text, value):
    if value is None:
        assert "found" in problem("{}", f"rpo.alpha={text}")
    else:
        assert parse_config("{}", "my.yaml", [f"rpo.alpha={text}"]).rpo.alpha == value


@pytest.mark.parametrize("text", ["no", "on", "2024-01-01", "1.2.3", "a", "0x1f", "1:30", "0123"])
def test_what_only_yaml_1_1_reads_as_something_else_is_text(text):
    assert parse_config("{}", "my.yaml", [f"corpus.id_field={text}"]).corpus.id_field == text


def test_nothing_after_the_sign_is_the_empty_text():
    assert parse_config("corpus: {path: x}", "my.yaml", ["corpus.path="]).corpus.path == ""


def test_anchors_and_merges_work_and_overrides_change_one_place_only():
    text = "sft: &train {precision: bf16, schedule: linear}\nrpo:\n  <<: *train\n  schedule: constant\n"
    config = parse_config(text, "my.yaml")
    assert (config.rpo.precision, config.rpo.schedule, config.sft.schedule) == ("bf16", "constant", "linear")
    same = parse_config("sft: &x {precision: bf16}\nrpo: *x\n", "my.yaml", ["rpo.precision=fp32"])
    assert (same.sft.precision, same.rpo.precision) == ("bf16", "fp32")


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sft:\n  epochz: 3\n",
            "my.yaml, line 2: sft.epochz: unknown key; did you mean epochs?; known here: model, scoring, ",
        ),
        ("smaple: 3\n", "my.yaml, line 1: smaple: unknown key; known here: name, seed, corpus, llm, "),
        ("\nbeam: 3\n", "my.yaml, line 2: beam: unknown key; did you mean retrieval.beam?; known here: name"),
        ("sft.epochs: 3\n", "my.yaml, line 1: sft.epochs: unknown key; did you mean sft.epochs?; known here"),
        (
            "sft:\n  model:\n    type: scratch\n    hiden_size: 8\n",
            "my.yaml, line 4: sft.model.hiden_size: unknown key; did you mean hidden_size?; known here: ",
        ),
        (
            "llm: {type: extractive, keywords: 3}",
            "my.yaml, line 1: llm.keywords: unknown key; did you mean identifiers.keywords?",
        ),
        ("1: 2", "my.yaml, line 1: 1: unknown key; known here: name, seed"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(text, message):
    assert problem(text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: -1", "seed: expected a whole number from 0 to 2147483647, found -1"),
        ("seed: 1.5", "seed: expected a whole number from 0 to 2147483647, found 1.5"),
        ("seed: true", "seed: expected a whole number from 0 to 2147483647, found true"),
        ('seed: "1"', 'seed: expected a whole number from 0 to 2147483647, found "1"'),
        ("seed:", "seed: expected a whole number from 0 to 2147483647, found nothing"),
        ("name: 2024", r"name: expected text that matches ^\w[\w.-]*$, found 2024 (put it in quotes)"),
        ("name: a b", r'name: expected text that matches ^\w[\w.-]*$, found "a b"'),
        ("rpo: {beta: 0}", "rpo.beta: expected a number above 0 and at most 10, found 0"),
        ("rpo: {beta: 1e999}", "rpo.beta: expected a number above 0 and at most 10, found Infinity"),
        ("rpo: {beta: .nan}", 'rpo.beta: expected a number above 0 and at most 10, found ".nan"'),
        (
            "examples: {context_share: 1}",
            "examples.context_share: expected a number above 0 and below 1, found 1",
        ),
        ("corpus: {max_documents: -5}", "corpus.max_documents: expected a whole number at least 0, found -5"),
        ("retrieval: {stemming: yes}", 'retrieval.stemming: expected true or false, found "yes"'),
        ("corpus: [a]", 'corpus: expected a section with keys and values, found ["a"]'),
        ("corpus:", "corpus: expected a section with keys and values, found nothing"),
        (
            "retrieval: {retrievers: sft}",
            'retrieval.retrievers: expected a list, not empty, of one of sft, rpo, bm25, dense, fusion, found "sft"',
        ),
        (
            "retrieval: {retrievers: []}",
            "retrieval.retrievers: expected a list, not empty, of one of sft, rpo, bm25, dense, fusion, found []",
        ),
        (
            "retrieval: {retrievers: [sft, bm52]}",
            'retrieval.retrievers[1]: expected one of sft, rpo, bm25, dense, fusion, found "bm52"; did you mean bm25?',
        ),
        (
            "retrieval: {fusion: {parts: [rpo, fusion]}}",
            'retrieval.fusion.parts[1]: expected one of sft, rpo, bm25, dense, found "fusion"',
        ),
        (
            "retrieval: {fusion: {weights: [1, 0]}}",
            "retrieval.fusion.weights[1]: expected a number above 0 and at most 1e+06, found 0",
        ),
        ("retrieval: {fusion: {method: rrf}}", "retrieval.fusion.method: expected one of reciprocal_rank, scores"),
        (
            "evaluation: {permutations: 10}",
            "evaluation.permutations: expected a whole number from 1000 to 1000000, found 10",
        ),
        (
            "identifiers: {type: [atomic]}",
            'identifiers.type: expected one of semantic, atomic, found ["atomic"]',
        ),
        ("corpus: {path: {a: b}}", 'corpus.path: expected text, found {"a": "b"}'),
        (
            "synthesis: {constraint_fields: a}",
            'synthesis.constraint_fields: expected a list of text, found "a"',
        ),
        (
            "evaluation: {measures: [HIT@0]}",
            "evaluation.measures[0]: expected text that matches ^(HIT|MAP|MRR",
        ),
        (
            "llm: {type: extractve}",
            'llm.type: expected one of extractive, http, vllm, found "extractve"; did you mean extractive?',
        ),
        (
            "sft: {model: {type: pretraind, name: x}}",
            'sft.model.type: expected one of scratch, pretrained, found "pretraind"; did you mean pretr',
        ),
        ("sft: {model: {layers: 1}}", "sft.model.type: expected one of scratch, pretrained, found nothing"),
        ("llm: {type: http, model: x}", "llm.base_url: expected text that matches ^http"),
        ("llm: {type: http, model: x, base_url: 'localhost:8000'}", "llm.base_url: expected text that matches ^http"),
        (
            "llm: {type: http, model: x, base_url: 'http://me:secret@host/v1'}",
            "llm.base_url: expected text that matches ^http",
        ),
        ("llm: {type: http, model: '', base_url: 'http://host/v1'}", "llm.model: expected text that is not empty"),
        (HTTP.format("api_key_variable: sk-123"), "llm.api_key_variable: expected text that matches ^([A-Za-z_]"),
        (HTTP.format("extra_body: [top_k]"), 'llm.extra_body: expected keys and values, found ["top_k"]'),
        (HTTP.format("extra_body: {seed: 1, n: 2}"), "llm.extra_body: expected fields that no other setting decides, "),
        (HTTP.format("extra_body: {x: [1e999]}"), "llm.extra_body: expected finite numbers, found infinity"),
        (
            "sft: {model: {type: pretrained}}",
            "sft.model.name: expected text that is not empty, found nothing",
        ),
        ("sft: {model: scratch}", 'sft.model: expected a section with keys and values, found "scratch"'),
    ],
)
def test_values_are_refused_with_what_was_expected_and_found(text, message):
    assert problem(text).startswith(f"my.yaml, line 1: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sft: {model: {type: scratch, hidden_size: 60, heads: 4}}",
            "sft.model.hidden_size: expected a multiple of twice heads (2 x 4), found 60",
        ),
        ("sft: {scoring: trie, loss: all}", "sft.loss: expected completion with the scoring trie, found all"),
        (
            "sft: {tuning: {method: lora}}",
            "sft.tuning.method: expected full with a model from scratch, found lora",
        ),
        (
            "compute: {min_training_workers: 3, training_workers: 2}",
            "compute.min_training_workers: expected at most training_workers (2), found 3",
        ),
        (
            "compute: {min_training_workers: 1, zero_stage: 2}",
            "compute.min_training_workers: expected 0 with ZeRO",
        ),
        ("compute: {gpus_a_worker: 1.5}", "compute.gpus_a_worker: expected at most 1, or a whole number, found 1.5"),
        ("serving: {dense: {gpus: 2.5}}", "serving.dense.gpus: expected at most 1, or a whole number, found 2.5"),
        ("compute: {offload: optimizer}", "compute.offload: expected none without ZeRO (zero_stage 0), found optim"),
        (
            "compute: {offload: all, zero_stage: 2}",
            "compute.offload: expected none or optimizer with zero_stage 2, found all",
        ),
        (
            "identifiers: {keywords: 5, max_keywords: 4}",
            "identifiers.max_keywords: expected at least keywords (5)",
        ),
        (
            "llm: {type: extractive, min_terms: 5, max_terms: 4}",
            "llm.max_terms: expected at least min_terms (5), found 4",
        ),
        (
            "synthesis: {preference_queries: 0}",
            "retrieval.retrievers: rpo needs synthesis.preference_queries above 0, found ['sft', 'rpo', 'bm25'] and 0",
        ),
        ("retrieval: {beam: 5}", "retrieval.beam: expected at least retrieval.depth (10), found 5"),
        (
            "retrieval: {retrievers: [sft, fusion], fusion: {parts: [rpo, sft, bm25]}}",
            "retrieval.retrievers: expected all of retrieval.fusion.parts beside fusion, found no rpo, bm25",
        ),
        (
            "retrieval: {retrievers: [rpo, bm25, fusion], fusion: {depth: 11}}",
            "retrieval.fusion.depth: expected at most retrieval.depth (10), found 11",
        ),
        (
            "retrieval: {fusion: {parts: [rpo, rpo]}}",
            "retrieval.fusion.parts: expected at least two, each once, found ['rpo', 'rpo']",
        ),
        ("retrieval: {fusion: {parts: [bm25]}}", "retrieval.fusion.parts: expected at least two, each once"),
        (
            "retrieval: {fusion: {weights: [1]}}",
            "retrieval.fusion.weights: expected none or one for each of the 2 parts, found 1",
        ),
        (
            "retrieval: {depth: 10}\nevaluation: {measures: [HIT@5, NDCG@20]}",
            "retrieval.depth: expected at least the cut-off of each of evaluation.measures (NDCG@20), found 10",
        ),
        (
            "synthesis: {constraint_queries: 2}",
            "synthesis.constraint_fields: expected at least one with synthesis.constraint_queries 2, found none",
        ),
        (
            "synthesis: {chunk_queries: 0, sentence_queries: 0}\nexamples: {context2id: none}",
            "examples.context2id: expected chunk or sentence where synthesis.chunk_queries",
        ),
        (
            "corpus: {type: python_docs, path: x}",
            "corpus.path: expected nothing with the type python_docs, found 'x'",
        ),
        (
            "corpus: {type: beir, path: x, qrels_path: y}",
            "corpus.qrels_path: expected nothing with the type beir, found 'y'",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_both(text, message):
    place, _, rest = problem(text).partition(": ")
    assert re.fullmatch(r"my\.yaml(, line \d)?", place)
    assert rest.startswith(message)


@pytest.mark.parametrize(
    "text",
    [
        "synthesis: {preference_queries: 0}\nretrieval: {retrievers: [sft]}\nrpo: {batch_size: 3}",
        "retrieval: {beam: 5, search: exact}",
        "retrieval: {beam: 5, retrievers: [bm25]}",
        "retrieval: {retrievers: [fusion, bm25, rpo], fusion: {weights: [1, 0.5], depth: 10}}",
        "retrieval: {retrievers: [sft], fusion: {depth: 1000}}",
        "retrieval: {depth: 40, beam: 40}\nevaluation: {measures: [HIT@40]}",
        "sft: {scoring: vocabulary, loss: all}",
        "synthesis: {constraint_queries: 2, constraint_fields: [source]}",
        "synthesis: {chunk_queries: 0, sentence_queries: 0}",
        "corpus: {path: x, train_split: train}\nexamples: {context2id: none}\n"
        "synthesis: {chunk_queries: 0, sentence_queries: 0}",
        "corpus: {type: jsonl, path: x, queries_path: y, qrels_path: z}",
    ],
)
def test_values_that_do_go_together_are_taken(text):
    assert isinstance(parse_config(text, "my.yaml"), RunConfig)


def test_rules_hold_in_code_too():
    with pytest.raises(ValidationError, match="hidden_size: expected a multiple"):
        ScratchModel(hidden_size=30, heads=4)
    with pytest.raises(ValidationError, match="loss: expected completion"):
        SftConfig(loss="all")
    with pytest.raises(ValidationError, match="path: expected nothing"):
        CorpusConfig(type="python_docs", path="x")


def test_all_problems_are_told_at_once():
    text = "seed: -1\nseed: 2\nsft:\n  epochz: 1\n  schedule: cosin\nretrieval:\n  beam: 0\n"
    found = problems(text, "seed", "rpo.beta=x", "mining.stategy=top")
    assert [line.split(": ")[0] for line in found] == [
        "my.yaml, line 2",
        "override 'seed'",
        "my.yaml, line 5",
        "my.yaml, line 4",
        "override 'mining.stategy=top'",
        "override 'rpo.beta=x'",
        "my.yaml, line 7",
    ]
    assert found[0] == "my.yaml, line 2: seed: stands twice; first in line 1"
    both = problems("retrieval: {beam: 5}", "synthesis.preference_queries=0")
    assert [line.split(": ")[1] for line in both] == ["retrieval.retrievers", "retrieval.beam"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.epochs", "override 'sft.epochs': expected section.field=value"),
        ("=3", "override '=3': expected section.field=value"),
        ("sft..epochs=3", "override 'sft..epochs=3': expected section.field=value"),
        ("sft.epochz=3", "override 'sft.epochz=3': sft.epochz: unknown key; did you mean epochs?"),
        ("stf.epochs=3", "override 'stf.epochs=3': stf: unknown key; did you mean sft?"),
        ("rpo.x.y=3", "override 'rpo.x.y=3': rpo.x: unknown key"),
        ("seed.x=3", "override 'seed.x=3': expected seed to be a section, found 3"),
        ("seed=[", "override 'seed=[', line 1: expected YAML, found an error: "),
        ("sft={epochs: 1, epochs: 2}", "override 'sft={epochs: 1, epochs: 2}', line 1: epochs: stands twice"),
        ("seed=", "override 'seed=': seed: expected a whole number from 0 to 2147483647, found \"\""),
        (
            "sft.tuning.method=lora",
            "override 'sft.tuning.method=lora': sft.tuning.method: expected full with a model",
        ),
        ("corpus={type: jsonl, pth: x}", "override 'corpus={type: jsonl, pth: x}': corpus.pth: unknown key"),
        (
            "name=!!binary aaaa",
            "override 'name=!!binary aaaa': expected YAML, found an error: the tag tag:yaml.org",
        ),
    ],
)
def test_overrides_are_refused_by_name(override, message):
    assert problem(SMALL, override).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "my.yaml: expected keys and values at the top level, found nothing"),
        ("# only a comment\n", "my.yaml: expected keys and values at the top level, found nothing"),
        ("- a\n", 'my.yaml: expected keys and values at the top level, found ["a"]'),
        ("text", 'my.yaml: expected keys and values at the top level, found "text"'),
        ("seed: 1\nsft: [1\n", "my.yaml, line 3: expected YAML, found an error: "),
        ("seed: 1\n\tname: x\n", "my.yaml, line 2: expected YAML, found an error: "),
        (
            "seed: 1\n---\nseed: 2\n",
            "my.yaml, line 2: expected YAML, found an error: but found another document",
        ),
        ("a: \x00", "my.yaml: expected YAML, found an error: unacceptable character"),
        (
            "a: !!python/object:os.system x",
            "my.yaml: expected YAML, found an error: the tag tag:yaml.org,2002:python",
        ),
        ("a: !!set {b}", "my.yaml: expected YAML, found an error: the tag tag:yaml.org,2002:set in line 1"),
        ("a: !!int b", "my.yaml: expected YAML, found an error: the tag tag:yaml.org,2002:int in line 1 does not"),
        ('name: "\\ud800"', "my.yaml: expected YAML, found an error: 'utf-8' codec can't encode"),
        ("a: &x [*x]", "my.yaml: expected YAML, found an error: Circular reference"),
        ("? [a]\n: b", "my.yaml, line 1: expected YAML, found an error: found unhashable key"),
        ("[" * 5000, "my.yaml: expected YAML, found an error: maximum recursion depth"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_refused(text, message):
    assert problem(text).startswith(message)


def test_duplicate_keys_are_named_at_every_level():
    assert problems("sft:\n  epochs: 1\n  model:\n    type: scratch\n    type: scratch\n  epochs: 2\n") == [
        "my.yaml, line 5: sft.model.type: stands twice; first in line 4",
        "my.yaml, line 6: sft.epochs: stands twice; first in line 2",
    ]


YAML_WORDS = ["sft", "seed", "model", "type", "scratch", "&a ", "*a", "<<", "!!int ", "!!bool ", "!!binary "]
YAML_SIGNS = [*"10.e:{}[],'\"-?&*#|>%@\\ \n\u2028", ": ", "\n  ", "- "]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(YAML_WORDS + YAML_SIGNS)).map("".join) | st.text())
def test_any_text_is_a_configuration_or_an_input_error(text):
    try:
        assert isinstance(parse_config(text, "my.yaml"), RunConfig)
    except InputError as error:
        assert str(error).startswith("my.yaml")


# --- where it is read from ---------------------------------------------------------------------------------


def test_a_missing_file_names_the_presets_and_the_nearest(tmp_path):
    name = preset_names()[0]
    with pytest.raises(InputError, match=f"expected a YAML file or one of the presets .*{name}.*did you mean {name}"):
        load_config(name[:-1])
    with pytest.raises(InputError, match=r"nothing-like-it\.yaml: expected .*; found neither$"):
        load_config(tmp_path / "nothing-like-it.yaml")


def test_a_folder_or_binary_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a YAML file in UTF-8"):
        load_config(tmp_path)
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.yaml: expected a YAML file in UTF-8"):
        load_config(path)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "marked.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 5\n")
    assert load_config(path).seed == 5


@pytest.mark.parametrize("name", preset_names())
def test_problems_of_a_preset_name_it(name):
    with pytest.raises(InputError, match=rf"^preset {name}(, line \d+)?: retrieval\.beam: expected at least retrieval"):
        load_config(name, ["retrieval.depth=900"])


# --- what is written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_their_dumps_load_back(name):
    config = load_config(name)
    assert config.name == name
    assert parse_config(dump_config(config), "dump") == config
    assert parse_config(resolved_yaml(config), "resolved") == config


@pytest.mark.parametrize("text", ["{}", SMALL, PRETRAINED, HTTP.format("extra_body: {a: {b: [1, null, x, 1e-3]}}")])
def test_dumps_load_back(text):
    config = parse_config(text, "my.yaml")
    assert parse_config(dump_config(config), "dump") == config
    assert parse_config(resolved_yaml(config), "resolved") == config


@settings(deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    fields=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    name=st.from_regex(r"\A[a-z0-9_.-]+\Z") | st.sampled_from(["null", "1e5", "true", "~", "0x1", "12", "-", ".5"]),
    rate=st.floats(1e-300, 1.0),
    suffix=st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.sampled_from(["\n", " #", ": ", "'\""]),
)
def test_any_values_survive_a_dump(text, fields, name, rate, suffix):
    config = RunConfig.model_validate(
        {
            "name": f"_{name}" if name[0] in ".-" else name.replace("~", "a"),
            "corpus": {"id_field": text, "path": text},
            "synthesis": {"constraint_fields": fields},
            "sft": {
                "model": {"type": "pretrained", "name": name, "prompt_suffix": suffix},
                "learning_rate": rate,
            },
        }
    )
    assert parse_config(dump_config(config), "dump") == config
    assert parse_config(resolved_yaml(config), "resolved") == config


def test_a_dump_tells_the_meaning_of_every_field():
    dumped = dump_config(parse_config(SMALL, "my.yaml"))
    assert (
        "# Seed of everything random. (a whole number from 0 to 2147483647)\nseed: 3\n\n# Where the documents"
    ) in dumped
    assert "    # Number of decoder layers. (a whole number from 1 to 64)\n    layers: 2\n" in dumped
    lines = dumped.splitlines()
    for number, line in enumerate(lines):
        assert len(line) <= 110
        if re.match(r" *\w+:", line):
            assert lines[number - 1].lstrip().startswith("# ")
    assert yaml.safe_load(dumped)["retrieval"]["retrievers"] == ["sft", "bm25"]


# --- the fields themselves ---------------------------------------------------------------------------------


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_documented_and_bounded(field):
    assert field.description
    assert len(field.description.split()) >= 2
    assert field.description.rstrip().endswith((".", ")"))
    if field.annotation in (int, float):
        bounds = {type(mark).__name__ for mark in field.metadata}
        assert bounds & {"Ge", "Gt"}
        assert bounds & {"Le", "Lt"} or "0: all" in field.description


def test_the_walk_over_sections_finds_them_all():
    found = {section.__name__ for section in all_sections()}
    assert {kind.__name__ for kind in Section.__subclasses__()} == found
    assert {kind.__name__ for kind in typing.get_args(typing.get_args(ModelConfig)[0])} <= found


@pytest.mark.parametrize(
    ("section", "name"),
    [
        pytest.param(section.__name__, name, id=f"{section.__name__}.{name}")
        for section in all_sections()
        for name in section.model_fields
    ],
)
def test_every_field_is_used(section, name):
    root = Path(genret.__file__).parent
    sources = [path for path in root.rglob("*.py") if path.parent != root / "config"]
    used = re.compile(rf'\.{name}\b|"{name}"')
    assert any(used.search(path.read_text(encoding="utf-8")) for path in sources), f"{section}.{name} is dead"


def test_multihop_queries_need_a_language_model() -> None:
    with pytest.raises(InputError, match=r"synthesis\.multihop_queries: expected 0 with llm\.type extractive, found 3"):
        load_config("quickstart", ["synthesis.multihop_queries=3"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "retrieval: {retrievers: [dense]}\nsynthesis: {chunk_queries: 0, sentence_queries: 0}",
            "dense.epochs: expected 0 where no synthetic queries are written to train with, found 1.0",
        ),
        (
            "negatives: {source: random, adjust_share: true}",
            "negatives.adjust_share: expected false with the source random, found true",
        ),
        (
            "negatives: {adjust_share: true}\ndense: {validation_queries: 0}",
            "dense.validation_queries: expected at least 1 with negatives.adjust_share, found 0",
        ),
    ],
)  # fmt: skip
def test_what_dense_training_cannot_do_is_refused(text, message):
    assert message in problem(text)


@pytest.mark.parametrize("gpus", [0.0, 0.25, 1.0, 4.0])
def test_a_part_of_one_gpu_or_whole_ones_are_taken(gpus: float) -> None:
    config = load_config("quickstart", [f"compute.gpus_a_worker={gpus}", f"serving.generative.gpus={gpus}"])
    assert config.compute.gpus_a_worker == config.serving.generative.gpus == gpus
