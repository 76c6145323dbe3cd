"""What every connection and every exchange of one router shares. Plain state; whoever changes it says so here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tierline.router.config import RouterConfig
from tierline.router.endpoints import Endpoints
from tierline.router.metrics import RouterMetrics
from tierline.router.sessions import SessionKeys
from tierline.router.strategies.base import Strategy

if TYPE_CHECKING:
    from tierline.router.proxy.client import ClientConnection
    from tierline.router.proxy.upstream import UpstreamPool

REQUEST_ID = b"x-request-id"


class RetryBudget:
    """Keeps retries from multiplying an overload: each request earns a fifth of a retry, up to ``RESERVE`` of them.

    Attempts that never reached an endpoint cost nothing: they load nobody.
    """

    EARNED = 0.2
    RESERVE = 100.0

    def __init__(self) -> None:
        self._saved = self.RESERVE

    def earn(self) -> None:
        """A request came in."""
        if self._saved < self.RESERVE:
            self._saved += self.EARNED

    def spend(self) -> bool:
        """Return whether a retry is paid for, and pay for it."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


@dataclass(slots=True)
class Services:
    """Shared by all of one router's connections."""

    config: RouterConfig
    endpoints: Endpoints
    strategy: Strategy
    metrics: RouterMetrics
    clock: Callable[[], float]
    pools: "dict[int, UpstreamPool]" = field(default_factory=dict)
    """By :attr:`Endpoint.position`."""
    budget: RetryBudget = field(default_factory=RetryBudget)
    clients: "set[ClientConnection]" = field(default_factory=set)
    """A client's connection enters when it is made and leaves when it is lost."""
    held_bytes: int = 0
    """Of request bodies: grows as they arrive, shrinks when their exchange lets go of them."""
    is_draining: bool = False
    """Set once, when the router is told to stop: every response then ends its connection."""
    sessions: SessionKeys = field(init=False)
    wanted_fields: frozenset[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = SessionKeys(self.config.session_keys)
        self.wanted_fields = frozenset((*self.sessions.headers, REQUEST_ID))
