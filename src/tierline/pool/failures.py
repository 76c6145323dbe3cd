"""What goes wrong in a tier: counted each time, by reason, and logged once a minute and reason."""

import threading
import time
from collections import Counter
from collections.abc import Callable

from tierline import logs

log = logs.get(__name__)

_LOGGED_EVERY_S = 60.0


class Failures:
    """Counts of one tier; thread-safe.

    Parameters
    ----------
    tier
        Which one, in logs: without passwords.
    clock
        Seconds, monotonic.
    """

    def __init__(self, tier: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._counts: Counter[str] = Counter()
        self._tier = tier
        self._clock = clock
        self._lock = threading.Lock()
        self._logged: dict[str, float] = {}

    @property
    def counts(self) -> Counter[str]:
        """How often each thing went wrong, by reason, since the start."""
        with self._lock:
            return self._counts.copy()

    def note(self, reason: str, detail: object = "") -> None:
        """Count one; ``detail`` is logged, and holds no secret."""
        now = self._clock()
        with self._lock:
            self._counts[reason] += 1
            if now - self._logged.get(reason, float("-inf")) < _LOGGED_EVERY_S:
                return
            self._logged[reason] = now
        log.warning(
            "a tier fails; what it would have held is a miss", tier=self._tier, reason=reason, detail=str(detail)
        )
