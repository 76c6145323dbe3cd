"""Where an engine publishes its KV events, as users write it: ``tcp://10.0.0.1:5557?replay=5558&ranks=8``."""

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
