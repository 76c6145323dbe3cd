"""The keys that endpoints ask of the router, as vLLM does with ``--api-key``: each in a file, read again as it changes.

Rule: a key goes to the endpoints that it is for, and is in no message, metric or document. Where one is to be shown,
nothing that a client sent in its place goes on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tierline import logs
from tierline.bearer import file_stamp
from tierline.errors import UsageError

if TYPE_CHECKING:
    from tierline.router.endpoints import Endpoint, Endpoints

log = logs.get(__name__)

CONFIG_KEY = "endpoint_api_key_file"


class EndpointKeys:
    """What endpoints are shown as ``Authorization``.

    Invariant: ``_shown`` has an entry for each file that was asked for and that an endpoint still names.

    Parameters
    ----------
    file
        For endpoints that name none; ``None``: these get what the client sent.
    endpoints
        Their files are followed.

    Raises
    ------
    UsageError
        ``file`` cannot be used.
    """

    def __init__(self, file: Path | None, endpoints: "Endpoints") -> None:
        self._file = file
        self._endpoints = endpoints
        self._stamps: dict[Path, tuple[int, int, int]] = {}
        self._shown: dict[Path, bytes] = {}
        if file is not None:
            self._stamps[file] = file_stamp(file, CONFIG_KEY)
            self._shown[file] = b"Bearer " + read_key(file, CONFIG_KEY)

    def authorization(self, endpoint: "Endpoint") -> bytes | None:
        """Return what an endpoint is shown; ``None``: what the client sent; empty: nothing, its file is unreadable."""
        file = endpoint.api_key_file or self._file
        if file is None:
            return None
        shown = self._shown.get(file)
        return self._first_read(file) if shown is None else shown

    def fields(self, endpoint: "Endpoint") -> Mapping[str, str]:
        """Return the header fields of a request of the router's own."""
        shown = self.authorization(endpoint)
        return {"authorization": shown.decode()} if shown else {}

    def reload(self) -> None:
        """Read the files again that have changed; where one cannot be used, the key that is in force stays so."""
        named = {endpoint.api_key_file or self._file for endpoint in self._endpoints.all} | {self._file}
        for file in list(self._shown):
            if file in named:
                self._read_again(file)
            else:
                self._shown.pop(file)
                self._stamps.pop(file, None)

    def _first_read(self, file: Path) -> bytes:
        self._shown[file] = b""
        self._read_again(file)
        return self._shown[file]

    def _read_again(self, file: Path) -> None:
        try:
            stamp = file_stamp(file, CONFIG_KEY)
            if stamp == self._stamps.get(file):
                return
            self._stamps[file] = stamp
            self._shown[file] = b"Bearer " + read_key(file, CONFIG_KEY)
        except UsageError as error:
            log.error("the file with an endpoint's API key cannot be used; the former one stays", why=str(error))
            return
        log.info("an endpoint's API key read", file=str(file))


def read_key(file: Path, key: str) -> bytes:
    """Return the API key that is in ``file``, alone; raises ``UsageError``, naming the configuration's ``key``."""
    try:
        found = file.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"{key}: cannot read {file}: {error.strerror}") from error
    if not found or not all(0x20 < byte < 0x7F for byte in found):
        raise UsageError(f"{key}: {file} must hold an API key of printable ASCII characters, alone")
    return found
