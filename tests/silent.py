"""A reporter for runs that nobody watches."""

from genret.runs import StageRecord


class Silent:
    """Tells nobody."""

    def stage_started(self, stage: str) -> None: ...

    def progress(self, stage: str, done: int, total: int, unit: str, note: str) -> None: ...

    def stage_finished(self, record: StageRecord, reused: bool) -> None: ...
