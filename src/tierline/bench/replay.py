"""Replay a trace as engines use a store: lease the longest stored prefix, write what is missing, release.

A hit is a block of that prefix. Blocks behind the first that is missing are no hits, though they may be stored. A block
is a page; time is the trace's.
"""

import heapq
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tierline.bench.traces import Request, Trace
from tierline.errors import NoSpace
from tierline.store import PAGE_BYTES, ObjectKey, Owner, PolicyName, Segment, Store, StoreLimits
from tierline.store.eviction import POLICIES, EvictionPolicy
from tierline.store.journal import Journal

_WRITER = Owner("engine", 1)
_RECLAIMED_AT_ONCE = 1_024


class Cache(Protocol):
    """Something that a trace is replayed through."""

    def serve(self, request: Request) -> int:
        """Serve a request, and return how many of its blocks were hits."""


def replay(trace: Trace, cache: Cache) -> int:
    """Return how many of a trace's blocks were hits."""
    return sum(cache.serve(request) for request in trace.requests)


class PolicyCache:
    """A policy alone, with just so much around it that objects are held out, used and put back as the store does.

    Parameters
    ----------
    touch_window_s
        Uses of one block within this time count once, as in :class:`StoreLimits`.
    commits_head_first
        Insert a request's new blocks in their order and not, as the node store does, the last one first.
    on_evicted
        Is told which block has gone.
    """

    def __init__(
        self,
        policy: PolicyName,
        blocks: int,
        *,
        touch_window_s: float = 1.0,
        commits_head_first: bool = False,
        on_evicted: Callable[[int], None] | None = None,
    ) -> None:
        self._policy: EvictionPolicy[int] = POLICIES[policy](blocks)
        self._room = blocks
        self._touch_window_s = touch_window_s
        self._commits_head_first = commits_head_first
        self._on_evicted = on_evicted
        self._touched_s: dict[int, float] = {}  # of every stored block

    def serve(self, request: Request) -> int:
        """Serve a request, and return how many of its blocks were hits."""
        leased = self.lease(request.blocks, self.match(request.blocks), request.at_s)
        self.write(request.blocks[len(leased) :], request.at_s)
        self.release(leased)
        return len(leased)

    def match(self, blocks: Sequence[int]) -> int:
        """Return how many leading blocks are stored."""
        return next((index for index, block in enumerate(blocks) if block not in self._touched_s), len(blocks))

    def lease(self, blocks: Sequence[int], count: int, at_s: float) -> Sequence[int]:
        """Use the first ``count`` blocks, which are stored and not leased, and let none of them go; return them."""
        leased = blocks[:count]
        for block in leased:
            self._policy.hold_out(block)
            if at_s - self._touched_s[block] >= self._touch_window_s:
                self._touched_s[block] = at_s
                self._policy.use(block)
        return leased

    def release(self, leased: Sequence[int]) -> None:
        """Let blocks go that were leased."""
        for block in reversed(leased):
            self._policy.put_back(block)

    def write(self, blocks: Sequence[int], at_s: float) -> Sequence[int]:
        """Store those of a run of blocks that are not stored, as far as there is room; return which."""
        written = [block for block in blocks if block not in self._touched_s and self._make_room()]
        for block in written if self._commits_head_first else reversed(written):
            self._policy.insert(block, 1)
            self._touched_s[block] = at_s
        return written

    def _make_room(self) -> bool:
        """Take a page for a block to be written; False where all that is stored is leased."""
        if self._room:
            self._room -= 1
            return True
        victim = self._policy.victim()
        if victim is not None:
            del self._touched_s[victim]
            if self._on_evicted is not None:
                self._on_evicted(victim)
        return victim is not None


class StoreCache:
    """The store itself, journal and leases and all; only bytes are missing: its segment is sparse and stays so."""

    def __init__(self, policy: PolicyName, blocks: int, limits: StoreLimits, directory: Path) -> None:
        size = (blocks + 1) * PAGE_BYTES
        path = directory / "segment"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.truncate(fd, size)
        segment = Segment(path, fd)
        self._now_s = 0.0
        self.store = Store(
            segment,
            Journal.open(segment, limits.max_ttl_s, now=0.0),
            eviction=policy,
            clock=lambda: self._now_s,
            limits=limits,
        )

    def serve(self, request: Request) -> int:
        """Serve a request, and return how many of its blocks were hits."""
        self._now_s = request.at_s
        self._expire()
        keys = [ObjectKey("trace", str(block)) for block in request.blocks]
        lease_id = self.store.open_lease("replay", 1.0)
        hits = len(self.store.extend_lease(lease_id, keys))
        slots = []
        for key in keys[hits:]:
            if not self.store.is_stored(key):
                try:
                    slots.append(self.store.write(key, PAGE_BYTES, _WRITER))
                except NoSpace:
                    break
        for slot in reversed(slots):
            self.store.commit(slot.id, _WRITER, checksum=0)
        self.store.release(lease_id)
        self._expire()
        if self.store.needs_reclaim:
            while self.store.reclaim(_RECLAIMED_AT_ONCE):
                pass
        return hits

    def _expire(self) -> None:
        while self.store.expire():
            pass


@contextmanager
def store_cache(policy: PolicyName, blocks: int, limits: StoreLimits) -> Iterator[StoreCache]:
    """Yield a store in a directory of its own, which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"tierline-bench-{os.getpid()}-", dir="/dev/shm") as directory:
        cache = StoreCache(policy, blocks, limits, Path(directory))
        try:
            yield cache
        finally:
            cache.store.close()


def clairvoyant_hits(trace: Trace, blocks: int) -> int:
    """Return how many hits a cache has that knows the future: what is needed latest goes first, or is not kept at all.

    L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966. It
    is the most there can be: of two blocks of a prefix the later one is never needed before the earlier one, so no
    block is kept without those before it.
    """
    needed_at = _next_needs(trace)
    stored: dict[int, int] = {}  # when it is needed next
    latest: list[tuple[int, int]] = []  # the same, latest first; entries that are out of date are passed over
    hits = 0
    for request, needs in zip(trace.requests, needed_at, strict=True):
        for block, needed in zip(request.blocks, needs, strict=True):
            if stored.pop(block, None) is not None:
                hits += 1
            if needed is not None:
                stored[block] = needed
                heapq.heappush(latest, (-needed, block))
        while len(stored) > blocks:
            needed, block = heapq.heappop(latest)
            if stored.get(block) == -needed:
                del stored[block]
    return hits


def _next_needs(trace: Trace) -> list[list[int | None]]:
    """Return for each block of each request when it is needed next, in blocks since the start; ``None``: never."""
    seen: dict[int, int] = {}
    position = trace.blocks
    needs: list[list[int | None]] = []
    for request in reversed(trace.requests):
        of_request: list[int | None] = []
        for block in reversed(request.blocks):
            position -= 1
            of_request.append(seen.get(block))
            seen[block] = position
        needs.append(of_request[::-1])
    return needs[::-1]
