"""The tables of arXiv 2502.17957: which settings their rows differ in, and the figures that the paper has for them."""

from dataclasses import dataclass

Figures = dict[str, tuple[float, ...]]
MULTIHOP, ALLSIDES, AGNEWS, NQ, SCIFACT = "multihop-rag", "allsides", "agnews", "nq", "scifact"
MEASURES = {
    MULTIHOP: ("HIT@4", "HIT@10", "MAP@10", "MRR@10"),
    ALLSIDES: ("HIT@1", "HIT@5", "HIT@10"),
    AGNEWS: ("HIT@1", "HIT@5", "HIT@10"),
    NQ: ("HIT@1", "HIT@5", "HIT@10", "MRR@10"),
    SCIFACT: (),
}
"""What the paper measures, by corpus. It has no scifact, which may stand beside its corpora at the scale cpu."""
ONLY_SFT = ("retrieval.retrievers=[sft]",)
PREFERENCE = ("retrieval.retrievers=[rpo]", "mining.candidates=10")
NO_CONSTRAINTS = ("synthesis.constraint_queries=0",)
NO_SENTENCES = ("synthesis.sentence_queries=0",)
NO_CONTEXT = ("examples.context2id=none",)
ATOMIC = ("identifiers.type=atomic",)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: As in the paper.
        changes: What differs from the full recipe.
        paper: The paper's figures in per cent, by corpus, in the order of `MEASURES`.
        retriever: Whose measures are the row.
    """

    name: str
    changes: tuple[str, ...]
    paper: Figures
    retriever: str = "sft"


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        rows: Its rows.
        effects: Pairs of rows: the first is better in the paper.
        changes: Changes of all rows.
        engines: Whether its rows differ in what writes the queries.
    """

    rows: tuple[Row, ...]
    effects: tuple[tuple[str, str], ...]
    changes: tuple[str, ...] = ONLY_SFT
    engines: bool = False


FULL = (69.98, 88.34, 24.85, 52.29)
NQ_FULL = (70.71, 86.48, 89.85, 77.54)
CHUNK_AND_SENTENCE = (61.64, 81.69, 22.13, 47.20)
TABLES: dict[int, PaperTable] = {
    2: PaperTable(
        (
            Row("chunk", NO_CONSTRAINTS + NO_SENTENCES, {MULTIHOP: (43.64, 66.65, 13.98, 31.14)}),
            Row("+ sentence", NO_CONSTRAINTS, {MULTIHOP: CHUNK_AND_SENTENCE}),
        ),
        (("+ sentence", "chunk"),),
    ),
    3: PaperTable(
        (
            Row(
                "w/o constraints",
                NO_CONSTRAINTS,
                {MULTIHOP: CHUNK_AND_SENTENCE, ALLSIDES: (10.19, 29.63, 47.22), AGNEWS: (59.91, 83.94, 88.11)},
            ),
            Row(
                "w/ constraints",
                (),
                {MULTIHOP: FULL, ALLSIDES: (14.20, 38.58, 51.85), AGNEWS: (62.19, 83.78, 88.24)},
            ),
        ),
        (("w/ constraints", "w/o constraints"),),
    ),
    4: PaperTable(
        (
            Row(
                "w/o Context2ID",
                NO_CONTEXT,
                {MULTIHOP: (41.33, 69.31, 14.45, 31.25), NQ: (69.72, 85.58, 89.01, 76.57)},
            ),
            Row("w/ Context2ID", (), {MULTIHOP: FULL, NQ: NQ_FULL}),
        ),
        (("w/ Context2ID", "w/o Context2ID"),),
    ),
    5: PaperTable(
        (
            Row("concat", ("examples.mix=concat",), {MULTIHOP: (44.30, 72.77, 15.64, 33.59)}),
            Row("interleave", ("examples.mix=interleave",), {MULTIHOP: FULL}),
        ),
        (("interleave", "concat"),),
    ),
    6: PaperTable(
        (
            Row(
                "another engine",  # docT5query in the paper
                NO_CONSTRAINTS,
                {MULTIHOP: (50.86, 73.30, 17.60, 37.73), NQ: (63.30, 79.12, 85.18, 70.30)},
            ),
            Row(
                "the recipe's engine",  # Mixtral 8x7b
                NO_CONSTRAINTS,
                {MULTIHOP: CHUNK_AND_SENTENCE, NQ: NQ_FULL},
            ),
        ),
        (("the recipe's engine", "another engine"),),
        engines=True,
    ),
    7: PaperTable(
        (
            Row("all", ATOMIC, {MULTIHOP: (74.32, 88.03, 29.71, 59.26)}),
            Row("w/o Context2ID", ATOMIC + NO_CONTEXT, {MULTIHOP: (72.15, 86.21, 28.54, 57.50)}),
            Row("w/o sentence", ATOMIC + NO_SENTENCES, {MULTIHOP: (58.40, 75.17, 21.51, 44.76)}),
            Row("w/o constraints", ATOMIC + NO_CONSTRAINTS, {MULTIHOP: (68.34, 83.73, 26.28, 53.83)}),
        ),
        (("all", "w/o Context2ID"), ("all", "w/o sentence"), ("all", "w/o constraints")),
    ),
    8: PaperTable(
        (
            Row("SFT", ONLY_SFT, {MULTIHOP: FULL, NQ: NQ_FULL}),
            Row(
                "random 5",
                (*PREFERENCE, "mining.strategy=random", "mining.negatives=5"),
                {MULTIHOP: (58.94, 82.88, 20.88, 43.53), NQ: (70.19, 86.48, 89.50, 77.17)},
                "rpo",
            ),
            Row(
                "top-5 negative",
                (*PREFERENCE, "mining.negatives=5"),
                {MULTIHOP: (71.53, 89.62, 26.36, 55.40), NQ: (71.02, 87.32, 90.04, 78.02)},
                "rpo",
            ),
            Row(
                "top-10 negative",
                (*PREFERENCE, "mining.negatives=10"),
                {MULTIHOP: (71.88, 89.80, 26.23, 54.94), NQ: (71.22, 87.41, 89.97, 78.14)},
                "rpo",
            ),
        ),
        (
            *(("top-5 negative", "SFT"), ("top-10 negative", "SFT"), ("SFT", "random 5")),
            *(("top-5 negative", "random 5"), ("top-10 negative", "random 5")),
        ),
        (),
    ),
}


def on_all(
    multihop: tuple[float, ...], nq: tuple[float, ...], allsides: tuple[float, ...], agnews: tuple[float, ...]
) -> Figures:
    """The figures of a row that the paper has for all of its corpora."""
    return {MULTIHOP: multihop, NQ: nq, ALLSIDES: allsides, AGNEWS: agnews}


def paper_table(number: int, scale: str) -> PaperTable:
    """A table by its number: 2 to 8, or 11."""
    return _table_eleven(scale) if number == 11 else TABLES[number]


def _table_eleven(scale: str) -> PaperTable:
    """Retrievers off the shelf beside ours; at the scale cpu a dense one trained on the same queries."""
    others = (BM25, FROM_SCRATCH) if scale == "cpu" else (BM25, *OFF_THE_SHELF)
    # What the paper does not have is no effect of it.
    return PaperTable((*others, OURS), tuple((OURS.name, row.name) for row in others if row.paper), ())


def _off_the_shelf(name: str, family: str, figures: Figures) -> Row:
    """A dense retriever as it is, by its name on the hub and the family of its instructions."""
    model = f"dense.model={{type: pretrained, name: {name}, family: {family}}}"
    # As much of a passage as the shortest of them, BGE and Contriever, can read.
    changes = ("retrieval.retrievers=[dense]", model, "dense.epochs=0", "dense.max_tokens=512")
    return Row(name.rpartition("/")[2], changes, figures, "dense")


OURS = Row(
    "ours",
    (*PREFERENCE, "mining.negatives=10"),
    on_all((71.88, 89.80, 26.23, 54.94), (71.22, 87.41, 89.97, 78.14), (14.20, 38.58, 51.85), (62.19, 83.78, 88.24)),
    "rpo",
)
BM25 = Row(
    "BM25",
    ("retrieval.retrievers=[bm25]",),
    on_all((64.35, 78.31, 26.30, 58.32), (32.82, 53.70, 60.92, 42.45), (5.86, 26.85, 36.42), (38.70, 67.47, 77.63)),
    "bm25",
)
FROM_SCRATCH = Row("dense, from scratch", ("retrieval.retrievers=[dense]",), {}, "dense")
OFF_THE_SHELF = (
    _off_the_shelf(
        "BAAI/bge-large-en-v1.5",
        "bge",
        on_all((58.80, 78.36, 19.96, 42.57), (55.59, 76.58, 81.75, 64.45), (6.94, 27.32, 34.11), (54.14, 80.57, 86.53)),
    ),
    _off_the_shelf(
        "facebook/contriever-msmarco",
        "contriever",
        on_all((55.25, 75.08, 19.28, 40.69), (53.79, 76.16, 81.69, 63.36), (6.64, 25.77, 38.43), (52.69, 80.40, 85.79)),
    ),
    _off_the_shelf(
        "intfloat/e5-mistral-7b-instruct",
        "e5-mistral",
        on_all((54.01, 79.56, 19.11, 40.77), (59.07, 80.08, 85.28, 68.11), (8.18, 28.24, 39.82), (57.32, 85.90, 88.98)),
    ),
    _off_the_shelf(
        "Alibaba-NLP/gte-Qwen2-7B-instruct",
        "gte-qwen2",
        on_all((63.24, 83.55, 22.02, 47.50), (60.45, 80.87, 85.72, 69.30), (9.11, 34.11, 49.07), (57.65, 83.37, 88.57)),
    ),
)
