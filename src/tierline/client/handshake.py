"""Opens a connection to a node: Hello out, Welcome and the segment's descriptor in. Blocking, against a deadline."""

import array
import os
import socket
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierline.client.mapping import SegmentMapping
from tierline.errors import AccessDenied, NodeUnavailable, WireError
from tierline.wire.framing import FrameDecoder, encode_frame
from tierline.wire.messages import PROTOCOL_VERSION, Failed, Hello, Welcome

_RECEIVE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Opened:
    """A welcomed connection; the caller owns the socket and the mapping."""

    sock: socket.socket
    welcome: Welcome
    mapping: SegmentMapping


def new_client_name() -> str:
    """Return a name that no other client has: program, host, process id and chance.

    Unique to one client and not to the process, for a second client under a name tells the node that nothing writes
    any more into the slots of the first.
    """
    return f"{Path(sys.argv[0] or 'python').name}@{socket.gethostname()}:{os.getpid()}.{uuid.uuid4().hex[:8]}"


def open_connection(
    socket_path: str | Path,
    client: str,
    *,
    writer: bool,
    timeout_s: float,
    token: str = "",
    segment: str = "",
    bucket: str = "",
) -> Opened:
    """Connect, greet and map.

    Raises
    ------
    NodeUnavailable
        Nobody listens there, or the node did not answer in time.
    AccessDenied
        The node asks for a token, or does not let this one in.
    WireError
        The node refuses this client, or speaks another version of the protocol.
    SegmentError
        The segment cannot be mapped.
    """
    deadline = time.monotonic() + timeout_s
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    descriptors: list[int] = []
    try:
        sock.settimeout(timeout_s)
        sock.connect(str(socket_path))
        sock.sendall(encode_frame(Hello(PROTOCOL_VERSION, client, writer, token, segment, bucket)))
        welcome = _receive_welcome(sock, descriptors, deadline)
        mapping = SegmentMapping(descriptors[0], welcome.segment_bytes, writable=writer)
    except OSError as error:
        sock.close()
        raise NodeUnavailable(
            f"no node store answers at {socket_path}: {error}; is `tierline node` running?"
        ) from error
    except BaseException:
        sock.close()
        raise
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return Opened(sock, welcome, mapping)


def _receive_welcome(sock: socket.socket, descriptors: list[int], deadline: float) -> Welcome:
    """Receive up to the node's first message; descriptors are appended as they come, also when this fails."""
    decoder: FrameDecoder[Any] = FrameDecoder(Welcome | Failed)  # type: ignore[arg-type]
    while True:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        received, ancillary, _, _ = sock.recvmsg(_RECEIVE_BYTES, socket.CMSG_LEN(array.array("i").itemsize))
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.extend(array.array("i", payload))
        if not received:
            raise NodeUnavailable("the node closed the connection before it welcomed us")
        for message in decoder.feed(received):
            if isinstance(message, Failed):
                raise (AccessDenied if message.code == AccessDenied.__name__ else WireError)(message.message)
            if message.version != PROTOCOL_VERSION:
                raise WireError(f"the node speaks version {message.version}; this client: {PROTOCOL_VERSION}")
            if not descriptors:
                raise WireError("the node sent no descriptor of its segment")
            return message  # type: ignore[no-any-return]
