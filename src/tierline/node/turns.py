"""Who receives next, of the connections with a body under way: a few each turn of the loop, the others in line.

A lease that comes meanwhile waits for the few and not for all of them. Nobody is ready here but who asked: a connection
that has had its read stops reading, stands in line, and is called when it may read again.
"""

import asyncio
from collections import deque
from collections.abc import Callable

AT_ONCE = 4
"""Bodies that receive in one turn of the loop: with reads of 256 KiB, half a millisecond or so."""


class ReceivingTurns:
    """The line of one node; its connections share it."""

    def __init__(self) -> None:
        self._line: deque[Callable[[], None]] = deque()
        self._is_scheduled = False

    def wait(self, begin: Callable[[], None]) -> None:
        """Stand in line; ``begin`` is called when the turn has come, in another turn of the loop."""
        self._line.append(begin)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._call_next)

    def _call_next(self) -> None:
        self._is_scheduled = False
        for _ in range(min(AT_ONCE, len(self._line))):
            self._line.popleft()()
        if self._line:
            self._schedule()
