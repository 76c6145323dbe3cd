"""``tierline bench router``: processor time a request of our router, beside the Rust ``vllm-router`` of PyPI.

The router runs alone on one core; two simulated engines and the load share another. The figure is the router's user
and system time over a second of closed-loop load, divided by the requests it answered: unlike requests a second it
does not depend on how fast the load generator is. All programs take turns, several times; rows are medians.
"""

import asyncio
import contextlib
import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tierline.bench.load import NUMBER_BYTES, Load, Outcome, Prompt
from tierline.bench.programs import Program, answers, free_ports, pinned_to, tierline, two_cores
from tierline.bench.registry import BenchOptions, Findings, Say
from tierline.bench.report import Bar, Chart, Table, figure_text, goal_text
from tierline.bench.responders import MODEL, SSE_CHUNKS, SSE_INTERVAL_SECONDS
from tierline.bench.rows import Direction, Limit, Rounds, Row, not_measured
from tierline.errors import TierlineError

CONNECTIONS = 16
DOCUMENTS = 16
REPEATED_SHARE = 7 / 8
KIB = 1024

_PEER = "vllm-router"
_WARM_UP_SECONDS = 0.2


@dataclass(frozen=True)
class _Effort:
    """How much is measured: rounds in which all programs take turns, and what each does in its turn."""

    rounds: int
    seconds: float
    lone_seconds: float
    prompt_bytes: tuple[int, ...]


_FULL = _Effort(rounds=3, seconds=0.6, lone_seconds=0.25, prompt_bytes=(2 * KIB, 64 * KIB, 256 * KIB))
_QUICK = _Effort(rounds=1, seconds=0.3, lone_seconds=0.1, prompt_bytes=(2 * KIB,))


@dataclass(frozen=True)
class _Case:
    """What is asked: a prompt's size and how the answer comes."""

    prompt_bytes: int
    streams: bool

    def __str__(self) -> str:
        return f"{'SSE' if self.streams else 'JSON'}, {self.prompt_bytes // KIB} KiB prompts"


@dataclass(frozen=True)
class _Policy:
    """The same way of choosing, as ours and as the peer spells it."""

    ours: str
    peer: str


_POLICIES = (_Policy("roundrobin", "round_robin"), _Policy("prefixaware", "cache_aware"))


@dataclass(frozen=True)
class _Target:
    """A program under load; ``direct`` has none: the load goes to an engine."""

    name: str
    port: int
    program: Program | None


def measure(options: BenchOptions, say: Say) -> Findings:
    """Measure all programs and return the rows.

    Raises
    ------
    EnvironmentTooSmall
        When there is one processor core only.
    """
    effort = _QUICK if options.quick else _FULL
    cases = [_Case(size, streams) for size in effort.prompt_bytes for streams in (False, True)]
    router_core, load_core = two_cores()
    with tempfile.TemporaryDirectory(prefix="tierline-bench-") as folder, contextlib.ExitStack() as stack:
        say(f"starting two simulated engines and the load on core {load_core}, routers on core {router_core}")
        targets, missing = _start_targets(Path(folder), router_core, load_core, stack)
        stack.enter_context(pinned_to(load_core))
        rounds = Rounds()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for number in range(effort.rounds):
                for case in cases:
                    say(f"round {number + 1} of {effort.rounds}: {case}")
                    runner.run(_measure_case(case, targets, effort, rounds, warm_up=number == 0))
        resident = {target.name: target.program.resident_bytes() for target in targets if target.program}
    rows = _rows(cases, rounds, resident, missing)
    notes = [
        f"{CONNECTIONS} connections, closed loop; engines are simulated and answer at once: JSON of 400 bytes, or "
        f"{SSE_CHUNKS + 1} server-sent events {1e3 * SSE_INTERVAL_SECONDS:.0f} ms apart.",
        f"{REPEATED_SHARE:.1%} of a prompt repeat one of {DOCUMENTS} documents, the rest is new in every request.",
        f"Median of {effort.rounds} interleaved rounds of {effort.seconds} s each; router alone on one core, engines "
        "and load on the other.",
        "Processor time is utime + stime of the router's process, all threads; its health checks are part of it.",
        "Added latency: P50 until the first bytes of the answer's body through the router, less the same straight to "
        f"an engine; one connection, {effort.lone_seconds} s a round.",
        _peer_version() if missing is None else f"{_PEER}: {missing}",
    ]
    return Findings(rows, notes, [_table(cases, rows)], _chart(cases, rows))


def cpu_row_name(strategy: str, case: object) -> str:
    """Return the name of the row that has the processor time of our router."""
    return f"CPU a request, {strategy}, {case}"


async def _measure_case(case: _Case, targets: list[_Target], effort: _Effort, rounds: Rounds, *, warm_up: bool) -> None:
    prompts = list(_prompts(case))
    for target in targets:
        load = Load(prompts, b"text/event-stream" if case.streams else b"application/json")
        if warm_up:
            await load.run(target.port, connections=CONNECTIONS, seconds=_WARM_UP_SECONDS)
        if target.program is not None:
            before = target.program.cpu_seconds()
            outcome = await load.run(target.port, connections=CONNECTIONS, seconds=effort.seconds)
            used = target.program.cpu_seconds() - before
            _refuse_failures(target, outcome)
            rounds.add(f"cpu {target.name} {case}", [1e3 * used / outcome.answered])
            rounds.add(f"requests {target.name} {case}", [outcome.answered])
        alone = await load.run(target.port, connections=1, seconds=effort.lone_seconds)
        _refuse_failures(target, alone)
        rounds.add(f"latency {target.name} {case}", [1e3 * latency for latency in alone.latencies_s])


def _refuse_failures(target: _Target, outcome: Outcome) -> None:
    if outcome.failures or not outcome.answered:
        counts = ", ".join(f"{count} × {got}" for got, count in outcome.failures.items()) or "no answer at all"
        raise TierlineError(f"{target.name} did not answer every request as asked: {counts}")


def _start_targets(
    folder: Path, router_core: int, load_core: int, stack: contextlib.ExitStack
) -> tuple[list[_Target], str | None]:
    """Start everything; return what is to be loaded, and why the peer is missing, if it is."""
    *engine_ports, splice_port = free_ports(3)
    engines = [f"http://127.0.0.1:{port}" for port in engine_ports]
    responders = [sys.executable, "-m", "tierline.bench.responders"]

    def start(name: str, argv: list[str], port: int, health: str = "/health") -> _Target:
        log = folder / f"{name.replace(' ', '-')}.log"
        program = Program(argv, log, lambda: answers(f"http://127.0.0.1:{port}{health}"))
        return _Target(name, port, stack.enter_context(program))

    with pinned_to(load_core):
        start("engines", [*responders, "engines", *map(str, engine_ports)], engine_ports[-1])
    targets = [_Target("direct", engine_ports[0], None)]
    missing = _why_the_peer_is_missing()
    with pinned_to(router_core):
        splice = [*responders, "splice", str(splice_port), *map(str, engine_ports)]
        targets.append(start("splice", splice, splice_port))
        for policy in _POLICIES:
            (port,) = free_ports(1)
            endpoints = [part for url in engines for part in ("--endpoint", url)]
            ours = tierline("router", "--port", str(port), "--strategy", policy.ours, *endpoints)
            targets.append(start(policy.ours, ours, port))
            if missing is None:
                port, metrics_port = free_ports(2)
                peer = [
                    *(_peer_command() or _PEER, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *engines),
                    *("--policy", policy.peer, "--log-level", "warning", "--prometheus-port", str(metrics_port)),
                ]
                targets.append(start(policy.peer, peer, port))
    return targets, missing


def _peer_command() -> str | None:
    """The console script beside this interpreter, or the one in ``PATH``."""
    beside = Path(sys.executable).with_name(_PEER)
    return str(beside) if beside.exists() else shutil.which(_PEER)


def _why_the_peer_is_missing() -> str | None:
    return None if _peer_command() else "not installed (pip install 'tierline[bench]')"


def _peer_version() -> str:
    try:
        version = f"{importlib.metadata.version(_PEER)} from PyPI"
    except importlib.metadata.PackageNotFoundError:
        version = f"as found at {_peer_command()}"
    policies = ", ".join(f"{policy.peer} beside {policy.ours}" for policy in _POLICIES)
    return f"{_PEER} {version}, with the like policy: {policies}."


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
            f"content-length: {len(before) + NUMBER_BYTES + len(after)}\r\n\r\n"
        )
        yield Prompt(head.encode() + before, after)


def _rows(cases: list[_Case], rounds: Rounds, resident: dict[str, int], missing: str | None) -> list[Row]:
    rows = []
    for case in cases:
        for policy in _POLICIES:
            peer = None if missing else rounds.median(f"cpu {policy.peer} {case}")
            rows.append(
                Row(
                    cpu_row_name(policy.ours, case),
                    rounds.median(f"cpu {policy.ours} {case}"),
                    "ms",
                    Limit(f"{_PEER} {policy.peer}", peer, goal=1.0, direction=Direction.AT_MOST),
                    n=int(rounds.median(f"requests {policy.ours} {case}")) * rounds.n(f"cpu {policy.ours} {case}"),
                    note=f"{_PEER} {missing}" if missing else "",
                )
            )
            direct = rounds.median(f"latency direct {case}")
            rows.append(
                Row(
                    f"added latency P50, {policy.ours}, {case}",
                    rounds.median(f"latency {policy.ours} {case}") - direct,
                    "ms",
                    Limit(
                        f"{_PEER} {policy.peer}",
                        None if missing else rounds.median(f"latency {policy.peer} {case}") - direct,
                    ),
                    n=rounds.n(f"latency {policy.ours} {case}"),
                )
            )
        rows.append(
            Row(
                f"CPU a request, bare splice (no parsing, no choice), {case}",
                rounds.median(f"cpu splice {case}"),
                "ms",
                n=int(rounds.median(f"requests splice {case}")) * rounds.n(f"cpu splice {case}"),
            )
        )
    for policy in _POLICIES:
        name = f"memory at the end, {policy.ours}"
        peer_bytes = resident.get(policy.peer)
        limit = Limit(f"{_PEER} {policy.peer}", peer_bytes / 2**20 if peer_bytes else None)
        rows.append(Row(name, resident[policy.ours] / 2**20, "MiB", limit, n=1))
    if missing:
        rows.append(not_measured(f"CPU a request, {_PEER}", "ms", missing))
    return rows


def _table(cases: list[_Case], rows: list[Row]) -> Table:
    by_name = {row.name: row for row in rows}
    lines = []
    for policy in _POLICIES:
        for case in cases:
            cpu = by_name[cpu_row_name(policy.ours, case)]
            added = by_name[f"added latency P50, {policy.ours}, {case}"]
            splice = by_name[f"CPU a request, bare splice (no parsing, no choice), {case}"]
            lines.append(
                (
                    f"{policy.ours}, {case}",
                    figure_text(cpu.value),
                    figure_text(cpu.limit.value if cpu.limit else None),
                    figure_text(cpu.ratio),
                    goal_text(cpu),
                    figure_text(splice.value),
                    figure_text(added.value),
                    figure_text(added.limit.value if added.limit else None),
                )
            )
    header = ("policy and request", "CPU ms", "theirs", "ratio", "goal", "splice", "added ms", "theirs added")
    title = f"Router: processor time a request and added P50; theirs is {_PEER} (simulated engines)"
    return Table(title, header, lines)


def _chart(cases: list[_Case], rows: list[Row]) -> Chart:
    by_name = {row.name: row for row in rows}
    bars = [
        Bar(f"{policy.ours}, {case}", row.value or 0.0, goal=row.limit.value if row.limit else None)
        for policy in _POLICIES
        for case in cases
        for row in (by_name[cpu_row_name(policy.ours, case)],)
    ]
    return Chart(f"CPU a request of tierline router; mark: {_PEER} with the like policy", "ms", bars)
