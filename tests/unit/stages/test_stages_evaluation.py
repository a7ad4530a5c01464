"""What is told of finished stages."""

from genret.runs import StageRecord
from genret.stages.evaluation import stage_summary


def test_a_stage_in_words() -> None:
    tables = {"queries": {"path": "a", "rows": 3}, "rejects": {"path": "b", "rows": 2}}
    record = StageRecord("synthesis", "0", "", tables, {}, {}, {"seconds": 1.5})
    assert stage_summary(record) == {"stage": "synthesis", "seconds": 1.5, "rows": {"queries": 3}, "rejects": 2}
    assert stage_summary(StageRecord("bm25", "0", "", {}, {}, {}, {"seconds": 1.5}))["rejects"] == 0
