"""Where routers tell each other what they do: addresses, and the secret that they share."""

from pathlib import Path

from tierline.errors import UsageError

MIN_SECRET_BYTES = 16


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; an IPv6 address is in brackets.

    Raises
    ------
    ValueError
        Saying what is allowed.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 <= int(port[:6]) <= 65535:
        raise ValueError("HOST:PORT, such as 10.0.0.7:8100 or [fd00::7]:8100")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ValueError("HOST:PORT, such as 10.0.0.7:8100 or [fd00::7]:8100")
    return host.strip("[]"), int(port)


def read_secret(file: Path | None) -> bytes:
    """Return what is in the file, without white space around it; nothing without a file.

    Raises
    ------
    UsageError
        It cannot be read, or is too short to be one.
    """
    if file is None:
        return b""
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"--gossip-secret-file: cannot read {file}: {error.strerror}") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise UsageError(f"--gossip-secret-file: {file} must hold a secret of {MIN_SECRET_BYTES} bytes or more")
    return secret
