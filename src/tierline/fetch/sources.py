"""Where models are kept: what is there, and bytes of it. A source keeps nothing and tries nothing twice.

Rule: what asking again may mend is raised as :class:`OSError` (a :class:`TimeoutError` is one), all else as
:class:`~tierline.errors.SourceError` with what to do about it.
"""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp
import msgspec

from tierline.errors import SourceError
from tierline.fetch.addresses import BucketSource, FolderSource, HubSource, Source
from tierline.fetch.files import Checksum, RemoteFile, without
from tierline.s3 import BucketSettings, open_bucket, said

PIECE_BYTES = 4 * 1024**2
"""Written at once: each piece costs a thread's turn."""
_MD5 = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_OTHER_FORMATS = ("*.bin", "*.pth", "*.pt", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.tflite", "*.gguf")
_STATUS = re.compile(r"status code: (\d{3})")
_SIGNED_FOR = timedelta(minutes=5)
_CONNECT_S = 10.0
_PART_S = 86_400.0
"""Of a whole part: who fetches it watches that bytes come."""


class OpenSource(Protocol):
    """A source that can be asked."""

    async def files(self) -> list[RemoteFile]:
        """Return what is there."""

    def read(self, file: RemoteFile, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a file from ``start`` to before ``end``, none of another version of it."""

    async def is_sure_of(self, file: RemoteFile) -> bool:
        """Whether a file's checksum is one for certain, asked where its bytes give another."""

    async def close(self) -> None:
        """Let go of connections."""


def open_source(
    source: Source, *, s3_endpoint: str | None, s3_region: str | None, hf_endpoint: str, hf_token: str, timeout_s: float
) -> OpenSource:
    """Return what can be asked for a source's files.

    Raises
    ------
    UsageError
        A package is missing, or an address is not allowed.
    """
    match source:
        case BucketSource():
            return Bucket(source, s3_endpoint, s3_region, timeout_s)
        case HubSource():
            return Hub(source, hf_endpoint, hf_token)
        case FolderSource():
            return Folder(source)


class Bucket:
    """Objects of S3, or of what speaks its protocol."""

    def __init__(self, source: BucketSource, endpoint: str | None, region: str | None, timeout_s: float) -> None:
        self._source = source
        settings = BucketSettings(
            bucket=source.bucket,
            prefix=source.prefix,
            endpoint=endpoint,
            region=region,
            timeout_s=_PART_S,
            connect_timeout_s=min(_CONNECT_S, timeout_s),
            retries=0,
            retry_s=timeout_s,
        )
        self._store = open_bucket(settings, "SOURCE")

    async def files(self) -> list[RemoteFile]:
        """See :class:`OpenSource`."""
        import obstore

        found = []
        with self._faults():
            async for page in obstore.list(self._store):
                found += [(each["path"], each["size"], each["e_tag"] or "") for each in page]
        folders = {name.rpartition("/")[0] for name, _, _ in found}
        files = []
        for name, size, tag in found:
            if not name or (not size and any(folder == name or folder.startswith(f"{name}/") for folder in folders)):
                continue  # an empty object that stands for a folder
            digest = tag.strip('"')
            checksum = Checksum("md5", digest) if _MD5.fullmatch(digest) else None
            files.append(RemoteFile(name, size, tag, checksum))
        return files

    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """See :class:`OpenSource`."""
        import obstore

        options: dict[str, Any] = {"range": (start, end)}
        if file.identity:
            options["if_match"] = file.identity
        with self._faults(file.name):
            answer = await obstore.get_async(self._store, file.name, options=options)
            async for piece in answer.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

    async def is_sure_of(self, file: RemoteFile) -> bool:
        """See :class:`OpenSource`; with KMS, or the client's own key, S3's tag looks like an MD5 and is none."""
        import obstore

        with self._faults(file.name):
            url = await obstore.sign_async(self._store, "HEAD", file.name, _SIGNED_FOR)
            async with aiohttp.ClientSession() as session, session.head(url) as answer:
                if answer.status != 200:  # it says nothing of how the object is encrypted
                    raise OSError(f"S3 answered {answer.status}")
                encryption = answer.headers.get("x-amz-server-side-encryption", "AES256")
                has_own_key = "x-amz-server-side-encryption-customer-algorithm" in answer.headers
                return encryption == "AES256" and not has_own_key

    async def close(self) -> None:
        """See :class:`OpenSource`."""

    @contextmanager
    def _faults(self, name: str = "") -> Iterator[None]:
        from obstore import exceptions

        where = f"s3://{self._source.bucket}/{self._source.prefix}{name}"
        try:
            yield
        except exceptions.PreconditionError:
            raise SourceError(f"{where} has changed while it was fetched; fetch it again") from None
        except (exceptions.BaseError, FileNotFoundError, PermissionError) as error:
            raise _fault(error, where) from None
        except aiohttp.ClientError as error:
            raise OSError(said(error)) from None


def _fault(error: Exception, where: str) -> Exception:
    """Return what an error of obstore's is to whoever fetches; of a listing, only its text says the status."""
    from obstore import exceptions

    why = said(error)
    found = _STATUS.search(why)
    status = int(found[1]) if found is not None else 0
    is_denied = isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError))
    if is_denied or status in (401, 403):
        rights = "it takes s3:GetObject on the objects and s3:ListBucket on the bucket"
        return SourceError(f"{where}: access is denied; {rights} ({why})")
    if isinstance(error, (exceptions.NotFoundError, FileNotFoundError)) or status == 404:
        return SourceError(f"{where} is not there ({why})")
    if "region" in why or status in (301, 400):
        return SourceError(f"{where}: S3 refuses the request; is the region right? ({why})")
    return OSError(why)


class _Lfs(msgspec.Struct):
    sha256: str = ""


class _Sibling(msgspec.Struct, rename="camel"):
    rfilename: str
    size: int | None = None
    blob_id: str = ""
    lfs: _Lfs | None = None


class _Model(msgspec.Struct):
    sha: str
    siblings: list[_Sibling] = []


class Hub:
    """A model of the Hugging Face hub: its revision is taken for the commit that it is when it is first asked for."""

    def __init__(self, source: HubSource, endpoint: str, token: str) -> None:
        self._source = source
        self._endpoint = endpoint.rstrip("/")
        self._commit = source.revision
        # The token goes to the hub alone: aiohttp leaves it out where an answer leads to another host.
        headers = {"authorization": f"Bearer {token}"} if token else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        self._session = aiohttp.ClientSession(
            headers=headers, timeout=timeout, trust_env=True, read_bufsize=PIECE_BYTES
        )

    async def files(self) -> list[RemoteFile]:
        """See :class:`OpenSource`; where there are safetensors, the same weights in other formats are left out."""
        described = await self._described("?blobs=true")
        files = [_file_of(sibling) for sibling in described.siblings]
        if any(file.name.endswith(".safetensors") for file in files):
            return list(without(files, (*_OTHER_FORMATS, "original/*")))
        return files

    async def commit(self) -> str:
        """Return the commit that the revision is now."""
        return (await self._described()).sha

    async def _described(self, query: str = "") -> _Model:
        model, revision = self._source.model, quote(self._source.revision, safe="")
        with _hub_faults():
            url = f"{self._endpoint}/api/models/{model}/revision/{revision}{query}"
            async with self._session.get(url) as answer:
                self._require(answer, model)
                content = await answer.read()
        try:
            described = msgspec.json.decode(content, type=_Model)
        except msgspec.DecodeError as error:
            raise SourceError(f"{self._endpoint} answered with something that describes no model: {error}") from None
        if not _SHA1.fullmatch(described.sha):
            raise SourceError(f"{self._endpoint} answered with a revision that is no commit: {described.sha[:80]!r}")
        self._commit = described.sha
        return described

    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """See :class:`OpenSource`."""
        url = f"{self._endpoint}/{self._source.model}/resolve/{self._commit}/{quote(file.name)}"
        fields = {"range": f"bytes={start}-{end - 1}", "accept-encoding": "identity"}
        with _hub_faults():
            async with self._session.get(url, headers=fields) as answer:
                self._require(answer, file.name)
                if answer.status == 206:
                    began = re.match(r"bytes (\d+)-", answer.headers.get("content-range", ""))
                    if began is None or int(began[1]) != start:
                        raise OSError(f"{file.name}: other bytes came than were asked for")
                elif start or end != file.size:
                    raise SourceError(f"{self._endpoint} sends no parts of files")
                async for piece in answer.content.iter_chunked(PIECE_BYTES):
                    yield piece

    async def is_sure_of(self, file: RemoteFile) -> bool:  # noqa: ARG002
        """See :class:`OpenSource`: its checksums are git's."""
        return True

    async def close(self) -> None:
        """See :class:`OpenSource`."""
        await self._session.close()

    def _require(self, answer: aiohttp.ClientResponse, what: str) -> None:
        status = answer.status
        if status in (200, 206):
            return
        if status in (401, 403):
            raise SourceError(
                f"{what}: the hub denies access ({status}); a gated model takes HF_TOKEN, of an account that has"
                f" accepted its licence at {self._endpoint}/{self._source.model}"
            )
        if status == 404:
            raise SourceError(f"{what} is not there at {self._endpoint}, in revision {self._source.revision}")
        if status in (408, 425, 429) or status >= 500:
            raise OSError(f"the hub answered {status}")
        raise SourceError(f"{what}: the hub answered {status}")


def _file_of(sibling: _Sibling) -> RemoteFile:
    if sibling.size is None or sibling.size < 0:
        raise SourceError(f"the hub does not say how large {sibling.rfilename[:200]!r} is")
    if sibling.lfs is not None and _SHA256.fullmatch(sibling.lfs.sha256):
        checksum = Checksum("sha256", sibling.lfs.sha256)
    elif sibling.lfs is None and _SHA1.fullmatch(sibling.blob_id):
        checksum = Checksum("git-sha1", sibling.blob_id)
    else:
        return RemoteFile(sibling.rfilename, sibling.size, sibling.blob_id)
    return RemoteFile(sibling.rfilename, sibling.size, checksum.digest, checksum)


@contextmanager
def _hub_faults() -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientError as error:
        raise OSError(said(error) or type(error).__name__) from None


class Folder:
    """A folder of this machine, such as a volume that several pods share."""

    def __init__(self, source: FolderSource) -> None:
        self._folder = source.folder

    async def files(self) -> list[RemoteFile]:
        """See :class:`OpenSource`."""
        return await asyncio.to_thread(self._files)

    def _files(self) -> list[RemoteFile]:
        if not self._folder.is_dir():
            raise SourceError(f"{self._folder} is no folder")
        files = []
        for path in sorted(self._folder.rglob("*")):
            if path.is_file():
                described = path.stat()
                name = path.relative_to(self._folder).as_posix()
                files.append(RemoteFile(name, described.st_size, _version(described)))
        return files

    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """See :class:`OpenSource`."""
        path = self._folder / file.name
        changed = SourceError(f"{path} has changed while it was fetched; fetch it again")
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise changed from None
        try:
            while start < end:
                piece = await asyncio.to_thread(os.pread, descriptor, min(PIECE_BYTES, end - start), start)
                # After the bytes were read: a version that began to come meanwhile is seen as well.
                if not piece or _version(os.fstat(descriptor)) != file.identity:
                    raise changed
                start += len(piece)
                yield piece
        finally:
            os.close(descriptor)

    async def is_sure_of(self, file: RemoteFile) -> bool:  # noqa: ARG002
        """See :class:`OpenSource`."""
        return True

    async def close(self) -> None:
        """See :class:`OpenSource`."""


def _version(described: os.stat_result) -> str:
    return f"{described.st_size}-{described.st_mtime_ns}"
