"""The door of a node: one port at which other nodes come in, for control and for bulk.

Rule: nobody has a turn before the handshake is done, and as long as it is not, a connection is one of few, and for
seconds. Control connections are then the loop's, as streams; bulk connections have a thread each, with a blocking
socket. All of them end with :meth:`Door.serve`.
"""

import asyncio
import contextlib
import errno
import ipaddress
import math
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tierline import logs
from tierline.certificates import is_named
from tierline.errors import EnvironmentTooSmall, TierlineError, UsageError
from tierline.pool.connecting import drive_socket, drive_streams
from tierline.pool.handshake import GREETING_BYTES, Credentials, Greeting, Hello, Purpose, Steps, answer, parse_greeting
from tierline.pool.threads import give_way, shut_down, wait_to_the_end

log = logs.get(__name__)

BACKLOG = 1024
_PAUSE_S = 1.0
"""Before the next attempt where the process has no descriptors left."""
_WARNED_EVERY_S = 60.0
_LAST_WORDS_S = 1.0
"""What was written to a control connection may take so long to go."""


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """How many connections there may be.

    Parameters
    ----------
    opening, opening_per_address
        Whose handshake is not done, in all and from one address.
    control, bulk
        Whose handshake is done, by purpose.
    handshake_s
        Time for the handshake, TLS included.
    """

    opening: int = 256
    opening_per_address: int = 128
    control: int = 4096
    bulk: int = 512
    handshake_s: float = 5.0


DEFAULTS = DoorLimits()

ServeControl = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Hello], Awaitable[None]]
"""Serves one control connection; it is closed when this returns."""
ServeBulk = Callable[[socket.socket, Hello], None]
"""Serves one bulk connection, in a thread of its own; its socket is closed when this returns, and shut down before
where it has to end."""


def bind_door(host: str, port: int, credentials: Credentials, *, trusted_network: bool = False) -> socket.socket:
    """Return a bound socket for a door.

    Raises
    ------
    UsageError
        The host is no address, or others could reach it and nothing says that they are members.
    EnvironmentTooSmall
        The address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UsageError(f"--transfer-address: got {host!r}, which is no address: {error.strerror}") from error
    if credentials.is_open and not trusted_network and not ipaddress.ip_address(address[0]).is_loopback:
        raise UsageError(
            f"--transfer-address: {host} can be reached from other machines, and this node would give every object to "
            "whoever connects: give all nodes a --pool-token-file or certificates (--pool-tls-certificate), or set "
            "--trusted-network where a NetworkPolicy or a firewall decides who can connect (docs/security.md)"
        )
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise EnvironmentTooSmall(
            f"--transfer-address: {host}:{port} cannot be used: {error.strerror}; stop what uses it or choose another"
        ) from error
    return sock


class Door:
    """Lets other nodes in.

    Parameters
    ----------
    sock
        Bound, of :func:`bind_door`; closed by :meth:`serve`.
    own
        Who we are.
    credentials
        What members know each other by.
    serve_control, serve_bulk
        What is done with those who are in.
    objection
        Says why somebody who belongs to the pool may not come in for control all the same; empty: he may.
    limits
        How many may come.
    """

    def __init__(
        self,
        sock: socket.socket,
        own: Hello,
        credentials: Credentials,
        serve_control: ServeControl,
        serve_bulk: ServeBulk,
        limits: DoorLimits = DEFAULTS,
        objection: Callable[[Hello], str] = lambda _: "",
    ) -> None:
        self.refused = 0
        """Connections that came to nothing: no member's, or one too many."""
        self.inside: Counter[Purpose] = Counter()
        """Connections whose handshake is done."""
        self._sock = sock
        self._own = own
        self._credentials = credentials
        self._serve_control = serve_control
        self._serve_bulk = serve_bulk
        self._limits = limits
        self._objection = objection
        self._opening: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._bulk: set[socket.socket] = set()
        self._lock = threading.Lock()  # bulk connections come and go in threads
        self._is_closing = False
        self._warned = -math.inf

    def listen(self) -> None:
        """Let connections queue up; raises ``OSError`` where another socket listens on the address."""
        self._sock.setblocking(False)
        self._sock.listen(BACKLOG)

    async def serve(self) -> None:
        """Let nodes in until cancelled; then end their connections, and return when nobody uses one any more."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    sock, address = await loop.sock_accept(self._sock)
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                        raise
                    log.error("cannot accept a node", error=str(error))
                    await asyncio.sleep(_PAUSE_S)
                    continue
                self._begin(sock, address[0])
        finally:
            self._sock.close()
            with self._lock:
                self._is_closing = True
                for sock in self._bulk:
                    shut_down(sock)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, sock: socket.socket, address: str) -> None:
        with self._lock:
            is_full = (
                self._opening.total() >= self._limits.opening
                or self._opening[address] >= self._limits.opening_per_address
            )
            if not is_full:
                self._opening[address] += 1
        if is_full:
            sock.close()
            self._note_refusal(address, "too many connections whose handshake is not done")
            return
        task = asyncio.get_running_loop().create_task(self._receive(sock, _Visit(self, address)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _receive(self, sock: socket.socket, visit: "_Visit") -> None:
        try:
            try:
                async with asyncio.timeout(self._limits.handshake_s):
                    raw = await _receive_exactly(sock, GREETING_BYTES)
                greeting = parse_greeting(raw, is_tls=self._credentials.certificate is not None)
            except BaseException:
                sock.close()
                raise
            if greeting.purpose is Purpose.CONTROL:
                await self._control(sock, greeting, visit)
            else:
                await _to_the_end(lambda: self._bulk_connection(sock, greeting, visit))
        except (TierlineError, OSError, EOFError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            if not visit.was_inside:
                self._note_refusal(visit.address, str(error) or type(error).__name__)
            else:
                log.debug("a node's connection has ended", address=visit.address, error=str(error))
        finally:
            visit.end()

    async def _control(self, sock: socket.socket, greeting: Greeting, visit: "_Visit") -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        certificate = self._credentials.certificate
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=certificate.context if certificate is not None else None,
                ssl_handshake_timeout=self._limits.handshake_s if certificate is not None else None,
            )
        except BaseException:
            sock.close()
            raise
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            shown = transport.get_extra_info("peercert")
            async with asyncio.timeout(self._limits.handshake_s):
                peer = await drive_streams(self._answer(greeting, visit, shown), reader, writer)
            await self._serve_control(reader, writer, peer)
        finally:
            try:
                writer.close()
                with contextlib.suppress(OSError):
                    async with asyncio.timeout(_LAST_WORDS_S):
                        await writer.wait_closed()
            finally:
                transport.abort()

    def _bulk_connection(self, sock: socket.socket, greeting: Greeting, visit: "_Visit") -> None:
        certificate = self._credentials.certificate
        deadline = time.monotonic() + self._limits.handshake_s
        try:
            sock.settimeout(self._limits.handshake_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            shown = None
            if certificate is not None:
                sock = certificate.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            with self._lock:
                if self._is_closing:
                    return
                self._bulk.add(sock)
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
                shown = sock.getpeercert()
            peer = drive_socket(self._answer(greeting, visit, shown), sock, deadline)
            sock.settimeout(None)
            self._serve_bulk(sock, peer)
        finally:
            with self._lock:
                self._bulk.discard(sock)
            sock.close()

    def _answer(self, greeting: Greeting, visit: "_Visit", shown: Mapping[str, Any] | None) -> Steps:
        def objection(hello: Hello) -> str:
            if shown is not None and not self._is_certificate_of(shown, hello, visit.address):
                return f"the certificate that was shown names neither node {hello.node} nor {visit.address}"
            reason = self._objection(hello) if greeting.purpose is Purpose.CONTROL else ""
            return reason or visit.enter(greeting.purpose)

        return answer(greeting, self._own, self._credentials.token, objection)

    def _is_certificate_of(self, shown: Mapping[str, Any], hello: Hello, address: str) -> bool:
        wanted = [self._credentials.tls_name] if self._credentials.tls_name else [hello.node, address]
        return any(is_named(shown, name) for name in wanted)

    def _note_refusal(self, address: str, reason: str) -> None:
        self.refused += 1
        if time.monotonic() - self._warned >= _WARNED_EVERY_S:
            self._warned = time.monotonic()
            log.warning("a connection was turned away", address=address, reason=reason, so_far=self.refused)


class _Visit:
    """One connection as it is counted: at the door from its acceptance, inside from :meth:`enter`, until its end."""

    def __init__(self, door: Door, address: str) -> None:
        self.address = address
        self.was_inside = False
        self._door = door
        self._purpose: Purpose | None = None
        self._is_opening = True

    def enter(self, purpose: Purpose) -> str:
        """Be counted as inside; returns why that cannot be, or nothing."""
        door = self._door
        most = door._limits.control if purpose is Purpose.CONTROL else door._limits.bulk
        with door._lock:
            if door.inside[purpose] >= most:
                return f"{most} connections of this kind are open already"
            self._no_longer_opening()
            self.was_inside = True
            self._purpose = purpose
            door.inside[purpose] += 1
        return ""

    def end(self) -> None:
        """Be counted no longer."""
        with self._door._lock:
            self._no_longer_opening()
            if self._purpose is not None:
                self._door.inside[self._purpose] -= 1
                self._purpose = None

    def _no_longer_opening(self) -> None:
        if self._is_opening:
            self._is_opening = False
            opening = self._door._opening
            opening[self.address] -= 1
            if not opening[self.address]:
                del opening[self.address]


async def _to_the_end(work: Callable[[], None]) -> None:
    """Do something in a thread of its own; returns when it is done, also where we are cancelled meanwhile."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        try:
            give_way()
            work()
        except BaseException as error:  # noqa: BLE001  (who waits gets it)
            loop.call_soon_threadsafe(finish, error)
        else:
            loop.call_soon_threadsafe(finish, None)

    threading.Thread(target=run, name="bulk", daemon=True).start()
    try:
        await wait_to_the_end([done])
    finally:
        error = done.exception()
    if error is not None:
        raise error


async def _receive_exactly(sock: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = await asyncio.get_running_loop().sock_recv(sock, length - len(received))
        if not part:
            raise EOFError
        received += part
    return received
