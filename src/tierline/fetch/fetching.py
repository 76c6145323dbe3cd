"""A source's files into a folder: several parts at once, each tried again from where it broke, each file checked.

Rules: a file has its name once it is whole and its bytes are what its source says, not before. What is there already is
not fetched; what was fetched once and is no longer at the source is removed, for an engine loads what it finds.
"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import uniform
from typing import Any

from tierline import logs
from tierline.configuration import format_byte_size
from tierline.errors import EnvironmentTooSmall, SourceError
from tierline.fetch.config import FetchConfig
from tierline.fetch.files import (
    CHECKSUMS,
    Checksum,
    RemoteFile,
    digest_of,
    parse_checksums,
    require_safe,
    with_checksums,
    without,
)
from tierline.fetch.sources import PIECE_BYTES, OpenSource
from tierline.fetch.state import FolderState, PartialFile

log = logs.get(__name__)

PAUSE_S, PAUSE_MAX_S = 0.5, 30.0
"""Before a part is asked for again, then twice as long each time; by chance down to half of it."""
_CHECKSUMS_BYTES = 16 * 1024**2


@dataclass
class Progress:
    """How far it is."""

    files: int = 0
    total_bytes: int = 0
    there_bytes: int = 0
    """Of these, what is in the folder."""
    fetched_bytes: int = 0
    """What came now; more than is there of it, where parts were asked for again."""
    kept_files: int = 0
    """That were there already."""
    verified_files: int = 0
    """Whose bytes were compared with a checksum of the source."""
    retries: int = 0
    removed: list[str] = field(default_factory=list)


async def fetch(
    source: OpenSource,
    config: FetchConfig,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Have what ``source`` has in ``config.folder``; ``progress`` is kept up to date meanwhile.

    Raises
    ------
    SourceError
        Not all of it can be had.
    EnvironmentTooSmall
        The folder cannot be written to, or has no room.
    """
    state = FolderState(config.folder)
    async with state.held():
        log.info("listing", source=config.source)
        files = require_safe(await _listed(source, config))
        files = without(files, config.exclude)
        if not files:
            raise SourceError(f"{config.source} has no files; is the last part of the path right?")
        progress.files, progress.total_bytes = len(files), sum(file.size for file in files)
        names = {file.name for file in files}
        progress.removed = state.make_way(names)
        wanted = [file for file in files if not state.has(file)]
        progress.kept_files = len(files) - len(wanted)
        progress.there_bytes = progress.total_bytes - sum(file.size for file in wanted)
        if wanted and any(file.name == CHECKSUMS for file in files):
            wanted = await _with_checksums_of(source, config, files, wanted)
        partial = [PartialFile(state.own, file, config.part_bytes) for file in wanted]
        progress.there_bytes += sum(each.there_bytes for each in partial)
        _require_room(config.folder, progress.total_bytes - progress.there_bytes)
        telling = asyncio.create_task(_tell(progress, config.progress_interval_s, clock))
        try:
            await _Fetching(source, state, config, progress).run(partial)
        except OSError as error:
            raise EnvironmentTooSmall(f"cannot write into {config.folder}: {error.strerror or error}") from error
        finally:
            telling.cancel()
        progress.removed += state.keep_only(names)


async def _listed(source: OpenSource, config: FetchConfig) -> list[RemoteFile]:
    for attempt in range(config.retries + 1):
        try:
            async with asyncio.timeout(config.timeout_s):
                return await source.files()
        except OSError as error:  # a TimeoutError is one
            if attempt == config.retries:
                raise SourceError(f"{config.source} cannot be listed: {error or 'timeout'}") from None
            await _pause(attempt)
    raise AssertionError("the last attempt returns or raises")


async def _with_checksums_of(
    source: OpenSource, config: FetchConfig, files: Sequence[RemoteFile], wanted: Sequence[RemoteFile]
) -> list[RemoteFile]:
    """Return what is wanted with the checksums that a file of the source has of them."""
    (listing,) = (file for file in files if file.name == CHECKSUMS)
    if listing.size > _CHECKSUMS_BYTES:
        raise SourceError(f"{CHECKSUMS} of {config.source} is larger than {format_byte_size(_CHECKSUMS_BYTES)}")
    for attempt in range(config.retries + 1):
        try:
            async with asyncio.timeout(config.timeout_s):
                content = b"".join([piece async for piece in source.read(listing, 0, listing.size)])
            break
        except OSError as error:
            if attempt == config.retries:
                raise SourceError(f"{CHECKSUMS} of {config.source} cannot be read: {error or 'timeout'}") from None
            await _pause(attempt)
    return list(with_checksums(wanted, parse_checksums(content)))


def _require_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise EnvironmentTooSmall(
            f"{folder} has room for {format_byte_size(free)}, and {format_byte_size(needed_bytes)} are to come"
        )


async def _pause(attempt: int) -> None:
    await asyncio.sleep(min(PAUSE_S * 2**attempt, PAUSE_MAX_S) * uniform(0.5, 1.0))


async def _tell(progress: Progress, interval_s: float, clock: Callable[[], float]) -> None:
    """Say how far it is, from time to time."""
    before, at = progress.fetched_bytes, clock()
    while True:
        await asyncio.sleep(interval_s)
        now = clock()
        rate = (progress.fetched_bytes - before) / max(now - at, 1e-9)
        before, at = progress.fetched_bytes, now
        left = progress.total_bytes - progress.there_bytes
        log.info(
            "fetching",
            percent=100 * progress.there_bytes // max(progress.total_bytes, 1),
            of=format_byte_size(progress.total_bytes),
            per_s=format_byte_size(int(rate)),
            left_s=round(left / rate) if rate else None,
            retries=progress.retries,
        )


class _Fetching:
    """Fetches parts with as many tasks as there are streams.

    Invariant: ``_left`` has the files that are not whole; a part of one of them that is not done is in ``_parts``, or a
    task's.
    """

    def __init__(self, source: OpenSource, state: FolderState, config: FetchConfig, progress: Progress) -> None:
        self._source = source
        self._state = state
        self._config = config
        self._progress = progress
        self._parts: asyncio.Queue[tuple[PartialFile, int]] = asyncio.Queue()
        self._left: set[str] = set()
        self._finishing: set[str] = set()
        self._began_anew: set[str] = set()
        self._is_done = asyncio.Event()

    async def run(self, files: Sequence[PartialFile]) -> None:
        """Fetch these; returns when all are whole."""
        self._left = {partial.file.name for partial in files}
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self._work()) for _ in range(self._config.streams)]
        ending = asyncio.create_task(self._is_done.wait())
        try:
            # The largest first: at the end, small parts of small files keep all streams busy.
            for partial in sorted(files, key=lambda each: -each.file.size):
                await self._put(partial)
            if not self._left:
                return
            await asyncio.wait([*tasks, ending], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in (*tasks, ending):
                task.cancel()
            await asyncio.gather(*tasks, ending, return_exceptions=True)

    async def _put(self, partial: PartialFile) -> None:
        missing = [part for part in range(partial.parts) if part not in partial.done]
        for part in missing:
            self._parts.put_nowait((partial, part))
        if not missing:
            await self._finish(partial)

    async def _work(self) -> None:
        while True:
            partial, part = await self._parts.get()
            await self._fetch(partial, part)
            if len(partial.done) == partial.parts:
                await self._finish(partial)

    async def _fetch(self, partial: PartialFile, part: int) -> None:
        """Have a part on the disk, asking again from where it broke; what came starts the count of attempts anew."""
        start, end = partial.range_of(part)
        attempt = 0
        descriptor = os.open(partial.path, os.O_WRONLY)
        try:
            while True:
                before = start
                try:
                    start = await self._read_into(descriptor, partial, start, end)
                    if start == end:
                        await asyncio.to_thread(partial.note, descriptor, part)
                        return
                    why = "it ended too early"
                except _Broke as broke:
                    start, why = broke.at, broke.why
                attempt = 0 if start > before else attempt + 1
                if attempt > self._config.retries:
                    raise SourceError(f"{partial.file.name} cannot be fetched: {why}")
                self._progress.retries += 1
                log.warning("a part broke and is asked for again", file=partial.file.name, at=start, why=why)
                await _pause(attempt)
        finally:
            os.close(descriptor)

    async def _read_into(self, descriptor: int, partial: PartialFile, start: int, end: int) -> int:
        """Write what comes; returns how far it came."""
        at = start
        async with contextlib.aclosing(self._source.read(partial.file, start, end)) as pieces:
            while True:
                try:
                    async with asyncio.timeout(self._config.timeout_s):
                        piece = await anext(pieces, b"")
                except TimeoutError:
                    raise _Broke(at, f"nothing came for {self._config.timeout_s:g} s") from None
                except OSError as error:
                    raise _Broke(at, str(error)) from None
                if not piece:
                    return at
                if len(piece) > end - at:
                    raise SourceError(f"{partial.file.name}: more bytes came than were asked for")
                await asyncio.to_thread(partial.write, descriptor, piece, at)
                at += len(piece)
                self._progress.there_bytes += len(piece)
                self._progress.fetched_bytes += len(piece)

    async def _finish(self, partial: PartialFile) -> None:
        """All parts are there: compare the bytes with the checksum, and give the file its name."""
        file = partial.file
        if file.name in self._finishing:  # two parts became the last one at once
            return
        self._finishing.add(file.name)
        if file.checksum is not None and not await self._is_right(partial, file.checksum):
            if file.name in self._began_anew:
                raise SourceError(f"{file.name} does not have the {file.checksum.algorithm} that its source says")
            self._began_anew.add(file.name)
            log.warning("a file does not have its checksum and is fetched again", file=file.name)
            self._progress.there_bytes -= file.size
            self._finishing.discard(file.name)
            partial.begin_anew()
            await self._put(partial)
            return
        partial.move_to(self._state.folder / file.name)
        self._state.note(file)
        self._left.discard(file.name)
        if not self._left:
            self._is_done.set()

    async def _is_right(self, partial: PartialFile, checksum: Checksum) -> bool:
        def compute() -> str:
            with partial.path.open("rb") as opened:
                return digest_of(opened.read, checksum, partial.file.size, PIECE_BYTES)

        if await asyncio.to_thread(compute) == checksum.digest:
            self._progress.verified_files += 1
            return True
        try:
            return not await self._source.is_sure_of(partial.file)
        except OSError as error:
            log.warning("it cannot be found out what a checksum is of", file=partial.file.name, why=str(error))
            return False


class _Broke(Exception):  # noqa: N818  (the name states the condition)
    """A part broke: where, and why."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(why)
        self.at, self.why = at, why
