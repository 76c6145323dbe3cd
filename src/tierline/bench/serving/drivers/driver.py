"""What a driver is, and how any of them is run: found, started with our settings, its files read into our result.

What a driver measures is its own: its client, its text, its idea of a first token. So every result names its driver.
"""

import math
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from msgspec.structs import replace

from tierline import __version__
from tierline.bench.report import Machine
from tierline.bench.serving.bottleneck import LATE, LateRule, reasons_not_to_publish
from tierline.bench.serving.client import Target
from tierline.bench.serving.drivers.lateness import reckon
from tierline.bench.serving.records import Record
from tierline.bench.serving.results import Billing, Result, Settings
from tierline.bench.serving.trace_files import MOONCAKE_BLOCK_TOKENS, Traced, mooncake_lines, plan
from tierline.bench.serving.workloads import Shape, chat_message_tokens
from tierline.errors import ConfigurationError, TierlineError, UsageError

INDEPENDENT, TEMPLATES, CHATS = "independent", "templates", "chats"

TRACE_FILE = "trace.jsonl"
"""What a driver replays, in its folder and in Mooncake's format."""

QUESTION_TOKENS = 32
"""What is behind a prefix; as in our own workload."""

_LINES_SHOWN = 6


@dataclass(frozen=True)
class Asked:
    """What a driver is asked to do.

    Parameters
    ----------
    settings, target
        As of our own run.
    tokenizer
        Folder or name of the tokenizer that it writes and counts with.
    trace
        What it replays; empty with every other workload.
    """

    settings: Settings
    target: Target
    tokenizer: str
    trace: Sequence[Traced] = ()

    @property
    def prefix_tokens(self) -> int:
        """How long the prefixes of ``templates`` are; 0 where prompts share nothing."""
        return self.settings.input_len - QUESTION_TOKENS if self.settings.workload == TEMPLATES else 0

    @property
    def message_tokens(self) -> int:
        """How long a user's messages in ``chats`` are."""
        asked = self.settings
        return chat_message_tokens(Shape(asked.requests, asked.input_len, asked.output_len, asked.turns))

    @property
    def chats(self) -> int:
        """How many chats there are."""
        return self.settings.requests // self.settings.turns

    @property
    def block_tokens(self) -> int:
        """How long a trace's blocks are."""
        return next((request.block_tokens for request in self.trace), MOONCAKE_BLOCK_TOKENS)


@dataclass(frozen=True)
class Driver:
    """A load generator.

    Parameters
    ----------
    name, executable
        As users call it, and what is looked for in ``PATH``.
    install
        How it is had.
    workloads
        Those that it can make as they are meant.
    arguments
        Its command line, behind the executable, for what is asked; results go into the folder.
    records
        Reads the folder; raises :class:`TierlineError` where its files are not what they should be.
    here
        How it is started from our own environment, where its program there cannot be; ``None`` where it can.
    row
        Which row of the trace that it replayed a record is of; ``None`` where it does not say.
    """

    name: str
    executable: str
    install: str
    workloads: Sequence[str]
    arguments: Callable[[Asked, Path], list[str]]
    records: Callable[[Path], list[Record]]
    here: Callable[[], list[str] | None] = lambda: None
    row: Callable[[Record], int | None] = lambda _: None

    def command(self, path: Path | None) -> list[str]:
        """Return how it is started.

        Raises
        ------
        UsageError
            When it is not there.
        """
        if path is None and (ours := self.here()) is not None:
            return ours
        found = shutil.which(str(path) if path is not None else self.executable)
        if found is None:
            where = f"{path} is no program" if path is not None else f"there is no {self.executable} in PATH"
            raise UsageError(f"--driver {self.name}: {where}; {self.install}, or give its place with --driver-path")
        return [found]


def refuse(asked: Asked, what: Sequence[tuple[bool, str]]) -> None:
    """Raise :class:`UsageError` for the first flag that a driver has nothing for.

    Parameters
    ----------
    asked
        What is asked.
    what
        Whether a flag was given, and its name.
    """
    if asked.settings.workload == TEMPLATES and asked.prefix_tokens < 1:
        raise ConfigurationError("--input-len", str(asked.settings.input_len), f"more than {QUESTION_TOKENS}")
    if asked.settings.workload == CHATS and asked.settings.requests % asked.settings.turns:
        raise ConfigurationError(
            "--num-prompts",
            str(asked.settings.requests),
            f"a multiple of --num-turns, {asked.settings.turns}: --driver makes whole chats",
        )
    for is_given, flag in what:
        if is_given:
            raise UsageError(f"{flag}: goes only with our own client, without --driver")


def run_driver(
    driver: Driver,
    asked: Asked,
    path: Path | None,
    folder: Path,
    *,
    billing: Billing | None,
    command: str,
    late: LateRule = LATE,
) -> Result:
    """Run a driver and return what it found.

    Parameters
    ----------
    path
        The program; ``None``: it is looked for in ``PATH``.
    folder
        Takes its files.
    billing, command
        For the result.
    late
        How late it may have sent.

    Raises
    ------
    UsageError
        When it is not there.
    TierlineError
        When it fails, or its files cannot be read.
    """
    argv = [*driver.command(path), *driver.arguments(asked, folder)]
    if asked.trace:
        (folder / TRACE_FILE).write_bytes(mooncake_lines(asked.trace))
    machine, started_s = Machine.here(), time.time()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_LINES_SHOWN:])
        raise TierlineError(f"{driver.name} ended with status {done.returncode}: {said}")
    return result_of(
        driver,
        driver.records(folder),
        asked,
        started_s=started_s,
        machine=machine,
        billing=billing,
        command=command,
        late=late,
    )


def result_of(
    driver: Driver,
    records: Sequence[Record],
    asked: Asked,
    *,
    started_s: float,
    machine: Machine,
    billing: Billing | None,
    command: str,
    late: LateRule = LATE,
) -> Result:
    """Return a driver's records as a result that says whose they are, and whether its client kept up."""
    settings = asked.settings
    reckoned = reckon(records, settings, asked.trace)
    measured = [
        replace(record, is_measured=record.sent_s >= settings.ramp_s)
        for record in _as_planned(driver, reckoned.records, asked.trace)
    ]
    notes = [
        f"Measured by {driver.name}, not by our own client: its requests, its text, its idea of a first token.",
        "Whether a processor was too busy for it, it does not say.",
    ]
    knows_firsts = all(driver.row(record) is not None for record in records) if asked.trace else True
    if settings.workload == TEMPLATES or not knows_firsts:
        notes.append("It does not say which requests were the first of their prefix: all are called cold.")
    elif seen := sum(record.is_cold and _found_most(record) for record in measured):
        notes.append(
            f"{seen} cold requests found most of their prompt in a cache that had seen it before: a driver's text is "
            "made from --seed, so give another one."
        )
    return Result(
        version=__version__,
        command=command,
        started=datetime.fromtimestamp(started_s, UTC).isoformat(timespec="seconds"),
        started_s=started_s,
        machine=machine,
        settings=settings,
        tokens_per_word=0.0,
        loads=[],
        doubts=reasons_not_to_publish(measured, [], late),
        unchecked=reckoned.unknown,
        notes=notes,
        billing=billing,
        records=measured,
        driver=driver.name,
    )


def _as_planned(driver: Driver, records: Sequence[Record], trace: Sequence[Traced]) -> list[Record]:
    """Call those requests of a trace warm whose prefix an earlier one had, where the driver says which they are."""
    planned, told = plan(trace), []
    for record in records:
        row = driver.row(record)
        if row is not None and row < len(planned):
            record = replace(record, index=row, family=planned[row].family, is_cold=planned[row].is_cold)
        told.append(record)
    return told


def _found_most(record: Record) -> bool:
    return 2 * (record.cached_tokens or 0) > (record.prompt_tokens or 0)


async def is_simulated(base_url: str) -> bool:
    """Whether a server says of itself that it is simulated; no driver does."""
    try:
        async with aiohttp.ClientSession() as http, http.get(f"{base_url.rstrip('/')}/v1/models") as response:
            return "x-tierline-simulated" in response.headers
    except (aiohttp.ClientError, TimeoutError):
        return False


def seconds(value: float, *, least: float = 0.0) -> float:
    """Return a time of a file; ``least`` for what is no time, as of a request that failed."""
    return value if math.isfinite(value) and value > least else least
