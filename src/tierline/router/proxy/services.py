"""What every connection and every exchange of one router shares. Plain state; whoever changes it says so here."""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tierline.certificates import Certificate
from tierline.router.admin.access import WANTED_FIELDS
from tierline.router.admission import Admission
from tierline.router.aliases import AliasWatch
from tierline.router.budget import Budget
from tierline.router.choosing import Choosing
from tierline.router.config import RouterConfig
from tierline.router.decisions import DecisionLog
from tierline.router.endpointkeys import EndpointKeys
from tierline.router.endpoints import Endpoint, Endpoints
from tierline.router.hedging import Hedging
from tierline.router.keys import AUTHORIZATION, X_API_KEY, ApiKeys
from tierline.router.metrics import RouterMetrics
from tierline.router.modelrules import parse_pairs
from tierline.router.pairs import X_TIERLINE_WEIGHTS
from tierline.router.prompt import RequestFields
from tierline.router.renaming import with_model
from tierline.router.sessions import SessionKeys
from tierline.router.tls import EndpointTls
from tierline.router.tokens import TokenLadder
from tierline.tracing.context import TRACEPARENT, TRACESTATE

if TYPE_CHECKING:
    from tierline.router.admin.api import AdminApi
    from tierline.router.dashboard.watching import Dashboard
    from tierline.router.proxy.client import ClientConnection
    from tierline.router.proxy.upstream import UpstreamPool
    from tierline.router.tracing.requests import RequestTracing
    from tierline.router.workers.team import Team

X_TIERLINE_BYPASS = b"x-tierline-bypass"
REQUEST_ID, CONTENT_TYPE = b"x-request-id", b"content-type"
RETRIES_EARNED, RETRIES_RESERVE = 0.2, 100.0


class Lane(NamedTuple):
    """Which endpoints a request can go to."""

    model: str
    tried: frozenset[Endpoint] = frozenset()


@dataclass(slots=True)
class Services:
    """Shared by all of one router's connections."""

    config: RouterConfig
    endpoints: Endpoints
    choosing: Choosing
    metrics: RouterMetrics
    clock: Callable[[], float]
    pools: "dict[int, UpstreamPool]" = field(default_factory=dict)
    """By :attr:`Endpoint.position`."""
    budget: Budget = field(default_factory=lambda: Budget(earned=RETRIES_EARNED, reserve=RETRIES_RESERVE))
    """For retries. Attempts that never reached an endpoint cost nothing: they load nobody."""
    hedging: Hedging | None = field(init=False)
    """``None`` where no request is sent to two endpoints."""
    clients: "set[ClientConnection]" = field(default_factory=set)
    """A client's connection enters when it is made and leaves when it is lost."""
    held_bytes: int = 0
    """Of request bodies: grows as they arrive, shrinks when their exchange lets go of them."""
    since: float = field(default_factory=time.time)
    """When the process started, in seconds of the epoch."""
    is_draining: bool = False
    """Set once, when the router is told to stop: every response then ends its connection."""
    admission: Admission | None = None
    """``None`` where nothing is limited."""
    keys: ApiKeys | None = None
    """``None`` where nobody is asked for a key."""
    admin: "AdminApi | None" = None
    """Set before the first client comes."""
    dashboard: "Dashboard | None" = None
    """``None`` where there is no page."""
    team: "Team | None" = None
    """``None`` where this process is the whole router."""
    decisions: DecisionLog = field(init=False)
    certificate: Certificate | None = None
    """Shown to clients; ``None`` where their connections are plain."""
    endpoint_tls: EndpointTls = field(init=False)
    endpoint_keys: EndpointKeys = field(init=False)
    tokens: TokenLadder | None = None
    """``None`` where no strategy needs tokens."""
    spans: "RequestTracing | None" = None
    """``None`` where nothing is traced."""
    sessions: SessionKeys = field(init=False)
    invocation_path: bytes = field(init=False)
    """Where ``/invocations`` goes; empty: where its body belongs."""
    health_paths: frozenset[bytes] = field(init=False)
    priority_header: bytes = field(init=False)
    wanted_fields: frozenset[bytes] = field(init=False)
    withheld_fields: frozenset[bytes] = frozenset({X_TIERLINE_WEIGHTS})
    """Of these, those that go to no endpoint."""
    aliases: Mapping[str, str] = field(init=False)
    """Other names of models."""
    alias_watch: AliasWatch = field(init=False)

    def __post_init__(self) -> None:
        self.decisions = DecisionLog(self.team.session_key if self.team is not None else b"")
        self.sessions = SessionKeys(self.config.session_keys)
        self.invocation_path = self.config.invocation_endpoint.encode()
        self.health_paths = frozenset({b"/health", b"/ping", self.config.health_path.encode()})
        self.priority_header = (self.config.priority_header or "").encode()
        self.wanted_fields = frozenset(
            (
                *self.sessions.headers,
                REQUEST_ID,
                TRACEPARENT,
                TRACESTATE,
                self.priority_header,
                X_TIERLINE_BYPASS,
                *WANTED_FIELDS,
                *self.withheld_fields,
            )
        )
        config = self.config
        self.hedging = Hedging(config.hedge_after, config.hedge_share) if config.hedge_after else None
        self.aliases = parse_pairs(config.model_aliases, "ALIAS=MODEL")
        self.alias_watch = AliasWatch(self.aliases, self.endpoints)
        self.endpoint_tls = EndpointTls(config.endpoint_ca, config.endpoint_certificate, config.endpoint_key)
        self.endpoint_keys = EndpointKeys(config.endpoint_api_key_file, self.endpoints)
        if config.tls_certificate is not None and config.tls_key is not None:
            self.certificate = Certificate(config.tls_certificate, config.tls_key, config.tls_client_ca)
        if self.config.api_keys_file is not None:
            self.keys = ApiKeys(self.config.api_keys_file, self.config.health_path.encode())
            self.withheld_fields |= {AUTHORIZATION, X_API_KEY}
            self.wanted_fields |= self.withheld_fields
        if self.config.max_inflight or self.config.max_inflight_per_endpoint:
            has_place = self.team.endpoints.has_place if self.team is not None else None
            self.admission = Admission(self.config.max_inflight, self.config.max_queued, self._has_room, has_place)

    def without_alias(self, fields: RequestFields, body: bytes) -> bytes:
        """Return a body that names its model as endpoints do; its ``fields`` are changed likewise.

        Raises
        ------
        BadMessage
            It has an alias, and a member whose name is no text.
        """
        model = self.aliases.get(fields.model or "")
        if model is None:
            return body
        fields.model = model
        return with_model(body, model)

    def with_room(self, endpoints: list[Endpoint]) -> list[Endpoint]:
        """Return those of ``endpoints`` that may have one more request."""
        limit = self.config.max_inflight_per_endpoint
        return [endpoint for endpoint in endpoints if endpoint.has_room(limit)] if limit else endpoints

    def endpoints_of(self, lane: Hashable) -> list[Endpoint]:
        """Return the endpoints that a request of a lane can go to."""
        assert isinstance(lane, Lane)
        return self.endpoints.candidates(lane.model or None, self.clock(), tuple(lane.tried))

    def _has_room(self, lane: Hashable) -> bool:
        """Whether a request of a lane need not wait: an endpoint has room for it, or there is none to wait for."""
        limit = self.config.max_inflight_per_endpoint
        if not limit or self.endpoints.have_room(limit):
            return True
        endpoints = self.endpoints_of(lane)
        return not endpoints or bool(self.with_room(endpoints))
