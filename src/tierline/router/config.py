"""What the router can be told. ``docs/router.md`` has an entry for every key; a test holds it to that."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from tierline.configuration import ByteSize, ProgramConfig
from tierline.kube.selections import parse_pods, parse_service
from tierline.router.events.addresses import parse_controller
from tierline.router.events.remote import BUDGET_SECONDS
from tierline.router.gossip.addresses import parse_address
from tierline.router.hedging import P95
from tierline.router.keys import Bypass
from tierline.router.modelrules import ModelRule, StrategyName, parse_pairs, parse_rules, require_trial
from tierline.router.paths import is_free, is_path
from tierline.router.sessions import canonical_key, is_field_name
from tierline.router.specs import plain_urls, require_addresses
from tierline.router.strategies.kvaware import KV_INDEX_BYTES, weights_of

_SECONDS = re.compile(r"\d{1,6}(\.\d{1,6})?")


class RouterConfig(ProgramConfig):
    """Configuration of ``tierline router``."""

    program = "router"
    flags: ClassVar[Mapping[str, str]] = {
        "peers": "--peer",
        "endpoints": "--endpoint",
        "kubernetes_services": "--kubernetes-service",
        "session_keys": "--session-key",
        "models": "--model-strategy",
        "model_aliases": "--model-alias",
        "kv_events": "--kv-events",
        "node_events": "--node-events",
        "tier_weights": "--tier-weight",
        "tokenizers": "--tokenizer",
        "dashboard_stores": "--dashboard-store",
    }

    host: str = Field(default="127.0.0.1", description="address that the router listens on")
    port: int = Field(default=8000, ge=0, le=65535, description="port that the router listens on; 0 takes a free one")
    endpoints: tuple[str, ...] = Field(default=(), description="URLs of the engines, such as http://127.0.0.1:8001")
    kubernetes_services: tuple[str, ...] = Field(
        default=(), description="Services of a Kubernetes cluster whose ready endpoints serve: NAMESPACE/NAME[:PORT]"
    )
    kubernetes_pods: tuple[str, ...] = Field(
        default=(), description="pods of a Kubernetes cluster that serve when ready: NAMESPACE:SELECTOR[:PORT]"
    )
    kubernetes_readiness_gate: bool = Field(
        default=False,
        description="let pods in whose readiness waits for tierline.ai/routable, once they pass a health check",
    )
    kubeconfig: Path | None = Field(
        default=None, description="the way to the cluster; else the pod's own account, or kubectl's file"
    )
    endpoints_file: Path | None = Field(
        default=None,
        validate_default=True,
        description="YAML or JSON file that lists endpoints; followed as it changes",
    )
    strategy: StrategyName = Field(
        default="prefixaware", description="prefixaware, kvaware, session, leastload or roundrobin"
    )
    ab_strategy: StrategyName | None = Field(
        default=None, description="another strategy, on trial for a share of the requests"
    )
    ab_share: float = Field(
        default=0.0, ge=0, le=1, validate_default=True, description="share of the requests that ab_strategy chooses for"
    )
    affinity: bool = Field(
        default=True, description="false chooses by load alone, whatever the strategy, until it is turned on"
    )
    models: Annotated[dict[str, ModelRule], BeforeValidator(parse_rules)] = Field(
        default={}, description="strategies of single models: MODEL=STRATEGY, or in a file a table for each"
    )
    workers: int = Field(default=1, ge=1, le=64, description="processes that serve on the port")
    worker_timeout_s: float = Field(
        default=30.0, ge=0, description="a worker that stands still for so long is killed and started again; 0: never"
    )
    gossip_listen: str | None = Field(
        default=None, description="HOST:PORT where other routers are told of this one's loads and placements"
    )
    peers: tuple[str, ...] = Field(default=(), description="HOST:PORT of other routers, as their gossip_listen")
    peers_name: str | None = Field(
        default=None, description="NAME:PORT, a DNS name whose every address is another router's, or this one's"
    )
    gossip_secret_file: Path | None = Field(
        default=None,
        validate_default=True,
        description="file with a secret that all these routers know; needed beyond loopback",
    )
    model_aliases: tuple[str, ...] = Field(default=(), description="other names for models: ALIAS=MODEL")
    allow_bypass: tuple[Bypass, ...] = Field(
        default=(), description="what x-tierline-bypass may ask for: affinity, cache"
    )
    index_bytes: ByteSize = Field(
        default=64 * 1024**2, ge=64 * 1024, description="memory for the prefix index of prefixaware"
    )
    kv_events: tuple[str, ...] = Field(
        default=(), description="for kvaware, where endpoints publish KV events: URL=ADDRESS"
    )
    node_events: tuple[str, ...] = Field(
        default=(), description="for kvaware, where the node stores that endpoints read publish them: URL=ADDRESS"
    )
    tier_weights: tuple[str, ...] = Field(
        default=(), description="for kvaware, what a token saves that is read from a tier: TIER=WEIGHT, 0 to 1"
    )
    kv_index_bytes: ByteSize = Field(
        default=KV_INDEX_BYTES, ge=1024**2, description="memory for the exact index of kvaware"
    )
    tokenizers: tuple[str, ...] = Field(
        default=(), description="for kvaware, folders with models' tokenizers: MODEL=FOLDER"
    )
    controller: str | None = Field(
        default=None,
        description="for kvaware, a controller that has the index: unix:PATH or HOST:PORT; else the router has its own",
    )
    controller_token_file: Path | None = Field(
        default=None, description="file with the token that the controller asks for"
    )
    controller_ca: Path | None = Field(
        default=None, description="PEM file with the authorities that the controller is trusted by, over TLS"
    )
    controller_budget_s: float = Field(
        default=BUDGET_SECONDS, gt=0, le=1, description="seconds that a request waits for the controller"
    )
    session_keys: tuple[str, ...] = Field(
        default=("x-session-id", "x-user-id", "x-amzn-sagemaker-session-id", "body:user"),
        description="where a session's name is looked for, first match wins: request headers, cookie:NAME, body:KEY",
    )
    retries: int = Field(
        default=2, ge=0, description="further endpoints tried after a reset or a 408, 429, 502, 503 or 504"
    )
    prefill_threshold: int = Field(
        default=4096,
        ge=0,
        description="tokens to compute from which a prefill endpoint does it for one that only decodes; 0 for any",
    )
    prefill_timeout_s: float = Field(
        default=120.0, gt=0, description="seconds for that; then the decode endpoint computes the prompt itself"
    )
    hedge_after: str = Field(
        default="",
        description="seconds without a byte of answer until a second endpoint is asked too, or p95; never, if empty",
    )
    hedge_share: float = Field(default=0.05, gt=0, le=1, description="share of the requests that may be hedged so")
    invocation_endpoint: str = Field(
        default="", description="path that /invocations goes to at an endpoint; where its body belongs, if empty"
    )
    health_path: str = Field(
        default="/ping", description="path that says, beside /health and /ping, whether an endpoint is healthy"
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file with the certificate that clients are shown; read again when it changes"
    )
    tls_key: Path | None = Field(
        default=None, validate_default=True, description="PEM file with its key, without a passphrase"
    )
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file with authorities; clients must show a certificate of one of them"
    )
    endpoint_ca: Path | None = Field(
        default=None, description="PEM file with the authorities that https endpoints are trusted by"
    )
    endpoint_certificate: Path | None = Field(
        default=None, description="PEM file with the certificate that https endpoints are shown"
    )
    endpoint_key: Path | None = Field(
        default=None, validate_default=True, description="PEM file with its key, without a passphrase"
    )
    endpoint_api_key_file: Path | None = Field(
        default=None, description="file with the API key that endpoints ask for; read again when it changes"
    )
    trust_traceparent: bool = Field(
        default=True, description="whether a request's traceparent counts; else each trace begins at this router"
    )
    trace_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the requests without traceparent for which a trace is begun"
    )
    opentelemetry: bool = Field(
        default=False,
        validate_default=True,
        description="send a span of each request and of each attempt by OTLP, as the OTEL_* variables say",
    )
    traces_file: Path | None = Field(
        default=None, description="file that spans are appended to, for tierline trace show"
    )
    api_keys_file: Path | None = Field(
        default=None, description="file with the API keys that requests must show; read again when it changes"
    )
    max_inflight: int = Field(default=0, ge=0, description="requests at endpoints at once; 0 for any number")
    max_inflight_per_endpoint: int = Field(default=0, ge=0, description="requests at one endpoint; 0 for any number")
    max_queued: int = Field(default=0, ge=0, description="requests that wait while the limits are reached")
    queue_timeout_s: float = Field(default=60.0, gt=0, description="seconds that a request may wait")
    overflow_status: int = Field(
        default=429, ge=400, le=599, description="answer to a request for which there is no place, or not in time"
    )
    priority_header: str | None = Field(
        default=None, description="request header with a priority, the lowest first; else the body's priority is read"
    )
    admin_token_file: Path | None = Field(
        default=None, description="file with the token that /admin asks for; without one, /admin is for loopback only"
    )
    dashboard: bool = Field(default=False, description="show a page at /dashboard, to those whom /admin lets in")
    dashboard_stores: tuple[str, ...] = Field(
        default=(), description="URLs of node stores whose contents /dashboard shows, such as http://127.0.0.1:9200"
    )
    dashboard_store_token_file: Path | None = Field(
        default=None, description="file with the token that these node stores ask for; read again when it changes"
    )
    health_interval_s: float = Field(default=2.0, gt=0, description="seconds between health checks of an endpoint")
    health_timeout_s: float = Field(default=5.0, gt=0, description="seconds that a health check may take")
    connect_timeout_s: float = Field(default=5.0, gt=0, description="seconds to connect to an endpoint")
    response_timeout_s: float = Field(
        default=600.0, gt=0, description="seconds from a request to the first byte of its answer"
    )
    stream_timeout_s: float = Field(default=300.0, gt=0, description="seconds between two reads of one answer")
    total_timeout_s: float = Field(
        default=0.0, ge=0, description="seconds from a request to the end of its answer; 0 for any time"
    )
    request_timeout_s: float = Field(
        default=60.0, gt=0, description="seconds for a client to send a head, and between two reads of its body"
    )
    idle_timeout_s: float = Field(default=75.0, gt=0, description="seconds that a client's connection may idle")
    shutdown_timeout_s: float = Field(
        default=30.0, ge=0, description="seconds that running requests get after SIGTERM or Ctrl-C"
    )
    connections: int = Field(default=4096, ge=1, description="clients' connections at once; more are answered with 503")
    head_bytes: ByteSize = Field(default=32 * 1024, ge=1024, description="largest head of a request or an answer")
    body_bytes: ByteSize = Field(default=64 * 1024**2, ge=1, description="largest body of a request")
    buffered_bytes: ByteSize = Field(
        default=1024**3, ge=1, description="memory for all requests' bodies together; beyond it, 503"
    )

    @field_validator("endpoints", "dashboard_stores")
    @classmethod
    def _are_urls(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        return plain_urls(endpoints)

    @field_validator("kubernetes_services", "kubernetes_pods")
    @classmethod
    def _are_selections(cls, entries: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for entry in entries:
            (parse_service if info.field_name == "kubernetes_services" else parse_pods)(entry)
        if len(set(entries)) < len(entries):
            raise ValueError("each once")
        return entries

    @field_validator("endpoints_file")
    @classmethod
    def _is_there_without_endpoints(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        others = ("endpoints", "kubernetes_services", "kubernetes_pods")
        if file is None and not any(info.data.get(key, True) for key in others):
            raise ValueError("a file that lists endpoints, where no --endpoint names one and no cluster has them")
        return file

    @field_validator("ab_share")
    @classmethod
    def _belongs_to_a_strategy(cls, share: float, info: ValidationInfo) -> float:
        return require_trial(info.data.get("ab_strategy"), share)

    @field_validator("model_aliases")
    @classmethod
    def _name_models(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        parse_pairs(entries, "ALIAS=MODEL")
        return entries

    @property
    def gossips(self) -> bool:
        """Whether there are other routers to tell or to listen to."""
        return bool(self.gossip_listen or self.peers or self.peers_name)

    @field_validator("gossip_listen", "peers_name")
    @classmethod
    def _is_one_address(cls, value: str | None) -> str | None:
        if value is not None:
            parse_address(value)
        return value

    @field_validator("peers")
    @classmethod
    def _are_router_addresses(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            parse_address(value)
        return values

    @field_validator("gossip_secret_file")
    @classmethod
    def _is_there_beyond_loopback(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        given = [info.data.get("gossip_listen"), info.data.get("peers_name"), *info.data.get("peers", ())]
        hosts = {parse_address(address)[0] for address in given if address}
        if file is None and not hosts <= {"localhost", "127.0.0.1", "::1"}:
            raise ValueError("a file with a secret, for other routers are not on this machine")
        return file

    @property
    def needs_index(self) -> bool:
        """Whether a strategy goes by KV events, and no controller is named that has their index."""
        rules = self.models.values()
        names = {
            self.strategy,
            self.ab_strategy,
            *(name for rule in rules for name in (rule.strategy, rule.ab_strategy)),
        }
        return "kvaware" in names and self.controller is None

    @field_validator("invocation_endpoint")
    @classmethod
    def _is_path(cls, path: str) -> str:
        if path and not is_path(path):
            raise ValueError("a path such as v1/chat/completions")
        return path and "/" + path.removeprefix("/")

    @field_validator("health_path")
    @classmethod
    def _is_free_path(cls, path: str) -> str:
        if not is_free(path):
            raise ValueError("a path such as /healthz at which nothing else is")
        return path

    @field_validator("hedge_after")
    @classmethod
    def _is_a_time(cls, after: str) -> str:
        if after and after != P95 and not (_SECONDS.fullmatch(after) and float(after)):
            raise ValueError("seconds, p95, or nothing")
        return after

    @field_validator("tls_key", "tls_client_ca", "endpoint_key")
    @classmethod
    def _belongs_to_a_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        field = "endpoint_certificate" if info.field_name == "endpoint_key" else "tls_certificate"
        has_certificate = info.data.get(field) is not None
        if value is not None and not has_certificate:
            raise ValueError(f"this key together with {field}")
        if value is None and has_certificate and info.field_name != "tls_client_ca":
            raise ValueError(f"a PEM file, for {field} is set")
        return value

    @field_validator("opentelemetry")
    @classmethod
    def _decides_alone(cls, opentelemetry: bool, info: ValidationInfo) -> bool:
        if opentelemetry and info.data.get("trace_share"):
            raise ValueError("false, or trace_share 0: OTEL_TRACES_SAMPLER says what is traced")
        return opentelemetry

    @field_validator("tier_weights")
    @classmethod
    def _are_weights(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        weights_of(entries)
        return entries

    @field_validator("kv_events", "node_events")
    @classmethod
    def _are_addresses(cls, entries: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        require_addresses(entries, info.data.get("endpoints", ()))
        return entries

    @field_validator("controller")
    @classmethod
    def _is_controller(cls, controller: str | None) -> str | None:
        return controller and str(parse_controller(controller))

    @field_validator("tokenizers")
    @classmethod
    def _name_folders(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        if not all(all(entry.partition("=")) for entry in entries):
            raise ValueError("MODEL=FOLDER")
        return entries

    @field_validator("priority_header")
    @classmethod
    def _is_field_name(cls, name: str | None) -> str | None:
        if name is not None and not is_field_name(name):
            raise ValueError("the name of a request header")
        return name and name.lower()

    @field_validator("session_keys")
    @classmethod
    def _are_session_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(canonical_key, keys))
