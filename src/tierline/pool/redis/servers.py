"""Connections to Redis servers, and which server has which key: one, a cluster's, or the master that sentinels name.

Rule: a connection is used by one thread at a time and goes back only after all its replies were read; after anything
else it is closed. There are as many as threads use at once.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import redis
from redis.crc import key_slot
from redis.exceptions import RedisError, ResponseError

from tierline.breaker import Breaker
from tierline.errors import WireError
from tierline.pool.redis.replies import Reader
from tierline.pool.redis.settings import RedisSettings
from tierline.pool.urls import Address

FAULTS = (RedisError, OSError, WireError)
"""What a server or the network can do to a connection; a refusal among the replies is none, and leaves it well."""

_STEP_S = 1.0
_CLUSTER_SLOTS = 16_384


T = TypeVar("T")


class Wire(NamedTuple):
    """A connection for bulk and what reads it."""

    connection: Any
    reader: Reader


class Server:
    """One server.

    Parameters
    ----------
    clock
        Monotonic seconds, for the breaker.

    Attributes
    ----------
    address
        Where it is.
    breaker
        Whether it may be asked.
    """

    def __init__(self, address: Address, settings: RedisSettings, clock: Callable[[], float]) -> None:
        self.address = address
        self.breaker = Breaker(clock)
        self._settings = settings
        self._lock = threading.Lock()
        self._idle: dict[str, list[Any]] = {"lookup": [], "bulk": []}

    @contextmanager
    def lookup(self) -> Iterator[Any]:
        """Lend a connection of redis-py's own, with hiredis where that is installed: for many small replies."""
        with self._lent("lookup", lambda: connect(self.address, self._settings)) as connection:
            yield connection

    @contextmanager
    def bulk(self) -> Iterator[Wire]:
        """Lend a connection whose replies are read into pages; it is connected."""
        with self._lent("bulk", self._connect_bulk) as wire:
            yield wire

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle = [one for kind in self._idle.values() for one in kind]
            for kind in self._idle.values():
                kind.clear()
        for one in idle:
            _disconnect(one)

    def _connect_bulk(self) -> Wire:
        reader = Reader()
        return Wire(connect(self.address, self._settings, parser_class=lambda **_: reader), reader)

    @contextmanager
    def _lent(self, kind: str, make: Callable[[], Any]) -> Iterator[Any]:
        one = self._take(kind) or make()
        try:
            yield one
        except BaseException:
            _disconnect(one)
            raise
        with self._lock:
            self._idle[kind].append(one)

    def _take(self, kind: str) -> Any | None:
        while True:
            with self._lock:
                if not self._idle[kind]:
                    return None
                one = self._idle[kind].pop()
            if _is_quiet(one):
                return one
            _disconnect(one)


def connect(address: Address, settings: RedisSettings, **options: object) -> Any:
    """Return a connection of redis-py that is logged in; a server has a second for each step of that.

    It cannot be interrupted meanwhile, so the time for bulk, which may be long, is given to it later.
    """
    encryption = {}
    if settings.is_tls:
        encryption = {
            "ssl_ca_certs": None if settings.tls_ca is None else str(settings.tls_ca),
            "ssl_certfile": None if settings.tls_certificate is None else str(settings.tls_certificate),
            "ssl_keyfile": None if settings.tls_key is None else str(settings.tls_key),
        }
    connection = (redis.SSLConnection if settings.is_tls else redis.Connection)(
        host=address.host,
        port=address.port,
        db=settings.database,
        username=settings.username or None,
        password=settings.password or None,
        client_name="tierline",
        protocol=2,
        socket_timeout=_STEP_S,
        socket_connect_timeout=_STEP_S,
        **encryption,
        **options,
    )
    connection.connect()
    return connection


def perform(connection: Any, commands: Sequence[Sequence[bytes | str | int]]) -> list[Any]:
    """Send commands in one write and return the replies; what the server refuses is a ``ResponseError`` among them."""
    connection.send_packed_command(connection.pack_commands(commands))
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(connection.read_response(disable_decoding=True))
        except ResponseError as error:
            replies.append(error)
    return replies


class Servers:
    """Which server has a key, by what the servers say.

    Until something is known, and where a cluster's slot is with nobody, no server has a key. Reads are lock-free: a
    table is replaced as a whole.

    Parameters
    ----------
    clock
        Monotonic seconds, for the servers' breakers.

    Attributes
    ----------
    is_fixed
        There is one server, and nobody to ask.
    """

    def __init__(self, settings: RedisSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._servers: dict[Address, Server] = {}
        self._of_slot: list[Server | None] = [None] * _CLUSTER_SLOTS
        self._one: Server | None = None
        self.is_fixed = settings.deployment == "single"
        if self.is_fixed:
            self._one = self._server(settings.addresses[0])

    def of(self, key: bytes) -> Server | None:
        """Return the server that has a key."""
        return self._one if self._settings.deployment != "cluster" else self._of_slot[key_slot(key)]

    def refresh(self) -> None:
        """Ask who is who; blocks, for a second for each that does not answer.

        Raises
        ------
        RedisError, OSError, WireError
            What the last one did that was asked, when none has answered.
        """
        if self._settings.deployment == "sentinel":
            self._one = self._server(self._ask_sentinels())
            kept = {self._one.address}
        else:
            ranges = self._ask_cluster()
            table: list[Server | None] = [None] * _CLUSTER_SLOTS
            for first, last, address in ranges:
                table[first : last + 1] = [self._server(address)] * (last + 1 - first)
            self._of_slot = table
            kept = {address for _, _, address in ranges}
        for address in self._servers.keys() - kept:
            self._servers.pop(address).close()

    def all(self) -> Sequence[Server]:
        """Return the servers that are known."""
        return list(self._servers.values())

    def close(self) -> None:
        """Close the connections that nobody uses."""
        for server in self.all():
            server.close()

    def _server(self, address: Address) -> Server:
        return self._servers.setdefault(address, Server(address, self._settings, self._clock))

    def _ask_cluster(self) -> Sequence[tuple[int, int, Address]]:
        def ask(address: Address) -> Sequence[tuple[int, int, Address]]:
            slots = _asked(connect(address, self._settings, parser_class=_new_reader), ["CLUSTER", "SLOTS"])
            found = []
            for first, last, primary, *_ in slots:
                # An empty host, or none, stands for the one that was asked.
                host = (primary[0] or b"").decode() or address.host
                found.append((first, last, Address(host, primary[1])))
            return found

        return self._first_answer([*self._servers, *self._settings.addresses], ask)

    def _ask_sentinels(self) -> Address:
        asking = RedisSettings(
            shown="",
            deployment="single",
            addresses=self._settings.addresses,
            password=self._settings.sentinel_password,
            is_tls=self._settings.is_tls,
            tls_ca=self._settings.tls_ca,
            tls_certificate=self._settings.tls_certificate,
            tls_key=self._settings.tls_key,
        )

        def ask(address: Address) -> Address:
            connection = connect(address, asking, parser_class=_new_reader)
            master = _asked(connection, ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._settings.master])
            if master is None:
                raise WireError(f"no master {self._settings.master!r} is known to the sentinel {address}")
            return Address(master[0].decode(), int(master[1]))

        return self._first_answer(self._settings.addresses, ask)

    def _first_answer(self, addresses: Sequence[Address], ask: Callable[[Address], T]) -> T:
        failed: Exception | None = None
        for address in dict.fromkeys(addresses):
            try:
                return ask(address)
            except FAULTS as error:
                failed = error
        assert failed is not None
        raise failed


def _new_reader(**_: object) -> Reader:
    return Reader()


def _asked(connection: Any, command: Sequence[str]) -> Any:
    """Send one command over a connection of its own and return the reply."""
    try:
        (reply,) = perform(connection, [command])
    finally:
        connection.disconnect()
    if isinstance(reply, ResponseError):
        raise reply
    return reply


def _is_quiet(one: Any) -> bool:
    """Whether a connection that was idle is still there, and has received nothing meanwhile."""
    try:
        return not (one.connection if isinstance(one, Wire) else one).can_read()
    except FAULTS:
        return False


def _disconnect(one: Any) -> None:
    (one.connection if isinstance(one, Wire) else one).disconnect()
