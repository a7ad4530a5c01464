"""An item in the making."""

from dataclasses import dataclass

CUT = "\uffff"
"""Stands at the end of an answer that was cut off, so that whichever item it ends up in is known. A noncharacter:
`genret.llm.answers.markdown.normalise` takes out all others."""


@dataclass(slots=True)
class Draft:
    """An item before it is cleaned.

    Attributes:
        text: The keyword, query or passage.
        answer: The answer of a query, where it has one.
        indent: Columns of white space before it.
        marked: It has a marker or a label: it is sure to be meant as an item.
    """

    text: str
    answer: str = ""
    indent: int = 0
    marked: bool = True
