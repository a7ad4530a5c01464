"""An event loop whose clock counts its turns while there is anything to do, and then goes on to the next timer at once.

However slow the machine is, no timer goes off before what it waits for has come, and long waits take no time. What
threads or other processes do is nothing that this loop sees coming: all parts of a scenario have to be in it.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

# What was written to a socket of this machine can be read at once, or very soon.
_DELIVERY_SECONDS = 0.02
# A request and its answer take some ten turns.
_SECONDS_A_TURN = 1e-4


class _Selector(selectors.DefaultSelector):
    """Lets time pass where nothing else happens."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.passed += _SECONDS_A_TURN
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        # The loop has one socket of its own, to be woken by.
        found = super().select(_DELIVERY_SECONDS if len(self.get_map()) > 1 else 0)
        if not found:
            self.passed += timeout
        return found


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._still = _Selector()
        super().__init__(self._still)

    def time(self) -> float:
        return self._still.passed


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    """As `asyncio.run`, by such a clock."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(scenario)
