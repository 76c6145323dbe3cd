"""Whether the client was what was measured: then its figures are not the server's, and are not published."""

from collections.abc import Sequence

from tierline.bench.rows import percentile
from tierline.bench.serving.records import ClientLoad, Record

LATE_MS = 10.0
LATE_SHARE = 0.05
"""Of the median time to first token; later than the larger of the two is too late."""
BUSY_SHARE = 0.85
"""Of a processor, which is all that a client process can use."""


def reasons_not_to_publish(
    records: Sequence[Record], loads: Sequence[ClientLoad], late_limit_ms: float | None = None
) -> list[str]:
    """Return what is wrong with the client, in words that say what to do; nothing when it kept up.

    Parameters
    ----------
    records
        All that was sent, measured or not.
    loads
        Of the client's processes.
    late_limit_ms
        The P99 of delays that is allowed; ``None``: by the two rules above.
    """
    reasons = []
    sent = [record for record in records if record.ttft_s is not None]
    if sent:
        late_ms = percentile([record.late_s for record in sent], 99) * 1000
        ttft_ms = percentile([record.ttft_s or 0.0 for record in sent], 50) * 1000
        limit_ms = max(LATE_MS, LATE_SHARE * ttft_ms) if late_limit_ms is None else late_limit_ms
        if late_ms > limit_ms:
            reasons.append(
                f"1 of 100 requests was sent {late_ms:.0f} ms late or more, where {limit_ms:.0f} ms are allowed: give "
                "--processes more, or use a machine with nothing else to do"
            )
    busiest = max((load.cpu_share for load in loads), default=0.0)
    if busiest > BUSY_SHARE:
        reasons.append(
            f"a client process used {busiest:.0%} of a processor, where {BUSY_SHARE:.0%} are allowed: give --processes "
            "more, or share the load among hosts with --share"
        )
    return reasons
