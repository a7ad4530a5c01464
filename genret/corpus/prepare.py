"""The first stage: from a corpus to passages, and to queries and judgements to evaluate with."""

from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa

from genret.config import CorpusConfig
from genret.corpus.chunking import chunk_text
from genret.corpus.documents import Documents
from genret.corpus.readers import Corpus, read_corpus, training_part
from genret.spools import Spool
from genret.tables import SCHEMAS, metadata_to_json, passages_to_table, table_from_rows
from genret.types import Document, Passage

_PASSAGES_A_BLOCK = 1024


def prepare_corpus(config: CorpusConfig) -> dict[str, pa.Table]:
    """Read the corpus and cut it into passages.

    Args:
        config: The corpus section.

    Returns:
        The tables `passages`, `test_queries`, `qrels` (on documents, not on passages, also on such that are missing)
        and `rejects`; where queries have metadata, `query_metadata` too, and with a `train_split` `annotated_queries`:
        its queries, once for each document of the corpus that they were judged relevant to.

    Raises:
        InputError: The corpus is not as expected; see `read_corpus`.
    """
    corpus = read_corpus(config)
    metadata = [
        {"query_id": query.query_id, "metadata": metadata_to_json(query.metadata)}
        for query in corpus.queries
        if query.metadata
    ]
    outputs = {
        "passages": _passages(corpus.documents, config),
        "test_queries": table_from_rows(
            "test_queries", ({"query_id": query.query_id, "text": query.text} for query in corpus.queries)
        ),
        "qrels": table_from_rows(
            "qrels",
            ({"query_id": qrel.query_id, "doc_id": qrel.doc_id, "relevance": qrel.relevance} for qrel in corpus.qrels),
        ),
        "rejects": table_from_rows("rejects", corpus.rejects),
    }
    if metadata:
        outputs["query_metadata"] = table_from_rows("query_metadata", metadata)
    if config.train_split:
        training = read_corpus(training_part(config))
        outputs["annotated_queries"] = _annotated_queries(training)
        further = _further_rejects(corpus, training, config.train_split)
        outputs["rejects"] = pa.concat_tables([outputs["rejects"], table_from_rows("rejects", further)])
    return outputs


def _further_rejects(corpus: Corpus, training: Corpus, split: str) -> Iterator[dict[str, str]]:
    """The rejects of the training part alone: its documents and queries were read, and rejected, before."""
    known = {tuple(row.values()) for row in corpus.rejects}
    for row in training.rejects:
        if tuple(row.values()) not in known:
            yield row | {"reason": f"{row['reason']} (split {split!r})"}


def _passages(documents: Documents, config: CorpusConfig) -> pa.Table:
    """The passages, on disk."""
    if config.unit == "document":  # as `make_passages` has it, in columns
        columns = [documents.table.column(name) for name in ("doc_id", "doc_id", "title", "text", "metadata")]
        return pa.table(columns, schema=SCHEMAS["passages"])
    spool = Spool(SCHEMAS["passages"])
    remaining = make_passages(documents, config)
    while block := list(islice(remaining, _PASSAGES_A_BLOCK)):
        spool.append(passages_to_table(block))
    return spool.table()


def _annotated_queries(corpus: Corpus) -> pa.Table:
    texts = {query.query_id: query.text for query in corpus.queries}
    relevant = [qrel for qrel in corpus.qrels if qrel.relevance > 0]
    present = corpus.documents.among({qrel.doc_id for qrel in relevant})  # nothing is trained to find the others
    return table_from_rows(
        "annotated_queries",
        (
            {
                "query_id": f"{qrel.query_id}|{qrel.doc_id}",
                "passage_id": qrel.doc_id,
                "text": texts[qrel.query_id],
                "kind": "annotated",
                "generator": "corpus",
            }
            for qrel in relevant
            if qrel.doc_id in present
        ),
    )


def make_passages(documents: Iterable[Document], config: CorpusConfig) -> Iterator[Passage]:
    """The units of retrieval of some documents, in their order.

    Args:
        documents: Documents with ids that differ.
        config: The corpus section; `unit` and `chunk_tokens` count here.

    Yields:
        With `unit: document` one passage a document, which has the document's id. With `unit: chunk` its
        chunks, each with the document's title and metadata and the id `DOCUMENT#NUMBER`, the number from 0.
        No two passages share an id: what stands before the last `#` is the document's.
    """
    for document in documents:
        if config.unit == "document":
            yield Passage(document.doc_id, document.doc_id, document.text, document.title, document.metadata)
            continue
        # A document that is only a title is one passage without text.
        for number, text in enumerate(chunk_text(document.text, config.chunk_tokens) or [""]):
            passage_id = f"{document.doc_id}#{number}"
            yield Passage(passage_id, document.doc_id, text, document.title, document.metadata)
