"""The beginning of every connection between two nodes: what it is for, who both are, and that both belong to the pool.

::

    caller → door    magic, version, purpose, whether TLS comes next, nonce        in clear; then TLS, where it does
    door → caller    nonce, its hello, HMAC(token, "pool door" greeting nonce, hello)
    caller → door    its hello, HMAC(token, "pool caller" greeting nonce, hello)
    door → caller    nothing: welcome; or why it is turned away

Pure: a side's part is a generator that yields how many bytes it needs next, or bytes to send. So one text serves an
event loop, a thread and a fuzzer. Where the pool has no token the secret is empty, and whoever speaks the protocol
belongs to it. The token is proved and never sent; it does not encrypt what follows, which takes TLS.
"""

import os
import struct
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, NamedTuple, TypeAlias

import msgspec

from tierline.certificates import MutualCertificate
from tierline.errors import AccessDenied, WireError
from tierline.proofs import NONCE_BYTES, PROOF_BYTES, is_proved, prove

VERSION = 1
MAX_SAID_BYTES = 2048
_MAGIC = b"TIERPOOL"
_GREETING = struct.Struct(f"<{len(_MAGIC)}sBBB{NONCE_BYTES}s")
GREETING_BYTES = _GREETING.size
_LENGTH = struct.Struct("<H")
_DOOR, _CALLER = b"pool door", b"pool caller"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]

Steps: TypeAlias = "Generator[int | bytes, bytes, Hello]"
"""One side's part: yields the number of bytes that it needs, or bytes to send; returns who the other side is."""


class Purpose(IntEnum):
    """What a connection is for."""

    CONTROL = 1
    BULK = 2


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Who a node is.

    Parameters
    ----------
    node
        Its name in the pool.
    epoch
        Tells it from what it was before its last start.
    pool
        Name of the pool that it belongs to.
    """

    node: Name
    epoch: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    pool: Name


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the members of a pool know each other by.

    Parameters
    ----------
    token
        A secret that all of them know; empty: none.
    certificate
        What is shown to others, and who must have issued theirs; ``None``: without TLS.
    tls_name
        A name that every member's certificate has. Empty: a door's certificate names the host that was called, a
        caller's its node or the address that it calls from.
    """

    token: bytes = b""
    certificate: MutualCertificate | None = None
    tls_name: str = ""

    @property
    def is_open(self) -> bool:
        """Whether anybody who can connect may take part."""
        return not self.token and self.certificate is None


class Greeting(NamedTuple):
    """The first bytes of a connection, and what they say."""

    raw: bytes
    purpose: Purpose
    is_tls: bool


def greet(purpose: Purpose, *, is_tls: bool) -> Greeting:
    """Return the beginning of a new connection."""
    raw = _GREETING.pack(_MAGIC, VERSION, purpose, is_tls, os.urandom(NONCE_BYTES))
    return Greeting(raw, purpose, is_tls)


def parse_greeting(raw: bytes, *, is_tls: bool) -> Greeting:
    """Return what a caller's first bytes say.

    Parameters
    ----------
    is_tls
        Whether this pool has TLS: a caller must be of the same mind.

    Raises
    ------
    WireError
        They are no greeting, of another version, or for a pool that is encrypted otherwise.
    """
    magic, version, purpose, wants_tls, _ = _GREETING.unpack(raw)
    if magic != _MAGIC:
        raise WireError("not the greeting of a node")
    if version != VERSION:
        raise WireError(f"version {version} of the pool's protocol; this node speaks {VERSION}")
    if purpose not in (Purpose.CONTROL, Purpose.BULK) or wants_tls not in (0, 1):
        raise WireError("a greeting with a purpose that is none")
    if bool(wants_tls) != is_tls:
        raise WireError(
            f"a caller {'with' if wants_tls else 'without'} TLS; this pool is {'' if is_tls else 'not '}encrypted"
        )
    return Greeting(raw, Purpose(purpose), is_tls)


def call(greeting: Greeting, own: Hello, token: bytes) -> Steps:
    """The part of who has connected, after the greeting and TLS.

    Raises
    ------
    AccessDenied
        The door does not know the token, is another pool's, or turns us away.
    WireError
        What it says is no hello.
    """
    nonces = greeting.raw + (yield NONCE_BYTES)
    said, hello = yield from _receive_hello()
    if not is_proved((yield PROOF_BYTES), token, _DOOR, nonces, said):
        raise AccessDenied("it does not know this pool's token")
    _require_pool(hello, own)
    own_words = _say(own)
    yield own_words + prove(token, _CALLER, nonces, own_words)
    refusal = yield from _receive_said()
    if refusal:
        raise AccessDenied(f"it turns us away: {refusal.decode(errors='replace')}")
    return hello


def answer(greeting: Greeting, own: Hello, token: bytes, objection: Callable[[Hello], str]) -> Steps:
    """The part of who was connected to, after the greeting and TLS.

    Parameters
    ----------
    objection
        Says why a caller that belongs to the pool is turned away all the same; empty: it is not.

    Raises
    ------
    AccessDenied
        The caller does not know the token, is another pool's, or is objected to. It has been told so.
    WireError
        What it says is no hello.
    """
    nonce = os.urandom(NONCE_BYTES)
    nonces = greeting.raw + nonce
    own_words = _say(own)
    yield nonce + own_words + prove(token, _DOOR, nonces, own_words)
    said, hello = yield from _receive_hello()
    try:
        if not is_proved((yield PROOF_BYTES), token, _CALLER, nonces, said):
            raise AccessDenied("a caller that does not know this pool's token")
        _require_pool(hello, own)
        if reason := objection(hello):
            raise AccessDenied(reason)
    except AccessDenied as error:
        yield _frame(str(error).encode()[:MAX_SAID_BYTES])
        raise
    yield _frame(b"")
    return hello


def _require_pool(hello: Hello, own: Hello) -> None:
    if hello.pool != own.pool:
        raise AccessDenied(f"node {hello.node} belongs to pool {hello.pool!r}, and node {own.node} to {own.pool!r}")


def _frame(payload: bytes) -> bytes:
    return _LENGTH.pack(len(payload)) + payload


def _say(hello: Hello) -> bytes:
    return _frame(msgspec.msgpack.encode(hello))


def _receive_said() -> Generator[int | bytes, bytes, bytes]:
    [length] = _LENGTH.unpack((yield _LENGTH.size))
    if length > MAX_SAID_BYTES:
        raise WireError(f"{length} bytes in a handshake; allowed: {MAX_SAID_BYTES}")
    return (yield length) if length else b""


def _receive_hello() -> Generator[int | bytes, bytes, tuple[bytes, Hello]]:
    """Return a hello, and its bytes as they came."""
    payload = yield from _receive_said()
    try:
        return _frame(payload), msgspec.msgpack.decode(payload, type=Hello)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a node's hello: {error}") from error
