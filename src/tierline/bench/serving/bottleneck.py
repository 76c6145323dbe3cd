"""Whether the client was what was measured: then its figures are not the server's, and are not published."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tierline.bench.rows import percentile
from tierline.bench.serving.records import ClientLoad, Record

BUSY_SHARE = 0.85
"""Of a processor, which is all that a client process can use."""


@dataclass(frozen=True)
class LateRule:
    """How late 1 of 100 requests may be sent: a share of the median time to first token, within bounds.

    Parameters
    ----------
    share
        Of the median time to first token.
    least_ms, most_ms
        So late is never too late, and later always is.
    """

    share: float = 0.05
    least_ms: float = 10.0
    most_ms: float = math.inf

    @classmethod
    def fixed(cls, limit_ms: float) -> "LateRule":
        """Return the rule that allows so much whatever the answers take."""
        return cls(share=0.0, least_ms=limit_ms, most_ms=limit_ms)

    def limit_ms(self, ttft_ms: float) -> float:
        """Return what is allowed where this is the median time to first token."""
        return min(self.most_ms, max(self.least_ms, self.share * ttft_ms))


def wait_of_one_in_a_hundred(stalls_s: Sequence[float], wall_s: float) -> float:
    """Return how long 1 of 100 events waits, when they come evenly in time and find a process that stalls like this.

    >>> wait_of_one_in_a_hundred([1.0], 10.0)  # one event in ten comes during it, the first of them waits a second
    0.9
    """
    allowed = 0.01 * wall_s
    longest = [*sorted(stalls_s, reverse=True), 0.0]
    total = 0.0
    for count, (stall, shorter) in enumerate(itertools.pairwise(longest), start=1):
        total += stall
        # For a time of ``allowed`` in all, what comes waits longer than this.
        wait = (total - allowed) / count
        if wait >= shorter:
            return wait
    return 0.0


LATE = LateRule()
"""Unless somebody asks for another: 10 ms, or 5 % of the median time to first token where that is more."""


def reasons_not_to_publish(records: Sequence[Record], loads: Sequence[ClientLoad], late: LateRule = LATE) -> list[str]:
    """Return what is wrong with the client, in words that say what to do; nothing when it kept up.

    Parameters
    ----------
    records
        All that was sent, measured or not.
    loads
        Of the client's processes.
    late
        How late is too late.
    """
    reasons = []
    sent = [record for record in records if record.ttft_s is not None]
    if sent:
        late_ms = percentile([record.late_s or 0.0 for record in sent], 99) * 1000
        ttft_ms = percentile([record.ttft_s or 0.0 for record in sent], 50) * 1000
        limit_ms = late.limit_ms(ttft_ms)
        if late_ms > limit_ms:
            reasons.append(
                f"1 of 100 requests was sent {late_ms:.0f} ms late or more, where {limit_ms:.0f} ms are allowed: use a "
                f"machine with nothing else to do{', or give --processes more' if loads else ''}"
            )
        noticed_ms = max((load.notices_s for load in loads), default=0.0) * 1000
        if noticed_ms > limit_ms:
            reasons.append(
                f"a client process noticed 1 of 100 answers {noticed_ms:.0f} ms late or more, where {limit_ms:.0f} ms "
                "are allowed: use a machine with nothing else to do, or give --processes more"
            )
    busiest = max((load.cpu_share for load in loads), default=0.0)
    if busiest > BUSY_SHARE:
        reasons.append(
            f"a client process used {busiest:.0%} of a processor, where {BUSY_SHARE:.0%} are allowed: give --processes "
            "more, or share the load among hosts with --share"
        )
    return reasons
