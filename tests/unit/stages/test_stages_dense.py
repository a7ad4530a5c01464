"""What the dense stages tell."""

from pathlib import Path

import pyarrow as pa

from genret.config import DenseConfig, PretrainedEncoder, ScratchEncoder, parse_config
from genret.retrieval.dense import open_embedder
from genret.runs import RunStore
from genret.stages.context import Context
from genret.stages.dense import run_embedding
from genret.training.base import passage_texts
from genret.training.encoder import EncoderPlace, build_scratch_encoder

SCRATCH = DenseConfig(model=ScratchEncoder(vocabulary_size=400, dimensions=16), max_tokens=32)


class Silent:
    """A reporter that nobody reads."""

    def stage_started(self, stage: str) -> None: ...

    def progress(self, stage: str, done: int, total: int, unit: str, note: str) -> None: ...

    def stage_finished(self, record: object, reused: bool) -> None: ...


def test_an_embedding_names_the_family_that_texts_are_read_as(passages: pa.Table, tmp_path: Path) -> None:
    folder = tmp_path / "e5-base"
    folder.mkdir()
    build_scratch_encoder(SCRATCH, passage_texts(passages), seed=0).save(folder)
    section = SCRATCH.model_copy(update={"model": PretrainedEncoder(name=str(folder)), "epochs": 0.0})
    config = parse_config("corpus: {type: beir, path: nowhere}", "test").model_copy(update={"dense": section})
    store = RunStore(tmp_path / "run")
    context = Context(config, store, Silent(), mark="0" * 16)
    corpus = store.begin("corpus", "0" * 16)
    corpus.write_table("passages", passages)
    context.records["corpus"] = corpus.commit({})
    # All blocks are there: nothing is left to a pool of workers.
    embed = open_embedder(EncoderPlace.of("", section, base=False), {}, store.scratch("embedding", context.mark), 1)
    embed((0, passages))
    writer = store.begin("embedding", context.mark)
    assert run_embedding(context, writer) == {"blocks_kept": 1, "family": "e5"}
