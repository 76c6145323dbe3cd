"""The client processes of one machine: a plan shared out among them, one start for all, their records in one place."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from tierline.bench.serving.loading import Assignment
from tierline.bench.serving.plan import Planned
from tierline.bench.serving.records import ClientLoad, Record
from tierline.bench.serving.worker import READY
from tierline.errors import TierlineError

_LONGEST_LINE = 256 * 1024 * 1024
NOTICE_S = 0.2
"""How long before the start they are told of it, so that every process has heard of the start before it is there."""
_STOP_SECONDS = 5.0


class _Line(msgspec.Struct):
    load: ClientLoad | None = None


def shares(plan: Sequence[Planned], clients: int) -> list[list[Planned]]:
    """Return what each client sends: who waits for an answer is where that answer comes.

    >>> from tierline.bench.serving.workloads import Shape, plan
    >>> chats = plan("chats", Shape(requests=8, input_tokens=100, output_tokens=2, turns=4))
    >>> [[planned.index for planned in share] for share in shares(chats, 2)]
    [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    chains: dict[int, list[Planned]] = {}
    first: dict[int, int] = {}
    for planned in plan:
        root = planned.index if planned.after is None else first.get(planned.after, planned.index)
        first[planned.index] = root
        chains.setdefault(root, []).append(planned)
    dealt: list[list[Planned]] = [[] for _ in range(clients)]
    for chain in chains.values():
        min(dealt, key=len).extend(chain)
    return [sorted(share, key=lambda planned: planned.index) for share in dealt]


def assignments(whole: Assignment, processes: int) -> list[Assignment]:
    """Share an assignment out among processes; none is left without a request or a place."""
    most = processes if whole.concurrency is None else min(processes, whole.concurrency)
    given = [share for share in shares(whole.plan, most) if share]
    return [
        msgspec.structs.replace(
            whole, plan=share, concurrency=_part(whole.concurrency, number, len(given)) if whole.concurrency else None
        )
        for number, share in enumerate(given)
    ]


def _part(concurrency: int, number: int, parts: int) -> int:
    return concurrency // parts + (number < concurrency % parts)


class Clients:
    """Client processes that have read what they have to do, and wait for the word to start."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    async def run(self, start_s: float, told: Callable[[Record], None]) -> list[ClientLoad]:
        """Have all of them start, and return what each was busy with.

        Parameters
        ----------
        start_s
            The wall clock's time of the start, :data:`NOTICE_S` from now or later.
        told
            Is given every record, as it comes.

        Raises
        ------
        TierlineError
            When a process ends before its work does.
        """
        start = time.monotonic() + start_s - time.time()
        for process in self._processes:
            _input(process).write(b"%r\n" % start)
        return await asyncio.gather(*(_follow(process, told) for process in self._processes))


@contextlib.asynccontextmanager
async def ready_clients(given: Sequence[Assignment]) -> AsyncIterator[Clients]:
    """Start a process for each assignment, and yield them when all have read theirs.

    Raises
    ------
    TierlineError
        When a process ends before that.
    """
    processes: list[asyncio.subprocess.Process] = []
    try:
        for assignment in given:
            processes.append(await _process())
            _input(processes[-1]).write(msgspec.json.encode(assignment) + b"\n")
        for process in processes:
            if await _output(process).readline() != READY:
                raise _ended(process)
        yield Clients(processes)
    finally:
        for process in processes:
            await _stop(process)


async def _process() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tierline.bench.serving.worker"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LONGEST_LINE,
        start_new_session=True,  # Ctrl-C is for the parent, which ends them in order
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


async def _follow(process: asyncio.subprocess.Process, told: Callable[[Record], None]) -> ClientLoad:
    while line := await _output(process).readline():
        if line.startswith(b'{"load"'):
            load = msgspec.json.decode(line, type=_Line).load
            assert load is not None
            return load
        told(msgspec.json.decode(line, type=Record))
    raise _ended(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        _input(process).close()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


def _ended(process: asyncio.subprocess.Process) -> TierlineError:
    return TierlineError(f"a client process (pid {process.pid}) ended before its work did; see standard error")


def _input(process: asyncio.subprocess.Process) -> asyncio.StreamWriter:
    assert process.stdin is not None
    return process.stdin


def _output(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    assert process.stdout is not None
    return process.stdout
