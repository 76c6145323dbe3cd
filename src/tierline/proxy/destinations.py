"""Where files of records go: a folder, or a bucket of S3 and what speaks its protocol."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tierline.errors import UsageError
from tierline.proxy.capture import Destination
from tierline.proxy.config import ProxyConfig

_TIMEOUT = timedelta(seconds=30)


def destination_of(config: ProxyConfig) -> Destination:
    """Return what ``capture_uri`` names.

    Raises
    ------
    UsageError
        The folder cannot be made, or what S3 needs is not installed.
    """
    parts = urlsplit(config.capture_uri or "")
    if parts.scheme == "file":
        return FolderDestination(Path(unquote(parts.path)))
    try:
        from obstore.store import S3Store  # not loaded where it is not used
    except ImportError:
        raise UsageError("--capture-uri: S3 needs obstore: pip install 'tierline[s3]'") from None
    given = {"region": config.s3_region, "endpoint": config.s3_endpoint}
    if config.capture_kms_key:
        given |= {"aws_server_side_encryption": "aws:kms", "aws_sse_kms_key_id": config.capture_kms_key}
    store = S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        client_options={
            "timeout": _TIMEOUT,
            "allow_http": bool(config.s3_endpoint and config.s3_endpoint.startswith("http://")),
        },
        retry_config={"max_retries": 1, "retry_timeout": _TIMEOUT},
        **{key: value for key, value in given.items() if value},
    )
    return BucketDestination(store)


class FolderDestination:
    """A folder: a file is there whole, or not at all.

    Raises
    ------
    UsageError
        It cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--capture-uri: cannot make {folder}: {error.strerror}") from error

    async def write(self, name: str, content: bytes) -> None:
        """See :class:`~tierline.proxy.capture.Destination`."""
        await asyncio.to_thread(self._write, self._folder / name, content)

    @staticmethod
    def _write(file: Path, content: bytes) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}")
        unfinished.write_bytes(content)
        unfinished.replace(file)


class BucketDestination:
    """A bucket.

    Parameters
    ----------
    store
        A store of obstore's, with the prefix.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    async def write(self, name: str, content: bytes) -> None:
        """See :class:`~tierline.proxy.capture.Destination`."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            await obstore.put_async(self._store, name, content)
        except BaseError as error:
            raise OSError(str(error).partition("\n")[0][:300]) from None
