"""URLs of tiers: ``SCHEME://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]…]/PATH?OPTION=VALUE&…``.

Rules: every option is known, or the URL is refused with the ones that are; a password is never part of what is shown.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from tierline.configuration import parse_byte_size
from tierline.errors import ConfigurationError

T = TypeVar("T")


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class TierUrl:
    """A URL taken apart; whoever reads it takes its options, then calls :meth:`require_all_taken`.

    Attributes
    ----------
    scheme, host, path
        As written, the host with its port or all of them; the path is decoded, and empty or begins with a slash.
    username, password
        Empty where there is none.
    shown
        The URL for people, without its password.

    Raises
    ------
    ConfigurationError
        It has no scheme, an option twice, or one without a value.
    """

    def __init__(self, url: str) -> None:
        try:
            split = urlsplit(url)
        except ValueError:
            raise ConfigurationError("tiers", "…", "URLs; this one cannot be read") from None
        self.scheme = split.scheme
        login, _, self.host = split.netloc.rpartition("@")
        username, _, password = login.partition(":")
        self.username, self.password = unquote(username), unquote(password)
        self.path = unquote(split.path)
        shown_login = f"{username}:…@" if password else f"{username}@" if username else ""
        self.shown = url.replace(split.netloc, f"{shown_login}{self.host}", 1)
        if ":" in self.host and "@" in url.partition(split.netloc)[2]:
            # A password with '/', '?' or '#' that should have been encoded: what looks like a port may be part of it.
            self.shown = f"{split.scheme}://…"
        if not self.scheme:
            raise ConfigurationError("tiers", self.shown, "a URL that begins with its scheme")
        self._options: dict[str, str] = {}
        self._known: list[str] = []
        for name, value in parse_qsl(split.query, keep_blank_values=True):
            if name in self._options or not value:
                raise self.refused(f"each option once, with a value; look at {_shown(name)}")
            self._options[name] = value

    def refused(self, allowed: str) -> ConfigurationError:
        """Return the error that says what is allowed instead."""
        return ConfigurationError("tiers", self.shown, allowed)

    def addresses(self, default_port: int) -> Sequence[Address]:
        """Return the servers that are named, at least one."""
        found = []
        for written in self.host.split(","):
            host, separator, port = written.rpartition(":")
            if not separator or written.endswith("]"):
                host, port = written, str(default_port)
            host = host.strip("[]")
            if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
                raise self.refused("HOST or HOST:PORT, with commas between several")
            found.append(Address(host, int(port)))
        return found

    def take(self, name: str, parse: Callable[[str], T], default: T) -> T:
        """Return an option; ``parse`` raises ``ValueError`` with what is allowed as its message."""
        self._known.append(name)
        written = self._options.get(name)
        if written is None:
            return default
        try:
            return parse(written)
        except ValueError as error:
            raise self.refused(f"{name}={error}") from None

    def take_secret(self, name: str) -> str:
        """Return the first line of the file that an option names; empty without the option."""
        path = self.take(name, existing_file, None)
        if path is None:
            return ""
        try:
            return path.read_text().partition("\n")[0].strip()
        except OSError as error:
            raise self.refused(f"{name}=a file that can be read ({error.strerror})") from None

    def require_all_taken(self) -> None:
        """Refuse options that nobody took."""
        unknown = [name for name in self._options if name not in self._known]
        if unknown:
            known = ", ".join(sorted(self._known)) or "none"
            raise self.refused(f"the options {known} of {self.scheme}://; not {_shown(unknown[0])}")


def _shown(name: str) -> str:
    """Return an option's name, unless it may be the rest of a password that should have been encoded."""
    return "…" if "@" in name else name


def number(low: float, high: float) -> Callable[[str], float]:
    """Return a parser of numbers between two bounds."""

    def parse(written: str) -> float:
        try:
            value = float(written)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return value

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers between two bounds."""

    def parse(written: str) -> int:
        if not written.isascii() or not written.isdigit() or not low <= int(written) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(written)

    return parse


def byte_size(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of sizes such as ``4MiB`` between two bounds."""

    def parse(written: str) -> int:
        size = parse_byte_size(written)
        if not low <= size <= high:
            raise ValueError(f"a size from {low} to {high} bytes")
        return size

    return parse


def word(written: str) -> str:
    """Return letters, digits, ``-`` and ``_``."""
    if not written.replace("-", "").replace("_", "").isalnum():
        raise ValueError("letters, digits, '-' and '_'")
    return written


def existing_file(written: str) -> Path:
    """Return the path of a file that is there."""
    path = Path(written)
    if not path.is_file():
        raise ValueError("the path of a file that exists")
    return path
