"""One router's connection to the controller: greeted, then its lookups answered in the order they come.

Rules: until a peer has greeted as it must, it is kept no longer than ``GREETING_SECONDS`` and may send no more than a
greeting. Bytes that break the contract end the connection. A peer that does not take its answers is not read.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import cast

from tierline import logs
from tierline.errors import WireError
from tierline.router.controller.holdings import Holdings
from tierline.router.controller.token import Token
from tierline.router.events.addresses import parse_addresses
from tierline.router.events.messages import (
    CONTROLLER_VERSION,
    Follow,
    Hello,
    Lookup,
    Placed,
    Refused,
    Request,
    Welcome,
    Withdrawn,
)
from tierline.router.specs import plain_url
from tierline.wire.framing import FrameDecoder, encode_frame

log = logs.get(__name__)

GREETING_SECONDS = 5.0
GREETING_BYTES = 8192
LEFT_SECONDS = 10.0
"""How long a router that is gone still wants its endpoints: one that comes back finds what it left."""


@dataclass
class Answering:
    """What all connections share.

    Parameters
    ----------
    holdings
        What is known.
    epoch
        Of this life of the controller.
    token
        What routers must show over TCP; ``None`` for nothing.
    takes_endpoints
        Whether routers say which endpoints to listen to.
    most
        Connections at once.

    Attributes
    ----------
    connections
        Those that are open.
    refused
        Counter: connections that were not taken or were ended for what they sent, by the reason.
    messages
        Counter: what routers sent, by its kind.
    """

    holdings: Holdings
    epoch: int
    token: Token | None
    takes_endpoints: bool
    most: int
    connections: "set[RouterConnection]" = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    numbers: "count[int]" = field(default_factory=lambda: count(1))


class RouterConnection(asyncio.Protocol):
    """Serves one router.

    Parameters
    ----------
    answering
        What all connections share.
    needs_token
        Whether this one must show the token: a UNIX socket is protected by its file's mode.
    """

    def __init__(self, answering: Answering, *, needs_token: bool) -> None:
        self._answering = answering
        self._needs_token = needs_token
        self._transport: asyncio.Transport | None = None
        self._decoder: FrameDecoder[Hello | Request] = FrameDecoder(Hello | Request)  # type: ignore[arg-type]
        self._deadline: asyncio.TimerHandle | None = None
        self._wants = f"router {next(answering.numbers)}"
        self.client = ""
        """How it calls itself; empty until it has greeted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        if len(self._answering.connections) >= self._answering.most:
            self._refuse("connections", "the controller has as many connections as it may")
            return
        self._answering.connections.add(self)
        self._deadline = asyncio.get_running_loop().call_later(GREETING_SECONDS, self._refuse, "late", "no greeting")

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        assert self._transport is not None
        answers: list[bytes] = []
        try:
            for message in self._decoder.feed(data):
                if self._transport.is_closing():
                    return
                self._take(message, answers)
            if not self.client and self._decoder.buffered_bytes > GREETING_BYTES:
                raise WireError("a greeting that is too long")
        except WireError as error:
            self._refuse("malformed", str(error))
        if answers and not self._transport.is_closing():
            self._transport.write(b"".join(answers))

    def pause_writing(self) -> None:
        """See :class:`asyncio.Protocol`."""
        assert self._transport is not None
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """See :class:`asyncio.Protocol`."""
        assert self._transport is not None
        self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        """See :class:`asyncio.Protocol`."""
        self._greeted_or_gone()
        self._answering.connections.discard(self)
        if self.client:
            log.info("router left", client=self.client)
            asyncio.get_running_loop().call_later(LEFT_SECONDS, self._answering.holdings.want, self._wants, {})

    def abort(self) -> None:
        """End it now."""
        if self._transport is not None:
            self._transport.abort()

    # Messages ---------------------------------------------------------------------------------------------------------

    def _take(self, message: Hello | Request, answers: list[bytes]) -> None:
        if not self.client:
            self._greet(message, answers)
            return
        self._answering.messages[type(message).__name__.lower()] += 1
        holdings = self._answering.holdings
        match message:
            case Lookup():
                answers.append(encode_frame(holdings.answer(message)))
            case Placed():
                holdings.expect(message)
            case Withdrawn():
                holdings.unexpect(message)
            case Follow():
                if self._answering.takes_endpoints:
                    holdings.want(self._wants, _addresses(message))
            case Hello():
                raise WireError("a second greeting")

    def _greet(self, message: Hello | Request, answers: list[bytes]) -> None:
        answering = self._answering
        if not isinstance(message, Hello):
            raise WireError("a request before the greeting")
        if self._needs_token and not (answering.token and answering.token.is_shown(message.token)):
            self._refuse("token", "the token is not the one that is asked for")
        elif message.version != CONTROLLER_VERSION:
            self._refuse("version", f"this controller speaks version {CONTROLLER_VERSION} of the protocol")
        else:
            self.client = message.client
            self._greeted_or_gone()
            answers.append(encode_frame(Welcome(CONTROLLER_VERSION, answering.epoch)))
            log.info("router asks", client=self.client)

    def _greeted_or_gone(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, code: str, why: str) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        self._answering.refused[code] += 1
        log.warning("a router's connection is ended", code=code, why=why, client=self.client)
        self._transport.write(encode_frame(Refused(code, why)))
        self._transport.close()


def _addresses(message: Follow) -> dict[str, str]:
    """Return the addresses of events by endpoint; raises ``WireError`` for what is none."""
    found = {}
    for followed in message.endpoints:
        try:
            parse_addresses(followed.kv_events)
            found[plain_url(followed.endpoint)] = followed.kv_events
        except ValueError as error:
            raise WireError(f"an endpoint that cannot be listened to; allowed: {error}") from None
    return found
