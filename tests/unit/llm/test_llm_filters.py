from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.llm.base import Item
from genret.llm.filters import Limits, broken_reason, unfit_reason

LIMITS = Limits()
KINDS = ["keywords", "chunk", "sentence", "constraint", "preference", "multihop", "negative"]

FIT = [
    # Queries of people, and those that the paper shows (arXiv 2502.17957, table 1).
    "What is the potential implication of this matchup between the 49ers and Ravens?",
    "Where does the 49ers ' defense stand in terms of total yards allowed per game?",
    "According to the Yardbarker article, which team has the league's most effective running game?",
    "Does the TechCrunch article on Google report a fine?",
    "how do glaciers form",
    "Does the article from The Verge agree with both articles from 'Sporting News' on the price?",
    "According to the articles published by Sporting News, who won?",
    "What happened after the passage of the bill in 1998?",
    "Which countries signed the article of faith?",
    "What does the article 50 of the treaty say?",
    "How does the context manager close the file?",
    "What is masked in the context of language models?",
    "How can the text attribute of a node be changed?",
    "Where is the document root of Apache?",
    "How do I open this text editor from a shell?",
    "Which sentence did the court give in this case?",
    "When was the document object model standardised?",
    "How are the paragraph styles of Word named?",
    "Which query returns the metadata of a table?",
    "What did the author of Dracula do for a living?",
    "Who wrote about doping for the BBC?",
    "What is a large language model?",
    "Is this year the warmest on record?",
    "Wie heißt der längste Fjord im Kontext der Eiszeit?",
    "Qui a écrit ce livre ?",
    "¿Quién firmó el artículo 5 del tratado?",
    "峡湾是怎么形成的？",
    "文中元音怎么发音？",
]  # fmt: skip

MENTIONS = [
    "What is the main idea of the passage?",
    "According to the text, who won?",
    "what does the article say about glaciers",
    "Which fjord is mentioned in the passage?",
    "Which team does the context mention?",
    "Who is quoted in the article from last week?",
    "What do the articles have in common?",
    "What is discussed in this article?",
    "What are these paragraphs about?",
    "Who won based on the provided context?",
    "What is described in the document?",
    "What is the tone of the given excerpt?",
    "Why is this important?",
    "What does this mean?",
    "Who said this?",
    "What do both passages have in common?",
    "Which fjord does passage 2 name?",
    "What does the author say about ice?",
    "What is the text's main argument?",
    "Laut dem Text, wer hat gewonnen?",
    "Was wird im Artikel beschrieben?",
    "Wovon handelt dieser Abschnitt?",
    "Selon le texte, qui a gagné ?",
    "De quoi parle cet article ?",
    "Según el texto, ¿quién ganó?",
    "¿De qué trata este artículo?",
    "根据上述文章，谁赢了？",
    "本文章的主题是什么？",
    "この記事によると誰が勝ちましたか？",
]

OF_ITSELF = [
    "As an AI language model, I cannot browse",
    "Here are 10 questions about fjords",
    "Here is a query for a search engine",
    "I'm sorry, but nothing can be asked",
    "Sure, what is a fjord?",
    "These questions cover all facts",
    "What is <passage> about?",
    "What is the metadata filter for fjords?",
]


@pytest.mark.parametrize("text", FIT)
def test_queries_that_are_fit(text):
    for kind in ("chunk", "sentence", "constraint", "multihop"):
        assert unfit_reason(kind, Item(text), LIMITS) == ""
    assert unfit_reason("preference", Item(text, "an answer"), LIMITS) == ""


@pytest.mark.parametrize("text", MENTIONS)
def test_queries_that_mention_the_passage(text):
    assert unfit_reason("chunk", Item(text), LIMITS) == "mentions the passage"
    assert unfit_reason("preference", Item("what is a fjord", text), LIMITS) == "mentions the passage"
    # A passage and a keyword may be about passages.
    assert unfit_reason("negative", Item(f"{text} There was more to it then."), LIMITS) == ""


@pytest.mark.parametrize("text", OF_ITSELF)
def test_texts_that_speak_of_the_task(text):
    for kind in KINDS:
        assert unfit_reason(kind, Item(text, "answer"), LIMITS) == "speaks of the task or as an assistant"
    assert unfit_reason("preference", Item("what is a fjord", text), LIMITS) == "speaks of the task or as an assistant"


@pytest.mark.parametrize(
    ("kind", "item", "reason"),
    [
        ("chunk", Item("fjord"), "query too short"),
        ("chunk", Item("?!"), "query too short"),
        ("chunk", Item("峡湾在哪里"), ""),
        ("chunk", Item("word " * 121), "query too long"),
        ("preference", Item("what is it", "word " * 25), "answer too long"),
        ("preference", Item("what is it", "42"), ""),
        ("keywords", Item("fjord"), ""),
        ("keywords", Item("Washington, D.C."), ""),
        ("keywords", Item("..."), "no word in it"),
        ("keywords", Item("Glaciers carve deep valleys."), "a sentence, not a keyword"),
        ("keywords", Item("how glaciers carve the deep valleys of Norway"), "keyword too long"),
        ("keywords", Item("峡湾" * 40), "keyword too long"),
        ("negative", Item("No lake."), "passage too short"),
        ("negative", Item("Sweden has many lakes, most of them small."), ""),
        ("negative", Item("word " * 2_000), "passage too long"),
        ("negative", Item("Sweden has lakes. It does not answer the query."), "speaks of being a negative"),
    ],
)
def test_lengths_and_forms(kind, item, reason):
    assert unfit_reason(kind, item, LIMITS) == reason


@pytest.mark.parametrize(
    ("kind", "item", "reason"),
    [
        ("chunk", Item(" \n"), "empty query"),
        ("keywords", Item(""), "empty keyword"),
        ("negative", Item(""), "empty passage"),
        ("preference", Item("q", " "), "query without an answer"),
        ("chunk", Item("half \ud83d"), "not valid Unicode"),
        ("preference", Item("q", "\ud83d"), "not valid Unicode"),
        ("chunk", Item("x"), ""),
    ],
)
def test_what_is_broken_whoever_wrote_it(kind, item, reason):
    assert broken_reason(kind, item) == reason
    if reason:
        assert unfit_reason(kind, item, LIMITS) == reason


def test_bounds_are_those_that_are_given():
    assert unfit_reason("chunk", Item("fjord"), replace(LIMITS, min_query_words=1)) == ""
    assert unfit_reason("chunk", Item("two words"), replace(LIMITS, max_query_characters=8)) == "query too long"


@given(st.sampled_from(KINDS), st.text(max_size=200), st.text(max_size=50))
def test_any_text_has_a_reason_or_none(kind, text, answer):
    assert isinstance(unfit_reason(kind, Item(text, answer), LIMITS), str)
