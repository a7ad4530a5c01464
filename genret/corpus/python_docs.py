"""The corpus that is on every machine: the docstrings of the standard library of the Python that runs.

What it does not hold: the prose of docs.python.org, properties and other attributes, dunder methods, private
names, and modules that this platform does not have.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from genret.corpus import docstrings
from genret.errors import InputError
from genret.tables import reject
from genret.types import Document, Qrel, Query

QUESTIONS = resources.files("genret.corpus") / "python_docs_questions.jsonl"
"""Questions that people ask of a Python programmer's handbook, with the names of what answers them."""

TIMEOUT_SECONDS = 120.0
"""How long the process that reads the docstrings may take; usually it takes two seconds."""


@dataclass(frozen=True)
class PythonDocs:
    """The documents, and under which of them each public name of the library is to be found."""

    documents: list[Document]
    """Sorted by id: the most public dotted name of a thing, such as `os.path.join`, `builtins.str.split`."""
    listed_under: dict[str, str]
    """From every public name, inherited methods and aliases too, to the id of its document."""


@dataclass(frozen=True)
class Question:
    """One question of the file that ships with the package."""

    query: Query
    relevant: tuple[str, ...]
    """Public names, any of which answers the question."""
    split: str
    """`dev` (for choosing settings) or `test` (for reporting)."""


def read_python_docs() -> PythonDocs:
    """Read the docstrings of all public modules, classes, functions and methods of the standard library.

    A process of its own imports the modules: isolated (`python -I -S`), without input, and with a time limit.
    Names with the same docstring are names of one thing, and share a document.

    Returns:
        The documents. Their title is the name with the signature; their metadata is `module` (`os.path`),
        `package` (`os`) and `kind` (`module`, `class`, `function`, `method`, or `data` for such as
        `typing.Union`).

    Raises:
        RuntimeError: The process failed.
        subprocess.TimeoutExpired: It took longer than `TIMEOUT_SECONDS`.
    """
    command = [sys.executable, "-I", "-S", "-W", "ignore", str(Path(docstrings.__file__))]
    finished = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_SECONDS, check=False
    )
    if finished.returncode != 0:
        said = finished.stderr.decode(errors="replace")
        raise RuntimeError(f"{' '.join(command)} ended with {finished.returncode}: {said}")
    return _merge_names(json.loads(line) for line in finished.stdout.splitlines())


def _merge_names(names: Iterable[dict[str, str]]) -> PythonDocs:
    """One document a docstring, under the first name that has it: the names come most public first."""
    documents: dict[str, Document] = {}
    listed_under: dict[str, str] = {}
    for name in names:
        document = documents.setdefault(
            name["docstring"],
            Document(
                doc_id=name["name"],
                title=name["name"] + name["signature"],
                text=name["docstring"],
                metadata={
                    "module": name["module"],
                    "package": name["module"].split(".")[0],
                    "kind": name["kind"],
                },
            ),
        )
        listed_under.setdefault(name["name"], document.doc_id)
    return PythonDocs(sorted(documents.values(), key=lambda document: document.doc_id), listed_under)


def read_questions(split: str) -> list[Question]:
    """Read the questions of a split.

    Args:
        split: `dev` or `test`.

    Raises:
        InputError: There are no questions of that split.
    """
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    questions = [Question(Query(row["_id"], row["text"]), tuple(row["relevant"]), row["split"]) for row in rows]
    chosen = [question for question in questions if question.split == split]
    if not chosen:
        found = sorted({question.split for question in questions})
        raise InputError(f"corpus.split: python_docs has the splits {found}, found {split!r}")
    return chosen


def judge(questions: Iterable[Question], docs: PythonDocs) -> tuple[list[Qrel], list[dict[str, str]]]:
    """Turn the names that answer the questions into judgements on the documents that hold them.

    Returns:
        The judgements, all of relevance 1, and a row of `rejects` for each name that this Python does not
        have (or does not document). A question of which no name is left has no judgement.
    """
    qrels: list[Qrel] = []
    rejects: list[dict[str, str]] = []
    version = ".".join(map(str, sys.version_info[:3]))
    for question in questions:
        query_id = question.query.query_id
        answers = {docs.listed_under[name]: name for name in question.relevant if name in docs.listed_under}
        qrels += [Qrel(query_id, doc_id, 1) for doc_id in answers]
        for name in question.relevant:
            if name not in docs.listed_under:
                dropped = "" if answers else "; the question is left out"
                reason = f"expected the docstring of {name}, found none in Python {version}{dropped}"
                rejects.append(reject("corpus", query_id, reason, question.query.text))
    return qrels, rejects
