"""Bearer tokens: how a request shows one, how a file lists them, and how a file that changes is noticed.

Rule: what is kept of a token is its SHA-256; neither a token nor a line of its file is in any message.
"""

import hashlib
from pathlib import Path
from typing import Annotated, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tierline.errors import AccessDenied, ConfigurationError, UsageError

MIN_TOKEN_CHARACTERS = 16
_OF_WORDS = {
    hashlib.sha256(word).hexdigest()
    for word in (b"", b"\n", b"password", b"test", b"foo", b"secret", b"token", b"admin")
}
"""Digests that are in examples everywhere, once in ours too: with them anybody would get in."""


def bearer_token(authorization: bytes | None) -> bytes:
    """Return the token of an ``Authorization`` header (RFC 6750); empty where there is none.

    Raises
    ------
    AccessDenied
        The header is of another scheme, or has no token.
    """
    if authorization is None:
        return b""
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not token.strip():
        raise AccessDenied("an Authorization that is not taken here; allowed: Bearer and a token")
    return token.strip()


def _require_digest(value: object) -> object:
    if not (isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")):
        raise ValueError("the SHA-256 of a token, 64 digits 0-9a-f")
    return value


def _require_token(value: object) -> object:
    if not (isinstance(value, str) and len(value) >= MIN_TOKEN_CHARACTERS and value.isascii() and value.isprintable()):
        raise ValueError(f"{MIN_TOKEN_CHARACTERS} printable ASCII characters or more")
    if " " in value:
        raise ValueError("a token without spaces")
    return value


class Strict(BaseModel):
    """A table in a file: other keys than the known ones are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenEntry(Strict):
    """What a file says of one token: its name for messages, and itself or its SHA-256."""

    name: str = Field(min_length=1, max_length=100)
    token: Annotated[str, BeforeValidator(_require_token)] | None = None
    sha256: Annotated[str, BeforeValidator(_require_digest)] | None = None

    def digest(self, where: str) -> bytes:
        """Return the token's SHA-256.

        Raises
        ------
        ConfigurationError
            The entry at ``where`` has neither, or both.
        """
        if (self.token is None) == (self.sha256 is None):
            raise ConfigurationError(where, self.name, "either token or sha256, and not both")
        if self.sha256 in _OF_WORDS:
            raise ConfigurationError(where, self.name, "the SHA-256 of a token of chance; this is a common word's")
        return hashlib.sha256(self.token.encode()).digest() if self.token else bytes.fromhex(self.sha256 or "")


File = TypeVar("File", bound=Strict)


def read_file(file: Path, model: type[File], key: str) -> File:
    """Return what a YAML or JSON file with secrets says.

    Parameters
    ----------
    file, model
        The file, and what may be in it.
    key
        The configuration key that names the file, for messages.

    Raises
    ------
    UsageError
        It cannot be read, is no YAML, or says what is not allowed.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UsageError(f"{key}: cannot read {file}: {error.strerror}") from error
    except Exception:  # noqa: BLE001  (yaml's constructors raise what they please, and their messages quote the file)
        raise UsageError(f"{key}: {file} is no YAML") from None
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"] if part != "[key]") or "the file"
        is_secret = "token" in problem["loc"] or "sha256" in problem["loc"] or not isinstance(problem["input"], str)
        raise ConfigurationError(
            f"{file}: {where}",
            "(not shown)" if is_secret else problem["input"],
            problem["msg"].removeprefix("Value error, ").removeprefix("Input should be "),
        ) from None


def file_stamp(file: Path, key: str) -> tuple[int, int, int]:
    """Return what changes when a file is replaced or written; raises ``UsageError`` where it cannot be seen."""
    try:
        found = file.stat()
    except OSError as error:
        raise UsageError(f"{key}: cannot read {error.filename}: {error.strerror}") from error
    return found.st_ino, found.st_mtime_ns, found.st_size
