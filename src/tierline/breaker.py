"""A circuit breaker: after failures in a row nobody asks a server for a while, so that it cannot cost latency.

Closed, it lets every call through. Open, it lets none through until its pause is over; then one probe may pass, whose
outcome closes it or opens it for twice as long. Also here: warnings that repeat at most once a minute.
"""

import logging
import threading
from collections.abc import Callable

FAILURES_TO_OPEN = 3
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
WARNING_INTERVAL_S = 60.0


class Breaker:
    """Counts failures in a row; thread-safe.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._closed_again_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the last calls failed, and none was answered in time since."""
        with self._lock:
            return self._closed_again_at is not None

    def allows(self) -> bool:
        """Say whether a call may be made now; after a pause this grants one probe and starts the next pause."""
        with self._lock:
            if self._closed_again_at is None:
                return True
            now = self._clock()
            if now < self._closed_again_at:
                return False
            self._closed_again_at = now + self._pause_s
            return True

    def succeeded(self) -> None:
        """Record a call that was answered in time."""
        with self._lock:
            self._failures = 0
            self._pause_s = FIRST_PAUSE_S
            self._closed_again_at = None

    def failed(self) -> None:
        """Record a call that failed or took too long."""
        with self._lock:
            self._failures += 1
            if self._failures < FAILURES_TO_OPEN:
                return
            if self._failures > FAILURES_TO_OPEN:
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._closed_again_at = self._clock() + self._pause_s


class Warnings:
    """Writes one warning a subject and minute; says how many it held back.

    Parameters
    ----------
    logger
        Where warnings go.
    clock
        Monotonic seconds.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float]) -> None:
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()
        self._held_back: dict[str, tuple[float, int]] = {}

    def warn(self, subject: str, detail: object) -> None:
        """Warn about ``subject``, unless that was done within the last minute."""
        now = self._clock()
        with self._lock:
            last, held_back = self._held_back.get(subject, (None, 0))
            if last is not None and now - last < WARNING_INTERVAL_S:
                self._held_back[subject] = (last, held_back + 1)
                return
            self._held_back[subject] = (now, 0)
        repeats = f" ({held_back} more since the last warning)" if held_back else ""
        self._logger.warning("Tierline: %s: %s%s", subject, detail, repeats)
