"""A small run that serves at once: its retrievers are made without training, in a second and without Ray."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from genret.config import ExtractiveConfig, parse_config, resolved_yaml
from genret.identifiers.build import build_identifiers
from genret.llm.extractive import CorpusStatistics, ExtractiveEngine
from genret.retrieval.base import retrieve_run
from genret.retrieval.bm25 import Bm25Retriever
from genret.retrieval.dense import open_embedder, write_index
from genret.retrieval.opening import load_retriever
from genret.runs import RunStore
from genret.tables import passages_to_table, table_from_rows
from genret.training.base import build_base, passage_texts
from genret.training.encoder import EncoderPlace, build_scratch_encoder
from genret.types import Passage

TOPICS = {
    "river": "water flood bridge boat fish current bank delta glacier stream",
    "oven": "bread dough flour yeast bake crust cake sugar butter loaf",
    "train": "rail station ticket platform engine carriage signal freight track timetable",
    "garden": "tomato soil seed compost bee flower hedge mulch harvest spade",
}

SETTINGS = """
name: small
corpus: {type: beir, path: nowhere}
identifiers: {keywords: 3, type: IDENTIFIERS}
synthesis: {preference_queries: 0}
sft:
  model: {type: scratch, vocabulary_size: 500, hidden_size: 64, intermediate_size: 64, layers: 1, heads: 2}
  scoring: SCORING
  max_tokens: 48
dense: {model: {type: scratch, vocabulary_size: 400, dimensions: 16}, max_tokens: 32, epochs: 0}
retrieval: {retrievers: [sft, bm25, fusion], search: SEARCH, fusion: {parts: [sft, bm25]}, k1: K1}
"""


def small_passages(count: int = 40) -> list[Passage]:
    """Passages with words of their topic and one word of their own."""
    passages = []
    for number in range(count):
        topic = list(TOPICS)[number % len(TOPICS)]
        words = TOPICS[topic].split()
        chosen = [words[(number * step + number) % len(words)] for step in (1, 2, 3)]
        text = f"The {topic} has a {chosen[0]} and a {chosen[1]} and a {chosen[2]} near the model{number}x."
        metadata = {"topic": topic, "year": 2000 + number % 10, "date": f"20{number % 30:02d}-01-02"}
        passages.append(Passage(f"d{number}", f"d{number}", text, f"{topic} model{number}x", metadata))
    return passages


def make_run(
    folder: Path,
    identifiers: str = "semantic",
    search: str = "beam",
    k1: float = 1.2,
    scoring: str = "trie",
    dense: bool = False,
    count: int = 40,
) -> RunStore:
    """A run with the stages that a service reads; another k1 makes another version of the same run.

    Its corpus has `count` passages, the first so many that there are.
    With `dense` it has such a retriever too, whose encoder is one from scratch as it is before training.
    """
    text = SETTINGS.replace("IDENTIFIERS", identifiers).replace("SEARCH", search).replace("K1", str(k1))
    text = text.replace("SCORING", scoring)
    config = parse_config(text, "small")
    store, mark = RunStore(folder), f"k{int(k1 * 1000):015x}"
    passages = passages_to_table(small_passages(count))
    queries = table_from_rows(
        "test_queries", [{"query_id": f"q{n}", "text": f"what is near the model{n}x"} for n in range(12)]
    )
    assert isinstance(config.llm, ExtractiveConfig)
    engine = ExtractiveEngine(config.llm, CorpusStatistics.fit(small_passages(count)), config.seed)
    tables = build_identifiers(config.identifiers, passages, engine)
    examples = table_from_rows(
        "sft_examples",
        [
            {"prompt": row["passage_id"], "completion": row["identifier"], "kind": "query2id"}
            for row in tables["identifiers"].to_pylist()
        ],
    )
    bundle = build_base(config.sft, passages, tables["identifiers"], examples, config.identifiers.type, config.seed)

    def commit(stage: str, folders: dict[str, Callable[[Path], None]], written: dict[str, pa.Table]) -> None:
        writer = store.begin(stage, mark)
        for name, save in folders.items():
            place = folder.parent / f"{folder.name}-{stage}-{mark}"
            place.mkdir(parents=True, exist_ok=True)
            save(place)
            writer.write_folder(name, place)
        for name, table in written.items():
            writer.write_table(name, table)
        writer.commit({"seconds": 0})

    commit("corpus", {}, {"passages": passages, "test_queries": queries})
    commit("identifiers", {}, {"identifiers": tables["identifiers"]})
    commit("sft", {"sft": bundle.save}, {})
    commit("bm25", {"bm25": Bm25Retriever.build(passages, config.retrieval).save}, {})
    stages, names = ["corpus", "identifiers", "sft", "bm25"], ["sft", "bm25", "fusion"]
    if dense:
        encoder = build_scratch_encoder(config.dense, passage_texts(passages), config.seed)
        commit("encoder", {"encoder": encoder.save}, {})
        store.set_current({"encoder": mark})
        place, scratch = EncoderPlace(store.url, "encoder", config.dense), store.scratch("embedding", mark)
        open_embedder(place, store.current(), scratch, torch.get_num_threads())((0, passages))
        ids = passages.column("passage_id")
        commit("embedding", {"embedding": lambda made: write_index(made, scratch, ids, place)}, {})
        stages, names = [*stages, "encoder", "embedding"], [*names, "dense"]
    store.write_file("config.yaml", resolved_yaml(config))
    store.set_current(dict.fromkeys(stages, mark))
    records = store.current()
    runs = [retrieve_run(load_retriever(store, records, name, config.retrieval), queries, 10) for name in names]
    commit("retrieval", {}, {"run": pa.concat_tables(runs)})
    store.set_current(dict.fromkeys([*stages, "retrieval"], mark))
    return store


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A run with `sft`, `bm25` and `fusion`."""
    return make_run(tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(scope="session")
def dense_run(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """`small_run` with `dense` too."""
    return make_run(tmp_path_factory.mktemp("dense") / "run", dense=True)


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., RunStore]:
    """Makes runs of one's own: `make_run` but for the folder, in a folder that is the same within a test."""
    return lambda **settings: make_run(tmp_path / "run", **settings)
