"""An hour of everything at once, the clock driven: what was promised holds all along, and nothing grows.

``TIERLINE_SOAK_HOURS=24 python -m pytest tests/faults/test_store_soak.py`` soaks for longer; one hour takes seconds.
"""

import gc
import os
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tierline.errors import AlreadyStored, BeingWritten, NoSpace, StoreError, TooManyLeases
from tierline.prefix import Shard, object_name, tenant_field
from tierline.store import (
    PAGE_BYTES,
    BucketRules,
    Leased,
    Namespace,
    ObjectKey,
    Owner,
    Quota,
    Slot,
    Store,
    StoreLimits,
)

HOURS = float(os.environ.get("TIERLINE_SOAK_HOURS", "1"))
QUARTERS = max(int(HOURS * 4), 2)
TICK_S = 0.25
OPERATIONS_A_TICK = 8

PAGES = 384
QUOTA_PAGES = 96
LIMITS = StoreLimits(max_ttl_s=20.0, grace_s=2.0, quarantine_s=5.0, ghost_log_bytes=64 * 1024)
RULES = {
    "limited": BucketRules(quota=Quota(hard_bytes=QUOTA_PAGES * PAGE_BYTES)),
    "shared": BucketRules(tenant_quota=Quota(soft_bytes=QUOTA_PAGES * PAGE_BYTES)),
    "fleeting": BucketRules(ttl_s=90.0),
}
BUCKETS = [*RULES, "plain"]
TENANTS = [tenant_field(salt) for salt in ("", "alpha", "beta")]
SHARD = Shard(kv_dtype="bfloat16", layout="hnd128-1")
RESTART_EVERY_S = 290.0


@dataclass
class Held:
    """A lease and the bytes that its holder may look at until a time, whatever happens to the objects."""

    lease: str
    objects: list[tuple[Leased, bytes]]
    deadline: float
    is_forgotten: bool


@dataclass
class Soak:
    """The workload, and a model of which bytes were committed under which key."""

    directory: Path
    rng: random.Random
    now: float = 1000.0
    stamps: int = 0
    committed: dict[ObjectKey, tuple[bytes, float]] = field(default_factory=dict)
    writing: list[tuple[Slot, Owner, ObjectKey | None]] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    gone: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.owners = [Owner("", 1), *(Owner(f"engine-{number}", 2 + number, 4711) for number in range(3))]
        self.keys = [
            ObjectKey(bucket, object_name(number.to_bytes(32, "little"), SHARD, tenant))
            for bucket in BUCKETS
            for tenant in TENANTS
            for number in range(20)
        ]
        self.rng.shuffle(self.keys)
        self.store = self.open()

    def open(self) -> Store:
        return Store.open(
            self.directory,
            "segment",
            (PAGES + 1) * PAGE_BYTES,
            clock=lambda: self.now,
            wall_clock=lambda: 1.7e9 + self.now,
            limits=LIMITS,
            rules=RULES,
        )

    # One step of somebody

    def step(self) -> None:
        action = self.rng.choices(
            [self.begin, self.commit, self.abort, self.lease, self.release, self.renew, self.delete, self.pin],
            [30, 26, 2, 40, 30, 3, 2, 1],
        )[0]
        action()

    def any_key(self) -> ObjectKey:
        return self.keys[int(len(self.keys) * self.rng.random() ** 2)]

    def begin(self) -> None:
        owner, size = self.rng.choice(self.owners), self.rng.randint(1, 4 * PAGE_BYTES)
        key = self.any_key() if self.rng.random() < 0.8 else None
        try:
            slot = self.store.write(key, size, owner) if key is not None else self.store.grant(size, owner)
        except (AlreadyStored, BeingWritten, NoSpace):
            return
        self.scribble(slot)
        self.writing.append((slot, owner, key))

    def commit(self) -> None:
        if not self.writing:
            return
        slot, owner, key = self.writing.pop(self.rng.randrange(len(self.writing)))
        key = key or self.any_key()
        self.stamps += 1
        stamp = self.stamps.to_bytes(8, "little")
        for view in self.store.views(slot.extents):
            for page in range(0, len(view), PAGE_BYTES):
                view[page : page + 8] = stamp[: len(view) - page]
        try:
            self.store.commit(slot.id, owner, self.stamps, key=key)
        except StoreError:
            self.store.abort(slot.id, owner)
        else:
            self.committed[key] = stamp, self.now

    def abort(self) -> None:
        if self.writing:
            slot, owner, _ = self.writing.pop()
            self.scribble(slot)
            self.store.abort(slot.id, owner)

    def lease(self) -> None:
        first = self.rng.randrange(len(self.keys) - 8)
        keys = [self.any_key()] if self.rng.random() < 0.5 else self.keys[first : first + 8]
        try:
            lease = self.store.open_lease(self.rng.choice("abc"), ttl := self.rng.uniform(1, 30))
        except TooManyLeases:
            return
        objects = [(leased, self.committed[leased.key][0]) for leased in self.store.extend_lease(lease, keys)]
        if not objects:
            self.store.release(lease)
            return
        held = Held(lease, objects, self.now + min(ttl, LIMITS.max_ttl_s), is_forgotten=self.rng.random() < 0.1)
        self.look(held)
        self.held.append(held)

    def release(self) -> None:
        for held in self.held[:2]:
            self.look(held)
            if not held.is_forgotten:
                self.held.remove(held)
                assert self.store.release(held.lease) == len(held.objects)

    def renew(self) -> None:
        if self.held and not (held := self.rng.choice(self.held)).is_forgotten:
            self.store.renew(held.lease, 15)
            held.deadline = self.now + 15

    def delete(self) -> None:
        key = self.any_key()
        was_stored = self.store.is_stored(key)
        assert self.store.delete(key) == was_stored
        self.committed.pop(key, None)

    def pin(self) -> None:
        self.store.pin([self.any_key()], self.rng.uniform(1, 60))

    # Time, and the node's death

    def tick(self) -> None:
        self.now += TICK_S
        for held in [held for held in self.held if held.deadline <= self.now]:
            self.look(held)  # in quarantine: still as it was
            self.held.remove(held)
        while self.store.expire(limit=50):
            pass
        while self.store.needs_reclaim and self.store.reclaim(limit=8):
            pass

    def restart(self) -> None:
        """The process is gone without a word; its clients go on reading what they had leased."""
        kept = self.stored()
        self.count()
        if self.rng.random() < 0.5:
            self.writing = [opened for opened in self.writing if opened[1].client]
        self.store.close()
        self.store = self.open()
        assert self.store.stats().dropped == 0
        assert self.stored() == kept
        for held in self.held:
            self.look(held)
        self.held.clear()
        self.writing.clear()
        for orphan in self.store.orphaned_owners():
            self.store.release_orphans(orphan.client)

    def count(self) -> None:
        """Add up what this process has done."""
        stats = self.store.stats()
        self.gone.update({str(reason): number for reason, number in stats.evictions.items()})
        self.gone.update(hits=stats.hits, leases_expired=stats.leases_expired)

    # What must hold

    def look(self, held: Held) -> None:
        for leased, stamp in held.objects:
            for view in self.store.views(leased.extents):
                for page in range(0, len(view), PAGE_BYTES):
                    assert view[page : page + 8] == stamp[: len(view) - page], leased

    def stored(self) -> set[ObjectKey]:
        listed: set[ObjectKey] = set()
        cursor, more = "", True
        while more:
            listing = self.store.list(cursor=cursor, limit=100)
            listed.update(stat.key for stat in listing.objects)
            cursor, more = listing.cursor, bool(listing.cursor)
        return listed

    def check(self) -> None:
        stats = self.store.stats()
        states = stats.free_bytes + stats.used_bytes + stats.reserved_bytes + stats.orphaned_bytes + stats.retired_bytes
        assert states == stats.capacity_bytes
        stored = self.stored()
        assert stored <= self.committed.keys()
        self.committed = {key: found for key, found in self.committed.items() if key in stored}
        assert stats.objects == len(stored)
        used = {space.namespace: space.bytes for space in self.store.namespaces()}
        assert used.get(Namespace("limited", "@all"), 0) <= QUOTA_PAGES * PAGE_BYTES
        for key, (_, since) in self.committed.items():
            assert key.bucket != "fleeting" or self.now - since <= 90.0 + 2 * TICK_S

    def empty(self) -> None:
        """Let everybody go, remove everything, and wait until nothing rests."""
        for owner in self.owners:
            self.store.end_owner(owner)
        self.writing.clear()
        for held in self.held:
            self.store.release(held.lease)
        self.held.clear()
        cursor, more = "", True
        while more:
            _, cursor = self.store.flush(cursor=cursor)
            more = bool(cursor)
        self.committed.clear()
        self.now += 100
        while self.store.expire():
            pass

    def scribble(self, slot: Slot) -> None:
        for view in self.store.views(slot.extents):
            view[::PAGE_BYTES] = b"\xff" * len(range(0, len(view), PAGE_BYTES))


@pytest.fixture
def soak() -> Iterator[Soak]:
    directory = Path(tempfile.mkdtemp(prefix="tierline-test-", dir="/dev/shm"))
    running = Soak(directory, random.Random(7))
    yield running
    running.store.close()
    shutil.rmtree(directory)


def resident_bytes() -> int:
    """Of this process alone: how much of the segment it has touched since the latest restart is no matter."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.timeout(int(90 + 400 * HOURS))
def test_an_hour_of_everything_leaves_nothing_behind(soak: Soak) -> None:
    alive, journal_bytes, resident, fragments = [], [], [], []
    next_restart = soak.now + RESTART_EVERY_S
    for _ in range(QUARTERS):
        end = soak.now + 900
        while soak.now < end:
            for _ in range(OPERATIONS_A_TICK):
                soak.step()
            soak.tick()
            if soak.now % 60 < TICK_S:
                soak.check()
            if soak.now >= next_restart:
                soak.restart()
                next_restart = soak.now + RESTART_EVERY_S
        stats = soak.store.stats()
        fragments.append(stats.fragments / stats.objects)
        soak.empty()
        gc.collect()
        left = soak.store.stats()
        assert left.free_bytes == left.largest_free_bytes == left.capacity_bytes
        assert (left.leases, left.slots, left.objects, left.quarantined_bytes, left.pinned_bytes) == (0, 0, 0, 0, 0)
        alive.append(len(gc.get_objects()))
        journal_bytes.append((soak.directory / "segment.journal").stat().st_blocks * 512)
        resident.append(resident_bytes())

    soak.count()
    assert alive[-1] <= alive[0] * 1.02 + 200, alive
    assert journal_bytes[-1] <= max(journal_bytes[0] * 1.5, PAGES * 1024), journal_bytes
    assert resident[-1] <= resident[0] + 16 * 1024 * 1024, resident
    assert max(fragments) <= 6, fragments
    assert min(soak.gone[reason] for reason in ("space", "quota", "expired", "deleted", "flushed")) > 20, soak.gone
    assert soak.gone["hits"] > soak.gone["leases_expired"] > 100, soak.gone
