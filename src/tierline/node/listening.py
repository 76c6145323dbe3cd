"""HTTP connections from their acceptance on: counted in all and by address, encrypted where a certificate is given.

Rule: a connection is counted before anything is done for it, a TLS handshake above all, and until its socket is
closed. Who comes above the limit is told so with 503; above it by :data:`MOST_TURNED_AWAY`, or over TLS, the
connection is closed without a word.
"""

import asyncio
import contextlib
import errno
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tierline import logs
from tierline.certificates import Certificate

log = logs.get(__name__)

BACKLOG = 1024
MOST_TURNED_AWAY = 64
"""Connections above the limit that are being told so at a time."""
_AT_ONCE = 32
_PAUSE_S = 1.0
"""Before the next attempt where the process has no descriptors left."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections, in all and from one address, and how long one may take to be encrypted."""

    total: int
    per_address: int
    handshake_s: float


MakeProtocol = Callable[[str, Callable[[], None]], asyncio.BufferedProtocol]
"""Makes a connection's protocol. Told why it is turned away (empty: it is served), and what to call when it is gone."""


class ConnectionObserver(Protocol):
    """Hears of connections that came to nothing."""

    def limit_reached(self, limit: str) -> None:
        """Take note that a bound of the configuration, by its key, turned one away."""

    def handshake_failed(self) -> None:
        """Take note that TLS could not be agreed on."""


class Listener:
    """Accepts connections on one socket.

    Invariant: ``open`` is the number of accepted sockets that are not closed yet, by address.

    Parameters
    ----------
    sock
        Bound; :meth:`serve` makes it listen.
    make_protocol
        See :data:`MakeProtocol`.
    limits
        Bounds.
    certificate
        Encrypts the connections; ``None`` leaves them plain.
    observer
        Hears of those that came to nothing.
    """

    def __init__(
        self,
        sock: socket.socket,
        make_protocol: MakeProtocol,
        limits: ConnectionLimits,
        certificate: Certificate | None,
        observer: ConnectionObserver,
    ) -> None:
        self.open: Counter[str] = Counter()
        self._total = 0
        self._sock = sock
        self._make_protocol = make_protocol
        self._limits = limits
        self._certificate = certificate
        self._observer = observer
        self._starting: set[asyncio.Task[None]] = set()

    def listen(self) -> None:
        """Let connections queue up; raises ``OSError`` where another socket listens on the address."""
        self._sock.setblocking(False)
        self._sock.listen(BACKLOG)

    async def serve(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    sock, address = await loop.sock_accept(self._sock)
                    self._start(sock, address[0])
                    with contextlib.suppress(BlockingIOError):
                        for _ in range(_AT_ONCE):
                            self._start(*self._accept_waiting())
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                        raise
                    log.error("cannot accept a connection", error=str(error))
                    await asyncio.sleep(_PAUSE_S)
        finally:
            self._sock.close()
            for task in self._starting:
                task.cancel()

    def _accept_waiting(self) -> tuple[socket.socket, str]:
        sock, address = self._sock.accept()
        sock.setblocking(False)
        return sock, address[0]

    def _start(self, sock: socket.socket, address: str) -> None:
        reason = self._reason_against(address)
        if reason and (self._certificate is not None or self._total >= self._limits.total + MOST_TURNED_AWAY):
            sock.close()
            return
        self.open[address] += 1
        self._total += 1
        task = asyncio.get_running_loop().create_task(self._connect(sock, address, reason))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    def _reason_against(self, address: str) -> str:
        """Return why a connection from ``address`` is not served; empty where it is."""
        if self._total >= self._limits.total:
            self._observer.limit_reached("max_connections")
            return f"{self._limits.total} connections are open already"
        if self.open[address] >= self._limits.per_address:
            self._observer.limit_reached("max_connections_per_address")
            return f"{self._limits.per_address} connections from {address} are open already"
        return ""

    async def _connect(self, sock: socket.socket, address: str, reason: str) -> None:
        is_gone = False

        def gone() -> None:
            nonlocal is_gone
            if not is_gone:
                is_gone = True
                self._total -= 1
                self.open[address] -= 1
                if not self.open[address]:
                    del self.open[address]

        protocol = self._make_protocol(reason, gone)
        context = self._certificate.context if self._certificate is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=context,
                ssl_handshake_timeout=self._limits.handshake_s if context is not None else None,
            )
        except OSError as error:  # ssl.SSLError is one
            self._observer.handshake_failed()
            log.debug("a TLS handshake failed", address=address, error=str(error))
            sock.close()
            gone()
        except asyncio.CancelledError:
            sock.close()
            gone()
            raise
