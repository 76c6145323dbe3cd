"""What the last minutes were like: counted when a request is over, in parts of ten seconds that are forgotten in time.

TTFTs are counted on a scale, each place a tenth longer than the one before, so that several workers' can be added up;
what is read from it is exact to 5 %.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import floor, log
from typing import TYPE_CHECKING

import msgspec

from tierline.router.dashboard.documents import Flow, Moment, MomentView, RequestRow, Share, Ttft
from tierline.router.decisions import NAME_CHARS
from tierline.router.workers.gathering import merge_affinity, merge_endpoints

if TYPE_CHECKING:
    from tierline.router.proxy.exchange import Exchange
    from tierline.router.workers.board import Load

MOMENT_S = 10
KEPT_S = 600
MINUTE_S = 60
ROWS_KEPT = 15
HIT_SHARE = 0.5
"""Of a prompt, what must have been cached for its request to be a hit: a template that all prompts share is none."""
_STEP = log(1.1)
_SHORTEST_S = 1e-4


class History:
    """Of one process.

    Invariant: of ``_flows`` and ``_moments`` only what is younger than :data:`KEPT_S` is told, and little more is kept.

    Parameters
    ----------
    clock
        Wall clock.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._rows: deque[RequestRow] = deque(maxlen=ROWS_KEPT)
        self._moments: deque[Moment] = deque()
        self._flows: deque[dict[tuple[str, str], Flow]] = deque()
        """Beside each moment."""
        self._failures: Counter[str] = Counter()

    def exchange_ended(self, exchange: "Exchange") -> None:
        """A request is over, well or not."""
        now = self._clock()
        row = _row(exchange, now)
        self._rows.append(row)
        moment, flows = self._now(now)
        moment.requests += 1
        failures = list(_failures(row, exchange.retries))
        moment.failed += row.status >= 500 or row.aborted_by == "upstream"
        self._failures.update(failures)
        if row.ttft_s is not None and row.status < 400:
            counts = moment.hits if is_hit(row) else moment.misses
            place = place_of(row.ttft_s)
            counts[place] = counts.get(place, 0) + 1
        flow = flows.setdefault((row.endpoint, row.reason), Flow(endpoint=row.endpoint, reason=row.reason))
        flow.requests += 1
        if row.prompt_tokens is not None and row.cached_tokens is not None:
            for counted in (moment, flow):
                counted.prompt_tokens += row.prompt_tokens
                counted.cached_tokens += row.cached_tokens
            flow.predicted_tokens += row.predicted_tokens

    def rows(self) -> list[RequestRow]:
        """Return the last requests, the latest first."""
        return list(reversed(self._rows))

    def moments(self) -> list[Moment]:
        """Return what is kept, the earliest first."""
        self._forget(self._clock())
        return list(self._moments)

    def flows(self) -> list[Flow]:
        """Return where the requests of all moments went, and why."""
        self._forget(self._clock())
        return merge_flows(list(flows.values()) for flows in self._flows)

    @property
    def failures(self) -> Mapping[str, int]:
        """Since the start, by what went wrong."""
        return self._failures

    def _now(self, now: float) -> tuple[Moment, dict[tuple[str, str], Flow]]:
        at = int(now // MOMENT_S * MOMENT_S)
        if not self._moments or at > self._moments[-1].at:
            self._forget(now)
            self._moments.append(Moment(at=at, hits={}, misses={}))
            self._flows.append({})
        return self._moments[-1], self._flows[-1]  # a clock that was set back goes on with the last one

    def _forget(self, now: float) -> None:
        while self._moments and self._moments[0].at <= now - KEPT_S:
            self._moments.popleft()
            self._flows.popleft()


def is_hit(row: RequestRow) -> bool:
    """Whether the greater part of a request's prompt was cached: as its answer says, else as was believed."""
    if row.prompt_tokens and row.cached_tokens is not None:
        return row.cached_tokens >= HIT_SHARE * row.prompt_tokens
    return bool(row.total_blocks) and row.matched_blocks >= HIT_SHARE * row.total_blocks


def _row(exchange: "Exchange", now: float) -> RequestRow:
    decision = exchange.decision
    is_stream = exchange.is_event_stream and exchange.answered_at
    return RequestRow(
        time=now,
        route=exchange.route,
        model=exchange.model[:NAME_CHARS],
        endpoint="" if decision is None else decision.endpoint.url,
        reason="" if decision is None else decision.reason,
        strategy=exchange.arm.strategy.name,
        arm=exchange.arm.name,
        status=exchange.status,
        aborted_by=exchange.aborted_by,
        attempts=len(exchange.retries) + (decision is not None),
        ttft_s=exchange.answered_at - exchange.started_at if is_stream else None,
        seconds=exchange.ended_at - exchange.started_at,
        matched_blocks=0 if decision is None else decision.matched_blocks,
        total_blocks=0 if decision is None else decision.total_blocks,
        prompt_tokens=exchange.prompt_tokens,
        predicted_tokens=0 if decision is None else decision.predicted_cached_tokens,
        predicted_by_tier={} if decision is None else decision.tiers,
        cached_tokens=exchange.actual_cached_tokens,
    )


def _failures(row: RequestRow, retries: Sequence[str]) -> Iterable[str]:
    if row.status >= 400:
        yield f"answered {row.status}"
    if row.aborted_by == "client":
        yield "the client left"
    elif row.aborted_by:
        yield "the endpoint broke off"
    for reason in retries:
        yield f"another attempt after {reason}"


# The scale ------------------------------------------------------------------------------------------------------------


def place_of(seconds: float) -> int:
    """Return the place of a time on the scale."""
    return max(0, floor(log(max(seconds, _SHORTEST_S) / _SHORTEST_S) / _STEP))


def ttft_of(*several: Mapping[int, int]) -> Ttft | None:
    """Return what a scale's counts say; ``None`` for nothing counted.

    >>> found = ttft_of({place_of(0.2): 9, place_of(3.0): 1})
    >>> 0.19 < found.p50_s < 0.21, found.requests
    (True, 10)
    """
    counts: dict[int, int] = {}  # added up by hand: sums of counters took most of the time that a snapshot takes
    for each in several:
        for place, count in each.items():
            counts[place] = counts.get(place, 0) + count
    total = sum(counts.values())
    return Ttft(requests=total, p50_s=_quantile(counts, 0.5), p90_s=_quantile(counts, 0.9)) if total else None


def _quantile(counts: Mapping[int, int], share: float) -> float:
    wanted, so_far, place = share * sum(counts.values()), 0, 0
    for place in sorted(counts):
        so_far += counts[place]
        if so_far >= wanted:
            break
    return float(_SHORTEST_S * 1.1 ** (place + 0.5))


def requests_per_s(moments: Iterable[Moment], now: float) -> float:
    """Return how many requests a second ended in the last minute, silence included.

    >>> requests_per_s([Moment(at=0, requests=500), Moment(at=50, requests=30)], now=63.0)
    0.5666666666666667
    """
    first = (floor((now - MINUTE_S) / MOMENT_S) + 1) * MOMENT_S  # the earliest moment that is in it as a whole
    return sum(moment.requests for moment in moments if moment.at >= first) / (now - first)


def view_of(moment: Moment) -> MomentView:
    """Return a moment as the page shows it."""
    return MomentView(
        at=moment.at,
        requests=moment.requests,
        failed=moment.failed,
        prompt_tokens=moment.prompt_tokens,
        cached_tokens=moment.cached_tokens,
        hit=ttft_of(moment.hits),
        miss=ttft_of(moment.misses),
    )


# Several workers ------------------------------------------------------------------------------------------------------


def merge_shares(shares: Sequence[Share], elsewhere: "Iterable[Load]" = ()) -> Share:
    """Return what all workers know together; ``elsewhere`` is what other routers have at endpoints."""
    moments: dict[int, Moment] = {}
    for moment in (moment for share in shares for moment in share.moments):
        known = moments.get(moment.at)
        moments[moment.at] = moment if known is None else _sum(known, moment)
    rows = [row for share in shares for row in share.rows]
    return Share(
        endpoints=merge_endpoints([share.endpoints for share in shares], elsewhere),
        affinity=merge_affinity([share.affinity for share in shares]),
        rows=sorted(rows, key=lambda row: -row.time)[:ROWS_KEPT],
        moments=[moments[at] for at in sorted(moments)],
        flows=merge_flows(share.flows for share in shares),
        failures=dict(sum((Counter(share.failures) for share in shares), Counter())),
        waiting=sum(share.waiting for share in shares),
        index_bytes=sum(share.index_bytes for share in shares),
        started_at=min(share.started_at for share in shares),
        workers=len(shares),
    )


def merge_flows(lists: Iterable[Iterable[Flow]]) -> list[Flow]:
    """Return flows with those of one endpoint and reason added up, the greatest first."""
    found: dict[tuple[str, str], Flow] = {}
    for flow in (flow for flows in lists for flow in flows):
        known = found.get((flow.endpoint, flow.reason))
        if known is None:
            found[flow.endpoint, flow.reason] = msgspec.structs.replace(flow)
            continue
        known.requests += flow.requests
        known.prompt_tokens += flow.prompt_tokens
        known.predicted_tokens += flow.predicted_tokens
        known.cached_tokens += flow.cached_tokens
    return sorted(found.values(), key=lambda flow: (-flow.requests, flow.endpoint, flow.reason))


def _sum(one: Moment, other: Moment) -> Moment:
    return Moment(
        at=one.at,
        requests=one.requests + other.requests,
        failed=one.failed + other.failed,
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
        hits=dict(Counter(one.hits) + Counter(other.hits)),
        misses=dict(Counter(one.misses) + Counter(other.misses)),
    )
