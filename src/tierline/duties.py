"""Work that goes on for as long as a program does, and what becomes of it when it fails.

Rule: a failure is counted each time and logged once a minute; it ends neither the program nor the work beside it.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator

from tierline import logs

log = logs.get(__name__)

PAUSE_S = 1.0
"""Before work that has failed is begun again."""
_LOGGED_EVERY_S = 60.0


class Duties:
    """Guards the work, and counts in ``failures`` how often each has failed.

    Parameters
    ----------
    names
        What the program has to do beside serving requests.
    clock
        Seconds, monotonic; decides when a failure is logged again.
    """

    def __init__(self, names: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.failures: Counter[str] = Counter(dict.fromkeys(names, 0))
        self._clock = clock
        self._logged: dict[str, float] = {}

    @contextlib.contextmanager
    def guarded(self, duty: str, *, lets_through: type[Exception] | tuple[()] = ()) -> Iterator[None]:
        """Let a failure inside the block end there; ``lets_through`` are those that somebody else must hear of."""
        try:
            yield
        except lets_through:
            raise
        except Exception:  # noqa: BLE001  (whatever it is, the duties beside this one go on)
            self._note(duty)

    async def keep_up(self, duty: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do endless work; where it ends with an error, begin it again after :data:`PAUSE_S`."""
        while True:
            with self.guarded(duty):
                await work()
            await asyncio.sleep(PAUSE_S)

    def _note(self, duty: str) -> None:
        self.failures[duty] += 1
        now = self._clock()
        if now - self._logged.get(duty, float("-inf")) >= _LOGGED_EVERY_S:
            self._logged[duty] = now
            log.exception("work beside serving failed; it is tried again", duty=duty)
