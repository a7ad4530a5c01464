from datetime import date

from genret.corpus.documents import Documents
from genret.types import Document


def test_documents_come_back_as_often_as_they_are_asked_for() -> None:
    given = [Document(f"d{n}", f"text {n}", "title", {"number": n, "parts": ["a", None]}) for n in range(3000)]
    documents = Documents.collect(iter(given))
    assert len(documents) == 3000
    assert list(documents) == list(documents) == given
    assert documents.among(["d7", "d2999", "d3000"]) == {"d7", "d2999"}
    assert list(Documents.collect([])) == [] and Documents.collect([]).among(["a"]) == set()


def test_metadata_is_what_json_makes_of_it() -> None:
    (document,) = Documents.collect([Document("d", "text", "", {"day": date(2024, 2, 29)})])
    assert document.metadata == {"day": "2024-02-29"}
