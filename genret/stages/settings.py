"""What of a configuration decides the output of each stage, and which stages it has."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from genret.asking import needs_neighbours
from genret.config import DenseConfig, PretrainedEncoder, PretrainedModel, RunConfig, ScratchEncoder, SftConfig
from genret.config.section import Section
from genret.corpus.readers import source_fingerprint
from genret.examples.contrastive import USES_RETRIEVED, USES_SYNTHETIC
from genret.llm.filters import Limits
from genret.stages.engines import query_limits
from genret.stages.folders import folder_content

# Raised when a change of the code changes the evaluation alone: nobody wants to train again for a new table.
_EVALUATION_VERSION = 3


def dumped(*sections: str) -> Callable[[RunConfig], Any]:
    """All of some sections, but for what never changes an output."""

    def settings(config: RunConfig) -> Any:
        return {name: _dump(getattr(config, name)) for name in sections}

    return settings


def seeded(*sections: str) -> Callable[[RunConfig], Any]:
    """Likewise, with the seed."""
    return lambda config: dumped(*sections)(config) | {"seed": config.seed}


def _dump(section: Section) -> dict[str, Any]:
    values = section.model_dump(mode="json", exclude=set(section.INCIDENTAL))
    if isinstance(section, SftConfig | DenseConfig):
        values["model"] = _model_settings(section)
    return values


def _model_settings(section: SftConfig | DenseConfig) -> dict[str, Any]:
    """Of a model in a local folder the content decides, not where it lies."""
    model = section.model
    values = model.model_dump(mode="json")
    content = folder_content(model.name) if isinstance(model, PretrainedModel | PretrainedEncoder) else None
    if content is None:
        return values
    if isinstance(section, DenseConfig):
        # The folder's name may tell how texts are read. It takes seconds to import, which only a folder costs.
        from genret.training.encoder import chosen_family

        values["family"] = chosen_family(section)
    return values | {"name": content}


def _settings_of(config: RunConfig, section: str, names: tuple[str, ...]) -> dict[str, Any]:
    values = _dump(getattr(config, section))
    return {name: values[name] for name in names} | {"seed": config.seed}


def corpus_settings(config: RunConfig) -> Any:
    """The content decides, not where it lies: a moved folder is the same corpus."""
    settings = config.corpus.model_dump(mode="json", exclude={"path", "queries_path", "qrels_path"})
    return settings | {"source": source_fingerprint(config.corpus)}


def synthesis_settings(config: RunConfig) -> Any:
    """With those of BM25, where it finds neighbours or checks queries."""
    bm25 = {"bm25": bm25_settings(config)} if needs_neighbours(config) else {}
    return seeded("synthesis", "llm")(config) | bm25


def base_settings(config: RunConfig) -> Any:
    """The starting model is made of parts of two sections."""
    sft = _dump(config.sft)
    return {name: sft[name] for name in ("model", "scoring", "max_tokens")} | {
        "identifier_type": config.identifiers.type,
        "seed": config.seed,
    }


def bm25_settings(config: RunConfig) -> Any:
    """Those of the index, not of the search."""
    retrieval = config.retrieval.model_dump(mode="json")
    return {name: retrieval[name] for name in ("variant", "stemming", "language", "k1", "b")}


def encoder_settings(config: RunConfig) -> Any:
    """Those of the encoder before training."""
    dense = _dump(config.dense)
    return {"model": dense["model"], "max_tokens": dense["max_tokens"], "seed": config.seed}


def candidates_settings(config: RunConfig) -> Any:
    """Which queries, and what retrieves for them."""
    return _settings_of(config, "negatives", ("source", "retriever", "candidates", "queries_a_passage"))


def negatives_settings(config: RunConfig) -> Any:
    """How many are written by which engine."""
    limits = {} if config.llm.type == "extractive" else {"limits": asdict(query_limits(config) or Limits())}
    chosen = _settings_of(config, "negatives", ("count", "max_score_ratio"))
    return chosen | dumped("llm")(config) | limits


def contrastive_settings(config: RunConfig) -> Any:
    """How negatives are chosen."""
    return _settings_of(config, "negatives", ("source", "count", "max_score_ratio"))


def dense_settings(config: RunConfig) -> Any:
    """Those of training, not of the index."""
    mixing = _settings_of(config, "negatives", ("count", "synthetic_share", "adjust_share"))
    dense = _dump(config.dense)
    return {"mixing": mixing, "dense": {name: dense[name] for name in dense.keys() - {"vectors", "index"}}}


def embedding_settings(config: RunConfig) -> Any:
    """Those of the encoder and its vectors."""
    return _settings_of(config, "dense", ("model", "max_tokens", "vectors"))


def lists_settings(config: RunConfig) -> Any:
    """The vectors decide all but the draw."""
    return {"seed": config.seed}


def evaluation_settings(config: RunConfig) -> Any:
    """With the version of its tables."""
    return seeded("evaluation")(config) | {"version": _EVALUATION_VERSION}


def report_settings(config: RunConfig) -> Any:
    """It shows all of the configuration that decides results."""
    return config.model_dump(mode="json", exclude={"compute", "serving"})


def has_generative(config: RunConfig) -> bool:
    """Whether it trains the generative retriever."""
    return bool({"sft", "rpo"} & set(config.retrieval.retrievers))


def has_preference(config: RunConfig) -> bool:
    """Whether it trains on preferences: nobody waits for a model that is not compared."""
    return "rpo" in config.retrieval.retrievers


def has_second_round(config: RunConfig) -> bool:
    """Whether it mines and trains on preferences again."""
    return has_preference(config) and config.preference.rounds == 2


def has_dense(config: RunConfig) -> bool:
    """Whether it has a dense retriever."""
    return "dense" in config.retrieval.retrievers


def has_lists(config: RunConfig) -> bool:
    """Whether the dense retriever's index has lists; the one that negatives are looked up in never has."""
    return has_dense(config) and config.dense.index == "lists"


def trains_dense(config: RunConfig) -> bool:
    """Whether it trains the dense retriever."""
    return has_dense(config) and config.dense.epochs > 0


def writes_negatives(config: RunConfig) -> bool:
    """Whether hard negatives are written for it."""
    return trains_dense(config) and config.negatives.source in USES_SYNTHETIC


def embeds_base(config: RunConfig) -> bool:
    """Whether the untrained encoder finds the negatives."""
    retrieves = config.negatives.source in USES_RETRIEVED | USES_SYNTHETIC
    return trains_dense(config) and retrieves and config.negatives.retriever == "dense_base"


def builds_encoder(config: RunConfig) -> bool:
    """Whether the dense retriever's encoder is made from the corpus."""
    return has_dense(config) and isinstance(config.dense.model, ScratchEncoder)
