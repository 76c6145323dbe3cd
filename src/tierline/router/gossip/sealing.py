"""How two routers prove a secret to each other, and seal each message with it. Pure: bytes in, bytes out.

Who listens (the *follower*) connects; who tells (the *teller*) answers; then only the teller speaks::

    follower → teller    magic, nonce of the follower
    teller → follower    magic, nonce of the teller, its name, HMAC(secret, "teller" both nonces, name)
    follower → teller    its name, wish, HMAC(secret, "follower" both nonces, name, wish)
    teller → follower    frames, each with a seal

A seal is HMAC-SHA256 of the frame and its number, cut to 16 bytes, with a key made of the secret and both nonces. So a
message that is changed, left out, repeated, or of another connection fits nowhere, and ends the connection. Nothing is
encrypted: what is told are hashes (:mod:`tierline.router.workers.messages`).
"""

import hmac
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from tierline.errors import WireError
from tierline.proofs import NONCE_BYTES, PROOF_BYTES, connection_key, is_proved, prove
from tierline.router.workers.messages import MAX_KNOWLEDGE_BYTES, FrameReader, Kind, frame

MAGIC = b"tierlin1"
NAME_BYTES = SEAL_BYTES = 16
HELLO_BYTES = len(MAGIC) + NONCE_BYTES
WELCOME_BYTES = len(MAGIC) + NONCE_BYTES + NAME_BYTES + PROOF_BYTES
JOIN_BYTES = NAME_BYTES + 1 + PROOF_BYTES
_NUMBER = struct.Struct("<Q")


class Joined(NamedTuple):
    """A follower that proved the secret."""

    name: bytes
    wants_recent: bool
    """It wants to be told what was told before it came."""


class Sealer:
    """Seals what one side of one connection says, or checks the seals of the other."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    def seal(self, data: bytes) -> bytes:
        """Return the seal of the next frame."""
        digest = hmac.digest(self._key, _NUMBER.pack(self._number) + data, "sha256")
        self._number += 1
        return digest[:SEAL_BYTES]

    def sealed(self, kind: Kind, payload: bytes) -> bytes:
        """Return the next frame with its seal."""
        data = frame(kind, payload)
        return frame(kind, payload + self.seal(data))


class SealedReader:
    """Takes a stream of sealed frames apart."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self._frames = FrameReader(MAX_KNOWLEDGE_BYTES + SEAL_BYTES)

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Yield the frames that are whole now and whose seals fit.

        Raises
        ------
        WireError
            One does not.
        """
        for kind, content in self._frames.feed(data):
            payload, seal = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
            if not hmac.compare_digest(seal, self._sealer.seal(frame(kind, payload))):
                raise WireError("a message whose seal does not fit")
            yield kind, payload


class Teller:
    """The teller's part of the beginning."""

    def __init__(self, secret: bytes, name: bytes) -> None:
        self._secret = secret
        self._name = name
        self._nonces = b""

    def welcome(self, hello: bytes) -> bytes:
        """Return the answer to a follower's first message; raises :class:`WireError` where it is none."""
        if len(hello) != HELLO_BYTES or not hello.startswith(MAGIC):
            raise WireError("not the greeting of a router")
        nonce = os.urandom(NONCE_BYTES)
        self._nonces = hello[len(MAGIC) :] + nonce
        return MAGIC + nonce + self._name + prove(self._secret, b"teller", self._nonces, self._name)

    def join(self, message: bytes) -> tuple[Joined, Sealer]:
        """Return who has joined, and what seals the frames; raises :class:`WireError` without a proof."""
        said, proof = message[: -PROOF_BYTES or None], message[-PROOF_BYTES:]
        if not is_proved(proof, self._secret, b"follower", self._nonces, said):
            raise WireError("a router that does not know the secret")
        return Joined(said[:NAME_BYTES], said[NAME_BYTES:] == b"\x01"), Sealer(
            connection_key(self._secret, self._nonces)
        )


class Follower:
    """The follower's part of the beginning."""

    def __init__(self, secret: bytes, name: bytes) -> None:
        self._secret = secret
        self._name = name
        self._nonce = os.urandom(NONCE_BYTES)

    def hello(self) -> bytes:
        """Return the first message."""
        return MAGIC + self._nonce

    def join(self, welcome: bytes, *, wants_recent: bool) -> tuple[bytes, bytes, SealedReader]:
        """Return the teller's name, the answer to its welcome, and what reads its frames.

        Raises
        ------
        WireError
            It does not know the secret, or is no router.
        """
        at = len(MAGIC) + NONCE_BYTES
        nonces, name = self._nonce + welcome[len(MAGIC) : at], welcome[at : at + NAME_BYTES]
        if not welcome.startswith(MAGIC):
            raise WireError("not the greeting of a router")
        if not is_proved(welcome[at + NAME_BYTES :], self._secret, b"teller", nonces, name):
            raise WireError("a router that does not know the secret")
        said = self._name + (b"\x01" if wants_recent else b"\x00")
        answer = said + prove(self._secret, b"follower", nonces, said)
        return name, answer, SealedReader(Sealer(connection_key(self._secret, nonces)))
