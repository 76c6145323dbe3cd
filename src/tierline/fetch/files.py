"""A model's files as its source lists them: names that are safe in a folder, and how each is checked. Pure."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any, Literal

from tierline.errors import SourceError

STATE_FOLDER = ".tierline-fetch"
"""In the folder that is filled: what is there already, and parts of what is not."""
CHECKSUMS = "SHA256SUMS"
"""A file at the top of a source with the checksums of the others, as sha256sum writes them."""
_CHECKSUM_LINE = re.compile(r"\\?([0-9a-f]{64}) [ *](.+)")
_LONGEST_SEGMENT_BYTES = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Algorithm = Literal["sha256", "md5", "git-sha1"]


@dataclass(frozen=True)
class Checksum:
    """What a file's bytes must give, in hexadecimal digits. ``git-sha1`` is that of git's blob with these bytes."""

    algorithm: Algorithm
    digest: str

    def hasher(self, size: int) -> Any:
        """Return a new hash object of :mod:`hashlib` for a file of ``size`` bytes."""
        if self.algorithm == "git-sha1":
            return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        if self.algorithm == "md5":
            return hashlib.md5(usedforsecurity=False)
        return hashlib.sha256()


@dataclass(frozen=True)
class RemoteFile:
    """A file that a source has.

    Parameters
    ----------
    name
        Its path in the source, with ``/``.
    size
        In bytes.
    identity
        Another one whenever its bytes are others.
    checksum
        What its bytes must give, where the source says so.
    """

    name: str
    size: int
    identity: str
    checksum: Checksum | None = None


def require_safe(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Return the files in the order of their names.

    Raises
    ------
    SourceError
        A name would lead out of the folder, cannot be a file's, is there twice, or is another one's folder.
    """
    found = sorted(files, key=lambda file: file.name)
    names = {file.name for file in found}
    if len(names) < len(found):
        raise SourceError("the source lists a file twice")
    for file in found:
        parts = file.name.split("/")
        is_long = any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST_SEGMENT_BYTES for part in parts)
        is_odd = any(part in ("", ".", "..") for part in parts) or _CONTROL.search(file.name)
        if is_odd or is_long or parts[0] == STATE_FOLDER or not _is_text(file.name):
            raise SourceError(f"the source has a file that no folder can have: {file.name[:200]!r}")
        for length in range(1, len(parts)):
            if "/".join(parts[:length]) in names:
                raise SourceError(f"the source has {file.name!r} in a folder that is a file as well")
    return tuple(found)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def without(files: Sequence[RemoteFile], patterns: Sequence[str]) -> tuple[RemoteFile, ...]:
    """Return the files that match none of ``patterns``, such as ``original/*``."""
    return tuple(file for file in files if not any(fnmatch(file.name, pattern) for pattern in patterns))


def parse_checksums(content: bytes) -> dict[str, str]:
    """Return SHA-256 by name, as ``sha256sum`` writes them; lines that are none of its are passed over.

    >>> parse_checksums(b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  ./empty\\n")
    {'empty': 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'}
    """
    lines = (_CHECKSUM_LINE.fullmatch(line) for line in content.decode("utf-8", "replace").splitlines())
    return {match[2].removeprefix("./"): match[1] for match in lines if match is not None}


def with_checksums(files: Iterable[RemoteFile], checksums: Mapping[str, str]) -> tuple[RemoteFile, ...]:
    """Return the files with these SHA-256 in place of what their source says of them."""
    return tuple(
        replace(file, checksum=Checksum("sha256", checksums[file.name])) if file.name in checksums else file
        for file in files
    )


def digest_of(read: Callable[[int], bytes], checksum: Checksum, size: int, piece_bytes: int) -> str:
    """Return what the bytes give that ``read`` returns until it returns none."""
    hasher = checksum.hasher(size)
    while piece := read(piece_bytes):
        hasher.update(piece)
    digest: str = hasher.hexdigest()
    return digest
