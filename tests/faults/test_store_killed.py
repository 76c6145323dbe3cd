"""A store killed with SIGKILL at any moment: the next one serves all that was committed, and nothing else."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from tierline.store import PAGE_BYTES, ObjectKey, Store, StoreLimits

CAPACITY = 257 * PAGE_BYTES
NO_REST = StoreLimits(max_ttl_s=0.0, quarantine_s=0.0)
"""So that the next process may evict at once; nobody leases here."""

WRITER = """
import itertools, sys, time
from pathlib import Path
import xxhash
from tierline.store import PAGE_BYTES, ObjectKey, Owner, Store, StoreLimits

limits = StoreLimits(max_ttl_s=0.0, quarantine_s=0.0)
store = Store.open(Path(sys.argv[1]), "segment", int(sys.argv[2]), clock=time.monotonic, limits=limits)
node, engine = Owner("", 1), Owner("engine", 2, 1)
for number in itertools.count(int(sys.argv[3])):
    owner = engine if number % 3 == 0 else node
    content = number.to_bytes(8, "little") * (PAGE_BYTES // 8 * (1 + number % 7) - number % 5)
    key = ObjectKey("kv", str(number))
    slot = store.grant(len(content) + 99, owner) if number % 2 else store.write(key, len(content), owner)
    at = 0
    for view in store.views(slot.extents):
        piece = content[at : at + len(view)]
        view[: len(piece)] = piece
        at += len(piece)
    store.commit(slot.id, owner, xxhash.xxh3_64_intdigest(content), key=key, size=len(content))
    if number % 11 == 0:
        store.delete(ObjectKey("kv", str(number - 2)))
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="tierline-test-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


def write_until_killed(directory: Path, first: int, seconds: float) -> int:
    """Let a process write objects from number ``first`` on; return the last one it said it had committed."""
    command = [sys.executable, "-c", WRITER, str(directory), str(CAPACITY), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = int(process.stdout.readline())  # it is writing now
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().splitlines()
    assert process.returncode == -signal.SIGKILL
    return int(said[-1]) if said else last


def content_of(store: Store, key: ObjectKey) -> tuple[bytes, int] | None:
    found = store.lease(key, "test", 60)
    if found is None:
        return None
    return b"".join(store.views(found[1].extents)), found[1].checksum


def test_a_store_killed_in_the_middle_of_writes_serves_what_was_committed_and_nothing_else(
    shared_memory: Path,
) -> None:
    last = 0
    for round_number in range(8):
        last = write_until_killed(shared_memory, last + 1_000, seconds=0.01 * round_number)
        store = Store.open(shared_memory, "segment", CAPACITY, clock=time.monotonic, limits=NO_REST)
        stats = store.stats()
        newest = content_of(store, ObjectKey("kv", str(last)))
        stored = [key for number in range(last + 2) if store.is_stored(key := ObjectKey("kv", str(number)))]
        contents = {key: content_of(store, key) for key in stored}

        assert stats.dropped == 0
        assert len(stored) == stats.objects == stats.adopted
        assert stats.capacity_bytes == (
            stats.free_bytes + stats.used_bytes + stats.orphaned_bytes + stats.reserved_bytes + stats.retired_bytes
        )
        assert newest is not None
        for key, found in contents.items():
            assert found is not None
            content, checksum = found
            assert xxhash.xxh3_64_intdigest(content) == checksum
            assert content[:8] == int(key.name).to_bytes(8, "little")
        assert {orphan.client for orphan in store.orphaned_owners()} <= {"engine"}
        store.release_orphans("engine")
        store.close()


def test_a_segment_can_be_opened_again_the_moment_its_node_is_dead(shared_memory: Path) -> None:
    """Also while a client still has the descriptor that the dead node gave it."""
    program = (
        "import sys, time; from pathlib import Path; from tierline.store import Store;"
        "store = Store.open(Path(sys.argv[1]), 'segment', int(sys.argv[2]), clock=time.monotonic);"
        "print(store.segment.open_descriptor(writable=True), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(shared_memory), str(CAPACITY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        handed_out = os.open(f"/proc/{process.pid}/fd/{process.stdout.readline().strip()}", os.O_RDWR)
        process.kill()

    Store.open(shared_memory, "segment", CAPACITY, clock=time.monotonic).close()
    os.close(handed_out)
