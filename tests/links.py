"""A connection between two nodes that a test can spoil: late, standing still, cut, or with bytes turned."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

READ_BYTES = 256 * 1024


@dataclass
class Link:
    """Listens on ``port`` and passes on to ``target``; its settings may change at any time.

    Parameters
    ----------
    delay_s
        What is sent arrives so much later, in order.
    is_still
        Nothing is passed on while it holds, and nothing is lost.
    turns_after
        Of each connection's bytes in the direction of who connected, turn one bit behind so many; ``None``: of none.
    """

    target: int
    delay_s: float = 0.0
    is_still: bool = False
    turns_after: int | None = None
    port: int = 0
    passed: int = 0
    """Bytes passed on in the direction of who connected."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop | None = None

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        assert self._loop is not None
        done = threading.Event()

        def reset() -> None:
            for writer in list(self._writers):
                writer.transport.abort()
            done.set()

        self._loop.call_soon_threadsafe(reset)
        done.wait(60)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer, is_answer=True))
        finally:
            self._writers -= {writer, far_writer}
            writer.transport.abort()
            far_writer.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool = False
    ) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)
        seen = 0

        async def receive() -> None:
            data = b"x"
            while data:
                try:
                    data = await reader.read(READ_BYTES)
                except OSError:
                    data = b""
                await queue.put((loop.time() + self.delay_s, data))

        receiving = asyncio.create_task(receive())
        try:
            while True:
                due, data = await queue.get()
                while (late := due - loop.time()) > 0 or self.is_still:  # noqa: ASYNC110  (set by another thread)
                    await asyncio.sleep(max(late, 0.01))
                if not data:
                    with suppress(OSError):
                        writer.write_eof()
                    return
                if is_answer:
                    turn = self.turns_after
                    if turn is not None and seen <= turn < seen + len(data):
                        spoilt = bytearray(data)
                        spoilt[turn - seen] ^= 1
                        data = bytes(spoilt)
                    seen += len(data)
                    self.passed += len(data)
                with suppress(OSError):
                    writer.write(data)
                    await writer.drain()
        finally:
            receiving.cancel()


@contextmanager
def link_to(target: int) -> Iterator[Link]:
    """Run a link to a port of this machine."""
    link = Link(target)
    ready = threading.Event()
    ends: list[asyncio.Event] = []

    async def serve() -> None:
        link._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(link._connected, "127.0.0.1", 0, limit=READ_BYTES)
        link.port = server.sockets[0].getsockname()[1]
        ends.append(asyncio.Event())
        ready.set()
        await ends[0].wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield link
    finally:
        assert link._loop is not None
        link._loop.call_soon_threadsafe(ends[0].set)
        thread.join(5)
