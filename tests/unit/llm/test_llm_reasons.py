import pytest

from genret.llm.reasons import count_reasons, short_reason


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        ("mentions the passage", "mentions the passage"),
        ("HTTP 400: as the prompt wants it", "HTTP 400"),
        ("no answer within 180 s; tried 4 times", "no answer within 180 s"),
        ("3 duplicate queries", "duplicate queries"),
        ("unfit keywords: 2 keyword too long", "unfit keywords"),
        ("round trip: bm25 does not find it among its first 10", "round trip"),
        ("x" * 100, "x" * 60),
        ("404", "404"),
        ("", "no reason"),
    ],
)
def test_a_reason_without_its_details(reason: str, short: str):
    assert short_reason(reason) == short


def test_a_reason_that_begins_with_a_number_stands_for_so_many():
    reasons = ["1 duplicate queries", "query too short", "3 duplicate queries", "HTTP 500: a", "HTTP 500: b; tried 3"]
    assert count_reasons(reasons) == {"duplicate queries": 4, "HTTP 500": 2, "query too short": 1}
    assert next(iter(count_reasons(reasons))) == "duplicate queries"
    assert count_reasons([]) == {}
