"""Any interleaving of everything, against a model that knows which bytes were committed and who may look at them."""

import itertools
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import xxhash
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from tests.unit.store.conftest import ManualClock

from tierline.errors import AlreadyStored, BeingWritten, NoSpace, QuotaExceeded, TooManyLeases, UnknownSlot
from tierline.prefix import tenant_of
from tierline.store import (
    PAGE_BYTES,
    BucketRules,
    Extent,
    Leased,
    ObjectKey,
    Owner,
    PolicyName,
    Quota,
    Slot,
    Store,
    StoreLimits,
)
from tierline.store.eviction import POLICIES
from tierline.store.extents import pages_for, runs_of
from tierline.store.namespaces import WHOLE

PAGES = 10
LIMITS = StoreLimits(
    max_ttl_s=8.0,
    grace_s=2.0,
    quarantine_s=5.0,
    max_leases_per_holder=12,
    max_quarantined_fraction=0.3,
    high_watermark=0.8,
    low_watermark=0.5,
    ghost_log_bytes=4096,
)
TENANTS = st.sampled_from(["a", "b"])
KEYS = st.builds(lambda number, tenant: ObjectKey("kv", f"m@00010000@0@{number}@{tenant}"), st.integers(0, 2), TENANTS)
BOUNDS = st.none() | st.integers(2, 7).map(lambda pages: pages * PAGE_BYTES)
QUOTAS = st.builds(Quota, BOUNDS, BOUNDS, st.none() | st.integers(1, 4), st.none() | st.integers(1, 4))
RULES = st.builds(BucketRules, QUOTAS, QUOTAS, st.none() | st.sampled_from([1.0, 9.0, 30.0]))
OWNERS = st.sampled_from([Owner("", 1), Owner("", 2), Owner("engine", 3, 1), Owner("other", 4, 2)])
TTLS = st.integers(0, 40).map(lambda ticks: ticks / 4)  # whole ticks, so that the model knows what has ended
SIZES = st.integers(1, 5).map(lambda pages: pages * PAGE_BYTES - 7)


@dataclass
class OpenSlot:
    slot: Slot
    owner: Owner
    key: ObjectKey | None


@dataclass
class OpenLease:
    lease_id: str
    deadline: float
    objects: dict[int, tuple[Leased, bytes]] = field(default_factory=dict)


@dataclass
class Watched:
    """Bytes that must not change before a time: somebody was told that they can be read."""

    leased: Leased
    stamp: bytes
    until: float


class StoreMachine(RuleBasedStateMachine):
    slots = Bundle("slots")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="tierline-test-", dir="/dev/shm"))
        self.clock = ManualClock()
        self.stamps = itertools.count(1)
        self.committed: dict[ObjectKey, bytes] = {}
        self.sizes: dict[ObjectKey, int] = {}
        self.born: dict[ObjectKey, float] = {}
        self.pinned: dict[ObjectKey, float] = {}
        self.open_slots: list[OpenSlot] = []
        self.open_leases: list[OpenLease] = []
        self.watched: list[Watched] = []
        self.late_writers: dict[str, list[Slot]] = {}

    @initialize(
        eviction=st.sampled_from(sorted(POLICIES)), rules=st.just(BucketRules()) | RULES, most=st.integers(1, 3)
    )
    def start(self, eviction: PolicyName, rules: BucketRules, most: int) -> None:
        self.eviction = eviction
        self.bucket_rules = rules
        self.limits = replace(LIMITS, max_namespaces=most)
        self.store = self._open()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.directory)

    # What clients do

    @rule(target=slots, key=st.none() | KEYS, size=SIZES, owner=OWNERS)
    def open_slot(self, key: ObjectKey | None, size: int, owner: Owner) -> object:
        try:
            slot = self.store.grant(size, owner) if key is None else self.store.write(key, size, owner)
        except AlreadyStored:
            assert key in self.committed
            return multiple()
        except BeingWritten:
            assert any(other.key == key for other in self.open_slots)
            return multiple()
        except NoSpace as error:
            self._forget_what_was_evicted()
            if isinstance(error, QuotaExceeded):
                assert key is not None
                assert self.store.explain(key).kind == "quota"
            return multiple()
        self._forget_what_was_evicted()
        assert sum(extent.length for extent in slot.extents) == size
        opened = OpenSlot(slot, owner, key)
        self.open_slots.append(opened)
        self._scribble(slot.extents)
        return opened

    @rule(opened=consumes(slots), key=KEYS, shrink=st.booleans())
    def commit(self, opened: OpenSlot, key: ObjectKey, shrink: bool) -> None:
        key = opened.key or key
        size = max(1, opened.slot.size - 3 * PAGE_BYTES) if shrink else opened.slot.size
        stamp = next(self.stamps).to_bytes(8, "little")
        if opened in self.open_slots:
            self._write(opened.slot, size, stamp)
        try:
            self.store.commit(opened.slot.id, opened.owner, xxhash.xxh3_64_intdigest(stamp), key=key, size=size)
        except UnknownSlot:
            assert opened not in self.open_slots
        except AlreadyStored:
            assert key in self.committed
        except BeingWritten:
            assert any(other.key == key for other in self.open_slots if other is not opened)
        except QuotaExceeded:
            assert opened.key is None
            self._forget_what_was_evicted()
        else:
            self.open_slots.remove(opened)
            self._forget_what_was_evicted()
            self.committed[key] = stamp
            self.sizes[key] = size
            self.born[key] = self.clock.now

    @rule(opened=consumes(slots))
    def abort(self, opened: OpenSlot) -> None:
        if opened in self.open_slots:
            self._scribble(opened.slot.extents)
            self.store.abort(opened.slot.id, opened.owner)
            self.open_slots.remove(opened)

    @rule(owner=OWNERS)
    def end_owner(self, owner: Owner) -> None:
        ended = [opened for opened in self.open_slots if opened.owner == owner]
        assert self.store.end_owner(owner) == len(ended)
        self.open_slots = [opened for opened in self.open_slots if opened not in ended]

    @rule(target=leases, keys=st.lists(KEYS, min_size=1, max_size=6), ttl_s=TTLS)
    def lease(self, keys: list[ObjectKey], ttl_s: float) -> object:
        try:
            lease_id = self.store.open_lease("reader", ttl_s)
        except TooManyLeases:
            assert self.store.stats().leases == LIMITS.max_leases_per_holder
            return multiple()
        is_restricted = self.store.stats().quarantined_bytes > LIMITS.max_quarantined_fraction * PAGES * PAGE_BYTES
        run = self.store.extend_lease(lease_id, keys)
        expected = list(itertools.takewhile(self.committed.__contains__, keys))
        assert [leased.key for leased in run] == expected[: len(run)]
        assert is_restricted or len(run) == len(expected)
        opened = OpenLease(lease_id, self.clock.now + min(ttl_s, LIMITS.max_ttl_s))
        opened.objects = {index: (leased, self.committed[leased.key]) for index, leased in enumerate(run)}
        if run:
            self.open_leases.append(opened)
        return opened

    @rule(opened=leases, start=st.integers(0, 6), stop=st.none() | st.integers(0, 6))
    def release(self, opened: OpenLease, start: int, stop: int | None) -> None:
        positions = [index for index in opened.objects if start <= index < (7 if stop is None else stop)]
        released = self.store.release(opened.lease_id, start, stop)
        assert released == (len(positions) if opened in self.open_leases else 0)
        if opened in self.open_leases:
            self._watch(opened, positions, self.clock.now + LIMITS.grace_s)

    @rule(opened=leases, ttl_s=TTLS)
    def renew(self, opened: OpenLease, ttl_s: float) -> None:
        if opened in self.open_leases:
            self.store.renew(opened.lease_id, ttl_s)
            opened.deadline = self.clock.now + min(ttl_s, LIMITS.max_ttl_s)

    @rule(key=KEYS)
    def delete(self, key: ObjectKey) -> None:
        assert self.store.delete(key) == (key in self.committed)
        self._forget(key)

    @rule(bucket=st.sampled_from([None, "kv", "other"]), salt=st.none() | TENANTS)
    def flush(self, bucket: str | None, salt: str | None) -> None:
        wanted = [key for key in self.committed if bucket != "other" and salt in (None, tenant_of(key.name))]
        removed, cursor = self.store.flush(bucket, salt, limit=2)
        while cursor:
            more, cursor = self.store.flush(bucket, salt, cursor=cursor, limit=2)
            removed += more
        assert removed == len(wanted)
        for key in wanted:
            self._forget(key)

    @rule(keys=st.lists(KEYS, max_size=3, unique=True), ttl_s=TTLS)
    def pin(self, keys: list[ObjectKey], ttl_s: float) -> None:
        stored = [key for key in keys if key in self.committed and ttl_s]
        assert self.store.pin(keys, ttl_s) == len(stored)
        self.pinned.update(dict.fromkeys(stored, self.clock.now + ttl_s))

    @rule(keys=st.lists(KEYS, max_size=3, unique=True))
    def unpin(self, keys: list[ObjectKey]) -> None:
        assert self.store.unpin(keys) == sum(self.pinned.pop(key, None) is not None for key in keys)

    @rule(limit=st.integers(1, 3))
    def reclaim(self, limit: int) -> None:
        while self.store.reclaim(limit):
            pass
        assert all(self.store.is_stored(key) for key in self.pinned)
        self._forget_what_was_evicted()
        assert not self.store.needs_reclaim

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 2.5, 6.0, 15.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        while self.store.expire(limit=3):
            pass
        for key, born in list(self.born.items()):
            if self.bucket_rules.ttl_s is not None and born + self.bucket_rules.ttl_s <= self.clock.now:
                self._forget(key)
        self.pinned = {key: until for key, until in self.pinned.items() if until > self.clock.now}
        for opened in list(self.open_leases):
            if opened.deadline <= self.clock.now:
                self._watch(opened, list(opened.objects), opened.deadline + LIMITS.quarantine_s)

    # What happens to the node

    @rule()
    def restart(self) -> None:
        """Nothing is said to the store first: this is SIGKILL as well as SIGTERM."""
        for opened in self.open_slots:
            if opened.owner.client:
                self.late_writers.setdefault(opened.owner.client, []).append(opened.slot)
        for lease in list(self.open_leases):
            self._watch(lease, list(lease.objects), lease.deadline + LIMITS.quarantine_s)
        self.open_slots.clear()
        self.pinned.clear()
        self.store.close()
        self.store = self._open()
        assert self.store.stats().dropped == 0
        assert self.store.stats().adopted == len(self.committed)
        assert {orphan.client for orphan in self.store.orphaned_owners()} == set(self.late_writers)

    @rule(client=st.sampled_from(["engine", "other"]))
    def reconnect(self, client: str) -> None:
        assert self.store.release_orphans(client) == len(self.late_writers.pop(client, []))

    # What must hold at all times

    @invariant()
    def no_page_is_counted_twice_or_lost(self) -> None:
        if hasattr(self, "store"):
            stats = self.store.stats()
            assert (
                stats.capacity_bytes
                == PAGES * PAGE_BYTES
                == (
                    stats.free_bytes
                    + stats.used_bytes
                    + stats.reserved_bytes
                    + stats.orphaned_bytes
                    + stats.retired_bytes
                )
            )
            assert 0 <= stats.leased_bytes + stats.resting_bytes <= stats.used_bytes
            assert 0 <= stats.quarantined_bytes <= stats.leased_bytes + stats.resting_bytes + stats.retired_bytes
            assert stats.pinned_bytes == sum(pages_for(self.sizes[key]) for key in self.pinned) * PAGE_BYTES

    @invariant()
    def exactly_what_was_committed_is_there(self) -> None:
        if hasattr(self, "store"):
            assert self.store.stats().objects == len(self.committed)
            for key in self.committed:
                assert self.store.explain(key).kind == "stored"
            listed = {each.key: (each.size, each.age_s) for each in self.store.list().objects}
            assert listed == {key: (self.sizes[key], self.clock.now - self.born[key]) for key in self.committed}

    @invariant()
    def nobody_has_more_than_its_hard_quota(self) -> None:
        if not hasattr(self, "store"):
            return
        charged = [(tenant_of(key.name), size) for key, size in self.sizes.items()]
        counted = sum(each.objects for each in self.store.namespaces() if each.namespace.salt != WHOLE)
        assert counted == len(charged)
        charged += [(tenant_of(o.key.name), o.slot.size) for o in self.open_slots if o.key is not None]
        for quota, tenants in (
            (self.bucket_rules.quota, "ab"),
            (self.bucket_rules.tenant_quota, "a"),
            (self.bucket_rules.tenant_quota, "b"),
        ):
            pages = [pages_for(size) for tenant, size in charged if tenant in tenants]
            assert quota.hard_bytes is None or sum(pages) * PAGE_BYTES <= quota.hard_bytes
            assert quota.hard_objects is None or len(pages) <= quota.hard_objects

    @invariant()
    def nobody_who_may_look_sees_other_bytes(self) -> None:
        for slots in self.late_writers.values():
            for slot in slots:
                self._scribble(slot.extents)
        for opened in self.open_leases:
            for leased, stamp in opened.objects.values():
                assert self._holds(leased, stamp)
        self.watched = [watched for watched in self.watched if watched.until > self.clock.now]
        for watched in self.watched:
            assert self._holds(watched.leased, watched.stamp)

    @invariant()
    def slots_never_overlap(self) -> None:
        runs = [run for opened in self.open_slots for run in runs_of(opened.slot.extents)]
        runs += [run for slots in self.late_writers.values() for slot in slots for run in runs_of(slot.extents)]
        pages = [page for start, count in runs for page in range(start, start + count)]
        assert len(pages) == len(set(pages))
        assert 0 not in pages

    # How the model looks at memory

    def _open(self) -> Store:
        return Store.open(
            self.directory,
            "segment",
            (PAGES + 1) * PAGE_BYTES,
            eviction=self.eviction,
            clock=self.clock,
            wall_clock=lambda: 1e9 + self.clock.now,
            limits=self.limits,
            rules={"kv": self.bucket_rules},
        )

    def _forget_what_was_evicted(self) -> None:
        held = {leased.key for opened in self.open_leases for leased, _ in opened.objects.values()}
        for key in list(self.committed):
            if not self.store.is_stored(key):
                assert key not in held or self._was_deleted(key)
                assert self.store.explain(key).kind in ("evicted", "quota", "no_space", "being_written")
                self._forget(key)

    def _forget(self, key: ObjectKey) -> None:
        for facts in (self.committed, self.sizes, self.born, self.pinned):
            facts.pop(key, None)

    def _was_deleted(self, key: ObjectKey) -> bool:
        """Whether the lease is on a former object of this key."""
        stamps = {stamp for o in self.open_leases for leased, stamp in o.objects.values() if leased.key == key}
        return self.committed[key] not in stamps

    def _watch(self, opened: OpenLease, positions: list[int], until: float) -> None:
        for index in positions:
            leased, stamp = opened.objects.pop(index)
            self.watched.append(Watched(leased, stamp, until))
        if not opened.objects:
            self.open_leases.remove(opened)

    def _write(self, slot: Slot, size: int, stamp: bytes) -> None:
        """Put the stamp at the start of every page of the object."""
        remaining = size
        for view in self.store.views(slot.extents):
            for offset in range(0, min(len(view), remaining), PAGE_BYTES):
                piece = stamp[: min(8, len(view) - offset)]
                view[offset : offset + len(piece)] = piece
            remaining -= len(view)

    def _scribble(self, extents: tuple[Extent, ...]) -> None:
        for view in self.store.views(extents):
            for offset in range(0, len(view), PAGE_BYTES):
                view[offset] = 0xFF

    def _holds(self, leased: Leased, stamp: bytes) -> bool:
        """Whether every page of an object starts with the stamp."""
        assert sum(extent.length for extent in leased.extents) == leased.size
        starts = (
            view[at : at + 8] for view in self.store.views(leased.extents) for at in range(0, len(view), PAGE_BYTES)
        )
        return all(start == stamp[: len(start)] for start in starts)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=150, stateful_step_count=40)
