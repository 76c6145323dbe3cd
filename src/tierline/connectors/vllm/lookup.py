"""Questions to the node store, asked on a thread of their own: the scheduler's thread never touches a socket.

A lookup takes a prefix lease. Whoever started it must drop it, once, whatever happened meanwhile; the lease is renewed
until then and ends at the latest with the connection. Commands are carried out in order, so a drop that follows its
question always finds the answer.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tierline.client import NodeClient
from tierline.connectors.breaker import Breaker, Warnings
from tierline.connectors.vllm.introduction import Introduction
from tierline.connectors.vllm.keys import RequestKeys
from tierline.connectors.vllm.metrics import Counters
from tierline.errors import TierlineError, WireError
from tierline.prefix import Shard, object_name
from tierline.wire.messages import MAX_FRAME_BYTES, MAX_NAMES_PER_REQUEST, LeasedObject

RENEWALS_IN_TTL = 3
MOST_NAMES = min(MAX_NAMES_PER_REQUEST, MAX_FRAME_BYTES // 256)
"""Names in one question; longer prefixes are looked up to here. A name of ours has fewer than 256 bytes."""
_RENEWAL_CHECK_S = 1.0


@dataclass(slots=True, eq=False)
class Lookup:
    """One question and, once ``is_answered``, its answer. Written by the lookup thread alone but for ``is_dropped``.

    Parameters
    ----------
    keys, chunks
        The request's keys, and how many leading chunks are asked for.
    is_dropped
        Nobody waits for the answer any more.
    is_answered
        The fields below hold.
    chains
        Keys of the chunks asked for.
    is_lost
        The lease ended early; its extents must not be read.
    ttl_s
        How long the node store lets the lease live without a renewal.
    objects
        For each leading chunk that the store holds: its shards in rank order.
    node_epoch
        The node store's start in which the lease was given.
    """

    keys: RequestKeys
    chunks: int
    is_dropped: bool = False
    is_answered: bool = False
    chains: Sequence[bytes] = ()
    is_lost: bool = False
    lease: str = ""
    ttl_s: float = 0.0
    objects: tuple[tuple[LeasedObject, ...], ...] = ()
    node_epoch: int = 0
    renew_at: float = 0.0


class LookupThread:
    """Asks, renews and releases.

    Parameters
    ----------
    connect
        Opens a connection to the node store; raises a ``TierlineError`` when it cannot.
    shards
        All ranks' shards: a chunk is a hit if all are there.
    bucket
        The store's bucket.
    ttl_s
        Time to live of a lease.
    budget_s
        A question that takes longer counts as a failure.
    introduction
        What the node store is told of this engine.
    breaker
        Opened by failures; while it is open no question is asked.
    warnings, counters
        Where trouble is told and counted.
    """

    def __init__(
        self,
        connect: Callable[[], NodeClient],
        shards: Sequence[Shard],
        bucket: str,
        ttl_s: float,
        budget_s: float,
        introduction: Introduction,
        breaker: Breaker,
        warnings: Warnings,
        counters: Counters,
    ) -> None:
        self._connect = connect
        self._shards = shards
        self._bucket = bucket
        self._ttl_s = ttl_s
        self._budget_s = budget_s
        self._introduction = introduction
        self._breaker = breaker
        self._warnings = warnings
        self._counters = counters
        self._client: NodeClient | None = None
        self._leased: set[Lookup] = set()
        self._commands: queue.SimpleQueue[Lookup | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tierline-lookup", daemon=True)
        self._thread.start()

    @property
    def is_suspended(self) -> bool:
        """Whether the node store failed too often to be counted on."""
        return self._breaker.is_open

    def start(self, keys: RequestKeys, chunks: int) -> Lookup | None:
        """Ask for leading chunks; ``None`` means that the node store is not to be asked at present."""
        if not self._breaker.allows():
            self._counters.add("lookups_skipped")
            return None
        lookup = Lookup(keys, min(chunks, MOST_NAMES // len(self._shards)))
        self._commands.put(lookup)
        return lookup

    def drop(self, lookup: Lookup) -> None:
        """Give up the question or its lease. To be called once a lookup."""
        lookup.is_dropped = True
        self._commands.put(lookup)

    def close(self) -> None:
        """End the thread and the connection, and with it every lease."""
        self._commands.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            # Before the first request, which would otherwise pay for it out of its budget.
            self._client = self._connect()
        except TierlineError as error:
            self._warnings.warn("the node store is not there; prompts are computed until it is", error)
        self._introduce()
        while True:
            try:
                command = self._commands.get(timeout=_RENEWAL_CHECK_S)
            except queue.Empty:
                pass
            else:
                if command is None:
                    break
                if command in self._leased:
                    self._release(command)
                elif not command.is_dropped:
                    self._ask_or_give_up(command)
            self._renew_due()
            self._introduce()
        if self._client is not None:
            self._client.close()

    def _introduce(self) -> None:
        """Keep the node store told who reads it; where the connection has ended, on a new one."""
        try:
            if self._client is not None:
                self._introduction.say(self._client)
            elif self._breaker.allows():
                self._client = self._connect()
                self._introduction.say(self._client)
                self._breaker.succeeded()
        except Exception as error:  # noqa: BLE001  (a thread that ended here would put off every later request)
            self._fail("the node store does not know this engine", error)

    def _ask_or_give_up(self, lookup: Lookup) -> None:
        try:
            self._ask(lookup)
        except Exception as error:  # noqa: BLE001  (a thread that ended here would put off every later request)
            self._fail("a lookup broke down", error)
            lookup.is_answered = True

    def _ask(self, lookup: Lookup) -> None:
        lookup.chains = lookup.keys.leading(lookup.chunks)
        tenant = lookup.keys.tenant
        names = [object_name(chain, shard, tenant) for chain in lookup.chains for shard in self._shards]
        started = time.monotonic()
        try:
            if self._client is None:
                self._client = self._connect()
            reply = self._client.prefix_lease(self._bucket, names, self._ttl_s, group_size=len(self._shards))
            if len(reply.objects) > len(names) or len(reply.objects) % len(self._shards):
                raise WireError(f"the node store leased {len(reply.objects)} objects where {len(names)} were asked for")
        except TierlineError as error:
            self._fail("lookups fail, prompts are computed", error)
            lookup.is_answered = True
            return
        elapsed_s = time.monotonic() - started
        self._counters.add("lookups")
        if elapsed_s > self._budget_s:
            self._breaker.failed()
            self._warnings.warn("lookups are slow", f"one took {elapsed_s * 1000:.0f} ms")
        else:
            self._breaker.succeeded()
        ranks = len(self._shards)
        lookup.lease = reply.lease
        lookup.ttl_s = min(self._ttl_s, reply.ttl_s)
        lookup.node_epoch = self._client.epoch
        lookup.objects = tuple(
            tuple(reply.objects[start : start + ranks]) for start in range(0, len(reply.objects), ranks)
        )
        if lookup.lease:
            lookup.renew_at = started + lookup.ttl_s / RENEWALS_IN_TTL
            self._leased.add(lookup)
        lookup.is_answered = True

    def _release(self, lookup: Lookup) -> None:
        self._leased.remove(lookup)
        try:
            if self._client is not None and not lookup.is_lost:
                self._client.let_go(lookup.lease)
        except TierlineError as error:
            self._fail("a lease could not be released", error)

    def _renew_due(self) -> None:
        now = time.monotonic()
        for lookup in [lookup for lookup in self._leased if lookup.renew_at <= now and not lookup.is_lost]:
            lookup.renew_at = now + lookup.ttl_s / RENEWALS_IN_TTL
            try:
                if self._client is not None:
                    self._client.renew(lookup.lease, self._ttl_s)
            except TierlineError as error:
                lookup.is_lost = True
                self._fail("a lease could not be renewed", error)

    def _fail(self, subject: str, error: Exception) -> None:
        """Count a failure; where the connection ended, so did its leases, and the next question opens another."""
        self._counters.add("lookups_failed")
        self._breaker.failed()
        self._warnings.warn(subject, error)
        if self._client is not None and not self._client.is_connected:
            for lookup in self._leased:
                lookup.is_lost = True
            self._client.close()
            self._client = None
