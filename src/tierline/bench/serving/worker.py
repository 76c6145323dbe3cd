"""A client process: reads its assignment, waits for the word to start, writes a record a line.

It is started as ``python -m tierline.bench.serving.worker``; see :mod:`tierline.bench.serving.clients` for its parent.
"""

import asyncio
import sys

import msgspec
import uvloop

from tierline.bench.serving.loading import Assignment, Loader
from tierline.bench.serving.records import Record

READY = b"ready\n"


def main() -> None:
    """Serve one assignment."""
    assignment = msgspec.json.decode(sys.stdin.buffer.readline(), type=Assignment)
    loader = Loader(assignment, _tell)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    word = sys.stdin.buffer.readline()
    if not word:  # the parent is gone
        return
    uvloop.run(_load(loader, float(word)))


def _tell(record: Record) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(record) + b"\n")
    sys.stdout.buffer.flush()


async def _load(loader: Loader, started: float) -> None:
    load = asyncio.create_task(loader.run(started))
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), load.cancel)  # it ends with the parent
    try:
        done = await load
    except asyncio.CancelledError:
        return
    sys.stdout.buffer.write(msgspec.json.encode({"load": done}) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
