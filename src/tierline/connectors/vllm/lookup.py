"""Questions to the node store, asked on an event loop of their own: the scheduler's thread never touches a socket.

A lookup asks twice at most: first what the node store has in its memory, and where that is not all, and there are tiers
below it, for the rest within a time of its own. Each answer is a prefix lease, and stays usable until the lookup is
dropped: whoever started it must drop it, once, whatever happened meanwhile. Leases are renewed until then and end at
the latest with the connection.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tierline.breaker import Breaker, Warnings
from tierline.client import AsyncNodeClient
from tierline.connectors.vllm.introduction import Introduction
from tierline.connectors.vllm.keys import RequestKeys
from tierline.connectors.vllm.metrics import Counters
from tierline.errors import TierlineError, WireError
from tierline.loading import PrefillCost
from tierline.prefix import Shard, object_name
from tierline.tracing.context import NOWHERE, Origin, working_for
from tierline.tracing.spans import Attributes, bucket_digest
from tierline.tracing.tracer import OpenSpan, Tracer
from tierline.wire.messages import MAX_FRAME_BYTES, MAX_NAMES_PER_REQUEST, Leased, LeasedObject

_log = logging.getLogger("vllm.tierline")  # under vLLM's logger, so that lines appear where and how vLLM's do
RENEWALS_IN_TTL = 3
MOST_NAMES = min(MAX_NAMES_PER_REQUEST, MAX_FRAME_BYTES // 256)
"""Names in one question; longer prefixes are looked up to here. A name of ours has fewer than 256 bytes."""
_RENEWAL_CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one lease of a lookup holds.

    Parameters
    ----------
    objects
        For each leading chunk that the node store holds: its shards in rank order.
    node_epoch
        The node store's start in which the lease was given.
    node
        The node store's name.
    sources
        Of the objects that came from below the node for this lease: how many, by who answered.
    """

    objects: tuple[tuple[LeasedObject, ...], ...] = ()
    node_epoch: int = 0
    node: str = ""
    sources: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Lookup:
    """One question and its answer, which may grow until ``is_answered``. Written by the lookup thread alone.

    Parameters
    ----------
    keys, chunks
        The request's keys, and how many leading chunks are asked for.
    cost
        What computing a chunk takes; ``None`` where it is not known.
    origin
        Whose work it is.
    is_dropped
        Nobody waits for an answer any more.
    is_answered
        ``answer`` is the last one.
    answer
        The longest run so far; ``None`` before the node store has answered at all.
    wait_s
        How much longer than for its own memory the node store has got, for what it fetches from below.
    fetched
        Bytes that came from below the node, and how long they took; ``None`` where none did.
    chains
        Keys of the chunks asked for; there once there is an answer.
    is_lost
        A lease ended early; extents must not be read.
    leases
        What is held.
    ttl_s, renew_at
        How long the node store lets leases live without a renewal, and when the next one is due.
    """

    keys: RequestKeys
    chunks: int
    cost: PrefillCost | None = None
    origin: Origin = NOWHERE
    is_dropped: bool = False
    is_answered: bool = False
    answer: Answer | None = None
    wait_s: float = 0.0
    fetched: tuple[int, float] | None = None
    chains: Sequence[bytes] = ()
    is_lost: bool = False
    leases: list[str] = field(default_factory=list)
    ttl_s: float = 0.0
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
        An answer about the node store's own memory that takes longer counts as a failure.
    wait_s
        Longest wait for what comes from tiers below the node; 0 takes what is in its memory.
    introduction
        What the node store is told of this engine.
    breaker
        Opened by failures; while it is open no question is asked.
    warnings, counters
        Where trouble is told and counted.
    tracer
        Who is told of lookups of traced requests; ``None``: nobody.
    load_factor
        What a second of computing is worth in seconds of waiting.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AsyncNodeClient]],
        shards: Sequence[Shard],
        bucket: str,
        ttl_s: float,
        budget_s: float,
        wait_s: float,
        introduction: Introduction,
        breaker: Breaker,
        warnings: Warnings,
        counters: Counters,
        tracer: Tracer | None = None,
        load_factor: float = 1.0,
    ) -> None:
        self._connect = connect
        self._shards = shards
        self._bucket = bucket
        self._ttl_s = ttl_s
        self._budget_s = budget_s
        self._wait_s = wait_s
        self._introduction = introduction
        self._breaker = breaker
        self._warnings = warnings
        self._counters = counters
        self._tracer = tracer
        self._load_factor = load_factor
        self._client: AsyncNodeClient | None = None
        self._leased: set[Lookup] = set()
        self._asking: dict[Lookup, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._connecting = asyncio.Lock()
        self._stirred = asyncio.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="tierline-lookup", daemon=True)
        self._thread.start()

    @property
    def is_suspended(self) -> bool:
        """Whether the node store failed too often to be counted on."""
        return self._breaker.is_open

    def start(
        self, keys: RequestKeys, chunks: int, cost: PrefillCost | None = None, origin: Origin = NOWHERE
    ) -> Lookup | None:
        """Ask for leading chunks; ``None`` means that the node store is not to be asked at present."""
        if not self._breaker.allows():
            self._counters.add("lookups_skipped")
            return None
        lookup = Lookup(keys, min(chunks, MOST_NAMES // len(self._shards)), cost, origin)
        self._tell(self._begin, lookup)
        return lookup

    def drop(self, lookup: Lookup) -> None:
        """Give up the question or its leases. To be called once a lookup."""
        self._tell(self._end, lookup)

    def close(self) -> None:
        """End the thread and the connection, and with it every lease."""
        self._tell(self._stop)
        self._thread.join(timeout=5)

    def _tell(self, act: Callable[..., None], *about: Lookup) -> None:
        with contextlib.suppress(RuntimeError):  # the thread has ended, and with it all that it held
            self._loop.call_soon_threadsafe(act, *about)

    # On the loop --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    def _begin(self, lookup: Lookup) -> None:
        task = self._asking[lookup] = self._loop.create_task(self._answer(lookup))
        task.add_done_callback(lambda _: self._asked(lookup))

    def _asked(self, lookup: Lookup) -> None:
        """Nothing more comes for a lookup, for whatever reason."""
        del self._asking[lookup]
        lookup.is_answered = True
        if lookup.is_dropped:
            self._release(lookup)
        self._stirred.set()

    def _end(self, lookup: Lookup) -> None:
        lookup.is_dropped = True
        if (asking := self._asking.get(lookup)) is not None:
            asking.cancel()
        else:
            self._release(lookup)

    def _stop(self) -> None:
        self._is_closing = True
        self._stirred.set()

    async def _serve(self) -> None:
        try:
            # Before the first request, which would otherwise pay for it out of its budget.
            await self._connected()
        except TierlineError as error:
            self._warnings.warn("the node store is not there; prompts are computed until it is", error)
        while not self._is_closing:
            await self._introduce()
            await self._renew_due()
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stirred.wait(), _RENEWAL_CHECK_S)
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def _connected(self) -> AsyncNodeClient:
        async with self._connecting:
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _introduce(self) -> None:
        """Keep the node store told who reads it; where the connection has ended, on a new one."""
        if self._client is not None and not self._client.is_connected:
            await self._lose()
        try:
            if self._client is not None:
                await self._introduction.say(self._client)
            elif self._breaker.allows():
                await self._introduction.say(await self._connected())
                self._breaker.succeeded()
        except Exception as error:  # noqa: BLE001  (a thread that ended here would put off every later request)
            await self._fail("the node store does not know this engine", error)

    async def _answer(self, lookup: Lookup) -> None:
        try:
            await self._ask(lookup)
        except TierlineError as error:
            await self._fail(_said_of(lookup, "lookups fail, prompts are computed"), error)
        except Exception as error:  # noqa: BLE001  (it is told and counted; the prompt is computed)
            await self._fail(_said_of(lookup, "a lookup broke down"), error)
        else:
            blocks = len(lookup.answer.objects) if lookup.answer is not None else 0
            _log.debug(
                "Tierline: looked up request_id=%r blocks=%d of=%d", lookup.origin.request_id, blocks, lookup.chunks
            )

    async def _ask(self, lookup: Lookup) -> None:
        lookup.chains = lookup.keys.leading(lookup.chunks)
        tenant = lookup.keys.tenant
        names = [object_name(chain, shard, tenant) for chain in lookup.chains for shard in self._shards]
        started = time.monotonic()
        client = await self._connected()
        await self._lease(client, lookup, names, 0.0)
        elapsed_s = time.monotonic() - started
        self._counters.add("lookups")
        if elapsed_s > self._budget_s:
            self._breaker.failed()
            self._warnings.warn("lookups are slow", f"one took {elapsed_s * 1000:.0f} ms")
        else:
            self._breaker.succeeded()
        assert lookup.answer is not None
        missing_from = len(lookup.answer.objects)
        if missing_from == lookup.chunks or not client.has_tiers or not self._wait_s:
            return
        wait_s = self._wait_s
        if lookup.cost is not None:  # to wait for longer than computing is worth is no use
            wait_s = min(wait_s, self._load_factor * lookup.cost.seconds(missing_from, lookup.chunks))
        lookup.wait_s = wait_s
        self._counters.add("lookups_below")
        await self._lease(client, lookup, names, wait_s)

    async def _lease(self, client: AsyncNodeClient, lookup: Lookup, names: Sequence[str], wait_s: float) -> None:
        """Take a lease; its objects are the answer where they are more than were known."""
        started = time.monotonic()
        ranks = len(self._shards)
        reply: Leased | None = None
        span: OpenSpan | None = None
        if self._tracer is not None:
            span = self._tracer.open("fetch" if wait_s else "lookup", "client", lookup.origin.trace)
        try:
            with working_for(lookup.origin if span is None else Origin(lookup.origin.request_id, span.context)):
                reply = await client.prefix_lease(
                    self._bucket,
                    names,
                    self._ttl_s,
                    ranks,
                    wait_s=wait_s,
                    anchor=lookup.chains[0].hex(),
                    prefill=lookup.cost,
                )
        finally:
            if span is not None:
                span.end(_looked_up(self._bucket, len(lookup.chains), reply, ranks), is_error=reply is None)
        if reply.lease:
            lookup.leases.append(reply.lease)
            lookup.ttl_s = min(self._ttl_s, reply.ttl_s)
            lookup.renew_at = started + lookup.ttl_s / RENEWALS_IN_TTL
            self._leased.add(lookup)
        if len(reply.objects) > len(names) or len(reply.objects) % ranks:
            raise WireError(f"the node store leased {len(reply.objects)} objects where {len(names)} were asked for")
        if came := sum(reply.sources.values()):
            size = sum(leased.size for leased in reply.objects) * came // len(reply.objects)
            lookup.fetched = size, time.monotonic() - started
        if lookup.answer is None or len(reply.objects) > len(lookup.answer.objects) * ranks:
            lookup.answer = _read(reply, ranks, client)

    def _release(self, lookup: Lookup) -> None:
        self._leased.discard(lookup)
        leases, lookup.leases = lookup.leases, []
        if self._client is None or lookup.is_lost:
            return
        try:
            for lease in leases:
                self._client.let_go(lease)
        except TierlineError as error:
            self._count_failure("a lease could not be released", error)

    async def _renew_due(self) -> None:
        now = time.monotonic()
        for lookup in [lookup for lookup in self._leased if lookup.renew_at <= now and not lookup.is_lost]:
            lookup.renew_at = now + lookup.ttl_s / RENEWALS_IN_TTL
            try:
                for lease in tuple(lookup.leases):
                    if self._client is not None:
                        await self._client.renew(lease, self._ttl_s)
            except TierlineError as error:
                if lookup in self._leased:  # else it was given back meanwhile
                    lookup.is_lost = True
                    await self._fail("a lease could not be renewed", error)

    def _count_failure(self, subject: str, error: Exception) -> None:
        self._counters.add("lookups_failed")
        self._breaker.failed()
        self._warnings.warn(subject, error)

    async def _fail(self, subject: str, error: Exception) -> None:
        """Count a failure; where the connection ended, so did its leases, and the next question opens another."""
        self._count_failure(subject, error)
        if self._client is not None and not self._client.is_connected:
            await self._lose()

    async def _lose(self) -> None:
        for lookup in self._leased:
            lookup.is_lost = True
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def _said_of(lookup: Lookup, subject: str) -> str:
    """Return what is told of a lookup that failed: for which request, too, where that has an id."""
    request_id = lookup.origin.request_id
    return f"{subject} (request_id={request_id!r})" if request_id else subject


def _looked_up(bucket: str, asked: int, reply: Leased | None, ranks: int) -> Attributes:
    """Return what a span says of a lookup."""
    attributes: Attributes = {"tierline.bucket_digest": bucket_digest(bucket), "tierline.asked_blocks": asked}
    if reply is not None:
        attributes["tierline.blocks"] = len(reply.objects) // ranks
        attributes["tierline.bytes"] = sum(leased.size for leased in reply.objects)
        if reply.sources:
            attributes["tierline.tier"] = ",".join(sorted(reply.sources))
    return attributes


def _read(reply: Leased, ranks: int, client: AsyncNodeClient) -> Answer:
    objects = reply.objects
    chunks = tuple(tuple(objects[start : start + ranks]) for start in range(0, len(objects), ranks))
    return Answer(chunks, client.epoch, client.node, reply.sources)
