"""Modelled engines behind HTTP, for routers that can only be measured from outside: simulated, and they say so.

The engines are those of :mod:`.engine_model`, told of requests as they come and asked all the while what has become
of them; a second of theirs passes in ``1 / speed`` seconds of the clock. A prompt is its text: each 2 KiB of it are a
block of 512 tokens, whatever a router believes. An answer is a stream of two events, at its first token and at its end.

Run as ``python -m tierline.bench.modelled_engines SPEED BLOCKS PORT…``: one engine, with room for so many blocks, on
each port.
"""

import asyncio
import sys
import time
from math import inf
from typing import NamedTuple

import msgspec
import uvloop
import xxhash

from tierline.bench.engine_model import Engine, EngineModel, Job
from tierline.bench.responders import ANSWERS, SSE_HEAD, EngineConnection, chunk, whole
from tierline.bench.traces import BLOCK_TOKENS
from tierline.router.prompt import BYTES_PER_TOKEN

BLOCK_TEXT_BYTES = BLOCK_TOKENS * BYTES_PER_TOKEN
COMPLETIONS_PATH = "/v1/completions"
RECORDS_PATH = "/simulated/records"
TICK_SECONDS = 0.002
"""Between two looks at the engines; what became of a request is told so much later at most."""


class Record(NamedTuple):
    """A request that an engine served, in the engine's time."""

    at_s: float
    prompt_tokens: int
    cached_tokens: int


class Body(msgspec.Struct):
    """What of a request for a completion is looked at."""

    prompt: str
    max_tokens: int


_decode = msgspec.json.Decoder(Body).decode


class _Replica:
    """One engine and the connections that wait for it."""

    def __init__(self, blocks: int) -> None:
        self.records: list[Record] = []
        self._engine = Engine(EngineModel(), blocks)
        self._waiting: dict[Job, _Connection] = {}
        self._blocks = blocks

    def submit(self, body: Body, connection: "_Connection", now: float) -> None:
        """Take a request."""
        self.advance(now)
        blocks = text_blocks(body.prompt.encode())
        job = Job(now, blocks, len(blocks) * BLOCK_TOKENS, body.max_tokens)
        self._waiting[job] = connection
        self._engine.submit(job)

    def advance(self, now: float) -> None:
        """Work until then, and answer."""
        for job in self._engine.advance(now):
            if job.ended_at_s == inf:
                self.records.append(Record(job.at_s, job.prompt_tokens, job.cached_tokens))
                self._waiting[job].begin()
            else:
                self._waiting.pop(job).end(job)

    def metrics(self) -> bytes:
        """Return what vLLM says of its load and its cache."""
        return (
            f"vllm:num_requests_running {len(self._waiting)}\nvllm:num_requests_waiting 0\n"
            f'vllm:cache_config_info{{block_size="{BLOCK_TOKENS}",engine="0",num_gpu_blocks="{self._blocks}"}} 1.0\n'
        ).encode()


class _Connection(EngineConnection):
    """A router's connection to an engine."""

    def __init__(self, replica: _Replica, speed: float) -> None:
        super().__init__()
        self._replica = replica
        self._speed = speed
        self._body = bytearray()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, bytearray()
        if self._path == b"/metrics":
            self._transport.write(whole(b"text/plain; version=0.0.4", self._replica.metrics()))
        elif self._path == RECORDS_PATH.encode():
            self._transport.write(whole(b"application/json", msgspec.json.encode(self._replica.records)))
        elif answer := ANSWERS.get(self._path):
            self._transport.write(answer)
        elif self._path != COMPLETIONS_PATH.encode():
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        else:
            self._replica.submit(_decode(body), self, time.monotonic() * self._speed)

    # Called by the engine:

    def begin(self) -> None:
        """The first token is there."""
        choices = b'"choices":[{"index":0,"text":" simulated","finish_reason":null}]'
        self._write(SSE_HEAD + chunk(b'data: {"object":"text_completion",%b}\n\n' % choices))

    def end(self, job: Job) -> None:
        """The last token is there."""
        usage = (
            b'"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
            b'"prompt_tokens_details":{"cached_tokens":%d}}'
            % (job.prompt_tokens, job.output_tokens, job.prompt_tokens + job.output_tokens, job.cached_tokens)
        )
        self._write(chunk(b'data: {"object":"text_completion",%b}\n\n' % usage))
        self._write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


def text_blocks(text: bytes) -> list[int]:
    """Return a number for each whole block of a prompt's text, which stands for the whole prefix that ends with it."""
    blocks, before = [], 0
    for start in range(0, len(text) - BLOCK_TEXT_BYTES + 1, BLOCK_TEXT_BYTES):
        before = xxhash.xxh3_64_intdigest(text[start : start + BLOCK_TEXT_BYTES], before)
        blocks.append(before)
    return blocks


async def serve(speed: float, blocks: int, ports: list[int]) -> None:
    """Serve until cancelled."""
    loop = asyncio.get_running_loop()
    replicas = [_Replica(blocks) for _ in ports]
    for replica, port in zip(replicas, ports, strict=True):
        await loop.create_server(lambda replica=replica: _Connection(replica, speed), "127.0.0.1", port)  # type: ignore[misc]
    while True:
        await asyncio.sleep(TICK_SECONDS)
        for replica in replicas:
            replica.advance(time.monotonic() * speed)


if __name__ == "__main__":
    uvloop.run(serve(float(sys.argv[1]), int(sys.argv[2]), [int(port) for port in sys.argv[3:]]))
