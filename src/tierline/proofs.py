"""A secret that programs share: how it is read from a file, and proved to each other without being shown.

Rule: what is proved is a *role* and everything that was said, nonces of both sides among it. No role is the beginning
of another. So no proof is of use in another connection, in the other direction, or for other words.
"""

import hashlib
import hmac
from pathlib import Path

from tierline.errors import UsageError

NONCE_BYTES = 16
PROOF_BYTES = 32
MIN_SECRET_BYTES = 16


def prove(secret: bytes, role: bytes, nonces: bytes, said: bytes) -> bytes:
    """Return what only somebody who knows the secret can say: HMAC-SHA256 of the rest, under the secret's digest."""
    return hmac.digest(hashlib.sha256(secret).digest(), role + nonces + said, "sha256")


def is_proved(proof: bytes, secret: bytes, role: bytes, nonces: bytes, said: bytes) -> bool:
    """Whether ``proof`` is what :func:`prove` returns; takes as long for a wrong one as for the right one."""
    return hmac.compare_digest(proof, prove(secret, role, nonces, said))


def connection_key(secret: bytes, nonces: bytes) -> bytes:
    """Return a key that only the two sides of one connection have."""
    return prove(secret, b"key", nonces, b"")


def read_secret(file: Path | None, option: str) -> bytes:
    """Return what is in the file, without white space around it; nothing without a file.

    Parameters
    ----------
    option
        What names the file, for messages.

    Raises
    ------
    UsageError
        It cannot be read, or is too short to be a secret.
    """
    if file is None:
        return b""
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"{option}: cannot read {file}: {error.strerror}") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise UsageError(f"{option}: {file} must hold a secret of {MIN_SECRET_BYTES} bytes or more")
    return secret
