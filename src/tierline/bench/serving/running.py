"""A whole run: find the model, learn its tokens a word, plan, warm up, load, sum up."""

import asyncio
import contextlib
import math
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import msgspec

from tierline import __version__
from tierline.answers import Models
from tierline.bench.chat import Chat
from tierline.bench.report import Machine
from tierline.bench.rows import TokenSplit
from tierline.bench.serving import trace_files
from tierline.bench.serving.arrivals import arrival_times
from tierline.bench.serving.bottleneck import LATE, LateRule, reasons_not_to_publish
from tierline.bench.serving.client import Target, ask, encode_body
from tierline.bench.serving.clients import NOTICE_S, assignments, ready_clients, shares
from tierline.bench.serving.journal import Earlier, Journal, Opening, read_journal
from tierline.bench.serving.lengths import learn
from tierline.bench.serving.loading import Assignment
from tierline.bench.serving.plan import Message, Planned, write_messages
from tierline.bench.serving.records import ClientLoad, Record
from tierline.bench.serving.results import Billing, Result, Settings
from tierline.bench.serving.text import Lengths, Piece
from tierline.bench.serving.workloads import Shape, plan, text_of
from tierline.errors import ConfigurationError, EngineError

TRACE = "trace"
ASSUMED_TOKENS_PER_WORD = 1.5
_WARM_UP_TOKENS = 512
_BEFORE_START_S = 1.0
"""For engines' counters, which are read when other hosts have warmed up."""


@dataclass(frozen=True)
class Run:
    """What a run is given beside its settings.

    Parameters
    ----------
    settings
        What the result will say was asked for.
    target
        Whom to ask.
    trace_path
        The trace to replay.
    salt
        Of the text; empty: a new one. Several hosts that load one server together give the same.
    metrics_urls
        Engines whose counters say who had the prompts' tokens.
    billing
        What serves.
    late
        How late the client may be.
    start_at_s
        When to start, in seconds of the Unix epoch; ``None``: as soon as the client processes are ready.
    journal
        Where records are kept while the run goes on; ``None``: nowhere.
    resumes
        Go on where the journal ends.
    lengths
        What the server makes of text; ``None``: it is asked first. Runs with the same text give the same.
    """

    settings: Settings
    target: Target
    trace_path: Path | None = None
    salt: str = ""
    metrics_urls: Sequence[str] = ()
    billing: Billing | None = None
    late: LateRule = LATE
    start_at_s: float | None = None
    journal: Path | None = None
    resumes: bool = False
    lengths: Lengths | None = None


@dataclass
class Watcher:
    """Who is told how a run goes; each does nothing unless given."""

    says: Callable[[str], None] = lambda _: None
    begins: Callable[[int], None] = lambda _: None
    sees: Callable[[Record], None] = lambda _: None


def command_line(arguments: Sequence[str]) -> str:
    """Return the command that was given, without the values of headers: a key may be among them.

    >>> command_line(["bench", "run", "--header", "Authorization=Bearer 1234"])
    'tierline bench run --header Authorization=…'
    """
    shown, is_header = ["tierline"], False
    for argument in arguments:
        flag = "--header=" if argument.startswith("--header=") else ""
        if is_header or flag:
            argument = f"{flag}{argument.removeprefix(flag).partition('=')[0]}=…"
        is_header = argument == "--header"
        shown.append(argument)
    return " ".join(each if "=…" in each else shlex.quote(each) for each in shown)


async def served_model(base_url: str, headers: dict[str, str]) -> str:
    """Return the first model that a server has.

    Raises
    ------
    EngineError
        When it does not say.
    """
    url = f"{base_url.rstrip('/')}/v1/models"
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.get(url, headers=headers, timeout=aiohttp.ClientTimeout(total=30)) as response,
        ):
            models = msgspec.json.decode(await response.read(), type=Models).data
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
        raise EngineError(f"{url}: {error or type(error).__name__}; give --model") from error
    if not models:
        raise EngineError(f"{url}: has no model; give --model")
    return models[0].id


async def run(given: Run, watcher: Watcher | None = None) -> Result:
    """Carry out a run.

    Raises
    ------
    EngineError
        When the server does not answer a first request.
    UsageError
        When the plan cannot be made, or the journal is another run's.
    """
    watcher = watcher or Watcher()
    settings = given.settings
    whole = make_plan(given)
    machine = Machine.here()
    earlier = read_journal(given.journal, settings, whole) if given.journal is not None and given.resumes else None
    salt = earlier.opening.salt if earlier is not None else given.salt or uuid.uuid4().hex
    text_salt = salt if earlier is None else f"{salt}+{earlier.attempts}"
    left = _timed(given, whole if earlier is None else earlier.left(whole))
    async with aiohttp.ClientSession() as http:
        lengths, notes = given.lengths, list[str]()
        if lengths is None:
            lengths, notes = await _lengths(http, given.target, settings)
        await _warm_up(http, given, lengths, watcher)
        measured = await _load(http, given, left, text_salt, lengths, earlier, salt, watcher)
        after = await _split(http, given.metrics_urls)
    if measured.late_s > 0:
        late = f"Begun {measured.late_s:.1f} s after --start-at: what comes before a run took longer than that."
        notes = [*notes, late]
    if earlier is not None:
        notes.append(f"Interrupted and gone on with {earlier.attempts} times; the time between is in no figure.")
    records = [*(earlier.records if earlier is not None else ()), *measured.records]
    return Result(
        version=__version__,
        command=command_line(sys.argv[1:]),
        started=datetime.fromtimestamp(measured.started_s, UTC).isoformat(timespec="seconds"),
        started_s=measured.started_s,
        machine=machine,
        settings=settings,
        tokens_per_word=lengths.per_word,
        opening_tokens=lengths.opening,
        turn_tokens=lengths.turn,
        loads=measured.loads,
        doubts=reasons_not_to_publish(records, measured.loads, given.late),
        notes=notes,
        split=after - measured.before if measured.before is not None and after is not None else None,
        billing=given.billing,
        records=sorted(records, key=lambda record: record.sent_s),
    )


def make_plan(given: Run) -> list[Planned]:
    """Return this host's share of the requests, without their times.

    Raises
    ------
    UsageError
        When a trace cannot be read, or the share is none.
    """
    settings = given.settings
    if settings.workload == TRACE:
        planned = trace_files.plan(replayed_trace(settings, given.trace_path))
    else:
        planned = plan(
            settings.workload,
            Shape(
                requests=settings.requests,
                input_tokens=settings.input_len,
                output_tokens=settings.output_len,
                turns=settings.turns,
                prefixes=settings.prefixes,
                seed=settings.seed,
            ),
        )
    number, hosts = parse_share(settings.share)
    return shares(planned, hosts)[number - 1]


def replayed_trace(settings: Settings, path: Path | None) -> list[trace_files.Traced]:
    """Return the trace as these settings have it replayed.

    Raises
    ------
    UsageError
        When there is none, or it cannot be read.
    """
    if path is None:
        raise ConfigurationError("--dataset-name", TRACE, "with --dataset-path, the trace's file")
    return trace_files.replayed(
        trace_files.read(path), settings.requests, settings.trace_speed, settings.input_len or None, settings.output_len
    )


def parse_share(text: str) -> tuple[int, int]:
    """Read ``2/3``: the second of three hosts.

    Raises
    ------
    ConfigurationError
        When it is none.
    """
    number, _, hosts = text.partition("/")
    if not (number.isdecimal() and hosts.isdecimal() and 1 <= int(number) <= int(hosts)):
        raise ConfigurationError("--share", text, "NUMBER/HOSTS, such as 2/3 for the second of three")
    return int(number), int(hosts)


def _timed(given: Run, planned: Sequence[Planned]) -> list[Planned]:
    """Give an open loop's requests their times; a trace brings its own."""
    settings = given.settings
    if not settings.is_open_loop:
        return [msgspec.structs.replace(each, at_s=None) for each in planned]
    if settings.workload == TRACE and settings.request_rate is None and settings.ramp is None:
        return list(planned)
    rate = settings.ramp or (math.inf if settings.request_rate is None else settings.request_rate)
    burstiness = math.inf if settings.burstiness is None else settings.burstiness
    # Each host has times of its own, so that several are no chorus.
    number, _ = parse_share(settings.share)
    times = arrival_times(len(planned), rate, burstiness, settings.seed * 1000 + number)
    return [msgspec.structs.replace(each, at_s=at_s) for each, at_s in zip(planned, times, strict=True)]


@dataclass
class _Loaded:
    started_s: float = 0.0
    late_s: float = 0.0
    before: TokenSplit | None = None
    records: list[Record] = field(default_factory=list)
    loads: list[ClientLoad] = field(default_factory=list)


async def _load(
    http: aiohttp.ClientSession,
    given: Run,
    left: Sequence[Planned],
    text_salt: str,
    lengths: Lengths,
    earlier: Earlier | None,
    salt: str,
    watcher: Watcher,
) -> _Loaded:
    settings, done = given.settings, _Loaded()
    whole = Assignment(
        target=given.target,
        plan=left,
        salt=text_salt,
        lengths=lengths,
        concurrency=settings.max_concurrency,
        ramp_s=settings.ramp_s,
        duration_s=settings.duration_s,
    )
    begun_s = 0.0 if earlier is None else earlier.lasted_s
    journal: Journal | None = None

    def starts(at_s: float) -> None:
        nonlocal journal
        done.started_s = at_s if earlier is None else earlier.opening.started_s
        if given.journal is not None:
            given.journal.parent.mkdir(parents=True, exist_ok=True)
            journal = Journal(given.journal, Opening(settings, salt, done.started_s), earlier)
        watcher.begins(len(left))

    def told(record: Record) -> None:
        record = msgspec.structs.replace(record, sent_s=record.sent_s + begun_s)
        done.records.append(record)
        if journal is not None:
            journal.write(record)
        watcher.sees(record)

    try:
        if left:
            async with ready_clients(assignments(whole, settings.processes)) as clients:
                await _wait(given.start_at_s, watcher)
                done.before = await _split(http, given.metrics_urls)
                start_s = max(given.start_at_s or 0.0, time.time() + NOTICE_S)
                done.late_s = 0.0 if given.start_at_s is None else start_s - given.start_at_s
                starts(start_s)
                done.loads = await clients.run(start_s, told)
        else:
            starts(time.time())
    finally:
        if journal is not None:
            journal.close()
    return done


async def _wait(start_at_s: float | None, watcher: Watcher) -> None:
    """Wait until shortly before the start."""
    if start_at_s is not None and (wait_s := start_at_s - time.time()) > 0:
        watcher.says(f"ready; starting in {wait_s:.0f} s")
        await asyncio.sleep(wait_s - _BEFORE_START_S)


async def _lengths(http: aiohttp.ClientSession, target: Target, settings: Settings) -> tuple[Lengths, list[str]]:
    async def count(messages: list[dict[str, str]]) -> int | None:
        reply = await ask(http, target, encode_body(target, messages, output_tokens=1))
        if reply.error:
            raise EngineError(f"{target.base_url}{target.endpoint}: {reply.error} {reply.detail}".rstrip())
        return reply.prompt_tokens

    lengths = await learn(count, settings.workload, settings.input_len, uuid.uuid4().hex)
    if lengths is not None:
        return lengths, []
    note = f"The server counts no tokens; prompts are written for {ASSUMED_TOKENS_PER_WORD} tokens a word."
    return Lengths(ASSUMED_TOKENS_PER_WORD), [note]


async def _warm_up(http: aiohttp.ClientSession, given: Run, lengths: Lengths, watcher: Watcher) -> None:
    """Let engines compile and allocate what first requests need, with prompts that no measured one begins with."""
    settings = given.settings
    if not settings.warmups:
        return
    watcher.says(f"warming up with {settings.warmups} requests")
    tokens = settings.input_len or _WARM_UP_TOKENS
    salt = uuid.uuid4().hex

    async def one(number: int) -> None:
        piece = Piece(text_of(settings.workload), f"warm-up {number}", tokens)
        planned = Planned(index=0, family="", messages=(_user(piece),), output_tokens=1, input_tokens=tokens)
        body = encode_body(given.target, write_messages(planned, salt, lengths), settings.output_len or 16)
        reply = await ask(http, given.target, body)
        if reply.error:
            watcher.says(f"warm-up {number + 1}: {reply.error} {reply.detail}".rstrip())

    places = asyncio.Semaphore(settings.max_concurrency or settings.warmups)

    async def in_turn(number: int) -> None:
        async with places:
            await one(number)

    await asyncio.gather(*(in_turn(number) for number in range(settings.warmups)))


async def _split(http: aiohttp.ClientSession, urls: Sequence[str]) -> TokenSplit | None:
    if not urls:
        return None
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        return await Chat(http, "", 1).split(url.rstrip("/").removesuffix("/metrics") for url in urls)
    raise ConfigurationError("--metrics-url", ", ".join(urls), "URLs of engines that answer /metrics")


def _user(piece: Piece) -> Message:
    return Message("user", (piece,))
