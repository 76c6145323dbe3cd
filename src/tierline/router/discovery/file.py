"""Endpoints that a file lists, in YAML or JSON; it is read again and again, and what counts is its content.

So a file that is replaced, written in place, or is a symbolic link that Kubernetes turns to a new folder, is all the
same. A file that cannot be used is said so, counted, and changes nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import yaml

from tierline import logs
from tierline.errors import UsageError
from tierline.router.specs import EndpointSpec, read_specs

log = logs.get(__name__)

RELOAD_SECONDS = 1.0
SETTLE_SECONDS = 0.05
"""What is new is read once more after that: who writes in place may be in the middle, and half a list is one, too."""


class FileSource:
    """The endpoints of one file.

    Parameters
    ----------
    path
        The file.
    reload_s
        Between two readings.

    Raises
    ------
    UsageError
        It cannot be used now, at the start.
    """

    name = "file"

    def __init__(self, path: Path, *, reload_s: float = RELOAD_SECONDS) -> None:
        self.failures = 0
        """Contents that could not be used; one that stays as it is counts once."""
        self._path = path
        self._reload_s = reload_s
        content = _read(path)
        self._content: bytes | None = content
        """What was read last; ``None`` when nothing could be."""
        self._specs = _parse(content, path)
        self._is_refused = False
        """What was read last cannot be used; it is tried again, for it may name a file that is still to come."""

    async def wanted_sets(self) -> AsyncIterator[Sequence[EndpointSpec]]:
        """See :class:`~tierline.router.discovery.base.Source`."""
        yield self._specs
        while True:
            await asyncio.sleep(self._reload_s)
            specs = await self._changed()
            if specs is not None:
                yield specs

    async def _changed(self) -> Sequence[EndpointSpec] | None:
        """Return what the file says, if that is new and can be used."""
        try:
            content = await asyncio.to_thread(_read, self._path)
            if content != self._content:
                await asyncio.sleep(SETTLE_SECONDS)
                if await asyncio.to_thread(_read, self._path) != content:
                    return None
        except UsageError as error:
            if self._content is not None:
                self._failed(error)
            self._content = None
            return None
        is_known = content == self._content
        if is_known and not self._is_refused:
            return None
        self._content = content
        try:
            specs = _parse(content, self._path)
        except UsageError as error:
            self._is_refused = True
            if not is_known:
                self._failed(error)
            return None
        self._is_refused = False
        log.info("endpoints file read", file=str(self._path), endpoints=len(specs))
        return specs

    def _failed(self, error: UsageError) -> None:
        self.failures += 1
        log.error("the endpoints file cannot be used; the former endpoints stay", why=str(error))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"--endpoints-file: cannot read {path}: {error.strerror}") from error


def _parse(content: bytes, path: Path) -> tuple[EndpointSpec, ...]:
    try:
        document: object = yaml.safe_load(content)  # JSON is YAML
    except Exception as error:  # yaml's constructors raise what they please
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    return read_specs(document, str(path))
