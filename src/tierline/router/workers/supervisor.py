"""The parent of a router's workers: starts them, starts a dead one again, passes on what they tell each other, stops.

Rules
-----
- **All or none**: no client is accepted before every worker said that it can serve. One that cannot ends the router.
- **No connection is lost with a worker but those that it had accepted**: each worker has its own listening socket
  (``SO_REUSEPORT``; the kernel deals new connections out among them), which stays open here. While a worker is being
  started again, the others accept from its socket too.
- What workers tell each other goes through here. So a worker that is started again learns here what the others know:
  the last placements, an operator's changes.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import uvloop
from prometheus_client.core import Metric

from tierline import logs
from tierline.errors import EnvironmentTooSmall, TierlineError, WireError
from tierline.metrics import families
from tierline.proofs import read_secret
from tierline.router.admin.documents import AffinityState, DecisionList, EndpointList
from tierline.router.config import RouterConfig
from tierline.router.dashboard.documents import Share
from tierline.router.dashboard.history import merge_shares
from tierline.router.gossip.addresses import parse_address
from tierline.router.gossip.following import Following
from tierline.router.gossip.sealing import NAME_BYTES
from tierline.router.gossip.telling import Telling
from tierline.router.listening import BACKLOG
from tierline.router.workers import gathering, messages
from tierline.router.workers.board import BEAT, Board
from tierline.router.workers.channel import Channel
from tierline.router.workers.messages import Accept, Answer, Begin, Change, Kind, Question
from tierline.router.workers.shared_index import SharedIndex

log = logs.get(__name__)

READY_WITHIN_S = 60.0
RESTART_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before a worker that died is started again for the first, second, … time; one that served a minute begins anew."""
SERVED_WELL_S = 60.0
KILLED_AFTER_S = 5.0
"""Beyond ``shutdown_timeout_s``."""
ANSWER_LOOKS, ANSWER_LOOK_SECONDS = 10, 0.1
"""For a worker to say what it has; without it, the others' answer is the answer. What counts is how often it was looked
for: a machine that stood still for a second would else have workers that did not answer in time."""
LOOK_SECONDS = 0.5
"""Between two looks whether workers go on. What counts is how often one was seen to stand still, not how long it was by
the clock: a machine that sleeps is no worker that hangs."""
METRICS_SECONDS = 2.0
"""Between two looks at the workers' counts, of which those since the last are lost with a worker that is killed."""
RECENT_BYTES = 8 * 1024**2
"""Of the last placements, kept for a worker that is started again."""
CHANGES_KEPT = 1024


class CannotStart(TierlineError):  # noqa: N818  (the name states the condition)
    """A worker ended before all could serve; it has said why. The argument is the exit status."""


@dataclass(eq=False)
class _Seat:
    """The place of one worker, whoever has it."""

    index: int
    listening: socket.socket
    channel: Channel | None = None
    process: asyncio.subprocess.Process | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Its connection is closed."""
    asked: dict[int, asyncio.Future[bytes]] = field(default_factory=dict)
    beat: int = 0
    still: int = 0
    """Its last sign of life, and how often it was seen again."""


class Supervisor:
    """The parent.

    Invariant: the row of a seat whose worker is gone is clear.

    Parameters
    ----------
    config
        The router's.
    """

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._board = Board.create(config.workers)
        secret = read_secret(config.gossip_secret_file, "--gossip-secret-file")
        name = secrets.token_bytes(NAME_BYTES)
        self._sockets = _listen(config.host, config.port, config.workers)
        self._index = SharedIndex(config) if config.workers > 1 and config.needs_index else None
        shared = {} if self._index is None else {"controller": self._index.address}
        of_workers = config.model_copy(update=shared).model_dump_json().encode()
        self._begin = messages.encode(Begin(of_workers, secrets.token_bytes(16)))
        self.seats = [_Seat(index, listening) for index, listening in enumerate(self._sockets)]
        self.port: int = self._sockets[0].getsockname()[1]
        self._book = gathering.MetricsBook()
        self._recent: deque[bytes] = deque()
        self._recent_bytes = 0
        self._changes: dict[str, bytes] = {}
        """The last change that an operator asked for, of each endpoint and of each model's affinity."""
        self._telling = Telling(secret, name, self._board.totals, lambda: self._recent)
        self._following = Following(
            secret,
            name,
            [parse_address(peer) for peer in config.peers],
            parse_address(config.peers_name) if config.peers_name else None,
            self._board.elsewhere.show,
            self._learnt,
        )
        self._questions = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self.restarts = 0
        self.dropped = 0
        """What was not passed on to a worker that did not keep up."""

    async def run(self, stopped: asyncio.Event) -> None:
        """Serve until ``stopped`` is set.

        Raises
        ------
        CannotStart
            Not all workers can serve.
        """
        try:
            if self._config.gossip_listen is not None:
                await self._telling.start(*parse_address(self._config.gossip_listen))
            self._following.start()
            if self._index is not None:
                await self._start_index(self._index)
            await self._start_all(stopped)
            if not stopped.is_set():
                log.info("router is ready", url=self._url, workers=len(self.seats), strategy=self._config.strategy)
                watching = [self._spawn(self._keep(seat)) for seat in self.seats]
                watching += [self._spawn(self._poll()), self._spawn(self._watch())]
                await stopped.wait()
                self._is_stopping = True
                log.info("router stops")
                for task in watching:
                    task.cancel()
                await asyncio.gather(*watching, return_exceptions=True)
        finally:
            await self._following.stop()
            await self._stop_all()
            await self._telling.stop()  # last: what the workers still have counts
            if self._index is not None:
                await self._index.stop()

    @property
    def _url(self) -> str:
        return f"{'http' if self._config.tls_certificate is None else 'https'}://{self._config.host}:{self.port}"

    # Life and death ---------------------------------------------------------------------------------------------------

    async def _start_index(self, index: SharedIndex) -> None:
        status = await index.start()
        if status is not None:
            raise CannotStart(max(1, status))
        self._spawn(index.keep())

    async def _start_all(self, stopped: asyncio.Event) -> None:
        first, *others = self.seats
        await self._start_or_raise(first, stopped)  # alone: what is wrong with the configuration is said once
        starting = [self._spawn(self._start_or_raise(seat, stopped)) for seat in others]
        try:
            await asyncio.gather(*starting)
        finally:
            for task in starting:
                task.cancel()
        for seat in self.seats:
            self._catch_up(seat)

    async def _start_or_raise(self, seat: _Seat, stopped: asyncio.Event) -> None:
        await self._start(seat)
        assert seat.process is not None
        stopping = asyncio.ensure_future(stopped.wait())
        try:
            is_ready = await self._becomes_ready(seat, stopping)
        finally:
            stopping.cancel()
        if not is_ready and not stopped.is_set():
            code = seat.process.returncode
            raise CannotStart(1 if code is None or code <= 0 else code)

    async def _becomes_ready(self, seat: _Seat, *others: "asyncio.Future[Literal[True]]") -> bool:
        assert seat.process is not None
        waits: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(seat.ready.wait()),
            asyncio.ensure_future(seat.process.wait()),
        ]
        await asyncio.wait((*waits, *others), timeout=READY_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return seat.ready.is_set()

    async def _start(self, seat: _Seat) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        seat.ready, seat.gone = asyncio.Event(), asyncio.Event()
        channel = Channel(lambda kind, payload: self._received(seat, kind, payload), seat.gone.set)
        ours.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=ours)
        descriptors = [theirs.fileno(), self._board.file, *(listening.fileno() for listening in self._sockets)]
        try:
            seat.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "tierline.router.workers.worker", str(seat.index), *map(str, descriptors)),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=descriptors,
            )
        finally:
            theirs.close()
        seat.channel = channel
        channel.send(Kind.BEGIN, self._begin)

    async def _keep(self, seat: _Seat) -> None:
        """Have somebody in the seat, for ever."""
        deaths, began = 0, time.monotonic()
        while True:
            assert seat.process is not None
            code = await seat.process.wait()
            await seat.gone.wait()
            served_s = time.monotonic() - began
            self._buried(seat)
            deaths = 0 if served_s >= SERVED_WELL_S else deaths
            pause_s = RESTART_SECONDS[min(deaths, len(RESTART_SECONDS) - 1)]
            log.error("worker ended and is started again", worker=seat.index, status=code, in_s=pause_s)
            deaths += 1
            self.restarts += 1
            await asyncio.sleep(pause_s)
            began = time.monotonic()
            try:
                await self._start(seat)
            except OSError as error:
                log.error("worker cannot be started", worker=seat.index, why=error.strerror or str(error))
                continue
            if await self._becomes_ready(seat):
                self._catch_up(seat)
                log.info("worker serves again", worker=seat.index, placements_bytes=self._recent_bytes)
                self._share_sockets()
            elif seat.process.returncode is None:
                seat.process.kill()

    async def _watch(self) -> None:
        """Kill workers that hang, so that others have their seats."""
        allowed = self._config.worker_timeout_s / LOOK_SECONDS
        while allowed:
            await asyncio.sleep(LOOK_SECONDS)
            for seat in self.seats:
                beat = self._board.rows[seat.index].words[BEAT]
                seat.still = seat.still + 1 if seat.ready.is_set() and beat == seat.beat else 0
                seat.beat = beat
                if seat.still > allowed and seat.process is not None and seat.process.returncode is None:
                    log.error("worker hangs and is killed", worker=seat.index, after_s=self._config.worker_timeout_s)
                    seat.still = 0
                    seat.process.kill()

    def _buried(self, seat: _Seat) -> None:
        self._board.rows[seat.index].clear()
        self._book.died(seat.index)
        seat.channel = None
        seat.ready.clear()
        for future in seat.asked.values():
            future.cancel()
        self._share_sockets()

    def _catch_up(self, seat: _Seat) -> None:
        """Tell a new worker what the others know, and have it serve."""
        for change in self._changes.values():
            self._send(seat, Kind.ASK, messages.encode(Question(0, "change", change)))
        for payload in self._recent:
            self._send(seat, Kind.KNOWLEDGE, payload)
        self._send(seat, Kind.SERVE)

    def _share_sockets(self) -> None:
        """Have the sockets of those that are away accepted from by the others, and by them only as long."""
        away = [seat.index for seat in self.seats if not seat.ready.is_set()]
        for seat in self.seats:
            if seat.ready.is_set():
                self._send(seat, Kind.ACCEPT, messages.encode(Accept(away)))

    async def _stop_all(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        for listening in self._sockets:
            listening.close()
        running = [seat.process for seat in self.seats if seat.process is not None and seat.process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.shutdown_timeout_s + KILLED_AFTER_S):
                await asyncio.gather(*(process.wait() for process in running))
        for process in running:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*(process.wait() for process in running))
        for seat in self.seats:
            if seat.channel is not None:
                seat.channel.close()
        self._board.close()

    # What workers say -------------------------------------------------------------------------------------------------

    def _received(self, seat: _Seat, kind: Kind, payload: bytes) -> None:
        try:
            self._take(seat, kind, payload)
        except msgspec.DecodeError as error:
            raise WireError(f"{kind.name}: {error}") from error

    def _take(self, seat: _Seat, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.READY:
                seat.ready.set()
            case Kind.KNOWLEDGE:
                self._remember(payload)
                self._pass_on(seat, kind, payload)
                self._telling.tell(payload)
            case Kind.SPENT:
                self._pass_on(seat, kind, payload)
            case Kind.ASK:
                self._spawn(self._answer(seat, seat.channel, messages.decode_question(payload)))
            case Kind.TELL:
                answer = messages.decode_answer(payload)
                future = seat.asked.get(answer.id)
                if future is not None and not future.done():
                    future.set_result(answer.content)
            case Kind.LEAVING:
                seat.ready.clear()
                if not self._is_stopping:
                    log.info("worker takes nothing new and ends", worker=seat.index)
                    self._share_sockets()
            case Kind.SETTLED:
                self._changes.pop(payload.decode(), None)
            case _:
                raise WireError(f"a {kind.name} to the supervisor")

    def _learnt(self, payload: bytes) -> None:
        """Another router's strategy remembered something."""
        self._remember(payload)
        self._pass_on(None, Kind.KNOWLEDGE, payload)

    def _remember(self, payload: bytes) -> None:
        self._recent.append(payload)
        self._recent_bytes += len(payload)
        while self._recent_bytes > RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft())

    def _pass_on(self, source: _Seat | None, kind: Kind, payload: bytes) -> None:
        for seat in self.seats:
            if seat is not source and seat.ready.is_set() and seat.channel is not None:
                self.dropped += not seat.channel.offer(kind, payload)

    async def _answer(self, seat: _Seat, channel: Channel | None, question: Question) -> None:
        """Answer a worker's question, which came by ``channel``, with what all of them say."""
        if question.about == "change":
            self._note(messages.decode_change(question.content), question.content)
            await self._ask_all("change", question.content, besides=seat)
            said = b""
        else:
            answers = await self._ask_all(question.about, b"", besides=seat)
            if seat.channel is not channel:  # who asked has died, and nobody waits; what it counted is in the book
                return
            said = self._together(question.about, dict(sorted((answers | {seat.index: question.content}).items())))
            if question.about == "metrics" and self._index is not None:
                said += await self._index.metrics()
        self._send(seat, Kind.TELL, messages.encode(Answer(question.id, said)))

    def _together(self, about: str, answers: dict[int, bytes]) -> bytes:
        match about:
            case "endpoints":
                lists = [msgspec.json.decode(answer, type=EndpointList) for answer in answers.values()]
                return msgspec.json.encode(gathering.merge_endpoints(lists, self._board.elsewhere.loads()))
            case "affinity":
                states = [msgspec.json.decode(answer, type=AffinityState) for answer in answers.values()]
                return msgspec.json.encode(gathering.merge_affinity(states))
            case "dashboard":
                shares = [msgspec.json.decode(answer, type=Share) for answer in answers.values()]
                return msgspec.json.encode(merge_shares(shares, self._board.elsewhere.loads()))
            case "decisions":
                decisions = [msgspec.json.decode(answer, type=DecisionList) for answer in answers.values()]
                return msgspec.json.encode(gathering.merge_decisions(decisions))
            case "metrics":
                for worker, content in answers.items():
                    self._book.said(worker, content)
                return self._book.page(self._metrics())
        raise WireError(f"a question about {about}")

    async def _ask_all(self, about: str, content: bytes, *, besides: _Seat | None = None) -> dict[int, bytes]:
        """Return what the workers answer in time, by their places; of none that died while the others were waited for.

        What such a one counted is kept for good already, and would be counted twice.
        """
        self._questions += 1
        question = messages.encode(Question(self._questions, about, content))
        asked = [(seat, seat.channel) for seat in self.seats if seat is not besides]
        answers = await asyncio.gather(*(self._ask(seat, self._questions, question) for seat, _ in asked))
        return {
            seat.index: answer
            for (seat, channel), answer in zip(asked, answers, strict=True)
            if answer is not None and seat.channel is channel
        }

    async def _ask(self, seat: _Seat, number: int, question: bytes) -> bytes | None:
        if not seat.ready.is_set():
            return None
        future = seat.asked[number] = asyncio.get_running_loop().create_future()
        self._send(seat, Kind.ASK, question)
        for _ in range(ANSWER_LOOKS):
            await asyncio.wait((future,), timeout=ANSWER_LOOK_SECONDS)
            if future.done():
                break
        del seat.asked[number]
        return future.result() if future.done() and not future.cancelled() else None

    def _note(self, change: Change, content: bytes) -> None:
        what = f"affinity of {change.about}" if change.verb in ("on", "off") else change.about
        self._changes.pop(what, None)
        self._changes[what] = content
        if len(self._changes) > CHANGES_KEPT:
            del self._changes[next(iter(self._changes))]

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(METRICS_SECONDS)
            for worker, content in (await self._ask_all("metrics", b"")).items():
                self._book.said(worker, content)

    def _metrics(self) -> Iterable[Metric]:
        telling, following = self._telling, self._following
        yield families.gauge("tierline_router_workers", sum(seat.ready.is_set() for seat in self.seats))
        yield families.gauge("tierline_router_peers", following.followed)
        yield families.counter("tierline_router_worker_restarts_total", self.restarts)
        yield families.counter("tierline_router_unshared_total", self.dropped)
        yield families.counter("tierline_router_gossip_refused_total", telling.refused + following.refused)
        yield families.counter("tierline_router_gossip_untold_total", telling.untold)

    def _send(self, seat: _Seat, kind: Kind, payload: bytes = b"") -> None:
        if seat.channel is not None:
            seat.channel.send(kind, payload)

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _listen(host: str, port: int, workers: int) -> list[socket.socket]:
    """Return one listening socket for each worker, all of one address.

    Raises
    ------
    EnvironmentTooSmall
        The address cannot be had.
    """
    sockets: list[socket.socket] = []
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        _refuse_others(family, address)
        for _ in range(workers):
            listening = socket.socket(family, kind, protocol)
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            address = listening.getsockname()
        for listening in sockets:
            listening.listen(BACKLOG)
    except OSError as error:
        for listening in sockets:
            listening.close()
        raise EnvironmentTooSmall(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return sockets


def _refuse_others(family: int, address: tuple[object, ...]) -> None:
    """Raise where somebody else has the address, who may have ``SO_REUSEPORT`` too: clients would meet both."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


async def _serve(config: RouterConfig) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await Supervisor(config).run(stopped)


def run(config: RouterConfig) -> None:
    """Run a router of several workers as a program."""
    os.environ["PYTHONUNBUFFERED"] = "1"
    try:
        uvloop.run(_serve(config))
    except CannotStart as error:
        sys.exit(error.args[0])
