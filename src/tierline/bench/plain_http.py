"""HTTP the way LMCache's client speaks it: one blocking keep-alive connection, bodies written in 64 KiB pieces."""

import socket
from types import TracebackType

from tierline.errors import TierlineError

PIECE_BYTES = 64 * 1024
_END_OF_HEAD = b"\r\n\r\n"


class PlainHttp:
    """A connection to ``127.0.0.1:port``."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30.0)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def request(
        self, method: str, path: str, body: memoryview | None = None, *, whole: bool = False
    ) -> tuple[int, bytes]:
        """Send a request and return the status and the body of its answer.

        Parameters
        ----------
        whole
            Hand the body to the kernel in one piece, which costs the sender least.

        Raises
        ------
        TierlineError
            When the connection ends before the answer does.
        """
        length = len(body) if body is not None else 0
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n"
        self._socket.sendall(head.encode())
        piece = max(length, 1) if whole else PIECE_BYTES
        for start in range(0, length, piece):
            assert body is not None
            self._socket.sendall(body[start : start + piece])
        return self._answer()

    def __enter__(self) -> "PlainHttp":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def _answer(self) -> tuple[int, bytes]:
        received = self._receive()
        while (reply := received_reply(received)) is None:
            received += self._receive()
        return reply

    def _receive(self) -> bytes:
        received = self._socket.recv(PIECE_BYTES)
        if not received:
            raise TierlineError("the node store closed a connection before its answer was whole")
        return received


def received_reply(received: bytes) -> tuple[int, bytes] | None:
    """Return the status and the body of a reply, or ``None`` while it is not whole."""
    head, end, body = received.partition(_END_OF_HEAD)
    if not end:
        return None
    lines = head.split(b"\r\n")
    length = sum(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:"))
    return (int(lines[0].split()[1]), body) if len(body) >= length else None
