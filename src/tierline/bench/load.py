"""A closed-loop HTTP load generator that costs little: raw protocols, prepared requests, whole answers counted.

It exists because a client library costs several times what a router does, and would be what the benchmark measures.
"""

import asyncio
import functools
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import httptools

from tierline.errors import TierlineError

_STALLED_SECONDS = 30.0


@dataclass
class Outcome:
    """What a run of load got back; a latency ends with the first bytes of the answer's body, a stream's first event."""

    latencies_s: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def answered(self) -> int:
        """Requests answered with 200 and the content type that was asked for."""
        return len(self.latencies_s)


@dataclass(frozen=True)
class Prompt:
    """A request with a place for a number, so that no two requests are the same."""

    before: bytes
    after: bytes

    def numbered(self, number: int) -> bytes:
        """Return the request's bytes."""
        return b"%s%012d%s" % (self.before, number, self.after)


NUMBER_BYTES = 12


class Load:
    """Requests that go round, on as many connections as asked for, each sending its next when it has its answer.

    Parameters
    ----------
    prompts
        Sent in turn, each time with another number.
    content_type
        What a good answer says it is: a router that turns a stream into one document is not measured as if it streamed.
    """

    def __init__(self, prompts: list[Prompt], content_type: bytes) -> None:
        self._content_type = content_type
        self._requests: Iterator[Prompt] = itertools.cycle(prompts)
        self._numbers = itertools.count()

    async def run(
        self, port: int, *, connections: int, seconds: float | None = None, requests: int | None = None
    ) -> Outcome:
        """Load ``127.0.0.1:port`` for a time or with a number of requests, and wait for the last answers.

        Raises
        ------
        TierlineError
            When a connection breaks or answers stop coming.
        """
        loop = asyncio.get_running_loop()
        outcome = Outcome()
        stop_at: float | None = None
        left = itertools.repeat(None) if requests is None else iter([None] * requests)

        def next_request() -> bytes | None:
            nonlocal stop_at
            if seconds is not None:
                if stop_at is None:  # from the first request on: connecting may take longer than a short run
                    stop_at = time.perf_counter() + seconds
                elif time.perf_counter() >= stop_at:
                    return None
            if next(left, self) is self:
                return None
            return next(self._requests).numbered(next(self._numbers))

        connect = functools.partial(_Client, next_request, self._content_type, outcome)
        clients = [(await loop.create_connection(connect, "127.0.0.1", port))[1] for _ in range(connections)]
        try:
            patience = _STALLED_SECONDS + (seconds or 0)
            await asyncio.wait_for(asyncio.gather(*(client.done for client in clients)), patience)
        except TimeoutError as error:
            raise TierlineError(f"port {port}: {outcome.answered} answers, then none for a long time") from error
        finally:
            for client in clients:
                client.close()
        return outcome


class _Client(asyncio.Protocol):
    """One connection: a request, its whole answer, the next request."""

    def __init__(self, next_request: Callable[[], bytes | None], content_type: bytes, outcome: Outcome) -> None:
        self._next_request = next_request
        self._wanted_type = content_type
        self._outcome = outcome
        self._transport: asyncio.Transport | None = None
        self._sent_at = 0.0
        self._latency_s: float | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = cast("asyncio.Transport", transport)
        self._send_next()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._is_answered:
            self._count()
            self._send_next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(TierlineError(f"the router closed a connection: {error or 'end of file'}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._type = value.partition(b";")[0]

    def on_body(self, _body: bytes) -> None:
        if self._latency_s is None:
            self._latency_s = time.perf_counter() - self._sent_at

    def on_message_complete(self) -> None:
        self._is_answered = True

    def _send_next(self) -> None:
        request = self._next_request()
        if request is None:
            self.done.set_result(None)
            return
        assert self._transport is not None
        self._is_answered = False
        self._type = b""
        self._latency_s = None
        self._parser = httptools.HttpResponseParser(self)
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def _count(self) -> None:
        status = self._parser.get_status_code()
        if status == 200 and self._type == self._wanted_type and self._latency_s is not None:
            self._outcome.latencies_s.append(self._latency_s)
        else:
            got = f"{status} {self._type.decode('latin-1')}"
            self._outcome.failures[got] = self._outcome.failures.get(got, 0) + 1
