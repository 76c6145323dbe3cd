"""The shared-memory segment: one file of fixed size, created once; its inode and its size never change.

Readers map the file, and containers mount it, by inode: a second file under the same name would leave them reading the
old one for ever, and a file that shrinks kills them with SIGBUS. Hence a segment that exists is adopted in place, and
whatever does not fit is refused with a message, never repaired by making a new file.

Three names stand for it: ``NAME`` is what clients open; ``NAME.keep`` is a second hard link, for LMCache's in-process
client unlinks the first when it exits (Python up to 3.12); ``NAME.journal`` is kept by :mod:`tierline.store.journal`.
The first page is the segment's header, and never handed out.
"""

import contextlib
import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tierline.errors import ConfigurationError, EnvironmentTooSmall, SegmentError
from tierline.store.extents import PAGE_BYTES
from tierline.store.objects import Extent
from tierline.store.placement import Placement, SegmentOptions, bind, populate_huge, read_placement

PREFAULT_PIECE_BYTES = 64 * 1024 * 1024
"""Pages are allocated in pieces, so that a signal is answered within about 30 ms even in a segment of a terabyte."""

_HEADER = struct.Struct("<16s16s")
_MAGIC = b"TIERLINE SEGMENT"
_NAME_LIMIT = 200

DEFAULTS = SegmentOptions()


class Segment:
    """An open, locked, mapped segment.

    Holds an exclusive lock for as long as it is open, so that two nodes never share a segment. The lock belongs to this
    object's own file description; descriptors handed to clients are others.

    Attributes
    ----------
    path, size
        Public name, and size in bytes.
    identity
        16 bytes that tell this segment from any other, or ``None`` until its journal has sealed it: a segment
        that is not sealed holds nothing.
    mapping, buffer
        All bytes, writable.
    placement
        Where its memory lies; looked at only where an option asked for a place.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self.size = os.fstat(fd).st_size
        self.placement = Placement()
        self.mapping = mmap.mmap(fd, self.size)
        self.buffer = memoryview(self.mapping)
        magic, identity = _HEADER.unpack_from(self.buffer)
        if magic not in (_MAGIC, bytes(len(_MAGIC))):
            raise SegmentError(
                f"{path}: its first bytes are not a segment's header; remove the file or use another name"
            )
        self.identity: bytes | None = identity if magic == _MAGIC else None

    @classmethod
    def open(cls, directory: Path, name: str, capacity_bytes: int, options: SegmentOptions = DEFAULTS) -> Self:
        """Create ``directory/name``, or adopt it as it is; blocks while it is pre-faulted.

        Parameters
        ----------
        capacity_bytes
            Size of the file, rounded down to whole pages; at least two.
        options
            Access rights, and where its memory lies.

        Raises
        ------
        ConfigurationError
            The name, the capacity or an option is not usable.
        EnvironmentTooSmall
            The filesystem has no room.
        SegmentError
            The file is another user's, of another size, not a segment, or in use by another node.
        """
        _require_name(name)
        size = capacity_bytes // PAGE_BYTES * PAGE_BYTES
        if size < 2 * PAGE_BYTES:
            raise ConfigurationError("capacity", capacity_bytes, f"at least {2 * PAGE_BYTES} bytes")
        path = directory / name
        try:
            _restore_link(path)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise SegmentError(f"{path}: cannot be opened: {error}") from error
        try:
            _lock(fd, path)
            is_new = _require_ours(fd, path, size)
            try:
                _restore_link(path)
                _check_not_taken(fd, path, is_new=is_new)
                _check_names(fd, path)
                _allocate(fd, path, size, options)
                _give_rights(fd, path, options)
            except BaseException:
                if is_new:  # else it would take memory, and a name that may be another segment's, for nothing
                    _unlink_names(path, [fd])
                raise
            opened = cls(path, fd)
            if options.numa_node is not None or options.huge_pages:
                opened.placement = read_placement(path, opened.mapping, huge_pages=options.huge_pages)
            return opened
        except BaseException:
            _unlock_and_close(fd)
            raise

    def seal(self, identity: bytes) -> None:
        """Give a new segment its identity; from then on what it holds can be adopted."""
        _HEADER.pack_into(self.buffer, 0, _MAGIC, identity)
        self.identity = identity

    def views(self, extents: Sequence[Extent]) -> list[memoryview]:
        """Return the writable memory of extents, in order."""
        return [self.buffer[offset : offset + length] for offset, length in extents]

    def open_descriptor(self, *, writable: bool) -> int:
        """Open the segment anew, for a client; works while its name is unlinked, too. The caller closes it."""
        flags = os.O_RDWR if writable else os.O_RDONLY
        return os.open(f"/proc/self/fd/{self._fd}", flags | os.O_CLOEXEC)

    def relink_if_unlinked(self) -> bool:
        """Put the public name back if a client has removed it; returns whether it had to be. Call it every second.

        Raises
        ------
        SegmentError
            Another file has taken the name, or both names are gone. Open mappings and descriptors still work.
        """
        was_missing = _restore_link(self.path)
        _check_names(self._fd, self.path)
        return was_missing

    def require_whole(self) -> None:
        """Check that nobody has made the file shorter: a touch of what is missing is SIGBUS. Call it every second.

        Raises
        ------
        SegmentError
            It is shorter than it was; no byte of the segment may be touched any more.
        """
        found = os.fstat(self._fd).st_size
        if found < self.size:
            raise SegmentError(
                f"{self.path}: another process has cut it from {self.size} to {found} bytes; whoever touches what is "
                f"missing is killed by SIGBUS. Stop all clients and remove {self.path}, {self.path}.keep and "
                f"{self.path}.journal to start empty"
            )

    def close(self) -> None:
        """Let go of the lock and the file, which stays. The mapping ends with the last view of it."""
        if self._fd >= 0:
            _unlock_and_close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Remove the file under both names, and close; what clients have mapped stays valid for them."""
        _unlink_names(self.path, [self._fd])
        self.close()


def remove_segment(directory: Path, name: str) -> list[Path]:
    """Remove what is left of a segment that no node has open, and of its journal.

    Who has it mapped keeps it, and its memory is free when the last of them ends. Whatever this is killed after, the
    rest can be removed again, and a node that starts on it starts empty: a segment loses its seal before its journal.

    Returns
    -------
    The names that were removed; none where there was nothing.

    Raises
    ------
    ConfigurationError
        The name is not usable.
    SegmentError
        A node uses it, it is another user's, or it is no segment.
    """
    _require_name(name)
    path = directory / name
    journal = path.with_name(f"{name}.journal")
    left = [each for each in (*_names(path), journal) if os.path.lexists(each)]
    if not left:
        return []
    with contextlib.ExitStack() as opened:
        try:
            _restore_link(path)
            # Where the journal alone is left, for the lock: else a node that starts could lose its new one to us.
            files = [_open_locked(path, opened, os.O_CREAT)]
            if not _is_file(_keep_path(path), files[0]) and _keep_path(path).exists():
                files.append(_open_locked(_keep_path(path), opened))
            for fd, each in zip(files, _names(path), strict=False):
                _unseal(fd, each)
            journal.unlink(missing_ok=True)
            _unlink_names(path, files)
        except OSError as error:
            raise SegmentError(f"{path}: cannot be removed: {error}") from error
    return left


def _open_locked(path: Path, opened: contextlib.ExitStack, flags: int = 0) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    opened.callback(_unlock_and_close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SegmentError(f"{path}: a node store uses it; stop that first") from None
    if not _is_file(path, fd):
        raise SegmentError(f"{path}: another process has just taken it away; try again")
    return fd


def _unseal(fd: int, path: Path) -> None:
    """Have a segment hold nothing."""
    magic = os.pread(fd, len(_MAGIC), 0)
    if magic == _MAGIC:
        os.pwrite(fd, bytes(_HEADER.size), 0)
    elif magic.strip(b"\0"):
        raise SegmentError(f"{path}: its first bytes are not a segment's header; it is not ours to remove")


def _is_file(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _require_name(name: str) -> None:
    if not 0 < len(name) <= _NAME_LIMIT or "/" in name or name.startswith("."):
        raise ConfigurationError("shared-memory-name", name, f"1 to {_NAME_LIMIT} characters, no '/', no leading '.'")


def _keep_path(path: Path) -> Path:
    return path.with_name(path.name + ".keep")


def _names(path: Path) -> tuple[Path, Path]:
    return path, _keep_path(path)


def _unlink_names(path: Path, files: Sequence[int]) -> None:
    """Take away both names, as far as they stand for these files, whose locks are held."""
    # A node that tries to start makes of one name the other: once, and not before it looks for the lock.
    while names := [each for each in _names(path) if any(_is_file(each, fd) for fd in files)]:
        for each in names:
            each.unlink(missing_ok=True)


def _restore_link(path: Path) -> bool:
    """Make whichever of the two names is missing from the other; returns whether one was made."""
    keep = _keep_path(path)
    try:
        if not path.exists() and keep.exists():
            os.link(keep, path, follow_symlinks=False)
            return True
        if path.exists() and not keep.exists():
            os.link(path, keep, follow_symlinks=False)
            return True
    except (FileExistsError, FileNotFoundError):  # somebody else made it, or removed both, between the two calls
        return False
    return False


def _check_not_taken(fd: int, path: Path, *, is_new: bool) -> None:
    """Check that the first name was not taken away while it was opened.

    By :func:`remove_segment`, which is about to take the second away too, or by a client of a segment that stays: what
    was opened is then one that has no name any more, or a new one beside that of the second name.
    """
    keep = _keep_path(path)
    is_taken = not _is_file(path, fd)
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        if not is_taken and not _is_file(keep, fd):
            _open_locked(keep, opened)
            is_taken = is_new
    if is_taken:
        raise SegmentError(f"{path}: another process has just taken it away; try again")


def _check_names(fd: int, path: Path) -> None:
    """Check that both names stand for the open file."""
    for name in _names(path):
        try:
            is_ours = os.path.samestat(name.stat(follow_symlinks=False), os.fstat(fd))
        except FileNotFoundError:
            raise SegmentError(f"{name}: removed under a running node store; readers that map it are well") from None
        if not is_ours:
            raise SegmentError(f"{name}: another file has taken this name of the segment; remove it")


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SegmentError(
            f"{path}: in use by another node store; stop it, or give this one another --shared-memory-name"
        ) from None


def _unlock_and_close(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)  # by name: the mapping has a duplicate of the descriptor, which would keep the lock
    os.close(fd)


def _give_rights(fd: int, path: Path, options: SegmentOptions) -> None:
    """Give the file to its group and then open it as far as is wished: never to a group that it is not meant for."""
    if options.group is not None and os.fstat(fd).st_gid != options.group:
        try:
            os.fchown(fd, -1, options.group)
        except OSError as error:
            raise SegmentError(
                f"{path}: cannot be given to group {options.group} ({error.strerror}); run the node as a member of it"
            ) from error
    os.fchmod(fd, options.mode)


def _require_ours(fd: int, path: Path, size: int) -> bool:
    """Check that a file is ours to use; returns whether it is new."""
    found = os.fstat(fd)
    if found.st_uid != os.geteuid():
        raise SegmentError(f"{path}: belongs to user {found.st_uid}, not to {os.geteuid()}; use another name")
    if found.st_size not in (0, size):
        raise SegmentError(
            f"{path}: has {found.st_size} bytes, and {size} were asked for; a segment never changes its size: "
            f"start with --capacity {found.st_size}, or remove {path}, {path}.keep and {path}.journal"
        )
    return found.st_size == 0


def _allocate(fd: int, path: Path, size: int, options: SegmentOptions) -> None:
    """Bring a file to its size, where it is new, and allocate its memory."""
    filesystem = os.fstatvfs(fd)
    missing = size - os.fstat(fd).st_blocks * 512 - filesystem.f_bavail * filesystem.f_frsize
    try:
        if missing > 0:
            raise OSError(f"{missing} bytes too little")
        os.truncate(fd, size)
        _populate(fd, size, options)
    except OSError as error:
        raise EnvironmentTooSmall(
            f"{path}: no room for a segment of {size} bytes ({error}); ask for less, or enlarge the filesystem "
            f"(mount -o remount,size=… {path.parent}; in a container, a larger emptyDir or --shm-size)"
        ) from error


def _populate(fd: int, size: int, options: SegmentOptions) -> None:
    with mmap.mmap(fd, size) as mapping:
        if options.numa_node is not None:
            bind(mapping, options.numa_node)
        for offset in range(0, size, PREFAULT_PIECE_BYTES):
            length = min(PREFAULT_PIECE_BYTES, size - offset)
            if options.huge_pages:
                populate_huge(mapping, offset, length)
            os.posix_fallocate(fd, offset, length)
