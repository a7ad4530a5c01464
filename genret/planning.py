"""What a run will take, before it is started: rows, tokens, GPU hours, time, disk, memory and money of each stage.

Rows follow from the configuration and the corpus, by the rules of the stages themselves. Seconds are

    start-up + work / (rate x workers)

where the work of a stage is counted in the unit of `UNITS` (`genret.rates`):

* training: floating point operations. 6 a parameter and token (forward 2, backward 4; Kaplan et al., arXiv 2001.08361,
  section 2.1) for the rows of supervised fine-tuning; for a preference pair 6 for its two identifiers and 2 for each
  under the reference model. Parameters are those of the blocks; the output layer counts where it is read: for `trie`
  scoring the children's rows, once a row of training, for `vocabulary` all of it, at every token.
* mining and retrieval: 2 operations a parameter for every token of the query and of the hypotheses in the beam.
* asking a language model: tokens of prompts and answers (`genret.llm.budget` counts those of a corpus at hand).
* all else: rows.

A rate is one of `RATES`, measured once; or that of a finished run (`measured_rates`), which makes up for the machine,
where its work had the same unit and was done on the same kind of device; or given.

Peak disk is what the tables and models of the stages so far take, and the stage's own checkpoints. Peak memory of
training is 16 bytes a parameter (weights, gradients, two moments of AdamW, 4 bytes each; Rajbhandari et al., arXiv
1910.02054, section 3.1), shared out with ZeRO-3, and the activations of a micro-batch, 34 bytes a token that is read,
layer and unit of width (Korthikanti et al., arXiv 2205.05198, equation 2, without the square of the length); of a
search 4 bytes a parameter, and on CPUs as much again for what is laid out once more; of stages that read all texts
into memory twice the texts.

Not covered: a language model behind HTTP while its server is busy, failures, waiting for machines, and transfers to
object stores.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from genret.asking import ASKING_STAGES
from genret.config import PretrainedModel, RpoConfig, RunConfig, ScratchModel, SftConfig, VllmConfig
from genret.corpus.chunking import chunk_text
from genret.decoding.limits import LARGEST_COPY
from genret.errors import InputError
from genret.examples.contrastive import USES_RETRIEVED, USES_SYNTHETIC
from genret.examples.sft import annotated_rows, row_counts
from genret.llm.base import Request
from genret.llm.budget import Budget
from genret.pipeline import planned
from genret.placement import NodeGroup, Resources
from genret.rates import START_SECONDS, UNITS, Rate, usual_rate
from genret.runs import StageRecord
from genret.stages.texts import ROWS_FOR_ACTORS
from genret.synthesis.answers import preference_requests
from genret.synthesis.negatives import CONTEXT
from genret.synthesis.queries import query_requests

_SAMPLE = 2000
_HOUR = 3600.0
_WORDS_A_SENTENCE = 20
_TOKENS_A_WORD = 1.35
_BYTES_A_WORD = 6.0
_KEYWORD_TOKENS = 16

_LEAST_SECONDS = 0.01  # what records of stages are rounded to
_PRETRAINED_VOCABULARY = 32_000  # Mistral's; others have up to eight times as many tokens
_PROMPT_TOKENS = 250.0  # of the instructions in a prompt
_ANSWER_TOKENS = 25.0  # of a query in an answer

# Bytes a row in compressed Parquet, by the quickstart; texts of a language model are about as long.
_ROW_BYTES = {
    "queries": 36.0,
    "preference": 43.0,
    "examples": 45.0,
    "pairs": 16.0,
    "rankings": 9.0,
    "identifiers": 12.0,
}
_TEXT_SHARE = 0.4  # of texts that zstd leaves
_PROCESS_BYTES = 7e8  # of a process with torch and Ray in it, before it does anything
# What stages that map their tables from files hold of a passage: keys, order (by `benchmarks/scaling.py`).
_HELD_BYTES = 300.0
_MAPPED = frozenset({"corpus", "identifiers", "synthesis", "examples"})


@dataclass(frozen=True)
class CorpusSize:
    """How large a corpus is.

    Attributes:
        passages: Number of passages.
        words: Of a passage, on average.
        queries: SFT queries that are asked for, all kinds together, of a passage on average.
        contexts: Context2ID rows of a passage, on average.
        preference: Preference queries of a passage.
        test_queries: Queries to evaluate with.
    """

    passages: int
    words: float
    queries: float
    contexts: float
    preference: float
    test_queries: int


def measure_corpus(config: RunConfig, passages: pa.Table, test_queries: int) -> CorpusSize:
    """The size of a corpus that is at hand, by a sample of 2000 passages."""
    count = passages.num_rows
    if not count:
        raise InputError("plan: expected a corpus with passages, found none")
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64))
    sample = passages.take(pa.array(chosen))
    texts = [f"{row['title']}\n{row['text']}" for row in sample.select(["title", "text"]).to_pylist()]
    size = len(texts)
    words = sum(len(text.split()) for text in texts) / size
    chunks = sum(len(chunk_text(text, config.examples.context_tokens)) for text in texts) / size

    def asked(requests: Iterable[Request]) -> float:
        return sum(request.n for request in requests) / size

    return CorpusSize(
        passages=count,
        words=words,
        queries=asked(query_requests(config.synthesis, sample)),
        contexts=_contexts(config, chunks, words),
        preference=asked(preference_requests(config.synthesis, sample)),
        test_queries=test_queries,
    )


def assume_corpus(config: RunConfig, passages: int, words: float, test_queries: int) -> CorpusSize:
    """The size of a corpus of which only the number of passages and their length is known.

    Sentences are taken to have 20 words.
    """
    sentences = max(1.0, words / _WORDS_A_SENTENCE)
    kept = min(sentences, config.synthesis.max_sentences or sentences)
    synthesis = config.synthesis
    return CorpusSize(
        passages,
        words,
        synthesis.chunk_queries + kept * synthesis.sentence_queries + synthesis.constraint_queries,
        _contexts(config, math.ceil(words / config.examples.context_tokens), words),
        float(synthesis.preference_queries),
        test_queries,
    )


def _contexts(config: RunConfig, chunks: float, words: float) -> float:
    if config.examples.context2id == "none":
        return 0.0
    return chunks if config.examples.context2id == "chunk" else 1.0 + words / _WORDS_A_SENTENCE


@dataclass(frozen=True)
class Model:
    """What of a model counts.

    Attributes:
        blocks: Parameters of its decoder blocks.
        parameters: All.
        width: Its hidden size.
        layers: Its decoder blocks.
        read: Parameters of the output layer that a training row reads once (`trie`) ...
        read_a_token: ... or at each token (`vocabulary`).
    """

    blocks: float
    parameters: float
    width: int
    layers: int
    read: float
    read_a_token: float


def model_size(config: RunConfig, passages: int, parameters: float = 0.0) -> Model:
    """The model that is trained.

    Args:
        config: The configuration.
        passages: Number of passages: with atomic identifiers each has rows of its own.
        parameters: Of a pretrained model whose name does not tell (mistralai/Mistral-7B does).

    Raises:
        InputError: The name does not tell, and nobody else does.
    """
    model = config.sft.model
    own = passages if config.identifiers.type == "atomic" else 0
    if isinstance(model, ScratchModel):
        width = model.hidden_size
        blocks = model.layers * (4 * width * width + 3 * width * model.intermediate_size + 2 * width) + width
        output = (model.vocabulary_size + own) * width
        # No node has more children than there are passages.
        children = min(passages, model.vocabulary_size + own) * width
        return Model(blocks, blocks + 2 * output, width, model.layers, *_output(config, children, output))
    parameters = parameters or named_parameters(model)
    if not parameters:
        raise InputError(
            f"plan: expected --parameters, as the model's name {model.name!r} does not tell how many it has"
        )
    # Of decoders of this family: parameters are about 12 x layers x width^2, and width about 128 x layers.
    layers = max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
    width = 128 * layers
    output = own * width
    children = (own or min(passages, _PRETRAINED_VOCABULARY)) * width
    return Model(parameters, parameters + 2 * output, width, layers, *_output(config, children, output))


def named_parameters(model: ScratchModel | PretrainedModel) -> float:
    """How many parameters a pretrained model has by its name; 0 where that does not tell, or there is none."""
    name = model.name.rpartition("/")[2] if isinstance(model, PretrainedModel) else ""
    found = re.search(r"(\d+(?:\.\d+)?)[bB]\b", name)
    return float(found[1]) * 1e9 if found else 0.0


def _output(config: RunConfig, children: float, output: float) -> tuple[float, float]:
    return (children, 0.0) if config.sft.scoring == "trie" else (0.0, output)


@dataclass(frozen=True)
class StagePlan:
    """What a stage takes.

    Attributes:
        stage: Its name.
        rows: That it writes.
        tokens: That it reads and writes through a model; 0 where there is none.
        work: In the unit of `UNITS`.
        workers: Workers side by side.
        bundle: CPUs and GPUs of each.
        disk: Bytes of the run after it, its checkpoints included.
        memory: Bytes of a worker, or of the driver where that holds more.
        seconds: Wall time.
        price: By the given prices; None where there are none.
        unit: Of the work, where it is not that of `UNITS`.
    """

    stage: str
    rows: float
    tokens: float
    work: float
    workers: int
    bundle: Resources
    disk: float = 0.0
    memory: float = 0.0
    seconds: float = 0.0
    price: float | None = None
    unit: str = ""

    @property
    def counted_in(self) -> str:
        """The unit of the work."""
        return self.unit or UNITS[self.stage]

    @property
    def device(self) -> str:
        """What does the work: GPU, CPU, or a server that is none of the run's."""
        return next((name for name in ("GPU", "CPU") if self.bundle.get(name)), "server")

    @property
    def gpu_hours(self) -> float:
        """Hours of a GPU, all of them together."""
        return self.seconds * self.workers * self.bundle.get("GPU", 0.0) / _HOUR


def plan(
    config: RunConfig,
    size: CorpusSize,
    *,
    rates: Mapping[str, float] | None = None,
    like: Mapping[str, Rate] | None = None,
    budget: Budget | None = None,
    parameters: float = 0.0,
    groups: Sequence[NodeGroup] = (),
    prices: Mapping[str, float] | None = None,
) -> list[StagePlan]:
    """What each stage of a configuration takes.

    Args:
        config: The configuration.
        size: Of its corpus.
        rates: Work a second of a worker, by stage, instead of all others.
        like: Rates of a finished run, instead of `RATES` and `GPU_FLOPS`. One that is of other work, or of another
            kind of device, does not count.
        budget: What asking the language model takes, where there is one.
        parameters: See `model_size`.
        groups: Kinds of nodes of the cluster.
        prices: An hour of a node, by its kind; or of a GPU and of a CPU, as `GPU` and `CPU`.

    Returns:
        One plan a stage, in order.
    """
    model = model_size(config, size.passages, parameters)
    stages = {stage.stage: stage for stage in _stages(config, size, model, budget)}
    told = getattr(config.llm, "tokens_a_second", 0.0)
    done, disk = [], 0.0
    for stage in planned(config):
        item = stages[stage.name]
        disk += item.disk
        scratch = 3.0 * 4 * model.parameters if stage.name in ("sft", "rpo", "rpo_2") else 0.0
        rate = _rate(item, rates or {}, like or {}, told)
        seconds = rate.start + item.work / (rate.work * item.workers)
        item = replace(item, disk=disk + scratch, memory=item.memory + _PROCESS_BYTES, seconds=seconds)
        done.append(replace(item, price=_price(item, groups, prices or {})))
    return done


def _rate(item: StagePlan, given: Mapping[str, float], like: Mapping[str, Rate], told: float) -> Rate:
    found = like.get(item.stage)
    if item.stage not in given and found and (found.unit, found.device) == (item.counted_in, item.device):
        return found
    work = given.get(item.stage) or usual_rate(item.stage, item.counted_in, item.bundle.get("GPU", 0.0), told)
    return Rate(work, item.counted_in, item.device, START_SECONDS.get(item.stage, 0.0))


class _Team(NamedTuple):
    """Who works side by side, and what each of them gets."""

    workers: int
    bundle: Resources


_DRIVER = _Team(1, {"CPU": 1.0})


class _Stage(Protocol):
    """Makes the plan of a stage, whose tables the driver holds where no memory is said."""

    def __call__(
        self, name: str, rows: float, work: float, disk: float, team: _Team = ..., *, memory: float | None = ...
    ) -> StagePlan: ...


def _pool(config: RunConfig, *, gpus: bool = False) -> _Team:
    compute = config.compute
    return _Team(compute.cpu_workers, {"CPU": compute.cpus_a_worker} | ({"GPU": compute.gpus_a_worker} if gpus else {}))


def _trainers(config: RunConfig) -> _Team:
    compute = config.compute
    bundle = {"CPU": compute.cpus_a_training_worker, "GPU": float(compute.gpus_a_training_worker)}
    return _Team(compute.training_workers, bundle)


def _stages(config: RunConfig, size: CorpusSize, model: Model, budget: Budget | None) -> Iterable[StagePlan]:
    n = size.passages
    text = n * size.words * _BYTES_A_WORD
    queries, preference = n * size.queries, n * size.preference
    pool, ranking, trainers = _pool(config), _pool(config, gpus=True), _trainers(config)

    def stage(
        name: str, rows: float, work: float, disk: float, team: _Team = _DRIVER, *, memory: float | None = None
    ) -> StagePlan:
        held = n * _HELD_BYTES if name in _MAPPED else 2 * text
        return StagePlan(name, rows, 0.0, work, *team, disk, held if memory is None else memory)

    yield stage("corpus", n, n, _TEXT_SHARE * text)
    semantic = config.identifiers.type == "semantic"
    named = stage("identifiers", n, n, n * _ROW_BYTES["identifiers"], pool if semantic else _DRIVER)
    yield _asked(config, named, size, budget) if semantic else named
    asked = stage(
        "synthesis", queries + preference, queries + preference,
        queries * _ROW_BYTES["queries"] + preference * _ROW_BYTES["preference"], pool,
    )  # fmt: skip
    yield _asked(config, asked, size, budget)
    rows = sum(_row_counts(config, size))
    # The engine without a model works on the pool, which then is there for the contexts too.
    started = config.llm.type == "extractive" and (semantic or queries + preference > 0)
    cut = config.examples.context2id != "none" and (started or n >= ROWS_FOR_ACTORS)
    yield stage("examples", rows, rows, rows * _ROW_BYTES["examples"], pool if cut else _DRIVER)
    made = isinstance(config.sft.model, ScratchModel)  # of a pretrained one, only the tokens are there
    base = (4 * model.parameters, 8 * model.parameters) if made else (1e7, 2 * text)
    yield stage("base", n, n, base[0], memory=base[1])
    row_tokens = _row_tokens(config, size)
    tokens = rows * config.sft.epochs * row_tokens
    work = 6 * (tokens * (model.blocks + model.read_a_token) + rows * config.sft.epochs * model.read)
    memory = _training_memory(config, model, config.sft, row_tokens)
    yield StagePlan("sft", rows, tokens, work, *trainers, 4 * model.parameters, memory)
    searching = _search_memory(config, model)
    candidates = config.mining.candidates
    searched = _search_work(size, model, candidates)
    query_tokens = preference * _query_tokens(config)
    mined = StagePlan("mining", preference, query_tokens, preference * searched, *ranking,
                      preference * _ROW_BYTES["pairs"], searching)  # fmt: skip
    yield from (mined, replace(mined, stage="mining_2"))
    pairs = preference * config.rpo.epochs
    tokens_a_pair = _pair_readings(config) * (_query_tokens(config) + _identifier_tokens(config))
    work = 8 * (pairs * tokens_a_pair * (model.blocks + model.read_a_token) + 2 * pairs * model.read)
    memory = _training_memory(config, model, config.rpo, tokens_a_pair)
    preferred = StagePlan("rpo", pairs, pairs * tokens_a_pair, work, *trainers, 4 * model.parameters, memory)
    yield from (preferred, replace(preferred, stage="rpo_2"))
    yield stage("bm25", n, n, _TEXT_SHARE * text)
    yield from _dense_stages(config, size, stage, budget)
    retrievers = set(config.retrieval.retrievers)
    generative = len({"sft", "rpo"} & retrievers)
    judged = size.test_queries * len(retrievers)
    yield StagePlan("retrieval", judged * config.retrieval.depth,
                    size.test_queries * generative * _query_tokens(config),
                    size.test_queries * generative * _search_work(size, model, config.retrieval.beam),
                    *(ranking if generative or "dense" in retrievers else pool),
                    judged * config.retrieval.depth * _ROW_BYTES["rankings"],
                    searching if generative else 2 * text)  # fmt: skip
    yield stage("evaluation", judged, judged, judged * 100.0)
    yield stage("report", judged, judged, 5e6)


def _dense_stages(config: RunConfig, size: CorpusSize, stage: _Stage, budget: Budget | None) -> Iterable[StagePlan]:
    """The dense retriever, in rows: rates of encoders differ so much that those of a finished run should be given."""
    n, asked = size.passages, _negative_queries(config, size)
    pool, ranking = _pool(config), _pool(config, gpus=True)
    yield stage("encoder", n, n, 5e7)
    yield from (stage(name, n, n, n * 1024.0, ranking) for name in ("base_embedding", "embedding"))
    yield stage("lists", n, n, n * 560.0)
    finders = pool if config.negatives.retriever == "bm25" else ranking
    searched = config.negatives.source in USES_RETRIEVED | USES_SYNTHETIC
    yield stage("candidates", asked, asked, asked * 40.0, finders if searched else _DRIVER)
    yield _asked(config, stage("negatives", asked, asked, asked * 100.0, pool), size, budget)
    yield stage("contrastive", asked, asked, asked * 120.0)
    yield stage("dense", asked, asked * config.dense.epochs, 5e7, _trainers(config))


def _negative_queries(config: RunConfig, size: CorpusSize) -> float:
    """Queries that the dense retriever is trained with."""
    return size.passages * min(config.negatives.queries_a_passage or size.queries, size.queries)


def _asked(config: RunConfig, stage: StagePlan, size: CorpusSize, budget: Budget | None) -> StagePlan:
    """A stage that asks a language model, if there is one: on its replicas, in tokens."""
    if config.llm.type == "extractive":
        return stage
    tokens = _asked_tokens(config, stage.stage, size) if budget is None else _budgeted(stage.stage, budget)
    stage = replace(stage, tokens=tokens, work=tokens, unit="tokens")
    if not isinstance(config.llm, VllmConfig):
        return replace(stage, workers=1, bundle={"CPU": 0.0})
    split = config.llm.tensor_parallel_size
    replica = {"CPU": config.llm.cpus_a_worker * split, "GPU": config.llm.gpus_a_worker * split}
    return replace(stage, workers=config.llm.max_replicas, bundle=replica)


def _budgeted(stage: str, budget: Budget) -> float:
    tokens = dict.fromkeys(ASKING_STAGES, 0)
    for share in budget.shares:
        owner = {"keywords": "identifiers", "negative": "negatives"}.get(share.kind, "synthesis")
        tokens[owner] += share.prompt_tokens + share.answer_tokens
    return float(tokens[stage])


def _asked_tokens(config: RunConfig, stage: str, size: CorpusSize) -> float:
    """Tokens of prompts and answers, of a corpus that is not at hand."""
    passage = size.words * _TOKENS_A_WORD
    if stage == "identifiers":
        return size.passages * (_PROMPT_TOKENS + passage + _KEYWORD_TOKENS)
    if stage == "negatives":
        # The passage, negatives that a retriever found, and those that are written, twice: as drafts and revised.
        texts = 1 + CONTEXT + 2 * config.negatives.count
        return _negative_queries(config, size) * (_PROMPT_TOKENS + texts * passage)
    synthesis = config.synthesis
    whole = sum(bool(n) for n in (synthesis.chunk_queries, synthesis.constraint_queries, synthesis.preference_queries))
    sentences = size.words / _WORDS_A_SENTENCE if synthesis.sentence_queries else 0.0
    sentences = min(sentences, synthesis.max_sentences or sentences)
    prompts = whole * (_PROMPT_TOKENS + passage) + sentences * (_PROMPT_TOKENS + _WORDS_A_SENTENCE * _TOKENS_A_WORD)
    return size.passages * (prompts + _ANSWER_TOKENS * (size.queries + size.preference))


def _query_tokens(config: RunConfig) -> float:
    if config.llm.type == "extractive":
        return (config.llm.min_terms + config.llm.max_terms) / 2 * _TOKENS_A_WORD
    return 15 * _TOKENS_A_WORD


def _row_counts(config: RunConfig, size: CorpusSize) -> tuple[int, int]:
    """Query2ID and Context2ID rows. How many queries people wrote is not known before: as few as their share needs."""
    synthetic = round(size.passages * size.queries)
    annotated = annotated_rows(config.examples, synthetic, 1) if config.corpus.train_split else 0
    return row_counts(config.examples, synthetic + annotated, round(size.passages * size.contexts))


def _row_tokens(config: RunConfig, size: CorpusSize) -> float:
    """Tokens of a training row, on average: queries and contexts as they are mixed, and an identifier."""
    asked, contexts = _row_counts(config, size)
    words = config.examples.context_tokens if config.examples.context2id == "chunk" else _WORDS_A_SENTENCE
    context = min(words, size.words / max(size.contexts, 1.0)) * _TOKENS_A_WORD
    mixed = (asked * _query_tokens(config) + contexts * context) / max(1, asked + contexts)
    return min(config.sft.max_tokens, mixed + _identifier_tokens(config))


def _identifier_tokens(config: RunConfig) -> int:
    """Tokens of an identifier that training reads: up to the last choice where only a node's children are scored."""
    first_decides = config.sft.scoring == "trie" and config.identifiers.order == "distinctive"
    return 1 if config.identifiers.type == "atomic" or first_decides else _KEYWORD_TOKENS


def _pair_readings(config: RunConfig) -> int:
    """How often the query of a pair is read: once a side, as the identifiers' tokens follow it.

    Where one token decides and only the children of the trie are scored, no token of an identifier is read, so that
    both sides read the same.
    """
    return 1 if config.sft.scoring == "trie" and _identifier_tokens(config) == 1 else 2


def _search_work(size: CorpusSize, model: Model, beam: int) -> float:
    return 2 * ((20 + beam * _KEYWORD_TOKENS / 2) * model.blocks + model.read)


def _search_memory(config: RunConfig, model: Model) -> float:
    """Bytes of a searching model's weights, and on a CPU of what is laid out once more for its products."""
    weights = 4 * model.parameters
    if config.compute.gpus_a_worker:
        return weights
    # Over the vocabulary all of the head is multiplied, over the trie its rows of the identifiers' first tokens.
    head = (model.parameters - model.blocks) / 2 if config.sft.scoring == "vocabulary" else model.read
    return weights + sum(4 * part for part in (model.blocks, head) if 4 * part <= LARGEST_COPY)


def _training_memory(config: RunConfig, model: Model, section: SftConfig | RpoConfig, tokens_a_row: float) -> float:
    compute = config.compute
    shards = compute.training_workers if compute.zero_stage == 3 else 1
    layers = 1 if compute.gradient_checkpointing else model.layers
    # As the workers share out a step (`genret.training.sampling.Shares`).
    turns = math.ceil(section.batch_size / (section.micro_batch_size * compute.training_workers))
    micro_batch = math.ceil(section.batch_size / (turns * compute.training_workers))
    return 16 * model.parameters / shards + 34 * micro_batch * tokens_a_row * model.width * layers


def _price(item: StagePlan, groups: Sequence[NodeGroup], prices: Mapping[str, float]) -> float | None:
    """The price of the stage's machines for its time."""
    if not prices:
        return None
    fitting = [group for group in groups if group.name in prices and _fit(group, item.bundle)]
    hours = item.seconds / _HOUR
    if fitting:
        nodes = {group.name: math.ceil(item.workers / _fit(group, item.bundle)) for group in fitting}
        return hours * min(prices[name] * count for name, count in nodes.items())
    units = {name: amount for name, amount in item.bundle.items() if amount and name in prices}
    return hours * item.workers * sum(prices[name] * amount for name, amount in units.items()) if units else None


def _fit(group: NodeGroup, bundle: Resources) -> int:
    amounts = [group.resources.get(name, 0.0) / amount for name, amount in bundle.items() if amount]
    # A stage without GPUs would pay for eight idle ones.
    wasteful = group.resources.get("GPU", 0.0) and not bundle.get("GPU")
    return 0 if wasteful or not group.most else int(min(amounts, default=0.0))


def measured_rates(
    config: RunConfig, size: CorpusSize, records: Mapping[str, StageRecord], parameters: float = 0.0
) -> dict[str, Rate]:
    """The rates of a finished run: the work of each of its stages, as `plan` counts it, over the seconds that it took.

    Of those, `START_SECONDS` are taken to be no work, but at most half. Stages that had nothing to do have no rate.

    Args:
        config: The configuration of that run.
        size: Of its corpus.
        records: Its stages.
        parameters: See `model_size`.
    """
    rates = {}
    for item in plan(config, size, parameters=parameters):
        if item.stage in records and (work := _work_done(item, records[item.stage])):
            seconds = max(records[item.stage].details["seconds"], _LEAST_SECONDS)
            start = min(START_SECONDS.get(item.stage, 0.0), seconds / 2)
            rates[item.stage] = Rate(work / ((seconds - start) * item.workers), item.counted_in, item.device, start)
    return rates


def _work_done(item: StagePlan, record: StageRecord) -> float:
    """Of a language model the tokens that it counted: what was asked before was not asked again."""
    counts = record.details.get("completions")
    if item.unit != "tokens" or counts is None:
        return item.work
    return float(counts["prompt_tokens"] + counts["completion_tokens"])
