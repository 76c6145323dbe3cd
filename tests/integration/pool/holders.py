"""A node's store behind a door, for tests, and pages to fetch its objects into."""

import asyncio
import contextlib
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
from tests.integration.pool.doors import ASKER, open_door

from tierline.pool.handshake import Credentials, Hello
from tierline.pool.listening import Door
from tierline.pool.members import Member
from tierline.pool.receiving import Expected, ReceivingLimits, Transfers
from tierline.pool.sending import Sender, SendingLimits
from tierline.pool.tier import Arrival
from tierline.store import ObjectKey, Owner, Store, StoreLimits

MIB = 1024 * 1024
WRITER = Owner("", 1)
PATIENT = ReceivingLimits(connect_s=60.0, silence_s=60.0)
"""For tests in which nobody is away or silent: a machine that stands still for seconds is neither."""


@dataclass
class Holder:
    """A node that others fetch from."""

    store: Store
    sender: Sender
    door: Door
    member: Member
    suspected: list[ObjectKey] = field(default_factory=list)

    def put(self, name: str, content: bytes) -> Expected:
        """Store an object; returns what to expect, with pages for it."""
        slot = self.store.write(ObjectKey("b", name), len(content), WRITER)
        at = 0
        for view in self.store.views(slot.extents):
            view[:] = content[at : at + len(view)]
            at += len(view)
        checksum = xxhash.xxh3_64_intdigest(content)
        self.store.commit(slot.id, WRITER, checksum)
        return expect(name, len(content), checksum)

    def put_some(self, *sizes: int) -> list[Expected]:
        """Store objects of these sizes, of random bytes."""
        return [self.put(f"object-{number}", random.randbytes(size)) for number, size in enumerate(sizes)]

    @property
    def leases(self) -> int:
        """Live leases."""
        return self.store.stats().leases


def expect(name: str, size: int, checksum: int) -> Expected:
    """Return an object with pages of its own, in two pieces."""
    pages = memoryview(bytearray(size))
    return Expected(
        ObjectKey("b", name), size, checksum, [pages[: size // 3], pages[size // 3 :]] if size > 3 else [pages]
    )


def content_of(expected: Expected) -> bytes:
    """Return what is in the pages."""
    return b"".join(expected.views)


@contextlib.asynccontextmanager
async def open_holder(
    credentials: Credentials | None = None,
    *,
    capacity: int = 64 * MIB,
    limits: SendingLimits | None = None,
    store_limits: StoreLimits | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Holder]:
    """A holder for the length of the block; nothing is leased behind it."""
    directory = Path(tempfile.mkdtemp(prefix="tierline-test-", dir="/dev/shm"))
    store = Store.open(
        directory,
        "segment",
        capacity,
        eviction="lru",
        clock=clock,
        limits=store_limits or StoreLimits(grace_s=0, quarantine_s=0),
    )
    suspected: list[ObjectKey] = []
    sender = Sender(
        asyncio.get_running_loop(),
        lambda bucket: store if bucket == "b" else None,
        suspected.append,
        limits or SendingLimits(),
        clock=clock,
    )
    try:
        async with open_door(credentials or Credentials(), serve_bulk=sender.serve) as at:
            yield Holder(store, sender, at.door, at.member, suspected)
        await asyncio.sleep(0)
        assert store.stats().leases == 0
    finally:
        sender.close()
        store.close()
        shutil.rmtree(directory)


@contextlib.asynccontextmanager
async def open_transfers(
    credentials: Credentials | None = None, limits: ReceivingLimits = PATIENT, own: Hello = ASKER
) -> AsyncIterator[Transfers]:
    """Fetches of one node for the length of the block."""
    transfers = Transfers(own, credentials or Credentials(), limits)
    try:
        yield transfers
    finally:
        await transfers.close()


async def fetch_all(
    transfers: Transfers, member: Member, expected: Sequence[Expected], within_s: float = 60.0
) -> list[Arrival]:
    """Return all arrivals, in the order of what was expected; each comes once."""
    arrivals = [arrival async for arrival in transfers.fetch(member, expected, within_s)]
    assert sorted(arrival.index for arrival in arrivals) == list(range(len(expected)))
    return sorted(arrivals)
