"""Phrases by which a text gives away that a language model wrote it for a passage that it was shown.

arXiv 2502.17957 (appendix C, figure 5) forbids its model "the context", "the article", the pronoun "this" and to leak
the instructions; what else is here says the same in other words and languages. Some of the nouns are terms of a
domain ("the context manager", "the passage of the bill"), so what stands around them counts. Only whole words do,
but in Chinese and Japanese.
"""

import re

_NOUNS = r"(?:passage|context|article|text|document|paragraph|excerpt|snippet|sentence|extract)s?"
_POINTING = r"(?:provided|given|above|following|preceding|aforementioned)"
_SAID = (
    r"(?:mentioned|described|discussed|stated|given|provided|listed|covered|presented|highlighted|referenced|found"
    r"|reported|quoted|outlined)"
)
_SAYS = (
    r"(?:say|state|mention|describe|discuss|explain|suggest|claim|report|argue|note|highlight|emphasi[sz]e|indicate|imply"
    r"|implie|reveal|refer|tell|focu)(?:e?s|e?d|ses)?"
)
_SOURCE = r" (?:from|by|in|on|published) (?:(?:by|in|on) )?(?-i:the )?(?-i:[A-Z\"'‘“])"
_END = r"(?=\W*$|[,;:.?!)]"

MENTIONS: dict[str, tuple[str, ...]] = {
    "english": (
        # "in this article?", "what does the provided context say"; but not "this text editor".
        rf"\b(?:this|these|(?:the )?{_POINTING}) {_NOUNS}{_END}|['’]s\b| (?:{_SAYS}|is|are|was|were|about|on)\b)",
        # "according to the text", "mentioned in the document"; but not "in the context of".
        rf"\b(?:according to|based on|as per|{_SAID} (?:in|by)) the {_NOUNS}\b(?!{_SOURCE})",
        # "what does the text say", "the main point of the text".
        rf"\bthe {_NOUNS}{_END}|['’]s (?:author|main|point|topic|focus|subject|title|argument)| {_SAYS}\b)",
        # Not "the article from The Verge", which says which one.
        rf"\bthe (?:article|passage|excerpt|snippet)s?\b(?! (?:of|\d)|{_SOURCE})",
        r"\b(?:both|the two|these two|the (?:first|second|third|other)) (?:passage|text|excerpt|snippet)s?\b",
        r"\bpassage[ _]\d\b",
        r"\bthe author (?:of (?:the|this) \w+|says?|mentions?|states?|argues?|describes?|suggests?)\b",
        # The pronoun, not "this match".
        r"\bthis(?=\W*$| (?:important|significant|relevant|possible|true|necessary|useful|is|was|are|were|means?"
        r"|does|did|has|had|will|would|could|should|happen(?:s|ed)?)\b)",
    ),
    "german": (
        rf"\b(?:laut|gemäß|nach) (?:dem|diesem) (?:text|artikel|abschnitt|textauszug|kontext)\b|\blaut text{_END})",
        rf"\bim (?:text|artikel|abschnitt|textauszug|kontext){_END}| (?:erwähnt|beschrieben|genannt|angegeben)\b)",
        r"\b(?:diese[rsm]|der vorliegende|im vorliegenden) (?:text|artikel|abschnitt|textauszug)e?s?\b",
    ),
    "french": (
        rf"\b(?:selon|d['’]après|dans) (?:le |ce |cet |l['’])(?:texte|article|passage|extrait|contexte){_END})",
        rf"\b(?:ce|cet) (?:texte|article|passage|extrait){_END}| (?:parle|traite|mentionne|décrit)\b)",
    ),
    "spanish": (
        rf"\b(?:según|en|de acuerdo con) (?:el|este) (?:texto|artículo|pasaje|fragmento|contexto){_END})",
        rf"\beste (?:texto|artículo|pasaje|fragmento){_END}| (?:habla|trata|menciona|describe)\b)",
    ),
    "chinese": (
        "根据(?:上述|以上|本|该|这篇|所给|提供的)?(?:文章|文本|段落|上下文|短文|材料)",
        "(?:这篇|该|本)(?:文章|短文|段落)|(?:文章|上下文|文)中(?:提到|描述|介绍)",
    ),
    "japanese": ("(?:この|上記の|本)(?:文章|記事|テキスト|段落)|(?:文章|本文|記事)によると",),
}
"""Patterns of mentions of the passage, by language; all are looked for in every text."""

_ITSELF = (
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b",
    r"^(?:i['’]?m sorry|i am sorry|i apologi[sz]e|sorry, |(?:sure|certainly|of course|absolutely)[,!])",
    r"\bi (?:cannot|can['’]t|am unable to|am not able to) (?:generate|write|provide|create|answer|fulfil|help|assist)",
    r"\bhere (?:is|are) \w+ (?:\w+ ){0,2}(?:query|queries|questions?|keywords?|passages?)\b",
    r"\b(?:the|these) (?:(?:above|following) )?(?:questions|queries|keywords) (?:are|cover|can|should)\b",
    r"\b(?:markdown list|metadata filter|the (?:provided|given) metadata|these instructions)\b",
    r"</?(?:title|passage(?:_\d+)?|sentence|metadata|query|retrieved(?:_\d+)?)>|\[\.\.\.\]$",
)
_NEGATIVE = (
    r"\b(?:hard|this|the|these)[- ]negatives?\b",
    r"\b(?:does|do) not answer the (?:query|question)\b",
    r"\b(?:the|this) (?:draft|query) (?:is|does|asks)\b",
    r"\b(?:original|positive|given) passage\b",
)


def _any(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_MENTIONS = _any(tuple(pattern for patterns in MENTIONS.values() for pattern in patterns))
_SPEAKS_OF_ITSELF = _any(_ITSELF)
_SPEAKS_OF_BEING_A_NEGATIVE = _any(_NEGATIVE)


def mentions_the_passage(text: str) -> bool:
    """Whether a query or answer makes sense only beside the passage: "according to the text"."""
    return _MENTIONS.search(text) is not None


def speaks_of_itself(text: str) -> bool:
    """Whether a text repeats the task, is addressed to who asked, or has tags of the prompt."""
    return _SPEAKS_OF_ITSELF.search(text) is not None


def speaks_of_being_a_negative(text: str) -> bool:
    """Whether a negative passage says that it is one."""
    return _SPEAKS_OF_BEING_A_NEGATIVE.search(text) is not None
