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

from tierline import __version__
from tierline.bench.report import Machine
from tierline.bench.serving.client import Target
from tierline.bench.serving.records import Record
from tierline.bench.serving.results import Billing, Result, Settings
from tierline.errors import ConfigurationError, TierlineError, UsageError

INDEPENDENT, TEMPLATES = "independent", "templates"
WORKLOADS = (INDEPENDENT, TEMPLATES)
"""Those that all drivers can make: prompts that share nothing, and prompts behind one of a few prefixes."""

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
    """

    settings: Settings
    target: Target
    tokenizer: str

    @property
    def prefix_tokens(self) -> int:
        """How long the prefixes of ``templates`` are; 0 where prompts share nothing."""
        return self.settings.input_len - QUESTION_TOKENS if self.settings.workload == TEMPLATES else 0


@dataclass(frozen=True)
class Driver:
    """A load generator.

    Parameters
    ----------
    name, executable
        As users call it, and what is looked for in ``PATH``.
    install
        How it is had.
    arguments
        Its command line, behind the executable, for what is asked; results go into the folder.
    records
        Reads the folder; raises :class:`TierlineError` where its files are not what they should be.
    here
        How it is started from our own environment, where its program there cannot be; ``None`` where it can.
    """

    name: str
    executable: str
    install: str
    arguments: Callable[[Asked, Path], list[str]]
    records: Callable[[Path], list[Record]]
    here: Callable[[], list[str] | None] = lambda: None

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
    if asked.settings.workload not in WORKLOADS:
        raise ConfigurationError("--dataset-name", asked.settings.workload, f"{', '.join(WORKLOADS)} with --driver")
    if asked.settings.workload == TEMPLATES and asked.prefix_tokens < 1:
        raise ConfigurationError("--input-len", str(asked.settings.input_len), f"more than {QUESTION_TOKENS}")
    for is_given, flag in what:
        if is_given:
            raise UsageError(f"{flag}: goes only with our own client, without --driver")


def run_driver(
    driver: Driver, asked: Asked, path: Path | None, folder: Path, *, billing: Billing | None, command: str
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

    Raises
    ------
    UsageError
        When it is not there.
    TierlineError
        When it fails, or its files cannot be read.
    """
    argv = [*driver.command(path), *driver.arguments(asked, folder)]
    machine, started_s = Machine.here(), time.time()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_LINES_SHOWN:])
        raise TierlineError(f"{driver.name} ended with status {done.returncode}: {said}")
    return result_of(
        driver.name,
        driver.records(folder),
        asked,
        started_s=started_s,
        machine=machine,
        billing=billing,
        command=command,
    )


def result_of(
    name: str,
    records: Sequence[Record],
    asked: Asked,
    *,
    started_s: float,
    machine: Machine,
    billing: Billing | None,
    command: str,
) -> Result:
    """Return a driver's records as a result that says whose they are."""
    notes = [
        f"Measured by {name}, not by our own client: its requests, its text, its idea of a first token. Whether it was "
        "itself what was measured, it does not say."
    ]
    if asked.settings.workload != INDEPENDENT:
        notes.append("It does not say which requests were the first of their prefix: all are called cold.")
    return Result(
        version=__version__,
        command=command,
        started=datetime.fromtimestamp(started_s, UTC).isoformat(timespec="seconds"),
        started_s=started_s,
        machine=machine,
        settings=asked.settings,
        tokens_per_word=0.0,
        loads=[],
        notes=notes,
        billing=billing,
        records=sorted(records, key=lambda record: record.sent_s),
        driver=name,
    )


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
