"""``tierline bench router``: what our router costs a request, beside the Rust routers of PyPI and a bare splice.

The router runs alone on one core; two simulated engines and the load share another. The figure is the router's user
and system time over a while of closed-loop load, divided by the requests it answered: unlike requests a second it
does not depend on how fast the load generator is. All programs take turns, several times; rows are medians.
"""

import asyncio
import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import uvloop

from tierline.bench import router_index
from tierline.bench.load import NUMBER_BYTES, Load, Outcome, Prompt
from tierline.bench.programs import Program, answers, free_ports, pinned_to, two_cores
from tierline.bench.registry import BenchOptions, Findings, Say
from tierline.bench.report import Bar, Chart, Table, figure_text, goal_text
from tierline.bench.responders import EVENT_BLOCKS, EVENT_INTERVAL_SECONDS, MODEL, SSE_CHUNKS, SSE_INTERVAL_SECONDS
from tierline.bench.routers import (
    BENCH_KEY,
    PEERS,
    SGLANG_ROUTER,
    VLLM_ROUTER,
    Peer,
    everything_on,
    start_ours,
    start_peer,
)
from tierline.bench.rows import Direction, Limit, Rounds, Row, at_most, not_measured
from tierline.errors import TierlineError
from tierline.stack.machine import available_memory_bytes

CONNECTIONS = 16
CROWD = 256
DOCUMENTS = 16
REPEATED_SHARE = 7 / 8
KIB = 1024
SCRAPE_SECONDS = 5.0
LARGE_BYTES = 64 * KIB
GOAL_LARGE = 1 / 3
"""Of the peer's processor time, for prompts of :data:`LARGE_BYTES` and more; 1 for smaller ones."""
GOAL_ADDED_MS = 1.0
_GOAL_ADDED_BYTES = 256 * KIB
_CROWD_SHARE = 1 / 8
"""Of the memory that is free at the start, what a crowd's requests may be together: each is in the load, in the router
and in the sockets between them at once."""
_WARM_UP_REQUESTS, _WARM_UP_CROWD = 2, 1
"""On each connection; long prompts of a crowd take long enough once."""
_BESIDE = "another model"
"""Which requests do not ask for. A rule of its own has our router follow KV events while others are served."""


@dataclass(frozen=True)
class _Effort:
    """How much is measured: rounds in which all programs take turns, and what each does in its turn."""

    rounds: int
    seconds: float
    prompt_bytes: tuple[int, ...]
    connections: tuple[int, ...]
    index: router_index.Effort


_FULL = _Effort(3, 0.6, (200, 2 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB), (1, CONNECTIONS, CROWD), router_index.FULL)
_QUICK = _Effort(1, 0.15, (2 * KIB,), (1, CONNECTIONS), router_index.QUICK)


class _Case(NamedTuple):
    """What is asked: a prompt's size, how the answer comes, and on how many connections at once."""

    prompt_bytes: int
    streams: bool
    connections: int

    @property
    def request(self) -> str:
        """What is asked on each connection."""
        size = f"{self.prompt_bytes // KIB} KiB" if self.prompt_bytes >= KIB else f"{self.prompt_bytes} B"
        return f"{'SSE' if self.streams else 'JSON'}, {size} prompts"

    def __str__(self) -> str:
        return f"{self.request}, {self.connections} connection{'s' if self.connections > 1 else ''}"


class _Contender(NamedTuple):
    """Our router in one setting."""

    name: str
    strategy: str
    peers_policy: str
    """The same way of choosing, as the peers spell it."""
    has_everything_on: bool = False
    hears_events: bool = False
    has_goal: bool = True

    def more(self, folder: Path, events: list[str]) -> dict[str, object]:
        """Return its configuration, beside the strategy and the endpoints."""
        more = everything_on(folder) if self.has_everything_on else {}
        if self.hears_events:
            more["kv_events"] = events
            if self.strategy != "kvaware":
                more["models"] = {_BESIDE: {"strategy": "kvaware"}}
        return more


_ON, _EVENTS = ", all on", " and events"
_CONTENDERS = (
    _Contender("roundrobin", "roundrobin", "round_robin"),
    _Contender(f"roundrobin{_ON}", "roundrobin", "round_robin", has_everything_on=True),
    _Contender(f"roundrobin{_ON}{_EVENTS}", "roundrobin", "round_robin", has_everything_on=True, hears_events=True),
    _Contender("prefixaware", "prefixaware", "cache_aware"),
    _Contender(f"prefixaware{_ON}", "prefixaware", "cache_aware", has_everything_on=True),
    _Contender(f"prefixaware{_ON}{_EVENTS}", "prefixaware", "cache_aware", has_everything_on=True, hears_events=True),
    _Contender(f"kvaware{_ON}", "kvaware", "cache_aware", has_everything_on=True, hears_events=True, has_goal=False),
)
_POLICIES = ("round_robin", "cache_aware")
SPLICE, DIRECT = "bare splice", "direct"


class _Target(NamedTuple):
    """What is under load; without a program: an engine itself."""

    name: str
    port: int
    program: Program | None = None
    metrics_url: str | None = None
    is_peer: bool = False


@dataclass
class _Measured:
    """What came of all rounds."""

    rounds: Rounds = field(default_factory=Rounds)
    broken: dict[str, str] = field(default_factory=dict)
    """By name of a figure: why a peer has none."""

    def cpu_ms(self, name: str, case: _Case) -> float | None:
        return self._median(f"cpu {name} {case}")

    def requests(self, name: str, case: _Case) -> int:
        key = f"requests {name} {case}"
        return int(self.rounds.median(key)) * self.rounds.n(key) if key in self.rounds else 0

    def added_ms(self, name: str, case: _Case, percent: float) -> float | None:
        """Return a percentile of the latency less the same of an engine itself."""
        key = f"latency {name} {case}"
        if key not in self.rounds or key in self.broken:
            return None
        return self.rounds.percentile(key, percent) - self.rounds.percentile(f"latency {DIRECT} {case}", percent)

    def _median(self, key: str) -> float | None:
        return self.rounds.median(key) if key in self.rounds and key not in self.broken else None


def measure(options: BenchOptions, say: Say) -> Findings:
    """Measure all programs and return the rows.

    Raises
    ------
    EnvironmentTooSmall
        When there is one processor core only.
    """
    effort = _QUICK if options.quick else _FULL
    crowd_bytes = int(_CROWD_SHARE * available_memory_bytes()) // CROWD
    cases = list(_cases(effort, crowd_bytes))
    router_core, load_core = two_cores()
    measured = _Measured()
    with tempfile.TemporaryDirectory(prefix="tierline-bench-") as folder, contextlib.ExitStack() as stack:
        say(f"starting two simulated engines and the load on core {load_core}, routers on core {router_core}")
        targets = _start_targets(Path(folder), router_core, load_core, stack)
        stack.enter_context(pinned_to(load_core))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_measure_all(cases, targets, effort, measured, say))
        resident = {target.name: target.program.resident_bytes() for target in targets if target.program}
        stack.close()
        index_rows = router_index.measure(effort.index, say)
    rows = [*_rows(cases, measured, resident), *index_rows]
    return Findings(
        rows, _notes(effort, measured, crowd_bytes), _tables(cases, rows, measured, index_rows), _chart(cases, measured)
    )


def cpu_row_name(contender: str, case: object) -> str:
    """Return the name of the row that has the processor time of our router in one setting."""
    return f"CPU a request, {contender}, {case}"


def _cases(effort: _Effort, crowd_bytes: int) -> Iterator[_Case]:
    for size in effort.prompt_bytes:
        for streams in (False, True):
            for connections in effort.connections:
                if connections < CROWD or size <= crowd_bytes:
                    yield _Case(size, streams, connections)


# Measuring ------------------------------------------------------------------------------------------------------------


async def _measure_all(
    cases: list[_Case], targets: list[_Target], effort: _Effort, measured: _Measured, say: Say
) -> None:
    scraper = asyncio.create_task(_scrape([target.metrics_url for target in targets if target.metrics_url]))
    try:
        for number in range(effort.rounds):
            for case in cases:
                say(f"round {number + 1} of {effort.rounds}: {case}")
                prompts = list(_prompts(case))
                for target in targets:
                    await _measure_one(case, target, Load(prompts, _content_type(case)), effort.seconds, measured)
    finally:
        scraper.cancel()


async def _measure_one(case: _Case, target: _Target, load: Load, seconds: float, measured: _Measured) -> None:
    key = f"{target.name} {case}"
    if f"cpu {key}" in measured.broken or (target.program is None and case.connections > 1):
        return
    try:
        # Whoever keeps idle connections for a shorter time would else be measured making new ones.
        warm_up = _WARM_UP_REQUESTS if case.connections < CROWD else _WARM_UP_CROWD
        await load.run(target.port, connections=case.connections, requests=warm_up * case.connections)
        before = target.program.cpu_seconds() if target.program else 0.0
        outcome = await load.run(target.port, connections=case.connections, seconds=seconds)
        used = target.program.cpu_seconds() - before if target.program else 0.0
        _refuse_failures(target, outcome)
    except TierlineError as error:
        if not target.is_peer:
            raise
        for figure in ("cpu", "latency"):
            measured.broken[f"{figure} {key}"] = str(error)
        return
    if target.program is not None:
        measured.rounds.add(f"cpu {key}", [1e3 * used / outcome.answered])
        measured.rounds.add(f"requests {key}", [outcome.answered])
    if case.connections == 1:
        measured.rounds.add(f"latency {key}", [1e3 * latency for latency in outcome.latencies_s])


def _refuse_failures(target: _Target, outcome: Outcome) -> None:
    if outcome.failures or not outcome.answered:
        counts = ", ".join(f"{count} × {got}" for got, count in outcome.failures.items()) or "no answer at all"
        raise TierlineError(f"{target.name} did not answer every request as asked: {counts}")


async def _scrape(urls: Sequence[str]) -> None:
    """Ask every router for its metrics, as Prometheus would, only more often."""
    while True:
        for url in urls:
            host, _, path = url.removeprefix("http://").partition("/")
            name, _, port = host.partition(":")
            reader, writer = await asyncio.open_connection(name, int(port))
            writer.write(f"GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
            await reader.read()
            writer.close()
        await asyncio.sleep(SCRAPE_SECONDS)


def _start_targets(folder: Path, router_core: int, load_core: int, stack: contextlib.ExitStack) -> list[_Target]:
    """Start everything; return what is to be loaded."""
    *engine_ports, first_events_port, second_events_port, splice_port = free_ports(5)
    events_ports = (first_events_port, second_events_port)
    engines = [f"http://127.0.0.1:{port}" for port in engine_ports]
    responders = [sys.executable, "-m", "tierline.bench.responders"]

    def start(role: str, *ports: int, health_port: int | None) -> Program:
        def is_ready() -> bool:
            return health_port is None or answers(f"http://127.0.0.1:{health_port}/health")

        return stack.enter_context(Program([*responders, role, *map(str, ports)], folder / f"{role}.log", is_ready))

    with pinned_to(load_core):
        start("engines", *engine_ports, health_port=engine_ports[-1])
        if _why_no_events() is None:
            start("events", *events_ports, health_port=None)
    targets = [_Target(DIRECT, engine_ports[0])]
    with pinned_to(router_core):
        targets.append(
            _Target(SPLICE, splice_port, start("splice", splice_port, *engine_ports, health_port=splice_port))
        )
        events = [f"{url}=tcp://127.0.0.1:{port}" for url, port in zip(engines, events_ports, strict=True)]
        for ours in _CONTENDERS:
            if ours.hears_events and _why_no_events() is not None:
                continue
            running = start_ours(ours.name, ours.strategy, engines, folder, ours.more(folder, events))
            stack.enter_context(running.program)
            targets.append(_Target(ours.name, running.port, running.program, running.metrics_url))
        for peer in PEERS:
            for policy in _POLICIES if peer.why_missing is None else ():
                running = start_peer(_peer_name(peer, policy), peer, policy, engines, folder)
                stack.enter_context(running.program)
                targets.append(_Target(running.name, running.port, running.program, running.metrics_url, is_peer=True))
    return targets


def _peer_name(peer: Peer, policy: str) -> str:
    return f"{peer.package} {policy}"


def _why_no_events() -> str | None:
    return None if importlib.util.find_spec("zmq") else "pyzmq is not installed (pip install 'tierline[bench]')"


def _content_type(case: _Case) -> bytes:
    return b"text/event-stream" if case.streams else b"application/json"


def _prompts(case: _Case) -> Iterator[Prompt]:
    """Yield requests whose documents repeat and whose questions carry a number that does not."""
    for document in range(DOCUMENTS):
        line = f"Line {{}} of document {document} says what the lines of documents say. "
        repeated = int(case.prompt_bytes * REPEATED_SHARE)
        text = "".join(line.format(number) for number in range(1 + repeated // 50))[:repeated]
        fresh = (" What follows from it? " * (case.prompt_bytes // 16))[: case.prompt_bytes - repeated - NUMBER_BYTES]
        stream = "true" if case.streams else "false"
        before = f'{{"stream":{stream},"model":"{MODEL}","messages":[{{"role":"user","content":"{text}'.encode()
        after = f'{fresh}"}}],"max_tokens":16}}'.encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {BENCH_KEY}\r\n"
            f"content-length: {len(before) + NUMBER_BYTES + len(after)}\r\n\r\n"
        )
        yield Prompt(head.encode() + before, after)


# Telling --------------------------------------------------------------------------------------------------------------


def _rows(cases: list[_Case], measured: _Measured, resident: dict[str, int]) -> list[Row]:
    rows = []
    for case in cases:
        for ours in _CONTENDERS:
            rows.append(_cpu_row(ours, case, measured))
            if case.connections == 1:
                rows.extend(_added_row(ours, case, percent, measured) for percent in (50, 99))
        for peer in PEERS:
            for policy in _POLICIES:
                name = _peer_name(peer, policy)
                rows.append(
                    _other_row(
                        f"CPU a request, {name}, {case}", measured.cpu_ms(name, case), peer, case, policy, measured
                    )
                )
        rows.append(
            Row(
                f"CPU a request, {SPLICE} (no parsing, no choice), {case}",
                measured.cpu_ms(SPLICE, case),
                "ms",
                n=measured.requests(SPLICE, case),
            )
        )
    for ours in _CONTENDERS:
        if ours.name in resident:
            theirs = resident.get(_peer_name(VLLM_ROUTER, ours.peers_policy))
            limit = Limit(_peer_name(VLLM_ROUTER, ours.peers_policy), theirs / 2**20 if theirs else None)
            rows.append(Row(f"memory at the end, {ours.name}", resident[ours.name] / 2**20, "MiB", limit, n=1))
    for policy in _POLICIES:
        name = _peer_name(SGLANG_ROUTER, policy)
        if name in resident:
            rows.append(Row(f"memory at the end, {name}", resident[name] / 2**20, "MiB", n=1))
    return rows


def _cpu_row(ours: _Contender, case: _Case, measured: _Measured) -> Row:
    name, value = cpu_row_name(ours.name, case), measured.cpu_ms(ours.name, case)
    if value is None:
        return not_measured(name, "ms", _why_no_events() or "not started")
    theirs = _peer_name(VLLM_ROUTER, ours.peers_policy)
    goal = (GOAL_LARGE if case.prompt_bytes >= LARGE_BYTES else 1.0) if ours.has_goal else None
    limit = Limit(theirs, measured.cpu_ms(theirs, case), goal, Direction.AT_MOST)
    return Row(
        name,
        value,
        "ms",
        limit,
        n=measured.requests(ours.name, case),
        note=_missing(VLLM_ROUTER, ours.peers_policy, case, measured),
    )


def _added_row(ours: _Contender, case: _Case, percent: int, measured: _Measured) -> Row:
    name, value = f"added latency P{percent}, {ours.name}, {case.request}", measured.added_ms(ours.name, case, percent)
    if value is None:
        return not_measured(name, "ms", _why_no_events() or "not started")
    if case.prompt_bytes == _GOAL_ADDED_BYTES and percent == 50 and ours.has_goal:
        limit = at_most(GOAL_ADDED_MS)
    else:
        theirs = _peer_name(VLLM_ROUTER, ours.peers_policy)
        limit = Limit(theirs, measured.added_ms(theirs, case, percent))
    return Row(name, value, "ms", limit, n=measured.requests(ours.name, case))


def _other_row(name: str, value: float | None, peer: Peer, case: _Case, policy: str, measured: _Measured) -> Row:
    if value is None:
        return not_measured(name, "ms", _missing(peer, policy, case, measured))
    return Row(name, value, "ms", n=measured.requests(_peer_name(peer, policy), case))


def _missing(peer: Peer, policy: str, case: _Case, measured: _Measured) -> str:
    """Return why a peer has no figure; empty where it has one."""
    broken = measured.broken.get(f"cpu {_peer_name(peer, policy)} {case}", "")
    return broken or (f"{peer.package} {peer.why_missing}" if peer.why_missing else "")


def _tables(cases: list[_Case], rows: list[Row], measured: _Measured, index_rows: list[Row]) -> list[Table]:
    return [
        *(_cpu_table(policy, cases, rows, measured) for policy in _POLICIES),
        _added_table([case for case in cases if case.connections == 1], measured),
        Table(
            "Memory, indexes, and added latency where it has a goal",
            ("what", "value", "unit", "beside", "limit", "goal"),
            [
                (
                    row.name,
                    figure_text(row.value),
                    row.unit,
                    row.limit.name if row.limit else "",
                    figure_text(row.limit.value) if row.limit else "",
                    goal_text(row),
                )
                for row in (*(row for row in rows if _is_one_of_a_kind(row)), *index_rows)
            ],
        ),
    ]


def _is_one_of_a_kind(row: Row) -> bool:
    """Whether the row is in no other table with its goal."""
    has_goal = row.limit is not None and row.limit.goal is not None
    return row.name.startswith("memory at the end") or (has_goal and row.name.startswith("added latency"))


def _cpu_table(policy: str, cases: list[_Case], rows: list[Row], measured: _Measured) -> Table:
    by_name = {row.name: row for row in rows}
    contenders = [ours for ours in _CONTENDERS if ours.peers_policy == policy]
    header = ["request", *(part for ours in contenders for part in (ours.name, "of theirs"))]
    lines = []
    for case in cases:
        line, goal = [str(case)], ""
        for ours in contenders:
            row = by_name[cpu_row_name(ours.name, case)]
            line += [figure_text(row.value), figure_text(row.ratio)]
            goal = goal_text(row) or goal
        others = (_peer_name(VLLM_ROUTER, policy), _peer_name(SGLANG_ROUTER, policy), SPLICE)
        lines.append((*line, goal, *(figure_text(measured.cpu_ms(name, case)) for name in others)))
    title = f"CPU a request, ms; of theirs: over {_peer_name(VLLM_ROUTER, policy)}, the goal is for the last with one"
    return Table(title, (*header, "goal", VLLM_ROUTER.package, SGLANG_ROUTER.package, "splice"), lines)


def _added_table(cases: list[_Case], measured: _Measured) -> Table:
    names = [SPLICE, *(ours.name for ours in _CONTENDERS)]
    names += [_peer_name(peer, policy) for policy in _POLICIES for peer in PEERS]
    lines = []
    for case in cases:
        figures = [[figure_text(measured.added_ms(name, case, percent)) for percent in (50, 99)] for name in names]
        lines.append((case.request, *(" · ".join(pair) for pair in figures)))
    return Table("Added latency on one connection, P50 · P99, ms", ("request", *names), lines)


def _chart(cases: list[_Case], measured: _Measured) -> Chart:
    bars = [
        Bar(
            f"{ours.name}, {case.request}",
            measured.cpu_ms(ours.name, case) or 0.0,
            goal=measured.cpu_ms(_peer_name(VLLM_ROUTER, ours.peers_policy), case),
        )
        for ours in _CONTENDERS
        if ours.has_goal
        for case in cases
        if case.connections == CONNECTIONS
    ]
    return Chart(f"CPU a request of tierline router, {CONNECTIONS} connections; mark: vllm-router's", "ms", bars)


def _notes(effort: _Effort, measured: _Measured, crowd_bytes: int) -> list[str]:
    notes = [
        f"Closed loop; engines are simulated and answer at once: JSON of 400 bytes, or {SSE_CHUNKS + 1} server-sent "
        f"events {1e3 * SSE_INTERVAL_SECONDS:.0f} ms apart.",
        f"{REPEATED_SHARE:.1%} of a prompt repeat one of {DOCUMENTS} documents, the rest is new in every request.",
        f"Median of {effort.rounds} interleaved rounds of {effort.seconds} s each; router alone on one core, engines "
        "and load on the other.",
        "Processor time is utime + stime of the router's process, all threads: its health checks are part of it, and "
        f"metrics that are scraped every {SCRAPE_SECONDS:.0f} s.",
        "All on: API keys (101 of them, with rates), limits of requests in flight and queued. Events: of each engine "
        f"{EVENT_BLOCKS / EVENT_INTERVAL_SECONDS:,.0f} blocks/s stored and as many evicted are applied meanwhile, for "
        "a model that is not asked for; kvaware goes by them, and asks an engine for the tokens of each new prompt: it "
        "stands beside cache_aware, which does less, without a goal.",
        f"{CROWD} connections with prompts up to {crowd_bytes // KIB:,} KiB, by the memory that was free.",
        "Added latency: until the first bytes of the answer's body through the router, less the same straight to an "
        "engine.",
    ]
    notes += [
        f"{peer.package}: {peer.why_missing}" if peer.why_missing else f"{peer.package} {peer.version} from PyPI."
        for peer in PEERS
    ]
    notes += sorted({f"no figure: {why}" for why in measured.broken.values()})
    return notes
