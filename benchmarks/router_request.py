"""What of a request is the router's own code: one client, one engine that has answered already, and no sockets.

Run ``python benchmarks/router_request.py``. A row is the processor time of one request through everything between two
transports that only write down, plain and with everything on (API keys with rates, limits), the best of many rounds.
What the kernel and uvloop take besides, and what a cold cache makes of it, ``tierline bench router`` says. Two versions
are compared by running it with ``PYTHONPATH`` at either's ``src``, in turns.
"""
# ruff: noqa: T201

import asyncio
import gc
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tierline import logs
from tierline.bench.responders import MODEL, SSE_CHUNKS, chunk, whole
from tierline.bench.routers import BENCH_KEY, everything_on
from tierline.router.config import RouterConfig
from tierline.router.proxy.client import ClientConnection
from tierline.router.proxy.services import Services
from tierline.router.proxy.upstream import UpstreamConnection
from tierline.router.server import running

SIZES = (200, 2048, 65_536, 1_048_576)
READ_BYTES = 256_000
"""What uvloop hands over at once, at most."""
ROUNDS = 20
ROUND_SECONDS = 0.02
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
JSON_ANSWER = (whole(b"application/json", b'{"choices":[],"usage":{"prompt_tokens":512}}'),)
STREAM_ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    *[chunk(EVENT)] * SSE_CHUNKS,
    chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
)


class Taker(asyncio.Transport):
    """Takes every byte at once."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See :class:`asyncio.Transport`."""
        self.taken.append(data)  # type: ignore[arg-type]

    def writelines(self, pieces: "Sequence[bytes]") -> None:  # type: ignore[override]
        """See :class:`asyncio.Transport`."""
        self.taken.extend(pieces)

    def get_write_buffer_size(self) -> int:
        """See :class:`asyncio.Transport`."""
        return 0

    def is_closing(self) -> bool:
        """See :class:`asyncio.Transport`."""
        return False

    def close(self) -> None:
        """See :class:`asyncio.Transport`."""

    def abort(self) -> None:
        """See :class:`asyncio.Transport`."""


def pieces_of(size: int) -> list[bytes]:
    """Return a chat with a prompt of that size, as it arrives."""
    body = b'{"model":"%b","messages":[{"role":"user","content":"%b"}],"max_tokens":16}' % (
        MODEL.encode(),
        (b"What follows from it? " * (size // 20))[:size],
    )
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {BENCH_KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    return [request[at : at + READ_BYTES] for at in range(0, len(request), READ_BYTES)]


def one_request(services: Services, pieces: Sequence[bytes], answer: Sequence[bytes]) -> float:
    """Return the least processor time of one, in seconds."""
    engines = []
    for pool in services.pools.values():
        engine, transport = UpstreamConnection(pool), Taker()
        engine.connection_made(transport)
        pool.give_back(engine)
        engine.idle_since = float("inf")
        engines.append((engine, transport))
    client, taker = ClientConnection(services), Taker()
    client.connection_made(taker)

    def run(requests: int) -> float:
        began = time.thread_time()
        for _ in range(requests):
            for piece in pieces:
                client.data_received(piece)
            engine, transport = next(each for each in engines if each[1].taken)
            transport.taken.clear()
            for piece in answer:
                engine.data_received(piece)
        return (time.thread_time() - began) / requests

    requests = 1 + int(ROUND_SECONDS / run(50))
    assert taker.taken[0].startswith(b"HTTP/1.1 200"), taker.taken[0]
    found = []
    for _ in range(ROUNDS):
        taker.taken.clear()
        found.append(run(requests))
    client.connection_lost(None)
    for pool in services.pools.values():
        pool.close_idle(float("-inf"))
    return min(found)


async def main(strategies: Sequence[str]) -> None:
    """Measure and print a table."""
    logs.configure("error")
    print("| strategy | prompt | JSON, µs | SSE, µs | JSON, all on | SSE, all on |\n|---|---|---|---|---|---|")
    for strategy, size in itertools.product(strategies, SIZES):
        cells = []
        for is_on, answer in itertools.product((False, True), (JSON_ANSWER, STREAM_ANSWER)):
            with tempfile.TemporaryDirectory() as folder:
                more = everything_on(Path(folder)) if is_on else {}
                config = RouterConfig.model_validate(
                    {"port": 0, "strategy": strategy, "endpoints": ["http://127.0.0.1:1", "http://127.0.0.1:2"], **more}
                )
                async with running(config) as server:
                    for endpoint in server.services.endpoints.all:
                        endpoint.checked(is_up=True)
                    gc.collect()
                    cells.append(1e6 * one_request(server.services, pieces_of(size), answer))
        print(f"| {strategy} | {size:,} B | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:] or ["roundrobin", "prefixaware"]))
