"""Addresses as users write them: an engine's KV events, ``tcp://10.0.0.1:5557?replay=5558&ranks=8``; a controller's,
``unix:/run/controller.sock`` or ``10.0.0.1:9310``.
"""

import ipaddress
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

ALLOWED = (
    "an address like tcp://10.0.0.1:5557 or ipc:///run/events, and behind ? joined by &: replay=5558 (a port of the "
    "same host, or an address), ranks=8, topic=kv"
)


@dataclass(frozen=True)
class SourceAddress:
    """One publisher.

    Parameters
    ----------
    events, replay
        ZeroMQ addresses to connect to; no ``replay`` where it sends nothing again.
    topic
        Prefix of the topics to listen to.
    """

    events: str
    replay: str | None = None
    topic: str = ""


def parse_addresses(text: str) -> tuple[SourceAddress, ...]:
    """Return the publishers of one engine: one for each data-parallel rank, on ports that follow each other.

    Raises
    ------
    ValueError
        Saying what is allowed.

    >>> [source.replay for source in parse_addresses("tcp://h:5557?replay=5658&ranks=2")]
    ['tcp://h:5658', 'tcp://h:5659']
    """
    address, _, query = text.partition("?")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        ranks = int(options.pop("ranks", "1"))
        replay = options.pop("replay", None)
        topic = options.pop("topic", "")
        if options or not 1 <= ranks <= 1024:
            raise ValueError(ALLOWED)
        if replay is not None and replay.isdecimal():
            replay = f"tcp://{_host(address)}:{replay}"
        return tuple(
            SourceAddress(_of_rank(address, rank), None if replay is None else _of_rank(replay, rank), topic)
            for rank in range(ranks)
        )
    except ValueError:
        raise ValueError(ALLOWED) from None


def _host(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme != "tcp" or not parts.hostname:
        raise ValueError(ALLOWED)
    return parts.netloc.rpartition(":")[0]


def _of_rank(address: str, rank: int) -> str:
    """vLLM counts the port up for each rank."""
    parts = urlsplit(address)
    if not address.isascii() or not address.isprintable() or " " in address:
        raise ValueError(ALLOWED)
    if parts.scheme == "ipc" and parts.path and not rank:
        return address
    if parts.scheme != "tcp" or not parts.hostname or parts.hostname == "*" or not parts.port or parts.path:
        raise ValueError(ALLOWED)
    return f"tcp://{_host(address)}:{parts.port + rank}"


# Controllers ----------------------------------------------------------------------------------------------------------

CONTROLLER_ALLOWED = "an address like unix:/run/controller.sock or 10.0.0.1:9310"


@dataclass(frozen=True)
class ControllerAddress:
    """Where a controller listens: at ``path`` in the file system, or, where that is empty, at ``host`` and ``port``."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def stays_here(self) -> bool:
        """Whether only programs of this machine can connect there."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_controller(text: str) -> ControllerAddress:
    """Return the address; raises ``ValueError`` saying what is allowed.

    >>> parse_controller("[::1]:9310").port, parse_controller("unix:/run/c").path
    (9310, '/run/c')
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(CONTROLLER_ALLOWED)
        return ControllerAddress(path=path)
    try:
        parts = urlsplit(f"//{text}")
        if not parts.hostname or parts.port is None or parts.netloc != text or parts.username is not None:
            raise ValueError(CONTROLLER_ALLOWED)
    except ValueError:
        raise ValueError(CONTROLLER_ALLOWED) from None
    return ControllerAddress(host=parts.hostname, port=parts.port)
