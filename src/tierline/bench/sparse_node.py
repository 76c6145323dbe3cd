"""A real node store on a segment whose memory is not there: holds a million objects on a machine without 61 GiB.

Run as ``python -m tierline.bench.sparse_node FOLDER PORT PAGES OBJECTS REPORT``. Only the allocation of the segment's
memory is left out, by a replaced function of :mod:`tierline.store.segment`; a page gets memory when somebody writes or
reads it. Keys, leases, journal and protocols are the node's own. OBJECTS of one page each are stored before it serves,
unless a former process has left some. At its end it writes to REPORT how long each pause of the garbage collector was.
"""

import asyncio
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop
import xxhash

from tierline.node.config import NodeConfig
from tierline.node.garbage import only_young_garbage
from tierline.node.server import running_node
from tierline.store import PAGE_BYTES, ObjectKey, Owner, SegmentOptions, Store, segment

BUCKET = "bench"
NAME = "segment"
SOCKET = "node.sock"
_CONTENT = bytes(1)


def object_name(number: int) -> str:
    """Return a name as long as those of our connector."""
    return f"{number:064x}@bfloat16.hnd128-1.c256.tp0-1.pp0-1.g0"


def fill(store: Store, objects: int) -> None:
    """Store objects of one page, none of whose bytes are written."""
    owner = Owner("bench", 0)
    checksum = xxhash.xxh3_64_intdigest(_CONTENT)
    for number in range(objects):
        slot = store.write(ObjectKey(BUCKET, object_name(number)), len(_CONTENT), owner)
        store.commit(slot.id, owner, checksum=checksum)


@contextmanager
def sparse_segments() -> Iterator[None]:
    """Let the segments that this process opens meanwhile be sparse."""

    def allocate(fd: int, path: Path, size: int, options: SegmentOptions) -> None:  # noqa: ARG001  (as what it replaces)
        os.truncate(fd, size)

    real, segment._allocate = segment._allocate, allocate
    try:
        yield
    finally:
        segment._allocate = real


class _Pauses:
    """Hears from the garbage collector when it stops the program and goes on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0
        gc.callbacks.append(self._heard)

    def _heard(self, phase: str, _info: dict[str, Any]) -> None:
        if phase == "start":
            self._started = time.perf_counter()
        else:
            self.seconds.append(time.perf_counter() - self._started)


async def _serve(folder: Path, port: int, pages: int, objects: int) -> list[float]:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    config = NodeConfig(
        port=port,
        socket=folder / SOCKET,
        shared_memory_directory=folder,
        shared_memory_name=NAME,
        capacity=(pages + 1) * PAGE_BYTES,
        max_reserved=2**40,
        scrub_rate=0,  # reading what nobody wrote would give every page its memory
    )
    async with running_node(config) as node:
        if not node.service.store.stats().objects:
            fill(node.service.store, objects)
        async with only_young_garbage():
            pauses = _Pauses()
            await node.serve_until(stop)
    return pauses.seconds


def _main(folder: str, port: str, pages: str, objects: str, report: str) -> None:
    with sparse_segments(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        pauses = runner.run(_serve(Path(folder), int(port), int(pages), int(objects)))
    Path(report).write_text(json.dumps(pauses))


if __name__ == "__main__":
    _main(*sys.argv[1:])
