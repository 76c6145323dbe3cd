"""Whether an operator that leads still moves. Rule: only what starting it anew would mend makes it unhealthy.

An API that is away, or refuses, is none of that: looks fail and are tried again, watches are begun again, and each of
these is a step. What is waited for without end is: no single step takes nearly as long as :data:`STUCK_SECONDS`.
"""

from collections.abc import Iterable
from typing import Any, Protocol

from tierline.operator.controller.queue import Queue

STUCK_SECONDS = 120.0
"""Without a step. A request of a look ends within 15 s, writing a certificate to S3 within 40; a watch is ended by the
API after 60 s, by us after 75, and begun again after 30 at most."""


class Following(Protocol):
    """A watch."""

    @property
    def what(self) -> str:
        """What it follows."""

    @property
    def still_s(self) -> float:
        """Seconds since it took its last step."""


def stuck(queue: Queue[Any], workers: int, watches: Iterable[Following], ended: Iterable[str]) -> str:
    """Return what does not move any more; empty: all does.

    Parameters
    ----------
    queue
        Of what is to be looked at.
    workers
        How many take from it.
    watches
        What is followed.
    ended
        What should be followed, and is not any more.
    """
    if queue.still_s > STUCK_SECONDS:
        return f"a look at a resource has taken no step for {queue.still_s:.0f} s"
    if queue.at_work < workers and queue.unattended_s > STUCK_SECONDS:
        return f"a resource has been due for {queue.unattended_s:.0f} s, and nobody looks at it"
    for what in ended:
        return f"nobody follows {what} any more"
    for each in watches:
        if each.still_s > STUCK_SECONDS:
            return f"the watch of {each.what} has taken no step for {each.still_s:.0f} s"
    return ""
