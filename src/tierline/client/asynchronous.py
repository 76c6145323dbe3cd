"""The asyncio client of a node store: the verbs of the blocking client as coroutines, requests pipelined.

The same rules hold as in :mod:`tierline.client.blocking`; copies in and out of the segment block their thread, so put
large ones on another (``asyncio.to_thread``).
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from tierline.client import calls
from tierline.client.calls import Call
from tierline.client.core import ClientCore
from tierline.client.handshake import Opened, new_client_name, open_connection
from tierline.errors import NodeUnavailable, WireError
from tierline.loading import PrefillCost
from tierline.wire.messages import CommitEntry, Introduce, Leased, Refusal, Reply, Slot

T = TypeVar("T")


class AsyncNodeClient:
    """One connection to the node store of this machine; made by :meth:`connect`, bound to one event loop.

    Attributes and verbs mean what they mean for :class:`~tierline.client.NodeClient`.
    """

    def __init__(self, opened: Opened, client: str, timeout_s: float) -> None:
        self.client = client
        self.timeout_s = timeout_s
        self.mapping = opened.mapping
        self.node = opened.welcome.node
        self.epoch = opened.welcome.epoch
        self.page_bytes = opened.welcome.page_bytes
        self.segment_bytes = opened.welcome.segment_bytes
        self.max_ttl_s = opened.welcome.max_ttl_s
        self.has_tiers = opened.welcome.has_tiers
        self._connection = _Connection()

    @classmethod
    async def connect(
        cls,
        socket_path: str | Path,
        *,
        client: str | None = None,
        writer: bool = False,
        timeout_s: float = 1.0,
        token: str = "",
        segment: str = "",
        bucket: str = "",
    ) -> Self:
        """Connect, greet and map; parameters and errors as of :class:`~tierline.client.NodeClient`."""
        name = client if client is not None else new_client_name()
        opened = await asyncio.to_thread(
            open_connection,
            socket_path,
            name,
            writer=writer,
            timeout_s=timeout_s,
            token=token,
            segment=segment,
            bucket=bucket,
        )
        self = cls(opened, name, timeout_s)
        opened.sock.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self._connection, sock=opened.sock)
        return self

    @property
    def is_connected(self) -> bool:
        """False once the connection has ended; it does not come back."""
        return self._connection.ended is None

    async def prefix_lease(
        self,
        bucket: str,
        names: Sequence[str],
        ttl_s: float,
        group_size: int = 1,
        *,
        across_gaps: bool = False,
        wait_s: float = 0.0,
        anchor: str = "",
        prefill: PrefillCost | None = None,
        timeout_s: float | None = None,
    ) -> Leased:
        """Lease the longest leading run of stored objects."""
        call = calls.prefix_lease(bucket, names, ttl_s, group_size, across_gaps, wait_s, anchor, prefill)
        return await self._perform(call, timeout_s, wait_s)

    async def renew(self, lease: str, ttl_s: float, *, timeout_s: float | None = None) -> None:
        """Set a lease's remaining time."""
        await self._perform(calls.renew(lease, ttl_s), timeout_s)

    async def release(
        self, lease: str, start: int = 0, stop: int | None = None, *, timeout_s: float | None = None
    ) -> int:
        """Give back a lease or a part of it."""
        return await self._perform(calls.release(lease, start, stop), timeout_s)

    def let_go(self, lease: str, start: int = 0, stop: int | None = None) -> None:
        """Give back a lease or a part of it, without waiting for the answer."""
        self._connection.send_unheard(calls.release(lease, start, stop))

    @property
    def refused_unheard(self) -> int:
        """How many calls the node refused that nobody waited for."""
        return self._connection.refused_unheard

    async def reserve(
        self,
        bucket: str,
        names: Sequence[str],
        sizes: Sequence[int],
        *,
        wait_s: float = 0.0,
        timeout_s: float | None = None,
    ) -> list[Slot | Refusal]:
        """Allocate a slot for each name and hold the names."""
        return await self._perform(calls.reserve(bucket, names, sizes, wait_s), timeout_s, wait_s)

    async def grant(self, size: int, count: int, *, timeout_s: float | None = None) -> list[Slot]:
        """Allocate up to ``count`` slots of ``size`` bytes, to be named on commit."""
        return await self._perform(calls.grant(size, count), timeout_s)

    async def commit(
        self, bucket: str, entries: Sequence[CommitEntry], *, timeout_s: float | None = None
    ) -> list[Refusal | None]:
        """Publish written slots."""
        return await self._perform(calls.commit(bucket, entries), timeout_s)

    async def abort(self, slots: Sequence[int], *, timeout_s: float | None = None) -> int:
        """Give slots back."""
        return await self._perform(calls.abort(slots), timeout_s)

    async def suspect(self, bucket: str, name: str, *, timeout_s: float | None = None) -> None:
        """Report an object whose bytes do not match its checksum."""
        await self._perform(calls.suspect(bucket, name), timeout_s)

    async def delete(self, bucket: str, names: Sequence[str], *, timeout_s: float | None = None) -> int:
        """Remove objects; returns how many were there."""
        return await self._perform(calls.delete(bucket, names), timeout_s)

    async def introduce(self, said: Introduce, *, timeout_s: float | None = None) -> None:
        """Say which objects this client, an engine, reads for a prompt; it holds until it is said anew."""
        await self._perform(calls.introduce(said), timeout_s)

    async def stats(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the document of ``GET /v1/stats``."""
        return await self._perform(calls.describe(), timeout_s)

    async def close(self) -> None:
        """End the connection: its slots are aborted, its leases released."""
        self._connection.close()
        await self._connection.closed.wait()
        self.mapping.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _perform(self, call: Call[T], timeout_s: float | None, wait_s: float = 0.0) -> T:
        budget_s = (self.timeout_s if timeout_s is None else timeout_s) + wait_s
        number, reply = self._connection.send(call)
        try:
            async with asyncio.timeout(budget_s):
                answer = await reply
        except asyncio.CancelledError:
            self._connection.give_up(number, reply)
            raise
        except TimeoutError as error:
            if reply.cancelled():
                self._connection.give_up(number, reply)
                raise NodeUnavailable(f"the node did not answer within {budget_s} s") from error
            answer = reply.result()  # it has come while this process stood still
        return call.result(answer)


class _Connection(asyncio.Protocol):
    """Carries the core's bytes; invariant: a future for each awaited id, all of them done once the connection ended."""

    def __init__(self) -> None:
        self.ended: str | None = None
        self.closed = asyncio.Event()
        self._core = ClientCore()
        self._futures: dict[int, asyncio.Future[Reply]] = {}
        self._transport: asyncio.Transport | None = None
        self._is_writable = True

    def send(self, call: Call[Any]) -> tuple[int, asyncio.Future[Reply]]:
        """Send a request; the future gets its reply."""
        if self.ended is not None:
            raise NodeUnavailable(self.ended)
        number = self._core.request(call)
        self._futures[number] = asyncio.get_running_loop().create_future()
        self._flush()
        return number, self._futures[number]

    def send_unheard(self, call: Call[Any]) -> None:
        """Send a request whose reply nobody waits for."""
        if self.ended is not None:
            raise NodeUnavailable(self.ended)
        self._core.send_unheard(call)
        self._flush()

    @property
    def refused_unheard(self) -> int:
        """Calls that nobody waited for and that the node refused."""
        return self._core.refused_unheard

    def give_up(self, number: int, reply: asyncio.Future[Reply]) -> None:
        """The caller is gone; its reply may be here already, or come later."""
        self._futures.pop(number, None)
        self._core.abandon(number)
        if reply.done() and not reply.cancelled() and reply.exception() is None:
            self._core.give_back(reply.result())
            self._flush()

    def close(self) -> None:
        """End the connection."""
        self._end("the client is closed")
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            for number, reply in self._core.receive(data):
                future = self._futures.pop(number)
                if future.done():  # cancelled a moment ago; its caller does not know of the reply
                    self._core.give_back(reply)
                else:
                    future.set_result(reply)
        except WireError as error:
            self._end(f"the connection to the node ended: {error}")
        self._flush()

    def eof_received(self) -> bool:
        # Kept half open: the node takes our end of the connection as our word that nobody writes into slots.
        self._end("the connection to the node ended: the node closed it")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection to the node ended: {exc or 'closed'}")
        self.closed.set()

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        self._flush()

    def _flush(self) -> None:
        if self._core.unsent and self._is_writable and self.ended is None and self._transport is not None:
            self._transport.write(bytes(self._core.unsent))
            self._core.unsent.clear()

    def _end(self, why: str) -> None:
        if self.ended is None:
            self.ended = why
        for future in self._futures.values():
            if not future.done():
                future.set_exception(NodeUnavailable(self.ended))
        self._futures.clear()
