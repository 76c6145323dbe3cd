"""What a client's connection asks of the program that it belongs to: the router, or the proxy beside a model.

Here are only interfaces, so that a program can have clients without having what the router has behind them.
"""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol

from tierline.router.http.heads import RequestHead
from tierline.router.keys import ApiKey, ApiKeys

if TYPE_CHECKING:
    from tierline.router.proxy.client import ClientConnection


class Limits(Protocol):
    """Settings of a client's connection; :class:`~tierline.router.config.RouterConfig` says what they mean."""

    @property
    def connections(self) -> int: ...  # noqa: D102
    @property
    def head_bytes(self) -> int: ...  # noqa: D102
    @property
    def body_bytes(self) -> int: ...  # noqa: D102
    @property
    def buffered_bytes(self) -> int: ...  # noqa: D102
    @property
    def request_timeout_s(self) -> float: ...  # noqa: D102
    @property
    def response_timeout_s(self) -> float: ...  # noqa: D102
    @property
    def stream_timeout_s(self) -> float: ...  # noqa: D102
    @property
    def idle_timeout_s(self) -> float: ...  # noqa: D102


class Counts(Protocol):
    """What a client's connection counts."""

    connections_refused: int
    """Connections above the limit."""

    def request_refused(self, status: int) -> None:
        """A request was refused before it was anybody's."""


class Serving(Protocol):
    """What all connections of a program share."""

    held_bytes: int
    """Of request bodies: grows as they arrive, shrinks when their cycle lets go of them."""
    is_draining: bool
    """Set once, when the program is told to stop: every response then ends its connection."""

    @property
    def config(self) -> Limits:
        """Its settings."""

    @property
    def metrics(self) -> Counts:
        """Where it counts."""

    @property
    def clock(self) -> Callable[[], float]:
        """Its clock, in seconds."""

    @property
    def clients(self) -> "set[ClientConnection]":
        """A client's connection enters when it is made and leaves when it is lost."""

    @property
    def keys(self) -> ApiKeys | None:
        """``None`` where nobody is asked for a key."""

    @property
    def wanted_fields(self) -> Collection[bytes]:
        """See :class:`~tierline.router.http.heads.RequestHead`."""

    @property
    def withheld_fields(self) -> Collection[bytes]:
        """See :class:`~tierline.router.http.heads.RequestHead`."""


class Cycle(Protocol):
    """What runs from a request to the end of its answer."""

    def start(self) -> None:
        """Begin; it ends with ``exchange_ended`` of its client's connection."""

    def expired(self) -> None:
        """The connection's deadline passed."""

    def end_if_begun_before(self, time: float) -> None:
        """End, if the request came before ``time``: it has had as long as one may have."""

    def client_gone(self) -> None:
        """The client closed its connection; nothing can be written any more."""

    def client_paused(self) -> None:
        """The client does not read as fast as it is written to."""

    def client_resumed(self) -> None:
        """The client caught up."""


Dispatch = Callable[["ClientConnection", RequestHead, bytes, int, ApiKey | None], Cycle | None]
"""From a request to what runs for it, or ``None`` where it was answered at once: its client's connection, its head, its
body, what that counts for in ``held_bytes``, and the key that it showed."""
