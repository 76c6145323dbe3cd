"""Endpoints that several processes send requests to: each counts its own, and sees the others' on the board.

Rule: what a strategy reads of an endpoint (``inflight``, ``queued_tokens``) is the sum over all processes, as of the
last look at its candidates.
"""

from collections.abc import Mapping, Sequence
from math import inf

from tierline.router.endpoints import Endpoint, Endpoints
from tierline.router.specs import Role
from tierline.router.workers.board import (
    INFLIGHT,
    LAYOUT,
    SLOT_WAITING,
    SLOT_WORDS,
    SLOTS_AT,
    TOKENS,
    VERSION,
    WAITING,
    Board,
    Row,
    endpoint_key,
)


class SharedEndpoint(Endpoint):
    """An endpoint whose load is a sum over processes.

    Invariant: this process's part of ``inflight`` and ``queued_tokens`` is what its slot on the board says.
    """

    __slots__ = ("_at", "_words", "key", "waiting_least", "workers")

    def __init__(self, url: str, position: int, *, joined_at: float, row: Row, workers: int) -> None:
        Endpoint.__init__(self, url, position, joined_at=joined_at)
        self.key = endpoint_key(url)
        self.workers = workers
        self.waiting_least: int | None = None
        """Of the other workers in which requests wait for this endpoint, the fewest that one of them has here."""
        row.claim(position, self.key)
        self._words = row.words
        self._at = SLOTS_AT + SLOT_WORDS * position

    def begin(self, uncached_tokens: int, now: float) -> int:
        """See :class:`~tierline.router.endpoints.Endpoint`."""
        queued = Endpoint.begin(self, uncached_tokens, now)
        self._publish()
        return queued

    def answered(self, uncached_tokens: int, tokens_before: int, seconds: float | None, now: float) -> None:
        """See :class:`~tierline.router.endpoints.Endpoint`."""
        Endpoint.answered(self, uncached_tokens, tokens_before, seconds, now)
        self._publish()

    def end(self, unanswered_tokens: int, *, is_probe: bool = False) -> None:
        """See :class:`~tierline.router.endpoints.Endpoint`."""
        Endpoint.end(self, unanswered_tokens, is_probe=is_probe)
        self._publish()

    def has_room(self, limit: int) -> bool:
        """Whether it may have one more request of this worker's.

        A worker that has its share lets the place go to one that has less and whose requests wait for it: a place that
        came free would else be taken by who freed it, for ever.
        """
        if self.inflight >= limit:
            return False
        least, fair = self.waiting_least, max(1, limit // self.workers)
        return least is None or least >= fair or self.own_inflight < fair

    def show_waiting(self, waiting: int) -> None:
        """Tell the other workers how many of this one's requests wait for this endpoint."""
        self._words[self._at + SLOT_WAITING] = waiting
        self._words[VERSION] += 1

    def _publish(self) -> None:
        words, at = self._words, self._at
        words[at + INFLIGHT] = self.inflight - self.elsewhere_inflight
        words[at + TOKENS] = self.queued_tokens - self.elsewhere_tokens
        words[VERSION] += 1


class SharedEndpoints(Endpoints):
    """The endpoints of a worker.

    Parameters
    ----------
    board
        Where all processes count.
    index
        This worker's row.
    """

    def __init__(self, board: Board, index: int) -> None:
        super().__init__()
        self._row = board.rows[index]
        self._workers = board.workers
        self._others = [_Other(row) for number, row in enumerate(board.rows) if number != index]
        self._siblings = self._others[: board.workers - 1]
        self._seen: Sequence[Endpoint] | None = None
        self._was_waited_for = False

    def candidates(
        self, model: str | None, now: float, tried: Sequence[Endpoint] = (), *, role: Role = "decode"
    ) -> list[Endpoint]:
        """See :class:`~tierline.router.endpoints.Endpoints`."""
        self.refresh()
        return super().candidates(model, now, tried, role=role)

    def have_room(self, limit: int) -> bool:
        """See :class:`~tierline.router.endpoints.Endpoints`."""
        self.refresh()
        return super().have_room(limit)

    def release(self, endpoint: Endpoint) -> None:
        """See :class:`~tierline.router.endpoints.Endpoints`."""
        self._row.release(endpoint.position)
        super().release(endpoint)

    def refresh(self) -> None:
        """See what the other processes have now."""
        if self.all is not self._seen:
            self._begin_anew()
            return
        changed = [other for other in self._others if other.words[VERSION] != other.version]
        if not changed:
            return
        for other in changed:
            if not other.follow():
                self._begin_anew()
                return
        self._see_who_waits()

    def _begin_anew(self) -> None:
        """Find out where each endpoint is in the others' rows, and add up from nothing."""
        self._seen = self.all
        here = {endpoint.key: endpoint for endpoint in self.all if isinstance(endpoint, SharedEndpoint)}
        for endpoint in here.values():
            endpoint.inflight -= endpoint.elsewhere_inflight
            endpoint.queued_tokens -= endpoint.elsewhere_tokens
            endpoint.elsewhere_inflight = endpoint.elsewhere_tokens = 0
        for other in self._others:
            other.begin(here)
        self._see_who_waits()

    def _see_who_waits(self) -> None:
        is_waited_for = any(other.is_waiting for other in self._siblings)
        if not is_waited_for and not self._was_waited_for:
            return
        self._was_waited_for = is_waited_for
        for endpoint in self.all:
            assert isinstance(endpoint, SharedEndpoint)
            endpoint.waiting_least = self._waiting_least(endpoint.key) if is_waited_for else None

    def has_place(self, limit: int, running: int) -> bool:
        """Whether one more request of this worker's may run, of ``limit`` in all; ``running`` are its own.

        The rule for shares is :meth:`SharedEndpoint.has_room`'s.
        """
        self.refresh()
        if running + sum([other.inflight for other in self._others]) >= limit:
            return False
        fair = max(1, limit // self._workers)
        return running < fair or not any(other.waiting and other.inflight < fair for other in self._siblings)

    def show_waiting(self, waiting: int) -> None:
        """Tell the other workers how many of this one's requests wait for a place at any endpoint."""
        if self._row.words[WAITING] != waiting:
            self._row.words[WAITING] = waiting
            self._row.words[VERSION] += 1

    def named(self, key: int) -> Endpoint | None:
        """Return the endpoint of that name on the board."""
        return next((e for e in self.all if isinstance(e, SharedEndpoint) and e.key == key), None)

    def _make(self, url: str, position: int, joined_at: float) -> Endpoint:
        return SharedEndpoint(url, position, joined_at=joined_at, row=self._row, workers=self._workers)

    def _waiting_least(self, key: int) -> int | None:
        least = inf
        for other in self._siblings:
            slots = other.slots.get(key, ())
            if any(other.values[at + SLOT_WAITING] for at in slots):
                least = min(least, sum([other.values[at + INFLIGHT] for at in slots]))
        return None if least == inf else int(least)


class _Other:
    """Another process's row as it was read last.

    Invariant: what ``values`` say of the endpoints in ``at_slots`` is in these endpoints' sums.
    """

    def __init__(self, row: Row) -> None:
        self.words = row.words
        self.version = self._layout = -1
        self.values: list[int] = []
        self.slots: dict[int, list[int]] = {}
        """Where the slots of an endpoint begin in ``values``: one that was removed and added again has two, until the
        requests that it had before are over."""
        self._at_slots: list[SharedEndpoint | None] = []
        """For each slot, the endpoint here; ``None`` where there is none."""
        self._end = SLOTS_AT
        self.inflight = 0
        """At all endpoints, those among them that are not known here."""
        self.waiting = 0
        self.is_waiting = False
        """Requests wait there, for a place or for an endpoint."""

    def begin(self, here: Mapping[int, SharedEndpoint]) -> None:
        """Add what the row says to the sums of the endpoints ``here``, which have nothing of it yet."""
        self._layout = self.words[LAYOUT]
        values = self.words.tolist()
        taken = [at for at in range(SLOTS_AT, len(values), SLOT_WORDS) if values[at]]
        self._end = taken[-1] + SLOT_WORDS if taken else SLOTS_AT
        self.slots = {}
        for at in taken:
            self.slots.setdefault(values[at], []).append(at)
        self._at_slots = [here.get(values[at]) for at in range(SLOTS_AT, self._end, SLOT_WORDS)]
        self.values = [0] * self._end
        self._read()

    def follow(self) -> bool:
        """Bring the sums to what the row says now; not where its slots are other endpoints' than before."""
        if self.words[LAYOUT] != self._layout:
            return False
        self._read()
        return True

    def _read(self) -> None:
        words, former = self.words, self.values
        self.version = words[VERSION]  # first: what changes while this reads is read again next time
        self.values = values = words[: self._end].tolist()
        self.waiting = values[WAITING]
        inflight, tokens = values[SLOTS_AT + INFLIGHT :: SLOT_WORDS], values[SLOTS_AT + TOKENS :: SLOT_WORDS]
        before = zip(former[SLOTS_AT + INFLIGHT :: SLOT_WORDS], former[SLOTS_AT + TOKENS :: SLOT_WORDS], strict=True)
        for endpoint, now, then in zip(self._at_slots, zip(inflight, tokens, strict=True), before, strict=True):
            if now != then and endpoint is not None:
                more, tokens_more = now[0] - then[0], now[1] - then[1]
                endpoint.inflight += more
                endpoint.elsewhere_inflight += more
                endpoint.queued_tokens += tokens_more
                endpoint.elsewhere_tokens += tokens_more
        self.inflight = sum(inflight)
        self.is_waiting = bool(self.waiting) or any(values[SLOTS_AT + SLOT_WAITING :: SLOT_WORDS])
