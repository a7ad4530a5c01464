"""Words too common to say what a text is about, by language."""

from bm25s import stopwords

STOP_WORDS: dict[str, tuple[str, ...]] = {
    "chinese": stopwords.STOPWORDS_CHINESE,
    "danish": stopwords.STOPWORDS_DANISH,
    "dutch": stopwords.STOPWORDS_DUTCH,
    "english": stopwords.STOPWORDS_EN,
    "french": stopwords.STOPWORDS_FRENCH,
    "german": stopwords.STOPWORDS_GERMAN,
    "italian": stopwords.STOPWORDS_ITALIAN,
    "korean": stopwords.STOPWORDS_KOREAN,
    "norwegian": stopwords.STOPWORDS_NORWEGIAN,
    "portuguese": stopwords.STOPWORDS_PORTUGUESE,
    "russian": stopwords.STOPWORDS_RUSSIAN,
    "spanish": stopwords.STOPWORDS_SPANISH,
    "swedish": stopwords.STOPWORDS_SWEDISH,
    "turkish": stopwords.STOPWORDS_TURKISH,
}
"""Words too common to search for, as bm25s ships them (for English: Lucene's, 33 words)."""

DESCRIPTION_STOP_WORDS: dict[str, tuple[str, ...]] = STOP_WORDS | {
    "none": (),
    "english": stopwords.STOPWORDS_EN_PLUS,
}
"""Words that describe no text: `STOP_WORDS`, for English the longer list of bm25s, which has pronouns, auxiliaries
and the like too. `none` has none."""
