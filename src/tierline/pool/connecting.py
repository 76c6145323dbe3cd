"""Connections to other nodes: asyncio streams for control, blocking sockets for bulk; handed out once both agreed.

Rule: whatever goes wrong before that is one of two errors, and no socket is left open.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from typing import NamedTuple, TypedDict

from tierline.errors import AccessDenied, NodeUnavailable, WireError
from tierline.pool.handshake import Credentials, Greeting, Hello, Purpose, Steps, call, greet
from tierline.pool.members import Member


class ControlConnection(NamedTuple):
    """An agreed connection for control, and who is at its other end."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    peer: Hello


class BulkConnection(NamedTuple):
    """An agreed connection for bulk, and who is at its other end. The socket blocks, and knows no time limit."""

    sock: socket.socket
    peer: Hello


async def connect_control(member: Member, own: Hello, credentials: Credentials, within_s: float) -> ControlConnection:
    """Connect and shake hands.

    Raises
    ------
    NodeUnavailable
        It cannot be reached, says what is no handshake, or takes longer than ``within_s``.
    AccessDenied
        It is not of this pool, or turns us away.
    """
    greeting = greet(Purpose.CONTROL, is_tls=credentials.certificate is not None)
    with _in_plain_words(member):
        async with asyncio.timeout(within_s):
            sock = await _connected(member, greeting)
            try:
                reader, writer = await asyncio.open_connection(sock=sock, **_tls(member, credentials))
            except BaseException:
                sock.close()
                raise
            try:
                peer = await drive_streams(call(greeting, own, credentials.token), reader, writer)
            except BaseException:
                writer.transport.abort()
                raise
    return ControlConnection(reader, writer, peer)


def connect_bulk(member: Member, own: Hello, credentials: Credentials, within_s: float) -> BulkConnection:
    """Connect and shake hands, in a thread; errors as of :func:`connect_control`."""
    deadline = time.monotonic() + within_s
    greeting = greet(Purpose.BULK, is_tls=credentials.certificate is not None)
    with _in_plain_words(member):
        sock = socket.create_connection((member.host, member.port), timeout=within_s)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(greeting.raw)
            if credentials.certificate is not None:
                sock.settimeout(remaining(deadline))
                context, name = credentials.certificate.client_context, credentials.tls_name or member.host
                sock = context.wrap_socket(sock, server_hostname=name)
            peer = drive_socket(call(greeting, own, credentials.token), sock, deadline)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
    return BulkConnection(sock, peer)


async def drive_streams(steps: Steps, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Hello:
    """Carry out one side's part of a handshake on streams; raises as it does, and ``EOFError`` where the other ends."""
    given = b""
    with contextlib.closing(steps):
        while True:
            try:
                wish = steps.send(given) if given else next(steps)
            except StopIteration as end:
                return _hello_of(end)
            if isinstance(wish, int):
                given = await reader.readexactly(wish)
            else:
                writer.write(wish)
                given = b""


def drive_socket(steps: Steps, sock: socket.socket, deadline: float) -> Hello:
    """Carry out one side's part on a socket, to its end at ``deadline``; as :func:`drive_streams`."""
    given = b""
    with contextlib.closing(steps):
        while True:
            try:
                wish = steps.send(given) if given else next(steps)
            except StopIteration as end:
                return _hello_of(end)
            if isinstance(wish, int):
                given = _receive_exactly(sock, wish, deadline)
            else:
                sock.settimeout(remaining(deadline))
                sock.sendall(wish)
                given = b""


def remaining(deadline: float) -> float:
    """Return the seconds until then; raises ``TimeoutError`` where there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _hello_of(end: StopIteration) -> Hello:
    assert isinstance(end.value, Hello)
    return end.value


def _receive_exactly(sock: socket.socket, length: int, deadline: float) -> bytes:
    received = b""
    while len(received) < length:
        sock.settimeout(remaining(deadline))
        part = sock.recv(length - len(received))
        if not part:
            raise EOFError
        received += part
    return received


async def _connected(member: Member, greeting: Greeting) -> socket.socket:
    """Return a socket that has sent the greeting, which goes in clear before anything else."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(member.host, member.port, type=socket.SOCK_STREAM)
    for place, (family, kind, protocol, _, address) in enumerate(found, start=1):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
            await loop.sock_sendall(sock, greeting.raw)
        except OSError:
            sock.close()
            if place == len(found):
                raise
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise OSError("its name has no address")


class _Tls(TypedDict, total=False):
    ssl: ssl.SSLContext
    server_hostname: str


def _tls(member: Member, credentials: Credentials) -> _Tls:
    if credentials.certificate is None:
        return {}
    return {
        "ssl": credentials.certificate.client_context,
        "server_hostname": credentials.tls_name or member.host,
    }


@contextlib.contextmanager
def _in_plain_words(member: Member) -> Iterator[None]:
    """Turn what goes wrong inside into what is told of it."""
    try:
        yield
    except AccessDenied as error:
        raise AccessDenied(f"node {member}: {error}") from None
    except TimeoutError:
        raise NodeUnavailable(f"node {member}: no answer in time") from None
    except EOFError:
        reason = "it closed the connection in the handshake; its log says why"
        raise NodeUnavailable(f"node {member}: {reason}") from None
    except ssl.SSLCertVerificationError as error:
        raise NodeUnavailable(f"node {member}: its certificate is refused: {error.verify_message}") from None
    except (WireError, OSError, UnicodeError) as error:  # the last: of a host that is no name
        raise NodeUnavailable(f"node {member}: {error}") from None
