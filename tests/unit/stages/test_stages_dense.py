"""What the dense stages tell."""

from pathlib import Path

import pyarrow as pa
import pytest
from silent import Silent

from genret.config import DenseConfig, PretrainedEncoder, ScratchEncoder, parse_config
from genret.errors import InputError
from genret.retrieval.dense import open_embedder
from genret.retrieval.opening import load_retriever
from genret.runs import RunStore
from genret.stages.context import Context
from genret.stages.dense import run_embedding, run_lists
from genret.training.base import passage_texts
from genret.training.encoder import EncoderPlace, build_scratch_encoder

SCRATCH = DenseConfig(model=ScratchEncoder(vocabulary_size=400, dimensions=16), max_tokens=32)


def dense_run(passages: pa.Table, folder: Path, section: DenseConfig) -> Context:
    """A run with a corpus, of which all blocks of vectors are there: nothing is left to a pool of workers."""
    config = parse_config("corpus: {type: beir, path: nowhere}", "test").model_copy(update={"dense": section})
    store = RunStore(folder)
    context = Context(config, store, Silent(), mark="0" * 16)
    corpus = store.begin("corpus", "0" * 16)
    corpus.write_table("passages", passages)
    context.records["corpus"] = corpus.commit({})
    embed = open_embedder(EncoderPlace.of("", section, base=False), {}, store.scratch("embedding", context.mark), 1)
    embed((0, passages))
    return context


@pytest.fixture
def pretrained(passages: pa.Table, tmp_path: Path) -> DenseConfig:
    folder = tmp_path / "e5-base"
    folder.mkdir()
    build_scratch_encoder(SCRATCH, passage_texts(passages), seed=0).save(folder)
    return SCRATCH.model_copy(update={"model": PretrainedEncoder(name=str(folder)), "epochs": 0.0})


def test_an_embedding_names_the_family_that_texts_are_read_as(
    passages: pa.Table, pretrained: DenseConfig, tmp_path: Path
) -> None:
    context = dense_run(passages, tmp_path / "run", pretrained)
    writer = context.store.begin("embedding", context.mark)
    assert run_embedding(context, writer) == {"blocks_kept": 1, "family": "e5"}


def test_lists_are_made_of_the_vectors_that_are_there(
    passages: pa.Table, pretrained: DenseConfig, tmp_path: Path
) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed")
    context = dense_run(passages, tmp_path / "run", pretrained.model_copy(update={"index": "lists"}))
    for stage, act in (("embedding", run_embedding), ("lists", run_lists)):
        writer = context.store.begin(stage, context.mark)
        context.records[stage] = writer.commit(act(context, writer))
    assert "lists.faiss" not in context.records["embedding"].folders["embedding"]["files"]
    assert list(context.records["lists"].folders["lists"]["files"]) == ["lists.faiss"]
    queries, search = ["knead dough with yeast", "glacier lake in winter"], context.config.retrieval
    listed = load_retriever(context.store, context.records, "dense", search).retrieve(queries, 3)
    without = {name: record for name, record in context.records.items() if name != "lists"}
    exact = load_retriever(context.store, without, "dense", search).retrieve(queries, 3)
    assert [[place.passage_id for place in found] for found in listed] == [
        [place.passage_id for place in found] for found in exact
    ]
    faiss_file = context.store.local_folder(context.records["lists"], "lists") / "lists.faiss"
    faiss_file.write_bytes(b"x" * faiss_file.stat().st_size)
    with pytest.raises(InputError, match="expected an index of faiss"):
        load_retriever(context.store, context.records, "dense", search)
