"""Any interleaving of everything, against a model that knows at every moment what each page is and who may look at it.

The rule inside: the model says beforehand what an operation does, and after each step all that the store shows is
compared with it. Only the choice of victims is the store's own, and the model says which of them it may not choose.
"""

import functools
import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import pytest
import xxhash
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.clocks import ManualClock

from tierline.errors import (
    AlreadyStored,
    BeingWritten,
    NoSpace,
    ObjectTooLarge,
    QuotaExceeded,
    StoreError,
    TooManyLeases,
    UnknownLease,
    UnknownSlot,
)
from tierline.prefix import tenant_of
from tierline.store import (
    PAGE_BYTES,
    BucketRules,
    Extent,
    Leased,
    Namespace,
    ObjectKey,
    Owner,
    PolicyName,
    Quota,
    Slot,
    Store,
    StoreLimits,
)

pytestmark = pytest.mark.timeout(600)  # what fails is made small before it is shown

PAGES = 10
LIMITS = StoreLimits(
    max_ttl_s=8.0,
    grace_s=2.0,
    quarantine_s=5.0,
    max_pin_s=20.0,
    max_leases=5,
    max_leases_per_holder=3,
    max_quarantined_fraction=0.3,
    high_watermark=0.8,
    low_watermark=0.5,
)
ROOMY_LOG_BYTES = 4096
"""Of the log of what is gone: enough for every key here. The other sizes are for none, and for less than all."""

BUCKET = "kv"
UNNAMED_BUCKET = "unnamed"  # no rules have its name
SALTED = [ObjectKey(BUCKET, f"m@00010000@0@{number}@{salt}") for number in range(2) for salt in "ab"]
UNSALTED = [ObjectKey(BUCKET, f"m@00010000@0@{number}") for number in range(2)]
OURS = [ObjectKey(UNNAMED_BUCKET, f"{chain:064x}@bf16.l1@{chain % 2:016x}") for chain in range(4)]
ALL_KEYS = [*SALTED, *UNSALTED, *OURS]
SAME_TOKENS = [
    {key for key in ALL_KEYS if key.bucket == BUCKET and key.name.split("@")[3] == content} for content in "01"
]
TENANTS = {Namespace(key.bucket, tenant_of(key.name)) for key in ALL_KEYS}

KEYS = st.sampled_from(ALL_KEYS)
SIZES = st.integers(1, 4).map(lambda pages: pages * PAGE_BYTES - 7) | st.sampled_from([PAGE_BYTES, 6 * PAGE_BYTES])
WRONG_SIZES = st.sampled_from([0, -1, PAGES * PAGE_BYTES + 1])
BOUNDS = st.none() | st.integers(2, 7).map(lambda pages: pages * PAGE_BYTES)
COUNTS = st.none() | st.integers(1, 4)
QUOTAS = st.just(Quota()) | st.builds(Quota, BOUNDS, BOUNDS, COUNTS, COUNTS)
RULES = st.just(BucketRules()) | st.builds(BucketRules, QUOTAS, QUOTAS, st.sampled_from([None, None, 1.0, 9.0, 30.0]))
OWNERS = st.sampled_from([Owner("", 1), Owner("", 2), Owner("engine", 3, 1), Owner("other", 4, 2)])
HOLDERS = st.sampled_from(["reader", "hasty"])
TTLS = st.sampled_from([0.0, 0.25, 1.0, 3.0, 7.75, 40.0])  # whole ticks, so that the model knows what has ended
WAITS = st.sampled_from([0.25, 0.5, 1.0, 2.0, 2.5, 6.0, 15.0])
INDEXES = st.integers(0, 11)

Item = TypeVar("Item")


@dataclass(eq=False)
class Kept:
    """A committed object, or one that is gone and whose pages nobody may reuse yet."""

    key: ObjectKey
    size: int
    stamp: bytes
    extents: tuple[Extent, ...]
    born: float
    touched: float
    expires_at: float | None
    hits: int = 0
    leases: int = 0
    rests_until: float = 0.0
    not_before: float = 0.0  # of an adopted one: readers of the former process may look at it until then
    is_quarantined: bool = False
    pinned_until: float = 0.0
    is_verified: bool = True
    is_copied: bool = False
    given: Leased | None = None  # what the latest reader was told of it

    @property
    def pages(self) -> int:
        return len(pages_of(self.extents))

    @property
    def checksum(self) -> int:
        return xxhash.xxh3_64_intdigest(self.stamp)

    def is_idle(self, now: float) -> bool:
        return not self.leases and self.rests_until <= now


@dataclass(eq=False)
class OpenSlot:
    slot: Slot
    owner: Owner
    key: ObjectKey | None

    @property
    def pages(self) -> int:
        return len(pages_of(self.slot.extents))


@dataclass(eq=False)
class OpenLease:
    id: str
    holder: str
    payer: str | None  # whose share of all leases it takes, if it takes any
    given: float
    deadline: float
    objects: list[Kept | None] = field(default_factory=list)

    @property
    def live(self) -> list[Kept]:
        return [held for held in self.objects if held is not None]


@dataclass
class Before:
    """What was there before an operation that may evict."""

    free_pages: int
    evictions: dict[Any, int]
    over_soft: list[tuple[Quota, frozenset[Namespace]]]
    shares: dict[Namespace, frozenset[Namespace]]


@dataclass(eq=False)
class Operation:
    """Something that somebody may do, and when that makes sense."""

    run: Callable[..., None]
    when: Callable[[Any], Any]
    arguments: st.SearchStrategy[dict[str, Any]]

    def __repr__(self) -> str:
        return self.run.__name__


OPERATIONS: list[Operation] = []
"""All of them, the usual ones several times."""

Method = TypeVar("Method", bound=Callable[..., None])


def operation(
    *, weight: int = 1, when: Callable[[Any], Any] = lambda _: True, **arguments: st.SearchStrategy[Any]
) -> Callable[[Method], Method]:
    """Note that a method is one of the operations."""

    def note(run: Method) -> Method:
        OPERATIONS.extend([Operation(run, when, st.fixed_dictionaries(arguments))] * weight)
        return run

    return note


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="tierline-test-", dir="/dev/shm"))
        self.clock = ManualClock()
        self.stamps = itertools.count(1)
        self.stored: dict[ObjectKey, Kept] = {}
        self.gone: list[Kept] = []  # deleted or so, while somebody may be reading
        self.open_slots: list[OpenSlot] = []
        self.open_leases: list[OpenLease] = []
        self.late_writers: dict[str, list[OpenSlot]] = {}
        self.ended_slots: list[tuple[int, Owner]] = []
        self.ended_leases: list[str] = []
        self.evicts_from = 0.0
        self._begin()

    @initialize(
        eviction=st.sampled_from(get_args(PolicyName)),
        rules=RULES,
        default_rules=RULES,
        most=st.integers(1, 3),
        ghost_log_bytes=st.sampled_from([ROOMY_LOG_BYTES, ROOMY_LOG_BYTES, 200, 0]),
        filled=st.lists(KEYS, min_size=1, max_size=5),
    )
    def start(
        self,
        eviction: PolicyName,
        rules: BucketRules,
        default_rules: BucketRules,
        most: int,
        ghost_log_bytes: int,
        filled: list[ObjectKey],
    ) -> None:
        self.bucket_rules = {BUCKET: rules, UNNAMED_BUCKET: default_rules}
        self.limits = replace(LIMITS, max_namespaces=most, ghost_log_bytes=ghost_log_bytes)
        self._open: Callable[[], Store] = lambda: Store.open(
            self.directory,
            "segment",
            (PAGES + 1) * PAGE_BYTES,
            eviction=eviction,
            clock=self.clock,
            wall_clock=lambda: 1e9 + self.clock.now,
            limits=self.limits,
            rules={BUCKET: rules},
            default_rules=default_rules,
        )
        self.store = self._open()
        self.put(filled, 2 * PAGE_BYTES, Owner("", 1))

    @rule(data=st.data())
    def somebody_does_something(self, data: st.DataObject) -> None:
        """One rule for all: of several, hypothesis turns some off in each example, and most would commit nothing."""
        chosen = data.draw(st.sampled_from([each for each in OPERATIONS if each.when(self)]))
        chosen.run(self, **data.draw(chosen.arguments))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.directory)

    # What writers do

    @operation(weight=2, key=KEYS, size=SIZES | WRONG_SIZES, owner=OWNERS)
    def write(self, key: ObjectKey, size: int, owner: Owner) -> None:
        self._write(key, size, owner)

    @operation(weight=2, size=SIZES | WRONG_SIZES, owner=OWNERS)
    def grant(self, size: int, owner: Owner) -> None:
        expected = self._refusal_of_size(size) or self._refusal_for_room(size)
        before = self._before()
        slot = self._try(expected, lambda: self.store.grant(size, owner))
        self._settle(before, pages_for(size), is_refused=slot is None)
        if slot is not None:
            self._opened(slot, size, owner, None)

    @operation(weight=4, keys=st.lists(KEYS, min_size=1, max_size=4), size=SIZES, owner=OWNERS)
    def put(self, keys: list[ObjectKey], size: int, owner: Owner) -> None:
        for key in keys:
            opened = self._write(key, size, owner)
            if opened is not None:
                self._commit(opened, key, size)

    @operation(
        weight=2,
        when=lambda self: self.open_slots,
        index=INDEXES,
        key=KEYS,
        says_key=st.booleans(),
        cut_pages=st.integers(0, 3),
    )
    def commit(self, index: int, key: ObjectKey, says_key: bool, cut_pages: int) -> None:
        opened = picked(self.open_slots, index)
        named = opened.key if says_key and opened.key else key if says_key or opened.key is None else None
        self._commit(opened, named, max(1, opened.slot.size - cut_pages * PAGE_BYTES))

    @operation(
        when=lambda self: self.open_slots,
        index=INDEXES,
        key=st.none() | KEYS,
        size=st.none() | WRONG_SIZES,
        other=OWNERS,
    )
    def commit_what_is_not_so(self, index: int, key: ObjectKey | None, size: int | None, other: Owner) -> None:
        opened = picked(self.open_slots, index)
        if other != opened.owner:
            for use in (self.store.abort, self.store.slot):
                with pytest.raises(UnknownSlot):
                    use(opened.slot.id, other)
            with pytest.raises(UnknownSlot):
                self.store.commit(opened.slot.id, other, 0, key=opened.key)
        if size is not None:
            with pytest.raises(ObjectTooLarge):
                self.store.commit(opened.slot.id, opened.owner, 0, key=key, size=size)
        if opened.key is None:
            with pytest.raises(UnknownSlot):
                self.store.commit(opened.slot.id, opened.owner, 0)

    @operation(when=lambda self: self.open_slots, index=INDEXES)
    def abort(self, index: int) -> None:
        opened = picked(self.open_slots, index)
        self.store.abort(opened.slot.id, opened.owner)
        self._closed(opened)
        self.counted["aborts"] += 1

    @operation(when=lambda self: self.ended_slots, index=INDEXES, key=st.none() | KEYS)
    def use_a_slot_that_has_ended(self, index: int, key: ObjectKey | None) -> None:
        slot_id, owner = picked(self.ended_slots, index)
        for use in (self.store.abort, self.store.slot):
            with pytest.raises(UnknownSlot):
                use(slot_id, owner)
        with pytest.raises(UnknownSlot):
            self.store.commit(slot_id, owner, 0, key=key, size=1)

    @operation(owner=OWNERS)
    def end_owner(self, owner: Owner) -> None:
        ended = [opened for opened in self.open_slots if opened.owner == owner]
        assert self.store.end_owner(owner) == len(ended)
        for opened in ended:
            self._closed(opened)
        self.counted["aborts"] += len(ended)

    # What readers do

    @operation(
        weight=3,
        keys=st.lists(KEYS, min_size=1, max_size=6),
        is_of_stored=st.booleans(),
        holder=HOLDERS,
        ttl_s=TTLS,
        group_size=st.sampled_from([1, 1, 2, 3]),
        payer=st.sampled_from(["", "", "reader", "payer"]),
    )
    def lease(
        self, keys: list[ObjectKey], is_of_stored: bool, holder: str, ttl_s: float, group_size: int, payer: str
    ) -> None:
        if is_of_stored and self.stored:
            keys = [picked(list(self.stored), ALL_KEYS.index(key)) for key in keys]
        expected = self._refusal_of_lease(payer or holder)
        lease_id = self._try(expected, lambda: self.store.open_lease(holder, ttl_s, payer=payer))
        if lease_id is None:
            self.counted["leases_refused"] += 1
            return
        opened = self._given(lease_id, holder, payer or holder, ttl_s)
        self._extend(opened, keys[: len(keys) - len(keys) % group_size or None], group_size)

    @operation(when=lambda self: self.open_leases, index=INDEXES, keys=st.lists(KEYS, min_size=1, max_size=3))
    def extend_lease(self, index: int, keys: list[ObjectKey]) -> None:
        self._extend(picked(self.open_leases, index), keys, 1)

    @operation(key=KEYS, holder=HOLDERS, ttl_s=TTLS, is_use=st.booleans())
    def lease_one(self, key: ObjectKey, holder: str, ttl_s: float, is_use: bool) -> None:
        found = self.stored.get(key)
        if found is None or self._is_withheld(found):
            assert self.store.lease(key, holder, ttl_s, is_use=is_use) is None
            if is_use:
                self._missed(key, 1, 0)
            return
        payer = holder if is_use else None  # who looks after the store itself takes nobody's share
        expected = self._refusal_of_lease(payer)
        given = self._try(expected, lambda: self.store.lease(key, holder, ttl_s, is_use=is_use))
        if given is None:
            self.counted["leases_refused"] += 1
            return
        self._hold(self._given(given[0], holder, payer, ttl_s), [found], [given[1]], is_use=is_use)

    @operation(
        weight=2,
        when=lambda self: self.open_leases,
        index=INDEXES,
        start=st.integers(-1, 4),
        stop=st.none() | st.integers(0, 6),
    )
    def release(self, index: int, start: int, stop: int | None) -> None:
        opened = picked(self.open_leases, index)
        positions = range(len(opened.objects))[max(start, 0) : stop]
        released = [held for held in map(opened.objects.__getitem__, positions) if held is not None]
        assert self.store.release(opened.id, start, stop) == len(released)
        for position in positions:
            opened.objects[position] = None
        self._let_go(released, self.limits.grace_s)
        if not opened.live:
            self._ended(opened)

    @operation(when=lambda self: self.open_leases, index=INDEXES, ttl_s=TTLS)
    def renew(self, index: int, ttl_s: float) -> None:
        opened = picked(self.open_leases, index)
        self.store.renew(opened.id, ttl_s)
        opened.deadline = self.clock.now + min(ttl_s, self.limits.max_ttl_s)

    @operation(when=lambda self: self.ended_leases, index=INDEXES)
    def use_a_lease_that_has_ended(self, index: int) -> None:
        lease_id = picked(self.ended_leases, index)
        assert self.store.release(lease_id) == 0
        with pytest.raises(UnknownLease):
            self.store.renew(lease_id, 1.0)
        with pytest.raises(UnknownLease):
            self.store.extend_lease(lease_id, [ALL_KEYS[0]])

    @operation(holder=HOLDERS)
    def release_holder(self, holder: str) -> None:
        abandoned = [opened for opened in self.open_leases if opened.holder == holder]
        assert self.store.release_holder(holder) == len(abandoned)
        for opened in abandoned:
            self._quarantine(opened)
        self.counted["leases_abandoned"] += len(abandoned)

    @operation(when=lambda self: any(opened.live for opened in self.open_leases), index=INDEXES, is_sound=st.booleans())
    def compare(self, index: int, is_sound: bool) -> None:
        """Whoever reads compares bytes and checksum."""
        held = picked([held for opened in self.open_leases for held in opened.live], index)
        is_there = self.stored.get(held.key) is held
        assert held.given is not None
        if is_sound:
            self.store.mark_verified(held.given)
            held.is_verified = True
        else:
            assert self.store.drop_corrupt(held.given) == is_there
            if is_there:
                self._withdraw(held, "corrupt")

    # What operators do

    @operation(key=KEYS)
    def delete(self, key: ObjectKey) -> None:
        assert self.store.delete(key) == (key in self.stored)
        if key in self.stored:
            self._withdraw(self.stored[key], "deleted")

    @operation(bucket=st.sampled_from([None, BUCKET, UNNAMED_BUCKET, "other"]), salt=st.sampled_from([None, "", "a"]))
    def flush(self, bucket: str | None, salt: str | None) -> None:
        wanted = [
            found
            for found in self.stored.values()
            if bucket in (None, found.key.bucket) and salt in (None, _salt(found))
        ]
        removed, cursor = self.store.flush(bucket, salt, limit=2)
        while cursor:
            more, cursor = self.store.flush(bucket, salt, cursor=cursor, limit=2)
            removed += more
        assert removed == len(wanted)
        for found in wanted:
            self._withdraw(found, "flushed")

    @operation(weight=2, keys=st.lists(KEYS, min_size=1, max_size=6, unique=True), ttl_s=TTLS)
    def pin(self, keys: list[ObjectKey], ttl_s: float) -> None:
        found = [self.stored[key] for key in keys if key in self.stored and ttl_s]
        assert self.store.pin(keys, ttl_s) == len(found)
        for pinned in found:
            pinned.pinned_until = self.clock.now + min(ttl_s, self.limits.max_pin_s)

    @operation(keys=st.lists(KEYS, max_size=3, unique=True))
    def unpin(self, keys: list[ObjectKey]) -> None:
        found = [self.stored[key] for key in keys if key in self.stored and self.stored[key].pinned_until]
        assert self.store.unpin(keys) == len(found)
        for pinned in found:
            pinned.pinned_until = 0.0

    @operation(weight=2, key=KEYS, is_copied=st.booleans())
    def mark_copied(self, key: ObjectKey, is_copied: bool) -> None:
        self.store.mark_copied(key, is_copied)
        if key in self.stored:
            self.stored[key].is_copied = is_copied

    @operation(limit=st.integers(1, 3))
    def reclaim(self, limit: int) -> None:
        before = self._before()
        while self.store.reclaim(limit):
            pass
        self._settle(before, PAGES - int(self.limits.low_watermark * PAGES), is_background=True)
        assert not self.store.needs_reclaim
        assert not self._lacks_free(self.limits.low_watermark)

    # What happens to everybody

    @operation(weight=4, seconds=WAITS)
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self._expire()

    @operation(weight=1, down_s=st.sampled_from([0.0, 0.0, 0.75, 9.0]))
    def restart(self, down_s: float) -> None:
        """Nothing is said to the store first: this is SIGKILL as well as SIGTERM."""
        self.store.close()
        self.clock.advance(down_s)
        self.store = self._open()
        lost = list(self.open_slots)
        for opened in lost:
            self._closed(opened)
            if opened.owner.client:
                self.late_writers.setdefault(opened.owner.client, []).append(opened)
        for lease in list(self.open_leases):
            self._ended(lease)
        if self.stored or self.gone:
            self.evicts_from = self.clock.now + self.limits.max_ttl_s + self.limits.quarantine_s
        for found in [*self.stored.values(), *self.gone]:
            found.leases = found.hits = 0
            found.is_quarantined = found.is_verified = found.is_copied = False
            found.pinned_until = found.rests_until = 0.0
            found.touched = self.clock.now
            found.not_before = self.evicts_from
        for gone in self.gone:
            gone.rests_until = gone.not_before
        self._begin()
        for orphan in [opened for slots in self.late_writers.values() for opened in slots]:
            self.fates[orphan.key or ObjectKey("", "")] = "lost_at_restart"
        for opened in lost:
            self.fates[opened.key or ObjectKey("", "")] = "lost_at_restart"
        assert self.store.stats().dropped == 0
        assert self.store.stats().adopted == len(self.stored)
        self._expire()

    @operation(client=st.sampled_from(["engine", "other"]))
    def reconnect(self, client: str) -> None:
        assert self.store.release_orphans(client) == len(self.late_writers.pop(client, []))

    @operation()
    def everybody_lets_go(self) -> None:
        """Nothing leaks: when all is given back and has rested, every page is free again."""
        for opened in list(self.open_slots):
            self.store.abort(opened.slot.id, opened.owner)
            self._closed(opened)
            self.counted["aborts"] += 1
        for client in list(self.late_writers):
            self.reconnect(client)
        for lease in self.open_leases[::2]:
            assert self.store.release(lease.id) == len(lease.live)
            self._let_go(lease.live, self.limits.grace_s)
            self._ended(lease)
        self.flush(None, None)
        for seconds in (self.limits.max_ttl_s, self.limits.quarantine_s, self.limits.max_ttl_s):
            self.wait(seconds)
        left = self.store.stats()
        assert left.free_bytes == left.largest_free_bytes == left.capacity_bytes == PAGES * PAGE_BYTES
        assert (left.leases, left.slots, left.objects, left.fragments, left.orphaned_slots) == (0, 0, 0, 0, 0)
        assert sum(each.objects + each.bytes for each in self.store.namespaces()) == 0
        whole = self.store.grant(PAGES * PAGE_BYTES, Owner("", 1))
        assert len(whole.extents) == 1
        self.store.abort(whole.id, Owner("", 1))
        self.counted["aborts"] += 1

    # What must hold at all times

    @invariant()
    def no_page_has_two_uses_and_whoever_may_look_sees_what_was_committed(self) -> None:
        for late in [*itertools.chain(*self.late_writers.values()), *self.open_slots]:
            self._fill(late.slot.extents, b"\xff" * 8)
        kept = [*self.stored.values(), *self.gone]
        taken = Counter(page for found in kept for page in pages_of(found.extents))
        taken.update(page for late in self._writable() for page in pages_of(late.slot.extents))
        assert taken.total() == len(taken)
        assert taken.keys() <= set(range(1, PAGES + 1))
        for found in kept:
            for view in self.store.views(found.extents):
                for start in range(0, len(view), PAGE_BYTES):
                    assert view[start : start + 8] == found.stamp[: len(view) - start]

    @invariant()
    def every_page_is_counted_under_what_it_is_and_every_event_once(self) -> None:
        if not hasattr(self, "store"):
            return
        now, stored = self.clock.now, list(self.stored.values())
        stats = self.store.stats()
        orphans = list(itertools.chain(*self.late_writers.values()))
        pages = {
            "capacity_bytes": PAGES,
            "free_bytes": self._free_pages(),
            "used_bytes": total(stored),
            "leased_bytes": total(found for found in stored if found.leases),
            "resting_bytes": total(found for found in stored if not found.leases and not found.is_idle(now)),
            "quarantined_bytes": total(found for found in [*stored, *self.gone] if found.is_quarantined),
            "pinned_bytes": total(found for found in stored if found.pinned_until),
            "reserved_bytes": sum(opened.pages for opened in self.open_slots),
            "orphaned_bytes": sum(opened.pages for opened in orphans),
            "retired_bytes": total(self.gone),
            "largest_free_bytes": self._largest_free_run(),
        }
        assert {name: getattr(stats, name) / PAGE_BYTES for name in pages} == pages
        counts = {
            "objects": len(stored),
            "fragments": sum(len(found.extents) for found in stored),
            "slots": len(self.open_slots),
            "orphaned_slots": len(orphans),
            "leases": len(self.open_leases),
            "unverified": sum(not found.is_verified for found in stored),
        }
        assert {name: getattr(stats, name) for name in counts} == counts
        assert stats.namespaces <= self.limits.max_namespaces
        assert stats.ghost_entries <= self.limits.ghost_log_bytes // 25
        assert self.store.needs_reclaim == self._lacks_free(self.limits.high_watermark)
        expected = {name: self.counted[name] for name in COUNTED}
        assert {name: getattr(stats, name) for name in COUNTED} == expected
        assert +Counter(stats.evictions) == +self.evicted
        assert sum(stats.misses_by_reason.values()) == stats.misses
        if self._remembers_all:
            assert +Counter(stats.misses_by_reason) == +self.missed

    @invariant()
    def everything_stored_is_listed_and_explained_and_nothing_else(self) -> None:
        if not hasattr(self, "store"):
            return
        assert {key for key in ALL_KEYS if self.store.is_copied(key)} == {
            key for key, kept in self.stored.items() if kept.is_copied
        }
        now = self.clock.now
        listed = []
        for bucket in (BUCKET, UNNAMED_BUCKET):
            cursor, is_more = "", True
            while is_more:
                page = self.store.list(bucket, cursor=cursor, limit=2)
                assert len(page.objects) <= 2
                listed += page.objects
                cursor, is_more = page.cursor, bool(page.cursor)
        assert len(listed) == len(self.stored)
        for stat in listed:
            found = self.stored[stat.key]
            assert self.store.stat(stat.key) == stat
            assert (stat.size, stat.checksum, stat.fragments) == (found.size, found.checksum, len(found.extents))
            assert (stat.leases, stat.hits, stat.is_verified) == (found.leases, found.hits, found.is_verified)
            assert (stat.age_s, stat.idle_s) == (now - found.born, now - found.touched)
            assert stat.pinned_s == (found.pinned_until - now if found.pinned_until else 0.0)
            assert stat.expires_s == (None if found.expires_at is None else found.expires_at - now)
        for key in ALL_KEYS:
            assert self.store.is_stored(key) == (key in self.stored)
            assert self.store.is_being_written(key) == (key in self._being_written())
            assert self.store.explain(key).kind in self._kinds(key)

    @invariant()
    def every_lease_is_listed(self) -> None:
        if hasattr(self, "store"):
            now = self.clock.now
            listing = self.store.leases(limit=2)
            listed = list(listing.leases)
            while listing.cursor:
                listing = self.store.leases(cursor=listing.cursor, limit=2)
                listed += listing.leases
            assert [tuple(each) for each in listed] == [
                (
                    opened.id,
                    opened.holder,
                    len(opened.live),
                    sum(held.size for held in opened.live),
                    now - opened.given,
                    opened.deadline - now,
                )
                for opened in self.open_leases
            ]

    @invariant()
    def everybody_is_charged_for_what_is_theirs_once_and_within_their_quota(self) -> None:
        if not hasattr(self, "store"):
            return
        listed = {each.namespace: each for each in self.store.namespaces()}
        assert len(listed) == len(self.store.namespaces())
        for namespace in TENANTS:
            objects, bytes_ = self._has({namespace})
            own = listed.get(namespace)
            if own is not None:  # then nothing of theirs is with the others
                assert (own.objects, own.bytes) == (objects, bytes_)
            rules = self.bucket_rules[namespace.bucket]
            self._is_within(rules.tenant_quota, {namespace})
            self._is_within(rules.quota, {each for each in TENANTS if each.bucket == namespace.bucket})
        for bucket in self.bucket_rules:
            theirs = {each for each in TENANTS if each.bucket == bucket} - listed.keys()
            counted = [
                listed[each]
                for each in (Namespace(bucket, "@others"), Namespace("@others", "@others"))
                if each in listed and (bucket == UNNAMED_BUCKET or each.bucket == bucket)
            ]
            assert sum(each.objects for each in counted) == self._has(theirs)[0]
            assert sum(each.bytes for each in counted) == self._has(theirs)[1]
            whole = listed.get(Namespace(bucket, "@all"))
            if whole is not None and not listed.get(Namespace("@others", "@others")):
                everybody = {each for each in TENANTS if each.bucket == bucket}
                assert (whole.objects, whole.bytes) == self._has(everybody)

    # What the model expects

    @property
    def _remembers_all(self) -> bool:
        return self.limits.ghost_log_bytes in (0, ROOMY_LOG_BYTES)

    def _refusal_of_size(self, size: int) -> type[StoreError] | None:
        return None if 0 < size <= PAGES * PAGE_BYTES else ObjectTooLarge

    def _refusal_of_key(self, key: ObjectKey) -> type[StoreError] | None:
        if key in self.stored:
            return AlreadyStored
        return BeingWritten if key in self._being_written() else None

    def _refusal_for_room(self, size: int) -> type[StoreError] | None:
        pages, free = pages_for(size), self._free_pages()
        evictable = total(found for found in self.stored.values() if found.is_idle(self.clock.now))
        is_too_much = pages > free + evictable or (pages > free and self.clock.now < self.evicts_from)
        return NoSpace if is_too_much else None

    def _refusal_for_quota(self, key: ObjectKey, size: int) -> type[StoreError] | None:
        """Refused unless enough can go of those who share the tenant's account, and of the bucket."""
        rules, tenant = self.bucket_rules[key.bucket], namespace_of(key)
        everybody = frozenset(each for each in TENANTS if each.bucket == key.bucket)
        for quota, theirs in ((rules.tenant_quota, self._shares()[tenant]), (rules.quota, everybody)):
            objects, bytes_ = self._charged(theirs)
            goes = [] if self.clock.now < self.evicts_from else self._idle(theirs)
            if quota.hard_bytes is not None:
                stays = bytes_ - total(goes) * PAGE_BYTES
                if stays + pages_for(size) * PAGE_BYTES > quota.hard_bytes:
                    return QuotaExceeded
            if quota.hard_objects is not None and objects - len(goes) >= quota.hard_objects:
                return QuotaExceeded
        return None

    def _refusal_of_lease(self, payer: str | None) -> type[StoreError] | None:
        if payer is None:
            return None
        paid = [opened.payer for opened in self.open_leases if opened.payer is not None]
        is_full = paid.count(payer) >= self.limits.max_leases_per_holder or len(paid) >= self.limits.max_leases
        return TooManyLeases if is_full else None

    def _is_withheld(self, found: Kept) -> bool:
        """Whether it is not leased, since too much is in quarantine."""
        quarantined = total(each for each in [*self.stored.values(), *self.gone] if each.is_quarantined)
        is_full = quarantined > self.limits.max_quarantined_fraction * PAGES
        return is_full and found.is_idle(self.clock.now)

    def _lacks_free(self, watermark: float) -> bool:
        now, stored = self.clock.now, self.stored.values()
        return (
            PAGES - self._free_pages() > watermark * PAGES
            and any(found.is_idle(now) and not found.pinned_until for found in stored)
            and total(stored) <= (1 - self.limits.low_watermark) * PAGES * len(stored)
            and now >= self.evicts_from
        )

    def _kinds(self, key: ObjectKey) -> set[str]:
        """What may be said of a key: one word, where the log remembers all."""
        if key in self.stored:
            return {"stored"}
        if key in self._being_written():
            return {"being_written"}
        is_others = any(key in same and any(other in self.stored for other in same) for same in SAME_TOKENS)
        unknown = "other_tenant" if is_others else "never_stored"
        fate = self.fates.get(key)
        if fate is None or not self.limits.ghost_log_bytes:
            return {unknown}
        return {fate} if self._remembers_all else {fate, unknown}

    def _shares(self) -> dict[Namespace, frozenset[Namespace]]:
        """Return for each tenant who shares its account: itself alone, or all in the bucket who have none."""
        listed = {each.namespace for each in self.store.namespaces()}
        return {
            tenant: frozenset([tenant])
            if tenant in listed
            else frozenset(each for each in TENANTS - listed if each.bucket == tenant.bucket)
            for tenant in TENANTS
        }

    def _has(self, tenants: Iterable[Namespace]) -> tuple[int, int]:
        """Return objects and bytes that tenants have stored."""
        theirs = [found for found in self.stored.values() if namespace_of(found.key) in tenants]
        return len(theirs), total(theirs) * PAGE_BYTES

    def _charged(self, tenants: Iterable[Namespace]) -> tuple[int, int]:
        """Return objects and bytes that tenants have stored or are writing."""
        writes = [o for o in self.open_slots if o.key is not None and namespace_of(o.key) in tenants]
        objects, bytes_ = self._has(tenants)
        return objects + len(writes), bytes_ + sum(opened.pages for opened in writes) * PAGE_BYTES

    def _idle(self, tenants: Iterable[Namespace], *, takes_pinned: bool = True) -> list[Kept]:
        return [
            found
            for found in self.stored.values()
            if namespace_of(found.key) in tenants
            and found.is_idle(self.clock.now)
            and (takes_pinned or not found.pinned_until)
        ]

    def _is_within(self, quota: Quota, tenants: Iterable[Namespace]) -> None:
        objects, bytes_ = self._charged(tenants)
        assert quota.hard_bytes is None or bytes_ <= quota.hard_bytes
        assert quota.hard_objects is None or objects <= quota.hard_objects

    def _is_over_soft(self, quota: Quota, tenants: Iterable[Namespace]) -> bool:
        objects, bytes_ = self._charged(tenants)
        return (quota.soft_bytes is not None and bytes_ > quota.soft_bytes) or (
            quota.soft_objects is not None and objects > quota.soft_objects
        )

    def _being_written(self) -> set[ObjectKey]:
        return {opened.key for opened in self.open_slots if opened.key is not None}

    def _writable(self) -> list[OpenSlot]:
        return [*itertools.chain(*self.late_writers.values()), *self.open_slots]

    def _free_pages(self) -> int:
        taken = total([*self.stored.values(), *self.gone]) + sum(opened.pages for opened in self._writable())
        return PAGES - taken

    def _largest_free_run(self) -> int:
        taken = {page for found in [*self.stored.values(), *self.gone] for page in pages_of(found.extents)}
        taken.update(page for opened in self._writable() for page in pages_of(opened.slot.extents))
        free = [page not in taken for page in range(1, PAGES + 1)]
        return max((len(list(run)) for is_free, run in itertools.groupby(free) if is_free), default=0)

    # How the model follows

    def _begin(self) -> None:
        """Forget what a process counts and remembers."""
        self.counted = Counter[str]()
        self.missed = Counter[str]()
        self.evicted = Counter[str]()
        self.fates: dict[ObjectKey, str] = {}

    def _try(self, expected: type[StoreError] | None, operation: Callable[[], Item]) -> Item | None:
        """Return what an operation returns; ``None`` where it was refused as expected."""
        if expected is None:
            return operation()
        with pytest.raises(expected) as refused:
            operation()
        assert refused.type is expected
        return None

    def _write(self, key: ObjectKey, size: int, owner: Owner) -> OpenSlot | None:
        expected = self._refusal_of_key(key) or self._refusal_of_size(size)
        is_for_room = expected is None
        expected = expected or self._refusal_for_quota(key, size) or self._refusal_for_room(size)
        before = self._before()
        slot = self._try(expected, lambda: self.store.write(key, size, owner))
        self._settle(before, pages_for(size), is_refused=slot is None, writer=namespace_of(key))
        if slot is not None:
            return self._opened(slot, size, owner, key)
        if is_for_room:
            self.fates[key] = "quota" if expected is QuotaExceeded else "no_space"
        return None

    def _opened(self, slot: Slot, size: int, owner: Owner, key: ObjectKey | None) -> OpenSlot:
        assert sum(extent.length for extent in slot.extents) == slot.size == size
        assert self.store.slot(slot.id, owner) == slot
        assert slot.id not in {other.slot.id for other in self.open_slots}
        assert slot.id not in {slot_id for slot_id, _ in self.ended_slots}
        opened = OpenSlot(slot, owner, key)
        self.open_slots.append(opened)
        return opened

    def _commit(self, opened: OpenSlot, key: ObjectKey | None, size: int) -> None:
        published = opened.key or key
        assert published is not None
        expected: type[StoreError] | None = None
        is_for_quota = False
        if opened.key is not None:
            expected = UnknownSlot if key not in (None, opened.key) else None
        else:
            expected = self._refusal_of_key(published)
            is_for_quota = expected is None
            expected = expected or self._refusal_for_quota(published, size)
        stamp = next(self.stamps).to_bytes(8, "little")
        extents = cut(opened.slot.extents, size)
        self._fill(extents, stamp)
        checksum = xxhash.xxh3_64_intdigest(stamp)
        before = self._before()
        self._try(expected, lambda: self.store.commit(opened.slot.id, opened.owner, checksum, key=key, size=size))
        self._settle(before, 0, is_refused=expected is not None)
        if expected is not None:
            if is_for_quota:
                self.fates[published] = "quota"
            return
        self._closed(opened)
        now, ttl_s = self.clock.now, self.bucket_rules[published.bucket].ttl_s
        self.stored[published] = Kept(published, size, stamp, extents, now, now, None if ttl_s is None else now + ttl_s)
        self.counted["commits"] += 1
        self.counted["commit_bytes"] += size

    def _closed(self, opened: OpenSlot) -> None:
        self.open_slots.remove(opened)
        self.ended_slots.append((opened.slot.id, opened.owner))

    def _given(self, lease_id: str, holder: str, payer: str | None, ttl_s: float) -> OpenLease:
        opened = OpenLease(lease_id, holder, payer, self.clock.now, self.clock.now + min(ttl_s, self.limits.max_ttl_s))
        assert lease_id not in self.ended_leases
        self.open_leases.append(opened)
        self.counted["leases_given"] += 1
        return opened

    def _extend(self, opened: OpenLease, keys: Sequence[ObjectKey], group_size: int) -> None:
        run = list(
            itertools.takewhile(lambda key: key in self.stored and not self._is_withheld(self.stored[key]), keys)
        )
        if len(run) < len(keys):
            self._missed(keys[len(run)], len(keys) - len(run), len(run) % group_size)
        else:
            self.missed["behind_a_miss"] += len(run) % group_size
            self.counted["misses"] += len(run) % group_size
        del run[len(run) - len(run) % group_size :]
        given = self.store.extend_lease(opened.id, keys, group_size)
        self._hold(opened, [self.stored[key] for key in run], given, is_use=True)

    def _missed(self, key: ObjectKey, misses: int, incomplete: int) -> None:
        reason = "quarantine_full" if key in self.stored else min(self._kinds(key))
        self.missed[reason] += 1
        self.missed["behind_a_miss"] += misses - 1 + incomplete
        self.counted["misses"] += misses + incomplete

    def _hold(self, opened: OpenLease, run: list[Kept], given: list[Leased], *, is_use: bool) -> None:
        assert given == [Leased(held.key, held.size, held.checksum, held.extents, held.is_verified) for held in run]
        for held, leased in zip(run, given, strict=True):
            held.leases += 1
            held.given = leased
            if is_use and held.touched <= self.clock.now - self.limits.touch_window_s:
                held.touched = self.clock.now
                held.hits += 1
        opened.objects += run
        if is_use:
            self.counted["hits"] += len(run)
            self.counted["hit_bytes"] += sum(held.size for held in run)

    def _let_go(self, released: Iterable[Kept], rest_s: float) -> None:
        for held in released:
            held.leases -= 1
            held.rests_until = max(held.rests_until, held.not_before, self.clock.now + rest_s)

    def _quarantine(self, lease: OpenLease) -> None:
        for held in lease.live:
            held.is_quarantined = True
        self._let_go(lease.live, self.limits.quarantine_s)
        self._ended(lease)

    def _ended(self, lease: OpenLease) -> None:
        self.open_leases.remove(lease)
        self.ended_leases.append(lease.id)

    def _withdraw(self, found: Kept, fate: str) -> None:
        """Hide an object; its pages are free when nobody can be reading them."""
        del self.stored[found.key]
        self.fates[found.key] = fate
        self.evicted[fate] += 1
        found.pinned_until = 0.0
        found.rests_until = max(found.rests_until, found.not_before)
        if not found.is_idle(self.clock.now):
            self.gone.append(found)

    def _expire(self) -> None:
        while self.store.expire(limit=3):
            pass
        now = self.clock.now
        due = [opened for opened in self.open_leases if opened.deadline <= now]
        for opened in due:
            self._quarantine(opened)
        self.counted["leases_expired"] += len(due)
        for found in list(self.stored.values()):
            if found.expires_at is not None and found.expires_at <= now:
                self._withdraw(found, "expired")
        for found in [*self.stored.values(), *self.gone]:
            if found.pinned_until <= now:
                found.pinned_until = 0.0
            if found.rests_until <= now:
                found.is_quarantined = False
        self.gone = [gone for gone in self.gone if not gone.is_idle(now)]

    def _before(self) -> Before:
        shares = self._shares()
        limited = {(self.bucket_rules[tenant.bucket].tenant_quota, share) for tenant, share in shares.items()}
        for bucket, rules in self.bucket_rules.items():
            limited.add((rules.quota, frozenset(each for each in TENANTS if each.bucket == bucket)))
        over_soft = [(quota, share) for quota, share in limited if self._is_over_soft(quota, share)]
        return Before(self._free_pages(), dict(self.store.stats().evictions), over_soft, shares)

    def _settle(
        self,
        before: Before,
        pages: int,
        *,
        is_refused: bool = False,
        is_background: bool = False,
        writer: Namespace | None = None,
    ) -> None:
        """Forget what was evicted to have ``pages`` free, and judge the choice."""
        victims = [found for key, found in self.stored.items() if not self.store.is_stored(key)]
        now, evictions = self.clock.now, self.store.stats().evictions
        by_quota = evictions["quota"] - before.evictions["quota"]
        assert by_quota + evictions["space"] - before.evictions["space"] == len(victims)
        self.evicted.update(quota=by_quota, space=len(victims) - by_quota)
        for victim in victims:
            assert victim.is_idle(now)
            assert now >= self.evicts_from
            del self.stored[victim.key]
            self.fates[victim.key] = self.store.explain(victim.key).kind if by_quota else "evicted"
        for victim in victims:
            if victim.pinned_until:  # then nothing unpinned can be left, of its tenant's if it went for a quota
                assert not is_background
                rivals = before.shares[namespace_of(victim.key)] if by_quota else TENANTS
                assert not self._idle(rivals, takes_pinned=False)
        if by_quota or not victims:
            return
        assert not is_refused
        sizes = [victim.pages for victim in victims]
        assert before.free_pages + sum(sizes) - max(sizes) < pages  # the last of them was needed
        greedy = [  # who was over a soft quota all the while, and had something to give
            share
            for quota, share in before.over_soft
            if self._is_over_soft(quota, share) and self._idle(share, takes_pinned=False)
        ]
        if writer is not None and before.shares[writer] in greedy:
            assert all(namespace_of(victim.key) in before.shares[writer] for victim in victims)
        elif greedy:
            over = frozenset[Namespace]().union(*(share for _, share in before.over_soft))
            assert all(namespace_of(victim.key) in over for victim in victims)

    def _fill(self, extents: Sequence[Extent], stamp: bytes) -> None:
        """Put a stamp at the start of every page."""
        for view in self.store.views(extents):
            for start in range(0, len(view), PAGE_BYTES):
                view[start : start + 8] = stamp[: len(view) - start]


COUNTED = (
    "hits",
    "hit_bytes",
    "misses",
    "commits",
    "commit_bytes",
    "aborts",
    "leases_given",
    "leases_refused",
    "leases_expired",
    "leases_abandoned",
)


def picked(items: Sequence[Item], index: int) -> Item:
    return items[index % len(items)]


@functools.cache
def namespace_of(key: ObjectKey) -> Namespace:
    return Namespace(key.bucket, tenant_of(key.name))


def _salt(found: Kept) -> str:
    return tenant_of(found.key.name)


def total(kept: Iterable[Kept]) -> int:
    return sum(found.pages for found in kept)


def pages_for(size: int) -> int:
    return -(-size // PAGE_BYTES)


def pages_of(extents: Iterable[Extent]) -> list[int]:
    return [page for offset, length in extents for page in range(offset // PAGE_BYTES, pages_for(offset + length))]


def cut(extents: Iterable[Extent], size: int) -> tuple[Extent, ...]:
    """Return where the first ``size`` bytes of extents lie."""
    kept = []
    for offset, length in extents:
        if size > 0:
            kept.append(Extent(offset, min(length, size)))
        size -= length
    return tuple(kept)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=300, stateful_step_count=60)
