"""The token that routers show to a controller: kept as its SHA-256, compared in constant time, followed in its file."""

import hashlib
import hmac
from pathlib import Path

from tierline import logs
from tierline.bearer import MIN_TOKEN_CHARACTERS, file_stamp
from tierline.errors import UsageError

log = logs.get(__name__)

_KEY = "token_file"


class Token:
    """The token in force.

    Parameters
    ----------
    file
        Holds the token and nothing else.

    Raises
    ------
    UsageError
        The file cannot be used.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp = file_stamp(file, _KEY)
        self._digest = _read(file)

    def is_shown(self, token: str) -> bool:
        """Return whether ``token`` is the one."""
        shown = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        return hmac.compare_digest(shown, self._digest)

    def reload(self) -> None:
        """Read the file again if it has changed; where it cannot be used, the former token stays in force."""
        try:
            stamp = file_stamp(self._file, _KEY)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._digest = _read(self._file)
        except UsageError as error:
            log.error("the token file cannot be used; the former token stays in force", why=str(error))
            return
        log.info("token read", file=str(self._file))


def _read(file: Path) -> bytes:
    try:
        token = file.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"{_KEY}: cannot read {file}: {error.strerror}") from error
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or len(token.split()) > 1:
        raise UsageError(f"{_KEY}: {file} must hold a token of {MIN_TOKEN_CHARACTERS} ASCII characters or more, alone")
    return hashlib.sha256(token).digest()
