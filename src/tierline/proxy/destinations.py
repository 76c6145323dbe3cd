"""Where files of records go: a folder, or a bucket of S3 and what speaks its protocol."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tierline.errors import UsageError
from tierline.proxy.capture import Destination
from tierline.proxy.config import ProxyConfig
from tierline.s3 import BucketSettings, open_bucket, said

_TIMEOUT_S = 30.0


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
    settings = BucketSettings(
        bucket=parts.netloc,
        prefix=parts.path,
        endpoint=config.s3_endpoint,
        region=config.s3_region,
        timeout_s=_TIMEOUT_S,
        retries=1,
        retry_s=_TIMEOUT_S,
        kms_key=config.capture_kms_key,
    )
    return BucketDestination(open_bucket(settings, "--capture-uri"))


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
            raise OSError(said(error)) from None
