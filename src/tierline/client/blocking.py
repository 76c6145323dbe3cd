"""The blocking client of a node store; thread-safe, every call bounded in time.

Rule: a call either returns, raises what the node said (:class:`~tierline.errors.StoreError` and its kin), or raises
:class:`~tierline.errors.NodeUnavailable` no later than its timeout. It never retries and never reconnects.
"""

import select
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tierline.client import calls
from tierline.client.calls import Call
from tierline.client.core import ClientCore
from tierline.client.handshake import new_client_name, open_connection
from tierline.errors import NodeUnavailable, WireError
from tierline.loading import PrefillCost
from tierline.wire.messages import CommitEntry, Introduce, Leased, Refusal, Reply, Slot

T = TypeVar("T")

_RECEIVE_BYTES = 256 * 1024
_MOST_UNHEARD = 64
"""Replies that nobody waits for and that the kernel keeps; with more, they are received on the way."""


class NodeClient:
    """One connection to the node store of this machine.

    Slots and leases belong to the connection. When the node goes away, each call under way and every later one raises
    ``NodeUnavailable``, ``is_connected`` is False, and all slots and leases of this client are void. There is no
    reconnecting: open a new ``NodeClient``. Under the same ``client`` name that tells the node that **no thread writes
    into slots of the old connection any more**, so stop the writers first. A different ``epoch`` says that the node
    was restarted in between.

    A call that times out leaves the connection as it is: what its late reply hands out is given back by the next
    call. The effect of a timed-out commit is unknown; the object is there or it is not, and never half.

    Calls from several threads take turns; waiting for one's turn counts against the timeout. So what waits for other
    writers (``wait_s``) belongs on a client of its own.

    Parameters
    ----------
    socket_path
        The node's UNIX socket (``tierline node --socket``).
    client
        Who this is, shown to operators; unique to one client. Default: a new name made of program, host and process id.
        Keep it (``NodeClient.client``) to open this client again.
    writer
        Ask for the right to reserve and commit, and for a writable mapping.
    timeout_s
        Bound of connecting, and of each call that does not name its own.
    token
        What a node that asks for tokens is shown; it decides what this client may do.
    segment
        Name of the segment to map, of a node that has several; only buckets in it can be read and written. Default: the
        one that ``bucket`` is in.
    bucket
        The bucket that this client will use. Default, where no segment is named either: one of the first segment.

    Raises
    ------
    NodeUnavailable
        Nobody answers at ``socket_path``.
    AccessDenied
        The node asks for a token, or this one may not map the segment.
    WireError
        The node refused the connection.
    SegmentError
        The segment cannot be mapped.

    Examples
    --------
    ::

        with NodeClient(path, writer=True) as node:
            [slot] = node.reserve("kv", ["name"], [len(data)])
            checksum = node.mapping.write_from(slot.extents, data)
            node.commit("kv", [CommitEntry(slot.slot, "name", len(data), checksum)])

            leased = node.prefix_lease("kv", ["name"], ttl_s=10)
            [item] = leased.objects
            node.mapping.read_into(item.extents, buffer, checksum=item.checksum)
            node.let_go(leased.lease)
    """

    def __init__(
        self,
        socket_path: str | Path,
        *,
        client: str | None = None,
        writer: bool = False,
        timeout_s: float = 1.0,
        token: str = "",
        segment: str = "",
        bucket: str = "",
    ) -> None:
        self.client = client if client is not None else new_client_name()
        self.timeout_s = timeout_s
        opened = open_connection(
            socket_path,
            self.client,
            writer=writer,
            timeout_s=timeout_s,
            token=token,
            segment=segment,
            bucket=bucket,
        )
        self.mapping = opened.mapping
        """The node's segment in this process."""
        self.node = opened.welcome.node
        """Name of the node."""
        self.epoch = opened.welcome.epoch
        """Differs after every start of the node."""
        self.page_bytes = opened.welcome.page_bytes
        """Granularity of allocation."""
        self.segment_bytes = opened.welcome.segment_bytes
        """Size of the segment."""
        self.max_ttl_s = opened.welcome.max_ttl_s
        """Longest time to live that the node gives; more is cut to it."""
        self.has_tiers = opened.welcome.has_tiers
        """Whether the node fetches what it has not from tiers below it."""
        self._socket = opened.sock
        self._socket.setblocking(False)
        self._core = ClientCore()
        self._lock = threading.Lock()
        self._received = bytearray(_RECEIVE_BYTES)
        self._ended: str | None = None

    @property
    def is_connected(self) -> bool:
        """False once the connection has ended; it does not come back."""
        return self._ended is None

    def prefix_lease(
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
        """Lease the longest leading run of stored objects, in one round trip.

        Parameters
        ----------
        bucket, names
            Objects in order, first block first; with ``group_size`` the shards of one block side by side.
        ttl_s
            How long the lease holds unless renewed; count it from *before* the call. After that its pages are
            reused, after a rest.
        group_size
            The run ends before the first group that is not complete.
        across_gaps
            Go on behind a group that is not complete, for names that are no prefix.
        wait_s
            Where the run ends at objects that others are writing, or that the node fetches from a tier below it, wait
            so long, besides ``timeout_s``, for their commits; not across gaps. Choose a longer ``ttl_s``.
        anchor
            Hash of the prefix's first block, as whoever stored it said with its commits: where a pool of nodes looks.
        prefill
            What computing the groups takes, for tiers below the node that are slower than that.

        Returns
        -------
        Leased
            ``lease`` (empty: nothing was there) and ``objects``, one for each leased name in order, each with
            ``size``, ``checksum`` and ``extents``; ``across_gaps``, its index in ``names`` is in ``places``.
        """
        call = calls.prefix_lease(bucket, names, ttl_s, group_size, across_gaps, wait_s, anchor, prefill)
        return self._perform(call, timeout_s, wait_s)

    def renew(self, lease: str, ttl_s: float, *, timeout_s: float | None = None) -> None:
        """Set a lease's remaining time to ``ttl_s``; raises ``UnknownLease`` where it is too late."""
        self._perform(calls.renew(lease, ttl_s), timeout_s)

    def release(self, lease: str, start: int = 0, stop: int | None = None, *, timeout_s: float | None = None) -> int:
        """Give back objects ``start`` to ``stop`` (exclusive) of a lease; returns how many were held. Idempotent."""
        return self._perform(calls.release(lease, start, stop), timeout_s)

    def let_go(self, lease: str, start: int = 0, stop: int | None = None) -> None:
        """Give back as :meth:`release` does, without waiting for the answer: it is read before the next one.

        Raises ``NodeUnavailable`` where the connection has ended, and the lease with it; a refusal that comes later is
        counted in :attr:`refused_unheard`.
        """
        if not self._lock.acquire(timeout=max(self.timeout_s, 0)):
            raise NodeUnavailable(f"other calls held the connection for {self.timeout_s} s")
        try:
            self._require_connected()
            self._core.send_unheard(calls.release(lease, start, stop))
            self._send()
            if self._core.unheard > _MOST_UNHEARD:
                self._receive()
        except (OSError, WireError) as error:
            raise self._lost(error) from error
        finally:
            self._lock.release()

    @property
    def refused_unheard(self) -> int:
        """How many calls the node refused that nobody waited for."""
        return self._core.refused_unheard

    def reserve(
        self,
        bucket: str,
        names: Sequence[str],
        sizes: Sequence[int],
        *,
        wait_s: float = 0.0,
        timeout_s: float | None = None,
    ) -> list[Slot | Refusal]:
        """Allocate a slot for each name and hold the names; one outcome a name, in order.

        Each :class:`Slot` must be committed or aborted, or it lasts as long as the connection.

        Parameters
        ----------
        wait_s
            Where others are writing, and no name got a slot, stand in line for so long, besides ``timeout_s``:
            ``EXISTS`` says that the other has committed, a slot that it gave up. What this client writes itself it
            would wait for in vain.
        """
        return self._perform(calls.reserve(bucket, names, sizes, wait_s), timeout_s, wait_s)

    def grant(self, size: int, count: int, *, timeout_s: float | None = None) -> list[Slot]:
        """Allocate up to ``count`` slots of ``size`` bytes, to be named on commit; perhaps none."""
        return self._perform(calls.grant(size, count), timeout_s)

    def commit(
        self, bucket: str, entries: Sequence[CommitEntry], *, timeout_s: float | None = None
    ) -> list[Refusal | None]:
        """Publish written slots; one outcome an entry, ``None`` where stored.

        A refused slot stays with the client, to be used again or aborted, unless it is ``UNKNOWN_SLOT``.
        """
        return self._perform(calls.commit(bucket, entries), timeout_s)

    def abort(self, slots: Sequence[int], *, timeout_s: float | None = None) -> int:
        """Give slots back, by their numbers; promises that nothing writes into them any more."""
        return self._perform(calls.abort(slots), timeout_s)

    def suspect(self, bucket: str, name: str, *, timeout_s: float | None = None) -> None:
        """Report an object whose bytes do not match its checksum; the node verifies for itself."""
        self._perform(calls.suspect(bucket, name), timeout_s)

    def delete(self, bucket: str, names: Sequence[str], *, timeout_s: float | None = None) -> int:
        """Remove objects; returns how many were there."""
        return self._perform(calls.delete(bucket, names), timeout_s)

    def introduce(self, said: Introduce, *, timeout_s: float | None = None) -> None:
        """Say which objects this client, an engine, reads for a prompt; it holds until it is said anew."""
        self._perform(calls.introduce(said), timeout_s)

    def stats(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the document of ``GET /v1/stats``."""
        return self._perform(calls.describe(), timeout_s)

    def close(self) -> None:
        """End the connection: its slots are aborted, its leases released. Call it when no thread writes into a slot."""
        with self._lock:
            self._end("the client is closed")
            self._socket.close()
        self.mapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _perform(self, call: Call[T], timeout_s: float | None, wait_s: float = 0.0) -> T:
        budget_s = (self.timeout_s if timeout_s is None else timeout_s) + wait_s
        deadline = time.monotonic() + budget_s
        if not self._lock.acquire(timeout=max(budget_s, 0)):
            raise NodeUnavailable(f"other calls held the connection for {budget_s} s")
        try:
            return call.result(self._exchange(call, deadline, budget_s))
        finally:
            self._lock.release()

    def _exchange(self, call: Call[Any], deadline: float, budget_s: float) -> Reply:
        """Send the request and receive until its reply has come; holds the lock."""
        self._require_connected()
        number = self._core.request(call)
        answer: Reply | None = None
        try:
            self._send()
            while answer is None:
                wait_s = max(deadline - time.monotonic(), 0.0)
                # Looked for once more behind the deadline: this process may have stood still, and the answer be there.
                if self._wait(wait_s):
                    answer = dict(self._receive()).get(number)
                if answer is None and not wait_s:
                    self._core.abandon(number)
                    raise NodeUnavailable(f"the node did not answer within {budget_s} s")
                self._send()
        except (OSError, WireError) as error:
            raise self._lost(error) from error
        return answer

    def _require_connected(self) -> None:
        if self._ended is not None:
            raise NodeUnavailable(self._ended)

    def _lost(self, error: Exception) -> NodeUnavailable:
        """End the connection and return what its callers are told."""
        self._end(f"the connection to the node ended: {error}")
        return NodeUnavailable(str(self._ended))

    def _wait(self, wait_s: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._core.unsent else 0))
        return bool(poll.poll(wait_s * 1000))

    def _send(self) -> None:
        if not self._core.unsent:
            return
        try:
            sent = self._socket.send(self._core.unsent)
        except BlockingIOError:
            return
        del self._core.unsent[:sent]

    def _receive(self) -> list[tuple[int, Reply]]:
        try:
            length = self._socket.recv_into(self._received)
        except BlockingIOError:
            return []
        if not length:
            raise ConnectionResetError("the node closed it")
        with memoryview(self._received)[:length] as view:
            return list(self._core.receive(view))

    def _end(self, why: str) -> None:
        # The socket stays open until close(): the node takes its end as our word that nobody writes into slots.
        if self._ended is None:
            self._ended = why
