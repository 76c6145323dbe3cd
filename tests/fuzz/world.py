"""A node without sockets for fuzzing: real connections on a real store, transports that only write down.

It has no thread, so that what is under way waits for a client, for a time, or not at all.
"""

import asyncio
import contextlib
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import xxhash

from tierline.node.access import Access
from tierline.node.config import NodeConfig
from tierline.node.server import Node
from tierline.store import PAGE_BYTES, ObjectKey, Store, StoreLimits

PAGES = 15
CAPACITY = (PAGES + 1) * PAGE_BYTES
KNOWN = {"small": b"k" * 100, "pages": bytes(range(256)) * 600}
"""What bucket ``b`` holds at the start."""

SOCKET = socket.socket()
"""What connections set options of: of one that leads nowhere, for no byte of theirs goes over it."""


class Recorder(asyncio.Transport):
    """A client that takes every byte at once, and says no more than it is made to."""

    def __init__(self) -> None:
        super().__init__({"socket": SOCKET})
        self.sent = bytearray()
        self._is_closing = False
        self._is_reading = True
        self._has_ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._is_closing, "written to after it was closed"
        assert not self._has_ended, "written to after its half was closed"
        self.sent += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True

    def is_reading(self) -> bool:
        return self._is_reading and not self._is_closing

    def is_closing(self) -> bool:
        return self._is_closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._has_ended = True

    def abort(self) -> None:
        self._is_closing = True

    def close(self) -> None:
        self._is_closing = True


class AtOnce(Executor):
    """In place of a thread: has done what it is given before it returns."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments, **options))
        except BaseException as error:  # noqa: BLE001  (the future's, whatever it is)
            done.set_exception(error)
        return done


@contextlib.asynccontextmanager
async def new_node() -> AsyncIterator[Node]:
    """A node with an open store that holds :data:`KNOWN`, not listening anywhere."""
    directory = Path(tempfile.mkdtemp(prefix="tierline-test-", dir="/dev/shm"))
    try:
        config = NodeConfig(capacity=2 * CAPACITY, max_object=CAPACITY)
        limits = StoreLimits(max_ttl_s=60, grace_s=0, quarantine_s=0)
        store = Store.open(directory, "segment", CAPACITY, clock=time.monotonic, limits=limits)
        node = Node(config, [store], Access(None))
        node.service.stop_verifying()
        node.service._checksums = AtOnce()  # type: ignore[assignment]
        owner = node.service.new_owner()
        for name, content in KNOWN.items():
            slot = node.service.write(ObjectKey("b", name), len(content), owner)
            at = 0
            for view in store.views(slot.extents):
                view[:] = content[at : at + len(view)]
                at += len(view)
            checksum = xxhash.xxh3_64_intdigest(content)
            node.service.commit(slot.id, owner, checksum, ObjectKey("b", name), len(content))
        yield node
        node.service.stop_verifying()
        node.service.close()
    finally:
        shutil.rmtree(directory)


async def settle() -> None:
    """Let everything that is under way come to where it waits for a client, or to its end."""
    is_moving = True
    while is_moving:
        for _ in range(40):
            await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        is_moving = bool(others and (await asyncio.wait(others, timeout=0.3, return_when=asyncio.FIRST_COMPLETED))[0])


def require_every_page_counted(store: Store) -> None:
    """Check that each page is in one state, and that no two objects share one."""
    stats = store.stats()
    states = stats.free_bytes + stats.used_bytes + stats.reserved_bytes + stats.orphaned_bytes + stats.retired_bytes
    assert states == stats.capacity_bytes, stats
