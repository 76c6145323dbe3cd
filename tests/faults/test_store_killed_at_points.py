"""SIGKILL at every labelled point of every operation that changes files: what was promised is there, whole."""

import itertools
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import xxhash
from tests.faults.kill_points import KillPoints, killed_at_each_point

from tierline.store import PAGE_BYTES, ObjectKey, Owner, Store, StoreLimits

PAGES = 12
CAPACITY = (PAGES + 1) * PAGE_BYTES
NO_REST = StoreLimits(max_ttl_s=0.0, quarantine_s=0.0, grace_s=0.0)
"""So that the next process may evict at once; nobody reads here."""
NODE = Owner("", 1)
ENGINE = Owner("engine", 2, 4711)

CONTENTS = {
    "small": b"s" * 100,
    "pages": b"p" * (2 * PAGE_BYTES),
    "odd": b"o" * (3 * PAGE_BYTES - 7),
    "new": b"n" * (2 * PAGE_BYTES - 11),
    "large": b"l" * (11 * PAGE_BYTES),
}
OLD = ["small", "pages", "odd"]


def key(name: str) -> ObjectKey:
    return ObjectKey("kv", name)


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="tierline-test-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


def open_store(directory: Path) -> Store:
    return Store.open(directory, "segment", CAPACITY, clock=lambda: 1000.0, limits=NO_REST)


def put(store: Store, name: str) -> None:
    content = CONTENTS[name]
    slot = store.write(key(name), len(content), NODE)
    for view, (offset, length) in zip(store.views(slot.extents), _pieces(slot.extents), strict=True):
        view[:] = content[offset : offset + length]
    store.commit(slot.id, NODE, xxhash.xxh3_64_intdigest(content))


def _pieces(extents: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    ends = list(itertools.accumulate(length for _, length in extents))
    return [(end - length, length) for end, (_, length) in zip(ends, extents, strict=True)]


def stored_contents(store: Store) -> dict[str, bytes]:
    """Every object that the store has, with its bytes; each agrees with its checksum."""
    found = {}
    for name in [*CONTENTS, *(f"filler {number}" for number in range(PAGES))]:
        leased = store.lease(key(name), "test", 1)
        if leased is not None:
            content = b"".join(store.views(leased[1].extents))
            assert xxhash.xxh3_64_intdigest(content) == leased[1].checksum
            found[name] = content
            store.release(leased[0])
    assert len(found) == store.stats().objects
    return found


def fill_what_is_free(store: Store) -> None:
    """Write into every page that the store calls free; whoever shared one would now be spoiled."""
    number = 0
    while store.stats().free_bytes:
        slot = store.write(key(f"filler {number}"), PAGE_BYTES, NODE)
        content = bytes([number]) * PAGE_BYTES
        store.views(slot.extents)[0][:] = content
        store.commit(slot.id, NODE, xxhash.xxh3_64_intdigest(content))
        number += 1


def fresh(directory: Path, names: Sequence[str]) -> None:
    """Leave a directory with a store that holds just these objects."""
    shutil.rmtree(directory)
    directory.mkdir()
    store = open_store(directory)
    for name in names:
        put(store, name)
    store.close()


def check_next_process(
    directory: Path, label: str, must: Mapping[str, bytes], may: Mapping[str, bytes], orphans: int | None = 0
) -> set[str]:
    """Open what a killed process left; all of ``must`` is there, of ``may`` some, and the pages are nobody else's.

    Returns the names that were found.
    """
    store = open_store(directory)
    stats = store.stats()
    found = stored_contents(store)
    assert must.items() <= found.items(), label
    assert found.items() <= {**must, **may}.items(), label
    assert stats.dropped <= ("half of record" in label), label
    assert stats.capacity_bytes == PAGES * PAGE_BYTES, label
    assert stats.free_bytes + stats.used_bytes + stats.orphaned_bytes + stats.retired_bytes == stats.capacity_bytes
    assert orphans is None or stats.orphaned_slots == orphans, label
    store.release_orphans("engine")
    fill_what_is_free(store)
    everything = stored_contents(store)
    assert found.items() <= everything.items(), label
    store.close()
    again = open_store(directory)
    assert stored_contents(again) == everything, label
    again.close()
    return set(found)


def only(*names: str) -> dict[str, bytes]:
    return {name: CONTENTS[name] for name in names}


Scenario = Callable[[Store, KillPoints], None]


def runs(
    directory: Path, tmp_path: Path, scenario: Scenario, names: Sequence[str] = OLD
) -> Iterator[tuple[str, list[str]]]:
    def in_child(points: KillPoints) -> None:
        store = open_store(directory)
        points.install()
        scenario(store, points)

    yield from killed_at_each_point(in_child, lambda: fresh(directory, names), tmp_path / "diary")


def put_with_points(store: Store, points: KillPoints) -> None:
    slot = store.write(key("new"), len(CONTENTS["new"]), NODE)
    points.fill(store, slot, CONTENTS["new"])
    store.commit(slot.id, NODE, xxhash.xxh3_64_intdigest(CONTENTS["new"]))
    points.say("committed")


def test_a_put_killed_at_any_point_is_there_whole_or_not_at_all(shared_memory: Path, tmp_path: Path) -> None:
    labels = []
    for label, said in runs(shared_memory, tmp_path, put_with_points):
        found = check_next_process(shared_memory, label, only(*OLD), only("new"))
        assert ("new" in found) == (bool(said) or label == "after record COMMITTED"), label
        labels.append(label)
    assert {"before body", "half of record RESERVED", "a part of the bytes", "before record COMMITTED"} <= set(labels)


def reserve_with_points(store: Store, points: KillPoints) -> None:
    slot = store.grant(len(CONTENTS["new"]) + 2 * PAGE_BYTES, ENGINE)
    points.say("granted")
    points.fill(store, slot, CONTENTS["new"])
    content = CONTENTS["new"]
    store.commit(slot.id, ENGINE, xxhash.xxh3_64_intdigest(content), key=key("new"), size=len(content))
    points.say("committed")


def test_a_reservation_killed_at_any_point_keeps_its_pages_from_everybody_else(
    shared_memory: Path, tmp_path: Path
) -> None:
    """The client lives on and may be writing: its pages are nobody's until it says otherwise."""
    for label, said in runs(shared_memory, tmp_path, reserve_with_points):
        is_committed = said == ["granted", "committed"] or label == "after record COMMITTED"
        is_open = (said == ["granted"] and not is_committed) or label == "after record RESERVED"
        is_torn = label.startswith("half of record")
        expected = None if is_torn else int(is_open)
        found = check_next_process(shared_memory, label, only(*OLD), only("new"), orphans=expected)
        assert ("new" in found) == is_committed, label


def abort_with_points(store: Store, points: KillPoints) -> None:
    store.grant(3 * PAGE_BYTES, ENGINE)
    slot = store.grant(PAGE_BYTES, ENGINE)
    points.say("granted")
    store.abort(slot.id, ENGINE)
    points.say("aborted")
    store.end_owner(ENGINE)
    points.say("ended")


def test_an_abort_or_an_end_killed_at_any_point_loses_no_page(shared_memory: Path, tmp_path: Path) -> None:
    for label, said in runs(shared_memory, tmp_path, abort_with_points):
        check_next_process(shared_memory, label, only(*OLD), {}, orphans=0 if "ended" in said else None)


def evict_with_points(store: Store, points: KillPoints) -> None:
    content = CONTENTS["large"]
    slot = store.write(key("large"), len(content), NODE)
    points.say("evicted")
    points.fill(store, slot, content)
    store.commit(slot.id, NODE, xxhash.xxh3_64_intdigest(content))
    points.say("committed")


def test_a_victim_is_whole_or_gone_at_any_point_of_its_eviction(shared_memory: Path, tmp_path: Path) -> None:
    """Its record goes before its pages take a byte; were it the other way round, some point here would serve them."""
    seen: set[frozenset[str]] = set()
    for label, said in runs(shared_memory, tmp_path, evict_with_points):
        found = check_next_process(shared_memory, label, {}, only(*OLD, "large"))
        assert not said or found <= {"large"}, label
        assert ("large" in found) == ("committed" in said or label == "after record COMMITTED"), label
        seen.add(frozenset(found))
    assert {frozenset(OLD), frozenset(), frozenset({"large"})} <= seen
    assert len(seen) > 3  # some victims gone, others still there


def delete_with_points(store: Store, points: KillPoints) -> None:
    held = store.lease(key("odd"), "reader", 60)
    assert held is not None
    for name in ("small", "odd"):
        store.delete(key(name))
        points.say(f"deleted {name}")
    put_with_points(store, points)
    store.release(held[0])
    while store.expire():
        pass


def test_what_was_deleted_stays_deleted_at_any_point(shared_memory: Path, tmp_path: Path) -> None:
    for label, said in runs(shared_memory, tmp_path, delete_with_points):
        deleted = {words.removeprefix("deleted ") for words in said if words.startswith("deleted ")}
        left = [name for name in OLD if name not in deleted]
        assert not deleted & check_next_process(shared_memory, label, only("pages"), only(*left, "new"))


def flush_with_points(store: Store, points: KillPoints) -> None:
    store.flush("kv")
    points.say("flushed")


def test_a_flush_killed_at_any_point_has_removed_some_objects_and_harmed_none(
    shared_memory: Path, tmp_path: Path
) -> None:
    seen = set()
    for label, said in runs(shared_memory, tmp_path, flush_with_points):
        found = check_next_process(shared_memory, label, {}, only(*OLD))
        assert not (said and found), label
        seen.add(len(found))
    assert seen == {0, 1, 2, 3}


def test_a_segment_whose_making_was_killed_at_any_point_is_made_by_the_next(
    shared_memory: Path, tmp_path: Path
) -> None:
    def create(points: KillPoints) -> None:
        put_with_points(open_store(shared_memory), points)

    def prepare() -> None:
        shutil.rmtree(shared_memory)
        shared_memory.mkdir()

    labels = []
    for label, said in killed_at_each_point(create, prepare, tmp_path / "diary"):
        check_next_process(shared_memory, label, only("new") if said else {}, only("new"))
        labels.append(label)
    assert {"before truncate", "after posix_fallocate", "half of header", "before seal", "after seal"} <= set(labels)


def leave_something_of_each_kind(directory: Path) -> None:
    """Objects, a deleted one under lease, a half PUT, a client's slot, and a record that is broken."""
    shutil.rmtree(directory)
    directory.mkdir()
    store = open_store(directory)
    for name in [*OLD, "new"]:
        put(store, name)
    assert store.lease(key("odd"), "reader", 60) is not None
    store.delete(key("odd"))
    store.write(key("half"), PAGE_BYTES, NODE)
    store.grant(PAGE_BYTES, ENGINE)
    broken = store.write(key("broken"), PAGE_BYTES, NODE)
    content = CONTENTS["small"]
    store.commit(broken.id, NODE, xxhash.xxh3_64_intdigest(content))
    store.close()
    journal = directory / "segment.journal"
    spoiled = journal.read_bytes().replace(b"kvbroken", b"kvBROKEN")
    assert spoiled != journal.read_bytes()
    with journal.open("r+b") as file:
        file.write(spoiled)


def test_an_adoption_killed_at_any_point_is_done_again_by_the_next(shared_memory: Path, tmp_path: Path) -> None:
    def adopt(points: KillPoints) -> None:
        open_store(shared_memory)

    must = only("small", "pages", "new")
    labels = []
    prepare = partial(leave_something_of_each_kind, shared_memory)
    for label, _ in killed_at_each_point(adopt, prepare, tmp_path / "diary"):
        store = open_store(shared_memory)
        assert stored_contents(store) == must, label
        assert store.stats().dropped <= 1, label
        assert [(orphan.client, orphan.pid) for orphan in store.orphaned_owners()] == [("engine", 4711)], label
        assert store.stats().retired_bytes == 3 * PAGE_BYTES, label
        store.close()
        labels.append(label)
    assert {"half of header", "after record none"} <= set(labels)


FORMAT_1 = Path(__file__).parents[1] / "unit" / "store" / "journals" / "format1.zlib"
FORMAT_1_BYTES = 65 * PAGE_BYTES


def test_a_migration_killed_at_any_point_is_done_again_by_the_next(shared_memory: Path, tmp_path: Path) -> None:
    """What a journal of the former format holds is found by whoever opens it next, however often that is tried."""

    def open_former() -> Store:
        return Store.open(shared_memory, "segment", FORMAT_1_BYTES, clock=lambda: 1000.0, limits=NO_REST)

    def prepare() -> None:
        shutil.rmtree(shared_memory)
        shared_memory.mkdir()
        content = zlib.decompress(FORMAT_1.read_bytes())
        with (shared_memory / "segment").open("wb") as segment:
            segment.write(content[:32])
            segment.truncate(FORMAT_1_BYTES)
        (shared_memory / "segment.journal").write_bytes(content[32:])

    def migrate(points: KillPoints) -> None:
        open_former()

    labels = []
    for label, _ in killed_at_each_point(migrate, prepare, tmp_path / "diary"):
        if label == "half of header":
            continue  # one write inside a page of memory, which no signal divides
        store = open_former()
        stats = store.stats()
        assert (stats.objects, stats.orphaned_slots) == (2, 1), label
        assert stats.dropped <= ("half of record" in label), label
        assert stats.retired_bytes == 2 * PAGE_BYTES, label
        store.close()
        labels.append(label)
    assert {"before header", "after header", "after record none"} <= set(labels)
