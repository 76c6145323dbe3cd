"""The last decisions, for an operator who asks why: what was chosen, of what, and how it went.

Rule: nothing of a prompt or an answer is kept, and of a session's name a digest under a key of this process.
"""

import hashlib
import os
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from tierline.router.admin.documents import Choice, DecisionEntry, Weighed
from tierline.router.pairs import Pairing
from tierline.router.strategies.base import Decision

if TYPE_CHECKING:
    from tierline.router.proxy.exchange import Exchange


NAME_CHARS = 256
"""Kept of a name that a client chose: it may be as long as a request."""


class _Record(NamedTuple):
    """What is kept of an exchange; it becomes a document when somebody asks."""

    time: float
    request_id: bytes
    route: str
    model: str
    session: str
    strategy: str
    arm: str
    decision: Decision | None
    retries: list[str]
    status: int
    aborted_by: str
    ttft_s: float | None
    seconds: float
    actual_cached_tokens: int | None
    pairing: Pairing | None


class DecisionLog:
    """Remembers the last :data:`KEPT` requests that went, or should have gone, to an endpoint."""

    KEPT = 512

    def __init__(self, key: bytes = b"") -> None:
        self._key = key or os.urandom(16)
        self._records: deque[_Record] = deque(maxlen=self.KEPT)

    def exchange_ended(self, exchange: "Exchange") -> None:
        """An exchange is over, well or not."""
        seconds = exchange.ended_at - exchange.started_at
        self._records.append(
            _Record(
                time.time() - seconds,
                exchange.request_id[:NAME_CHARS],
                exchange.route,
                exchange.model[:NAME_CHARS],
                self.digest(exchange.session),
                exchange.arm.strategy.name,
                exchange.arm.name,
                exchange.decision,
                exchange.retries,
                exchange.status,
                exchange.aborted_by,
                exchange.answered_at - exchange.started_at if exchange.answered_at else None,
                seconds,
                exchange.actual_cached_tokens,
                exchange.pairing,
            )
        )

    def model_not_found(self, request_id: bytes, route: str, model: str) -> None:
        """A request named a model that nobody serves: nothing was chosen, and it was answered 404."""
        name, request_id = model[:NAME_CHARS], request_id[:NAME_CHARS]
        self._records.append(
            _Record(time.time(), request_id, route, name, "", "", "", None, [], 404, "", None, 0.0, None, None)
        )

    def latest(self, limit: int) -> list[DecisionEntry]:
        """Return up to ``limit`` of them, the latest first."""
        return [self._entry(record) for record in islice(reversed(self._records), limit)]

    def digest(self, session: bytes) -> str:
        """Return what stands for a session's name; empty for no session."""
        return hashlib.blake2b(session, digest_size=8, key=self._key).hexdigest() if session else ""

    def _entry(self, record: _Record) -> DecisionEntry:
        pairing = record.pairing
        return DecisionEntry(
            request_id=record.request_id.decode("latin-1"),
            time=record.time,
            route=record.route,
            model=record.model,
            session=record.session,
            strategy=record.strategy,
            arm=record.arm,
            choice=choice_of(record.decision) if record.decision is not None else None,
            retries=record.retries,
            status=record.status,
            aborted_by=record.aborted_by,
            ttft_s=record.ttft_s,
            seconds=record.seconds,
            actual_cached_tokens=record.actual_cached_tokens,
            pairing="" if pairing is None else pairing.text,
            prefill=None if pairing is None or pairing.prefill is None else choice_of(pairing.prefill),
            prefill_s=None if pairing is None or pairing.prefill is None else pairing.seconds,
        )


def choice_of(decision: Decision) -> Choice:
    """Return a decision as a document."""
    return Choice(
        endpoint=decision.endpoint.url,
        reason=decision.reason,
        total_blocks=decision.total_blocks,
        matched_blocks=decision.matched_blocks,
        best_blocks=decision.best_blocks,
        uncached_tokens=decision.uncached_tokens,
        predicted_cached_tokens=decision.predicted_cached_tokens,
        predicted_by_tier=decision.tiers,
        confidence=decision.confidence,
        weighed=[
            Weighed(
                endpoint=endpoint.url,
                waiting_tokens=waiting,
                uncached_tokens=uncached,
                seconds=(waiting + uncached) / rate if waiting is not None and rate else None,
                matched_blocks=depth,
            )
            for endpoint, waiting, uncached, rate, depth in decision.weighed.rows()
        ],
    )
