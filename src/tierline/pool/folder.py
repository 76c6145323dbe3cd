"""A folder as a tier: a file an object, on an NVMe disk for example.

Rules: a file is written under another name and then renamed, so that it is there whole or not at all; after a power cut
it may be torn all the same, for nothing is flushed, and then its length, its header or its checksum says so, and it is
removed. A file begins with the header and the key, so that the folder alone says what it holds; the time at which it
was changed last is that of its last use.
"""

import errno
import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import xxhash

from tierline.errors import ConfigurationError
from tierline.pool.cold import ColdSettings, ColdTier, DepotFault, DepotFull, NotThere
from tierline.pool.coldindex import Held
from tierline.pool.header import HEADER_BYTES, Header
from tierline.pool.tier import Kept
from tierline.pool.urls import TierUrl
from tierline.store import ObjectKey

_LENGTHS = struct.Struct("<II")
_FRONT_BYTES = HEADER_BYTES + _LENGTHS.size
_LONGEST_TEXT_BYTES = 64 * 1024
_PIECE_BYTES = 1024 * 1024
_MOST_VIEWS = 512
_TOUCHED_AGAIN_S = 60.0
_ABANDONED_S = 3600.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def open_folder(url: TierUrl) -> ColdTier:
    """Return the tier that ``file:///FOLDER?budget=SIZE`` names.

    Raises
    ------
    ConfigurationError
        The URL is not allowed, or the folder cannot be written to.
    """
    settings = ColdSettings.from_url(url, streams=4)
    url.require_all_taken()
    if not url.path.strip("/") or url.host or url.username:
        raise url.refused("file:///FOLDER, with three slashes")
    if settings.budget is None:
        raise url.refused("budget=SIZE, for example ?budget=200GiB: what the folder may hold")
    return ColdTier("fs", url.shown, Folder(Path(url.path)), settings)


class Folder:
    """Objects as files of a folder that is this tier's own.

    Raises
    ------
    ConfigurationError
        The folder cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers = itertools.count()
        self._new = path / "new"
        try:
            self._new.mkdir(parents=True, exist_ok=True)
            for number in range(256):
                (path / f"{number:02x}").mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                "tiers", f"file://{path}", f"a folder that this user can write to ({error.strerror})"
            ) from None

    def takes(self, key: ObjectKey) -> bool:
        """Whether a key is no longer than a listing reads."""
        return len(_front_of(key)) <= _LONGEST_TEXT_BYTES

    def listed(self, passed_over: Callable[[object], None]) -> Iterator[tuple[ObjectKey, Held]]:
        """Yield what is there, the latest used first; removes what is torn, and what was never finished.

        What is no file, or cannot be read, is passed over: whatever somebody has put there costs itself alone.
        """
        with _faults():
            self._path.stat()  # of a folder that is away as a whole nothing is known
        found: list[tuple[float, str]] = []
        for number in range(256):
            with _passing_over(passed_over):
                found += _files(self._path / f"{number:02x}")
        with _passing_over(passed_over):
            for changed, path in _files(self._new):
                if time.time() - changed > _ABANDONED_S:
                    _unlink(path)
        for _, path in sorted(found, reverse=True):
            with _passing_over(passed_over):
                try:
                    key, header = _identify(path)
                except (NotThere, FileNotFoundError):
                    _unlink(path)
                else:
                    yield key, Held(header.size, header.slot)

    def read(self, key: ObjectKey, held: Held, views: Sequence[memoryview], go_on: Callable[[], None]) -> int:
        """Read a file straight into pages, and compare its checksum while its bytes are in the processor's cache."""
        path = self._file_of(key)
        front = _front_of(key)
        with _faults():
            try:
                with _File(path) as file:
                    header = Header.parse(file.read(HEADER_BYTES))
                    if header is None or not header.is_of(key) or header.size != held.size:
                        raise NotThere(f"{path} does not begin as it should")
                    if file.read(len(front)) != front:
                        raise NotThere(f"{path} is of another key")
                    hasher = xxhash.xxh3_64()
                    for view in views:
                        for start in range(0, view.nbytes, _PIECE_BYTES):
                            go_on()
                            piece = view[start : start + _PIECE_BYTES]
                            file.fill(piece)
                            hasher.update(piece)
                    if hasher.intdigest() != header.checksum:
                        raise NotThere(f"the bytes of {path} are not those that were written")
                    file.touch()
            except FileNotFoundError:
                raise NotThere(f"{path} is not there") from None
            except NotThere:
                _unlink(path)
                raise
        return header.checksum

    def write(self, kept: Kept) -> None:
        """Write a file."""
        front = _front_of(kept.key)
        header = Header.of(kept.key, kept.size, kept.checksum, slot=kept.slot)
        temporary = self._new / f"{os.getpid()}-{next(self._numbers)}"
        with _faults():
            try:
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                try:
                    _write_all(fd, [memoryview(header.pack() + front), *kept.views])
                finally:
                    os.close(fd)
                temporary.replace(self._file_of(kept.key))
            except BaseException:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise

    def remove(self, key: ObjectKey, held: Held) -> None:  # noqa: ARG002  (where a file is, its key says)
        """Remove a file."""
        with _faults():
            _unlink(self._file_of(key))

    def _file_of(self, key: ObjectKey) -> Path:
        digest = xxhash.xxh3_128_hexdigest(f"{key.bucket}\0{key.name}".encode())
        return self._path / digest[:2] / digest


class _File:
    """A file that is read from its beginning; what is missing at its end makes it torn."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, length: int) -> bytes:
        content = bytearray(length)
        self.fill(memoryview(content))
        return bytes(content)

    def fill(self, view: memoryview) -> None:
        while view.nbytes:
            count = os.readv(self._fd, [view])
            if not count:
                raise NotThere(f"{self._path} is torn")
            view = view[count:]

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def touch(self) -> None:
        """Have the time of its last change say that it was used."""
        if time.time() - os.fstat(self._fd).st_mtime > _TOUCHED_AGAIN_S:
            os.utime(self._fd)


def _files(folder: Path) -> Iterator[tuple[float, str]]:
    """Yield the files of a folder, and when they were changed last."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                yield entry.stat().st_mtime, entry.path


def _identify(path: str) -> tuple[ObjectKey, Header]:
    """Return what a file says that it is; raises ``NotThere`` where it is not whole."""
    with _File(path) as file:
        header = Header.parse(file.read(HEADER_BYTES))
        bucket_bytes, name_bytes = _LENGTHS.unpack(file.read(_LENGTHS.size))
        if header is None or bucket_bytes + name_bytes > _LONGEST_TEXT_BYTES:
            raise NotThere(f"{path} is no object of ours")
        try:
            key = ObjectKey(file.read(bucket_bytes).decode(), file.read(name_bytes).decode())
        except UnicodeDecodeError:
            raise NotThere(f"{path} is no object of ours") from None
        if not header.is_of(key) or file.size() != _FRONT_BYTES + bucket_bytes + name_bytes + header.size:
            raise NotThere(f"{path} is torn")
        return key, header


def _front_of(key: ObjectKey) -> bytes:
    """Return what stands between the header and the object's bytes."""
    bucket, name = key.bucket.encode(), key.name.encode()
    return _LENGTHS.pack(len(bucket), len(name)) + bucket + name


def _write_all(fd: int, views: Sequence[memoryview]) -> None:
    rest = list(views)
    while rest:
        count = os.writev(fd, rest[:_MOST_VIEWS])
        while rest and count >= rest[0].nbytes:
            count -= rest.pop(0).nbytes
        if rest:
            rest[0] = rest[0][count:]


def _unlink(path: Path | str) -> None:
    Path(path).unlink(missing_ok=True)


@contextmanager
def _passing_over(passed_over: Callable[[object], None]) -> Iterator[None]:
    """Let what the file system says of one thing be said of it alone."""
    try:
        yield
    except OSError as error:
        passed_over(f"{error.filename or 'a file'}: {error.strerror}")


@contextmanager
def _faults() -> Iterator[None]:
    """Say what the file system does in a depot's words."""
    try:
        yield
    except OSError as error:
        kind = DepotFull if error.errno in _FULL else DepotFault
        raise kind(f"{error.filename or 'the folder'}: {error.strerror}") from None
