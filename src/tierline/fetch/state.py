"""What is known of a folder that is filled: which files are whole, and which parts of others. In files of that folder.

Rules: what is written down here has happened: a part's bytes are on the disk, a file has its name. So whoever comes
after one that was killed goes on where that one was. Notes that cannot be read count for nothing.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from tierline import logs
from tierline.errors import EnvironmentTooSmall, SourceError
from tierline.fetch.files import STATE_FOLDER, RemoteFile, require_safe

log = logs.get(__name__)

_LOCK_LOOK_S = 0.5
T = TypeVar("T")


class _Whole(msgspec.Struct):
    identity: str
    size: int


class _Notes(msgspec.Struct):
    files: dict[str, _Whole] = {}


class _PartNotes(msgspec.Struct):
    identity: str
    size: int
    part_bytes: int
    done: list[int]


class PartialFile:
    """A file of which parts are there.

    Invariant: every part in ``done`` is on the disk.

    Parameters
    ----------
    folder
        Where it is until it is whole.
    file
        What it will be.
    part_bytes
        Size of its parts; the last one may be smaller.
    """

    def __init__(self, folder: Path, file: RemoteFile, part_bytes: int) -> None:
        key = hashlib.sha256(file.name.encode()).hexdigest()[:32]
        self.path = folder / f"{key}.part"
        self._notes = folder / f"{key}.json"
        self.file = file
        self.part_bytes = part_bytes
        self.done: set[int] = set()
        self._noting = threading.Lock()
        notes = _read(self._notes, _PartNotes)
        is_same = notes is not None and (notes.identity, notes.size) == (file.identity, file.size)
        if notes is not None and is_same and notes.part_bytes == part_bytes and self._has_its_size():
            self.done = {part for part in notes.done if 0 <= part < self.parts}
        else:
            self.begin_anew()

    @property
    def parts(self) -> int:
        """How many it has; none, if it is empty."""
        return -(-self.file.size // self.part_bytes)

    @property
    def there_bytes(self) -> int:
        """Of the parts that are there."""
        return sum(end - start for start, end in map(self.range_of, self.done))

    def range_of(self, part: int) -> tuple[int, int]:
        """Return where a part begins and ends."""
        start = part * self.part_bytes
        return start, min(start + self.part_bytes, self.file.size)

    def begin_anew(self) -> None:
        """Forget what is there."""
        self.done = set()
        self._notes.unlink(missing_ok=True)
        with self.path.open("wb") as opened:
            opened.truncate(self.file.size)

    def write(self, descriptor: int, piece: bytes, at: int) -> None:
        """Write some bytes."""
        view = memoryview(piece)
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written

    def note(self, descriptor: int, part: int) -> None:
        """A part is written: have it on the disk, then say so."""
        os.fdatasync(descriptor)
        file = self.file
        with self._noting:  # parts are written in threads
            self.done.add(part)
            _write(self._notes, _PartNotes(file.identity, file.size, self.part_bytes, sorted(self.done)))

    def move_to(self, path: Path) -> None:
        """It is whole: give it its name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path.replace(path)
        self._notes.unlink(missing_ok=True)

    def _has_its_size(self) -> bool:
        try:
            return self.path.stat().st_size == self.file.size
        except OSError:
            return False


class FolderState:
    """A folder that is filled, and nobody else fills at the time.

    Invariant: every file in its notes is in the folder, as it was there when it was noted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = folder / STATE_FOLDER
        self._file = self.own / "files.json"
        self._notes = _Notes()

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the folder, made where it is not there, once nobody else does; several pods may share a volume."""
        try:
            self.own.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.own / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise EnvironmentTooSmall(f"cannot write into {self.folder}: {error.strerror}") from error
        try:
            is_told = False
            while not _locks(descriptor, self.folder):
                if not is_told:
                    log.info("another one fetches into this folder; waiting for it", folder=str(self.folder))
                    is_told = True
                await asyncio.sleep(_LOCK_LOOK_S)
            self._notes = _read(self._file, _Notes) or _Notes()
            yield
        finally:
            os.close(descriptor)

    def has(self, file: RemoteFile) -> bool:
        """Whether a file is there already, as it is at the source."""
        known = self._notes.files.get(file.name)
        if known is None or (known.identity, known.size) != (file.identity, file.size):
            return False
        try:
            return (self.folder / file.name).stat().st_size == file.size
        except OSError:
            return False

    def note(self, file: RemoteFile) -> None:
        """A file is whole and has its name."""
        self._notes.files[file.name] = _Whole(file.identity, file.size)
        _write(self._file, self._notes)

    def make_way(self, names: set[str]) -> list[str]:
        """Remove files that were fetched once and are where a folder is to be now, or in a folder that is to be a file.

        Returns those files.
        """
        folders = {folder for name in names for folder in _folders_of(name)}
        gone = {name for name in self._notes.files if name in folders or not names.isdisjoint(_folders_of(name))}
        self._remove(gone)
        for name in names:
            if (self.folder / name).is_dir():
                for path, _, _ in os.walk(self.folder / name, topdown=False):
                    with contextlib.suppress(OSError):  # it has files of others
                        Path(path).rmdir()
        return sorted(gone)

    def keep_only(self, names: set[str]) -> list[str]:
        """Remove files that were fetched once and are no longer wanted, and parts of any; returns those files."""
        gone = self._notes.files.keys() - names
        self._remove(gone)
        for left in self.own.glob("*.part"):
            left.unlink(missing_ok=True)
            left.with_suffix(".json").unlink(missing_ok=True)
        return sorted(gone)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            whole = self._notes.files.pop(name)
            with contextlib.suppress(SourceError, OSError):
                require_safe([RemoteFile(name, whole.size, whole.identity)])
                (self.folder / name).unlink(missing_ok=True)
        _write(self._file, self._notes)


def _folders_of(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


def _locks(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Two that fetch at once would undo each other's parts.
        raise EnvironmentTooSmall(
            f"cannot lock {folder}: {error.strerror}; its file system needs flock (Lustre: mount it with -o flock)"
        ) from error
    return True


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def _write(path: Path, notes: msgspec.Struct) -> None:
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(msgspec.json.encode(notes))
    unfinished.replace(path)
