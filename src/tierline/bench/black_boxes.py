"""``tierline bench routing --black-boxes``: routers as their users run them, before modelled engines behind HTTP.

Ours stands there as the others do: a process, text prompts, real time. What is measured comes from outside only: times
to first token from the client, hits and balance from the engines' own records. Time is scaled alike for all
(:data:`SPEED`), so what a router itself takes counts that many times over.
"""

import asyncio
import contextlib
import random
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple, cast

import httptools
import msgspec
import uvloop

from tierline.bench.engine_model import EngineModel
from tierline.bench.fleet import Fleet, Setting, imbalances
from tierline.bench.modelled_engines import BLOCK_TEXT_BYTES, COMPLETIONS_PATH, RECORDS_PATH, Record
from tierline.bench.programs import Program, answers, free_ports
from tierline.bench.registry import Say
from tierline.bench.report import Table
from tierline.bench.responders import MODEL
from tierline.bench.routers import PEERS, Peer, Running, start_ours, start_peer
from tierline.bench.routing_loads import ROUTER_BLOCKS, arrivals
from tierline.bench.rows import Limit, Row, not_measured, percentile
from tierline.bench.traces import Request, Trace
from tierline.errors import TierlineError
from tierline.router.index import PLACEMENT_BYTES
from tierline.router.strategies import build_strategy

SPEED = 5.0
"""Seconds of the engines in one of the clock."""
WINDOW_SECONDS = 10.0
"""Over which balance is looked at, of the engines' time: the runs are too short for minutes."""
ENDPOINTS_MAX = 4
"""Engines, so that a small machine keeps up with them, their router and their client."""
REQUESTS = 600
QUICK_REQUESTS, QUICK_SPEED = 40, 20.0
PERCENT = 30
"""Room of all engines, of the trace's footprint."""
SETTLING_SECONDS = 1.0
"""For what a router reads off the engines when it starts, to be known as in a service that runs."""
STALLED_SECONDS = 60.0
_WORDS = (
    "prefill",
    "decode",
    "block",
    "token",
    "prefix",
    "replica",
    "lease",
    "tier",
    "page",
    "router",
    "cache",
    "step",
)


@dataclass(frozen=True)
class _Box:
    """A router, and what it is told to choose by."""

    policy: str
    peer: Peer | None = None

    def __str__(self) -> str:
        return f"{self.peer.package if self.peer else 'tierline'} {self.policy}"

    def start(self, engines: Sequence[str], folder: Path) -> Running:
        """Start it."""
        if self.peer is None:
            return start_ours(str(self), self.policy, engines, folder)
        return start_peer(str(self), self.peer, self.policy, engines, folder)


BOXES = (
    _Box("roundrobin"),
    _Box("prefixaware"),
    *(_Box(policy, peer) for peer in PEERS for policy in ("round_robin", "cache_aware")),
)


VIRTUAL = "tierline prefixaware, in virtual time"
"""The strategy alone, as in the rest of ``tierline bench routing``: what a process adds or loses shows beside it."""


class _Figures(NamedTuple):
    """What came of one run; times are the engines'."""

    hits: float
    """In percent of all prompt tokens."""
    ttft_s: Sequence[float]
    imbalance: float | None
    windows: int
    late_s: float
    """How late the latest request was sent, by the clock."""


class BlackBoxes:
    """The figures of every router on some traces.

    Parameters
    ----------
    traces
        What is replayed.
    endpoints
        How many engines there are, if not more than :data:`ENDPOINTS_MAX`.
    speed
        Seconds of the engines in one of the clock.
    say
        Hears what is going on.
    """

    def __init__(self, traces: Sequence[Trace], endpoints: int, say: Say, speed: float = SPEED) -> None:
        self._endpoints = min(endpoints, ENDPOINTS_MAX)
        self._speed = speed
        self._model = EngineModel()
        self._traces = traces
        self._one_cache: dict[str, float] = {}
        self._caveats: list[str] = []
        self._figures: dict[tuple[str, str], _Figures | str] = {}
        for trace in traces:
            setting = Setting.of(trace, PERCENT, self._endpoints, self._model)
            self._caveats += [f"Black boxes: {setting.caveat}"] if setting.caveat else []
            self._one_cache[trace.name] = 100 * setting.one_cache / trace.blocks
            for box in BOXES:
                say(f"{trace.name}, {PERCENT} %, black box: {box}")
                self._figures[trace.name, str(box)] = self._run(box, trace, setting)
            self._figures[trace.name, VIRTUAL] = self._replay(trace, setting)

    def rows(self) -> list[Row]:
        """Return a row for each figure."""
        rows = []
        for (trace, box), figures in self._figures.items():
            where = f"{trace}, {PERCENT} %, black box {box}"
            if isinstance(figures, str):
                rows.append(not_measured(f"{where}: hits", "% of tokens", figures))
                continue
            n = len(figures.ttft_s)
            rows.append(
                Row(f"{where}: hits", figures.hits, "% of tokens", Limit("one cache", self._one_cache[trace]), n=n)
            )
            rows.extend(
                Row(f"{where}: TTFT P{rank}", percentile(figures.ttft_s, rank), "s", n=n) for rank in (50, 90, 99)
            )
            if figures.imbalance is None:
                rows.append(not_measured(f"{where}: imbalance", "largest / mean", "no window above half load"))
            else:
                rows.append(Row(f"{where}: imbalance", figures.imbalance, "largest / mean", n=figures.windows))
        return rows

    def tables(self) -> list[Table]:
        """Return a table for each trace."""
        return [
            Table(
                title=f"{trace.name}: routers as black boxes, {len(trace.requests):,} requests over {self._endpoints} "
                f"simulated engines behind HTTP, time × {self._speed:g}, {PERCENT} % of the footprint; one cache hits "
                f"{self._one_cache[trace.name]:.1f} %",
                header=("", "hits %", "TTFT P50 s", "P90", "P99", "imbalance", "sent late, ms"),
                lines=[_line(box, figures) for (name, box), figures in self._figures.items() if name == trace.name],
            )
            for trace in self._traces
        ]

    def notes(self) -> list[str]:
        """Return what a reader must know."""
        missing = [f"{peer.package}: {peer.why_missing}." for peer in PEERS if peer.why_missing is not None]
        return [
            "Black boxes: processes on this machine, default settings but for the policy, before the same modelled "
            f"engines behind HTTP. A second of the engines passes in 1/{self._speed:g} of the clock's, so what a "
            "router and this machine add to a time to first token counts that many times. Prompts are texts of 4 "
            "bytes a token, asked to be completed (vllm-router's cache_aware does not read chats); answers come as two "
            f"events; imbalance is over {WINDOW_SECONDS:.0f} s of the engines' time. "
            "Every run starts with new engines and a new router.",
            *self._caveats,
            *missing,
        ]

    def _run(self, box: _Box, trace: Trace, setting: Setting) -> _Figures | str:
        if box.peer is not None and box.peer.why_missing is not None:
            return f"{box.peer.package} {box.peer.why_missing}"
        ports = free_ports(self._endpoints)
        with tempfile.TemporaryDirectory(prefix="tierline-bench-") as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            argv = [sys.executable, "-m", "tierline.bench.modelled_engines", str(self._speed), str(setting.blocks)]
            engines = [f"http://127.0.0.1:{port}" for port in ports]
            is_ready = lambda: answers(f"{engines[-1]}/health")  # noqa: E731
            stack.enter_context(Program([*argv, *map(str, ports)], folder / "engines.log", is_ready))
            try:
                running = box.start(engines, folder)
                stack.enter_context(running.program)
                time.sleep(SETTLING_SECONDS)
                client = _Client(running.port, trace.requests, setting.time_scale / self._speed)
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(client.run())
            except (TierlineError, OSError) as error:
                if box.peer is None:
                    raise
                return " ".join(str(error).split())  # with the end of a log, which has lines
            ttft_s = [self._speed * seconds for seconds in client.ttft_s]
            return self._judge(ttft_s, client.late_s, [_records(url) for url in engines])

    def _replay(self, trace: Trace, setting: Setting) -> _Figures:
        index_bytes = 2 * self._endpoints * setting.blocks * ROUTER_BLOCKS * PLACEMENT_BYTES
        strategy = build_strategy("prefixaware", self._endpoints, index_bytes)
        served = Fleet(strategy, self._endpoints, setting.blocks, self._model).serve(
            arrivals(trace), setting.time_scale
        )
        records: list[list[Record]] = [[] for _ in range(self._endpoints)]
        for job, position in served:
            records[position].append(Record(job.at_s, job.prompt_tokens, job.cached_tokens))
        return self._judge([job.first_token_at_s - job.at_s for job, _ in served], 0.0, records)

    def _judge(self, ttft_s: Sequence[float], late_s: float, records: list[list[Record]]) -> _Figures:
        prompts = sum(record.prompt_tokens for of_engine in records for record in of_engine)
        cached = sum(record.cached_tokens for of_engine in records for record in of_engine)
        began = min(record.at_s for of_engine in records for record in of_engine)
        work = (
            (record.at_s - began, position, record.prompt_tokens - record.cached_tokens)
            for position, of_engine in enumerate(records)
            for record in of_engine
        )
        ratios = imbalances(work, self._endpoints, WINDOW_SECONDS, self._model.prefill_tokens_per_s)
        imbalance = sum(ratios) / len(ratios) if ratios else None
        return _Figures(100 * cached / prompts, ttft_s, imbalance, len(ratios), late_s)


def _line(box: str, figures: _Figures | str) -> tuple[str, ...]:
    if isinstance(figures, str):
        return (box, *("–" for _ in range(6)))
    return (
        box,
        f"{figures.hits:.1f}",
        *(f"{percentile(figures.ttft_s, rank):.2f}" for rank in (50, 90, 99)),
        "–" if figures.imbalance is None else f"{figures.imbalance:.2f}",
        f"{1e3 * figures.late_s:.0f}",
    )


def _records(url: str) -> list[Record]:
    with urllib.request.urlopen(url + RECORDS_PATH, timeout=10.0) as response:  # noqa: S310  (our own http:// URL)
        return msgspec.json.decode(response.read(), type=list[Record])


@cache
def text_of(block: int) -> str:
    """Return the text of a trace's block; different ones differ from their first words."""
    dice = random.Random(block)
    words = " ".join(dice.choices(_WORDS, k=BLOCK_TEXT_BYTES // 5))
    return f"{block:x} {words}"[: BLOCK_TEXT_BYTES - 1].ljust(BLOCK_TEXT_BYTES - 1) + "\n"


# The client -----------------------------------------------------------------------------------------------------------


@dataclass
class _Client:
    """Sends a trace's requests when their time has come, whatever became of those before."""

    port: int
    requests: Sequence[Request]
    time_scale: float
    ttft_s: list[float] = field(default_factory=list)
    late_s: float = 0.0

    async def run(self) -> None:
        """Send all, and wait for the last answer.

        Raises
        ------
        TierlineError
            When an answer is not as asked for, or none comes.
        """
        loop = asyncio.get_running_loop()
        idle: list[_Connection] = []
        asked: list[asyncio.Task[None]] = []
        began = loop.time()
        for request, body in zip(self.requests, _bodies(self.requests), strict=True):
            due = began + (request.at_s - self.requests[0].at_s) * self.time_scale
            await asyncio.sleep(max(0.0, due - loop.time()))
            self.late_s = max(self.late_s, loop.time() - due)
            asked.append(asyncio.create_task(self._ask(body, idle)))
        try:
            await asyncio.wait_for(asyncio.gather(*asked), STALLED_SECONDS)
        except TimeoutError as error:
            raise TierlineError(f"answers to {sum(not task.done() for task in asked)} requests never came") from error
        finally:
            for connection in idle:
                connection.close()

    async def _ask(self, body: bytes, idle: list["_Connection"]) -> None:
        loop = asyncio.get_running_loop()
        if idle:
            connection = idle.pop()
        else:
            _, connection = await loop.create_connection(_Connection, "127.0.0.1", self.port)
        self.ttft_s.append(await connection.ask(body))
        idle.append(connection)


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = cast("asyncio.Transport", transport)
        self._answered: asyncio.Future[float] | None = None

    async def ask(self, body: bytes) -> float:
        """Return the seconds until the first event of the answer, when all of it is there."""
        self._answered = asyncio.get_running_loop().create_future()
        self._first_at = self._sent_at = time.perf_counter()
        self._body = b""
        self._parser = httptools.HttpResponseParser(self)
        head = f"POST {COMPLETIONS_PATH} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n".encode()
        self._transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        return await self._answered

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(TierlineError(f"the router closed a connection: {error or 'end of file'}"))

    # Called by httptools:

    def on_body(self, body: bytes) -> None:
        if not self._body:
            self._first_at = time.perf_counter()
        self._body += body

    def on_message_complete(self) -> None:
        assert self._answered is not None
        if self._answered.done():
            return
        if b"data: [DONE]" in self._body:
            self._answered.set_result(self._first_at - self._sent_at)
        else:
            got = f"{self._parser.get_status_code()} {self._body[:200].decode(errors='replace')}"
            self._answered.set_exception(TierlineError(f"a request was not answered as asked: {got}"))


def _bodies(requests: Sequence[Request]) -> Iterator[bytes]:
    for request in requests:
        prompt = "".join(map(text_of, request.blocks))
        yield msgspec.json.encode(
            {"model": MODEL, "stream": True, "max_tokens": request.output_tokens, "prompt": prompt}
        )
