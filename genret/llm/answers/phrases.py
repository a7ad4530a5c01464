"""What the words of a line give away: labels, questions, and what models say beside the list.

English first; the commonest words of other languages, for models answer in the language of the passage.
"""

import re
from dataclasses import replace

from genret.llm.answers.draft import CUT
from genret.llm.answers.markdown import Line, strip_markup

QUESTION_NAMES = (
    "search engine query|search query|query|question|q|keywords?|key words|hard negative|negative|passage|document"
    "|frage|anfrage|suchanfrage|pregunta|consulta|requête|domanda|pergunta|vraag|pytanie|soru|вопрос|запрос"
    "|问题|問題|查询|查詢|问|問|質問|クエリ|질문|쿼리|السؤال|سؤال|प्रश्न|câu hỏi"
    "|schlüsselwörter|stichwörter|mots[ -]clés|palabras clave|parole chiave|palavras-chave|ключевые слова"
    "|关键词|关键字|關鍵詞|關鍵字|キーワード|키워드|الكلمات المفتاحية"
)
_ANSWER_WORDS = (
    "answer|ans|antwort|respuesta|réponse|risposta|resposta|antwoord|odpowiedź|cevap|ответ"
    "|答案|答|回答|解答|답변|답|الإجابة|إجابة|الجواب|جواب|उत्तर|trả lời"
)
ANSWER_NAMES = f"{_ANSWER_WORDS}|a"


def _label(names: str) -> re.Pattern[str]:
    """A name with a colon, a number or both behind it, at the head of a text."""
    return re.compile(
        rf"(?:{names})\s*#?\s*(?:\d{{0,3}}\s*[:：]|\d{{1,3}}\s*(?:[.)．）、]|[-–—]\s|$))\s*", re.IGNORECASE
    )


QUESTION_LABEL = re.compile(rf"{_label(QUESTION_NAMES).pattern}|q\.\s+", re.IGNORECASE)
ANSWER_LABEL = _label(ANSWER_NAMES)
QUESTION_HEADING = re.compile(QUESTION_NAMES, re.IGNORECASE)
ANSWER_HEADING = re.compile(ANSWER_NAMES, re.IGNORECASE)
_BETWEEN = r"[\s\-–—|,;/(\[→=>]*"
INLINE_ANSWER = re.compile(
    rf"{_BETWEEN}(?<!\w)(?:{_ANSWER_WORDS})\s*\d{{0,3}}\s*[:：]\s*|(?<=[?？؟.]){_BETWEEN}\bA\d{{0,3}}\s*[:：]\s*",
    re.IGNORECASE,
)
"""Where the answer begins in a line that has both. The letter alone counts behind the end of a question only."""
ANSWERS_HEADING = re.compile(
    r"(?:the )?(?:answers|antworten|respuestas|réponses|risposte|respostas|ответы|答案|回答|답변)\s*[:：]?",
    re.IGNORECASE,
)

_QUESTION_ENDS = ("?", "？", "؟", "⸮")
_SENTENCE_ENDS = (".", "!", "。", "！", "．", "…", "।", *_QUESTION_ENDS)
_CLOSING = "\"'”’»」』)）*_"

_OFFER = re.compile(
    r"(?:would|do|shall|should|can|may) (?:you|i) (?:like|want|need|prefer|add|write|generate)|is there anything"
)
# Only lines that are no item of a list are held against these.
_CHATTER = re.compile(
    r"(?:sure|certainly|of course|absolutely|okay|ok|great|thanks|thank you|sorry|claro|certo|gerne|natürlich|bien sûr"
    r"|конечно)\s*[,!.:]"
    r"|(?:here(?:['’]s| is| are)|below (?:is|are)"
    r"|these (?:are|questions|queries|keywords|pairs)|the (?:following|above)"
    r"|i['’](?:m|ve|d|ll)|i (?:have|hope|can|cannot|can['’]t|am|would|will|was|apologi[sz]e)|happy to|let me know"
    r"|feel free|hope (?:this|these|that)|please (?:let|note|provide|find|feel)"
    r"|if you(?:['’]d)? (?:need|would|want|have|like)"
    r"|as an ai|as a (?:large )?language|unfortunately|my apologies|based on the|each (?:question|query|keyword)"
    r"|voici|n['’]hésitez|hier sind|aquí|por supuesto|espero|ecco|вот|надеюсь|بالتأكيد|إليك)(?![\w-])"
    r"|(?:note|nota|hinweis|remarque|output)\s*[:：]|note that\b|以下|当然|好的|希望|如果您|もちろん|以上|물론|다음은",
    re.IGNORECASE,
)


def asks(text: str) -> bool:
    """Whether a text ends as a question does, in whatever script."""
    return text.rstrip(f"{CUT} {_CLOSING}").endswith(_QUESTION_ENDS)


def ends_sentence(text: str) -> bool:
    """Whether a text ends as a sentence or a question does."""
    return text.rstrip(_CLOSING).endswith(_SENTENCE_ENDS)


def introduces(text: str) -> bool:
    """Whether a text ends in a colon: it says what follows."""
    return text.rstrip(f"{CUT} ").endswith((":", "："))


def is_chatter(text: str) -> bool:
    """Whether a line reads like what models say beside the list: greetings, offers, apologies."""
    return bool(_OFFER.match(text.lower()) or (not asks(text) and _CHATTER.match(text)))


def continues(before: str, line: Line) -> bool:
    """Whether a line without a marker goes on with the text before it."""
    return not before or line.text[:1].islower() or not ends_sentence(before)


def relabelled(line: Line) -> Line:
    """A line that begins with "Query 1:" as the item that it is, whether it has a marker or not."""
    label = QUESTION_LABEL.match(line.text)
    if not label:
        return line
    rest = strip_markup(line.text[label.end() :])
    if rest or any(character.isdecimal() for character in label[0]):
        return replace(line, text=rest, marked=True, heading=False)
    # "Questions:" and the like, with nothing behind, head a list.
    return line
