"""What every connection and every relay of one proxy shares. Plain state; whoever changes it says so here."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tierline.proxy.capture import Capture
from tierline.proxy.config import ProxyConfig
from tierline.proxy.metrics import ProxyMetrics
from tierline.router.admission import Admission
from tierline.router.endpoints import Endpoint
from tierline.router.keys import ApiKeys
from tierline.router.pairs import X_TIERLINE_WEIGHTS
from tierline.router.proxy.upstream import UpstreamPool
from tierline.router.tls import EndpointTls

if TYPE_CHECKING:
    from tierline.proxy.departing import Departure
    from tierline.router.proxy.client import ClientConnection

CONTENT_TYPE, REQUEST_ID = b"content-type", b"x-request-id"


@dataclass(slots=True)
class ProxyServices:
    """Shared by all connections of a proxy; see :class:`~tierline.router.proxy.serving.Serving`."""

    config: ProxyConfig
    metrics: ProxyMetrics
    clock: Callable[[], float]
    capture: Capture | None = None
    """``None`` where nothing is recorded."""
    clients: "set[ClientConnection]" = field(default_factory=set)
    departures: "set[Departure]" = field(default_factory=set)
    """Who waits to be told that no invocation runs."""
    held_bytes: int = 0
    is_draining: bool = False
    keys: ApiKeys | None = None
    """The router asks for keys; who reaches a pod is its network's to say."""
    wanted_fields: Collection[bytes] = frozenset({CONTENT_TYPE, REQUEST_ID, X_TIERLINE_WEIGHTS})
    withheld_fields: Collection[bytes] = frozenset()
    model: Endpoint = field(init=False)
    pool: UpstreamPool = field(init=False)
    admission: Admission | None = None
    """``None`` where nothing is limited."""

    def __post_init__(self) -> None:
        config = self.config
        self.model = Endpoint(config.upstream, 0)
        self.pool = UpstreamPool(
            self.model,
            connect_timeout_s=config.connect_timeout_s,
            head_bytes=config.head_bytes,
            tls=EndpointTls(None, None, None),
            clock=self.clock,
        )
        if config.max_concurrent_requests:
            self.admission = Admission(config.max_concurrent_requests, config.max_queue_size, lambda _: True)
