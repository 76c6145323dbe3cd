"""Models in S3, or in what speaks its protocol: brought there from a folder, and removed.

Rules: a file that is there already, of the same size and not older, is not sent again; ``config.json`` is sent last,
so that who finds it finds a whole model; what was sent is looked for afterwards. Credentials come from where AWS' own
tools take them, never from the command line.
"""

import fnmatch
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from tierline.errors import BucketRefused, UsageError
from tierline.s3 import BucketSettings, open_bucket, said

PART_BYTES = 16 * 1024 * 1024
MOST_PARTS = 9_000
"""S3 takes 10,000."""
STREAMS = 4
_PART_S = 600.0
_LAST = ("config.json", "params.json", "model_index.json")
_POINTER = b"version https://git-lfs.github.com/spec/"
_INDEX = "*.index.json"
_REMOVED_AT_ONCE = 1000


@dataclass(frozen=True)
class Place:
    """Where a model is.

    Parameters
    ----------
    bucket, prefix
        In S3; a prefix does not end in ``/``.
    endpoint
        URL of the S3 endpoint; ``None``: AWS's of the region.
    region
        Of the bucket; ``None``: what the environment says.
    """

    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str | None = None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True)
class ModelFile:
    """A file of a model: where it is, its name below the model's place, its size."""

    path: Path
    name: str
    size: int


def parse_place(url: str, endpoint: str | None, region: str | None) -> Place:
    """Return the place that ``s3://BUCKET/PREFIX`` names.

    Raises
    ------
    UsageError
        It is no such URL.
    """
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    if parts.scheme != "s3" or not parts.netloc or not prefix or parts.query or parts.username is not None:
        raise UsageError(f"got {url!r}; allowed: s3://BUCKET/PREFIX")
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise UsageError(f"--s3-endpoint: got {endpoint!r}; allowed: http://HOST:PORT or https://HOST:PORT")
    return Place(parts.netloc, prefix, endpoint, region)


def files_of(folder: Path, excluded: Sequence[str] = ()) -> list[ModelFile]:
    """Return the files of a model, those that make it whole last; hidden ones are left out.

    Raises
    ------
    UsageError
        There is no model in the folder, or it is not whole.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if is_hidden or not path.is_file() or any(fnmatch.fnmatch(name, pattern) for pattern in excluded):
            continue
        if _is_pointer(path):
            raise UsageError(f"{path}: it is a pointer of Git LFS, not the file: run `git lfs pull` there")
        found.append(ModelFile(path, name, path.stat().st_size))
    if not found:
        raise UsageError(f"{folder}: there are no files in it")
    names = {file.name for file in found}
    if not any(file in names for file in _LAST) and not any(name.endswith(".gguf") for name in names):
        raise UsageError(f"{folder}: it has no config.json and no .gguf file, so that no engine takes it for a model")
    for file in found:
        if "/" not in file.name and fnmatch.fnmatch(file.name, _INDEX):
            missing = sorted(_parts_of(file.path) - names)
            if missing:
                raise UsageError(f"{folder}: {file.name} names {missing[0]}, which is not there; fetch it first")
    return sorted(found, key=lambda file: (file.name in _LAST, file.name))


def open_store(place: Place) -> Any:
    """Return a store of obstore's with the place's prefix.

    Raises
    ------
    UsageError
        A package is missing, or the place is not allowed.
    """
    settings = BucketSettings(
        bucket=place.bucket,
        prefix=place.prefix,
        endpoint=place.endpoint,
        region=place.region,
        timeout_s=_PART_S,
        has_profiles=True,
    )
    return open_bucket(settings, str(place))


def to_send(files: Sequence[ModelFile], there: Sequence[Any], *, is_all: bool) -> list[ModelFile]:
    """Return those files that are not there yet as they are here; ``there`` is what :func:`stored` has returned."""
    found = {each["path"]: each for each in there}
    return [file for file in files if is_all or not _is_there(file, found.get(file.name))]


def replaced(sent: Sequence[ModelFile], there: Sequence[Any]) -> list[str]:
    """Return the names of files that take the place of others."""
    names = {each["path"] for each in there}
    return [file.name for file in sent if file.name in names]


def push(store: Any, place: Place, files: Sequence[ModelFile], sent: Callable[[int], None]) -> None:
    """Send files, several at once, the last ones after all others; ``sent`` has how many bytes more were read.

    Raises
    ------
    BucketRefused
        The bucket does not take one, or does not have it afterwards.
    """
    first = [file for file in files if file.name not in _LAST]
    with ThreadPoolExecutor(STREAMS) as threads:
        for group in (first, [file for file in files if file.name in _LAST]):
            for _ in threads.map(lambda file: _send(store, place, file, sent), group):
                pass
    sizes = {each["path"]: each["size"] for each in stored(store, place)}
    for file in files:
        if sizes.get(file.name) != file.size:
            has = "is not there" if file.name not in sizes else f"has {sizes[file.name]:,} bytes, not {file.size:,}"
            raise BucketRefused(f"{place}/{file.name} {has} after it was sent")


def stored(store: Any, place: Place) -> list[Any]:
    """Return what is stored below a place, as obstore describes it.

    Raises
    ------
    BucketRefused
        It cannot be listed.
    """
    import obstore

    with _refusals(place):
        return [each for page in obstore.list(store) for each in page]


def remove(store: Any, place: Place, names: Sequence[str]) -> None:
    """Remove files below a place.

    Raises
    ------
    BucketRefused
        The bucket does not let us.
    """
    import obstore

    with _refusals(place):
        for start in range(0, len(names), _REMOVED_AT_ONCE):
            obstore.delete(store, list(names[start : start + _REMOVED_AT_ONCE]))


def create_bucket(place: Place) -> bool:
    """Make the bucket; returns whether it was not there.

    Raises
    ------
    UsageError
        The package ``boto3`` is missing.
    BucketRefused
        It cannot be made.
    """
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise UsageError("--create-bucket: needs a package: pip install boto3") from None
    try:
        client = boto3.client("s3", endpoint_url=place.endpoint, region_name=place.region)
        if _is_bucket(client, place.bucket):
            return False
        region = client.meta.region_name
        where = {} if region in ("us-east-1", "aws-global") else {"LocationConstraint": region}
        client.create_bucket(Bucket=place.bucket, **({"CreateBucketConfiguration": where} if where else {}))
    except (BotoCoreError, ClientError) as error:
        raise BucketRefused(f"s3://{place.bucket}: {error}") from error
    return True


def _is_bucket(client: Any, bucket: str) -> bool:
    """Whether a bucket is there; to ask for that one needs no right over the whole account."""
    from botocore.exceptions import ClientError

    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != HTTPStatus.NOT_FOUND:
            raise
        return False
    return True


def _send(store: Any, place: Place, file: ModelFile, sent: Callable[[int], None]) -> None:
    import obstore

    part = max(PART_BYTES, file.size // MOST_PARTS + 1)
    with _refusals(place), file.path.open("rb") as opened:
        obstore.put(store, file.name, _Counted(opened, sent), use_multipart=file.size > part, chunk_size=part)


class _Counted:
    """A file that tells how much was read of it."""

    def __init__(self, opened: BinaryIO, read: Callable[[int], None]) -> None:
        self._opened = opened
        self._read = read

    def read(self, size: int = -1) -> bytes:
        piece = self._opened.read(size)
        self._read(len(piece))
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._opened.seek(offset, whence)

    def tell(self) -> int:
        return self._opened.tell()


def _is_there(file: ModelFile, there: Any) -> bool:
    if there is None or there["size"] != file.size:
        return False
    written = datetime.fromtimestamp(file.path.stat().st_mtime, UTC)
    return bool(there["last_modified"] >= written.replace(microsecond=0))  # S3's have whole seconds


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


def _parts_of(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"{index}: it is no index of weights ({type(error).__name__})") from error


@contextmanager
def _refusals(place: Place) -> Iterator[None]:
    """Say what S3 or the network does in words of ours."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError, PermissionError) as error:
        why = said(error)
        for sign, what in _TOLD:
            if sign in str(error):
                why = f"{what} ({why})"
                break
        raise BucketRefused(f"{place}: {why}") from error


_TOLD = (
    ("NoSuchBucket", "there is no such bucket; --create-bucket makes it"),
    (
        "AccessDenied",
        "access is denied: s3:ListBucket on the bucket, s3:PutObject and s3:GetObject below it are needed",
    ),
    ("InvalidAccessKeyId", "the access key is not known there"),
    ("SignatureDoesNotMatch", "the secret of the access key is another one"),
    ("ExpiredToken", "the credentials have expired"),
    ("PermanentRedirect", "the bucket is in another region; name it with --s3-region"),
)
