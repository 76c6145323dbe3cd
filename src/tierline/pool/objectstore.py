"""S3, or what speaks its protocol, as a tier: an object's header and bytes under ``SLOT/BUCKET/NAME``, one PUT each.

Rules: credentials come from where AWS' own tools take them, never from the URL; what is there is known from listings,
so that a lookup costs no request. Several nodes may share a prefix: each learns at its next listing what others wrote
and removed, and until then a GET that finds nothing is a miss.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

import obstore
import xxhash
from obstore.exceptions import BaseError

from tierline import s3
from tierline.pool.cold import ColdSettings, ColdTier, DepotFault, NotThere
from tierline.pool.coldindex import Held
from tierline.pool.header import HEADER_BYTES, Header
from tierline.pool.tier import Kept
from tierline.pool.urls import TierUrl, number
from tierline.store import ObjectKey
from tierline.wire.pool import SLOTS

_LONGEST_PATH_BYTES = 900
"""S3 takes 1,024 with the prefix."""

_PIECE_BYTES = 1024 * 1024
_ONE_PUT_BYTES = 64 * 1024 * 1024
_CONNECT_S = 2.0
_RETRIES = 1


def open_bucket(url: TierUrl) -> ColdTier:
    """Return the tier that ``s3://BUCKET/PREFIX`` names.

    Raises
    ------
    ConfigurationError
        The URL is not allowed.
    """
    list_every_s = url.take("list-every", number(0, 7 * 86_400), 600.0)
    settings = ColdSettings.from_url(url, streams=8, list_every_s=list_every_s)
    timeout_s = url.take("timeout", number(0.1, 300), 10.0)
    region, endpoint = url.take("region", str, None), url.take("endpoint", _endpoint, None)
    url.require_all_taken()
    if not url.host or url.username:
        raise url.refused("s3://BUCKET/PREFIX; credentials come from the environment, as AWS' tools take them")
    bucket = s3.BucketSettings(
        bucket=url.host,
        prefix=url.path,
        endpoint=endpoint,
        region=region,
        timeout_s=timeout_s,
        connect_timeout_s=min(timeout_s, _CONNECT_S),
        retries=_RETRIES,
        retry_s=timeout_s,
    )
    return ColdTier("s3", url.shown, Bucket(s3.open_bucket(bucket, url.shown)), settings)


class Bucket:
    """Objects under a prefix of a bucket.

    Parameters
    ----------
    store
        A store of obstore's, with the prefix.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def takes(self, key: ObjectKey) -> bool:
        """Whether S3 takes a name so long."""
        return len(_path(key, 0)) <= _LONGEST_PATH_BYTES

    def listed(
        self,
        passed_over: Callable[[object], None],  # noqa: ARG002  (a listing reads no object)
    ) -> Iterator[tuple[ObjectKey, Held]]:
        """Yield what is there, the latest written first; what has another name than ours gives is left alone."""
        found = []
        with _faults():
            for page in obstore.list(self._store):
                for each in page:
                    named = _named(each["path"])
                    if named is not None and each["size"] > HEADER_BYTES:
                        key, slot = named
                        found.append((each["last_modified"], key, Held(each["size"] - HEADER_BYTES, slot)))
        found.sort(key=lambda each: each[0], reverse=True)
        for _, key, held in found:
            yield key, held

    def read(self, key: ObjectKey, held: Held, views: Sequence[memoryview], go_on: Callable[[], None]) -> int:
        """Read an object: obstore makes ``bytes`` of what comes, which are copied into pages piece by piece."""
        path = _path(key, held.slot)
        with _faults():
            try:
                answer = obstore.get(self._store, path)
                if answer.meta["size"] != HEADER_BYTES + held.size:
                    raise NotThere(f"{path} has not the size that it had")
                stream = _Stream(answer.stream(min_chunk_size=_PIECE_BYTES), go_on)
                header = Header.parse(stream.take(HEADER_BYTES))
                if header is None or not header.is_of(key) or header.size != held.size:
                    raise NotThere(f"{path} does not begin as it should")
                hasher = xxhash.xxh3_64()
                for view in views:
                    for piece in stream.fill(view):
                        hasher.update(piece)
                if hasher.intdigest() != header.checksum:
                    raise NotThere(f"the bytes of {path} are not those that were written")
            except FileNotFoundError:
                raise NotThere(f"{path} is not there") from None
            except NotThere:
                obstore.delete(self._store, path)
                raise
        return header.checksum

    def write(self, kept: Kept) -> None:
        """Write an object, in one request where it is not too large for one."""
        path = _path(kept.key, kept.slot)
        header = Header.of(kept.key, kept.size, kept.checksum, slot=kept.slot)
        with _faults():
            obstore.put(self._store, path, [header.pack(), *kept.views], use_multipart=kept.size > _ONE_PUT_BYTES)

    def remove(self, key: ObjectKey, held: Held) -> None:
        """Remove an object."""
        with _faults():
            obstore.delete(self._store, _path(key, held.slot))


class _Stream:
    """Chunks of bytes, read in other pieces than they come in."""

    def __init__(self, chunks: Iterator[bytes], go_on: Callable[[], None]) -> None:
        self._chunks = iter(chunks)
        self._go_on = go_on
        self._rest = memoryview(b"")

    def take(self, length: int) -> bytes:
        taken = bytearray(length)
        for _ in self.fill(memoryview(taken)):
            pass
        return bytes(taken)

    def fill(self, view: memoryview) -> Iterator[memoryview]:
        """Fill ``view``; yields what was filled, piece by piece."""
        while view.nbytes:
            if not self._rest:
                chunk = next(self._chunks, None)
                if chunk is None:
                    raise NotThere("it ends too early")
                self._rest = memoryview(chunk)
            self._go_on()
            length = min(view.nbytes, self._rest.nbytes, _PIECE_BYTES)
            piece = view[:length]
            piece[:] = self._rest[:length]
            yield piece
            view, self._rest = view[length:], self._rest[length:]


def _path(key: ObjectKey, slot: int) -> str:
    return f"{slot:03x}/{_written(key.bucket)}/{_written(key.name)}"


def _named(path: str) -> tuple[ObjectKey, int] | None:
    """Return what a path stands for; ``None`` where it is none of ours."""
    slot, _, rest = path.partition("/")
    bucket, _, name = rest.partition("/")
    try:
        key, number = ObjectKey(_read(bucket), _read(name)), int(slot, 16)
    except ValueError:
        return None
    return (key, number) if number < SLOTS and _path(key, number) == path else None


def _written(text: str) -> str:
    """Return text as a segment of a path: like a URL's, but with ``=`` for ``%``, which not all servers leave alone."""
    return quote(text, safe="@").replace(".", "%2E").replace("%", "=")


def _read(segment: str) -> str:
    return unquote(segment.replace("=", "%"), errors="strict")


def _endpoint(written: str) -> str:
    if not written.startswith(("http://", "https://")):
        raise ValueError("http://HOST:PORT or https://HOST:PORT")
    return written


@contextmanager
def _faults() -> Iterator[None]:
    """Say what S3 or the network does in a depot's words."""
    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        raise DepotFault(s3.said(error)) from None
