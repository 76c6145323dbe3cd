"""Threads beside the event loop that wait on sockets: how they are woken to end, and waited for.

Rule: a thread is never left behind with something that its starter takes away, also where the starter is cancelled.
"""

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterable
from typing import Any

_NICER, _NICEST = 5, 19
_TIMEVAL = struct.Struct("@ll")


def give_way() -> None:
    """Let this thread have the processor after the event loop, where there is too little of it for both."""
    nice = os.getpriority(os.PRIO_PROCESS, os.getpid())
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(nice + _NICER, _NICEST))


def shut_down(sock: socket.socket) -> None:
    """End a socket that a thread may be waiting for: it wakes at once. The thread closes it."""
    with contextlib.suppress(OSError):  # it has ended by itself
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not SSLSocket's, which takes the thread's state from it


def limit_waits(sock: socket.socket, receiving_s: float, sending_s: float) -> None:
    """Let the kernel wait no longer than this on a socket that blocks: then ``BlockingIOError``.

    Python's own limit asks whether there is anything before each receipt, and so wakes for the first few bytes: with it
    we counted twice as many receipts for the same bytes.
    """
    sock.settimeout(None)
    for option, seconds in ((socket.SO_RCVTIMEO, receiving_s), (socket.SO_SNDTIMEO, sending_s)):
        sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6)))


async def wait_to_the_end(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Wait until all are done, whatever they come to; cancelled meanwhile, it waits all the same, and says so then."""
    is_cancelled = False
    while pending := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        raise asyncio.CancelledError
