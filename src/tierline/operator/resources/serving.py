"""What both kinds of endpoints say about how they are reached, routed, cached, watched and secured."""

from typing import Any, Literal

from pydantic import Field

from tierline.operator.resources.autoscaling import AutoScalingSpec
from tierline.operator.resources.base import Fragment, Int32

ENDPOINT_NAME = r"^$|^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}$"
INSTANCE_TYPE = r"^ml\..*"
ROLE_ARN = r"^arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+$"
UNKNOWN_FIELDS: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True}
"""Of an object whose fields the API server keeps though we do not know them."""

RoutingStrategy = Literal["prefixaware", "kvaware", "session", "roundrobin"]


class DnsConfig(Fragment):
    """A record in Amazon Route 53."""

    hosted_zone_id: str = Field(pattern=r"^Z[A-Z0-9]+$", description="zone of the record")


class IntelligentRoutingSpec(Fragment):
    """The router before the workers."""

    enabled: bool = Field(default=False, description="whether there is one; cannot be changed later")
    routing_strategy: RoutingStrategy = Field(default="prefixaware", description="what it chooses a worker by")
    auto_scaling_spec: AutoScalingSpec | None = Field(default=None, description="how many routers there are")


class L2CacheSpec(Fragment):
    """The cache that replicas share."""

    l2_cache_backend: str | None = Field(
        default=None, pattern="(?i)redis|tieredstorage", description="tieredstorage (the node stores) or redis"
    )
    l2_cache_local_url: str | None = Field(default=None, description="where it is, such as redis://HOST:6379")


class KvCacheSpec(Fragment):
    """Where keys and values of prompts are kept beside the accelerator's memory."""

    enable_l1_cache: bool = Field(default=True, description="in the memory of the worker's machine")
    enable_l2_cache: bool = Field(default=False, description="in a store that replicas share")
    l2_cache_spec: L2CacheSpec | None = Field(default=None, description="the store that replicas share")
    cache_config_file: str | None = Field(
        default=None, description="LMCache's configuration as a file of the container; comes before all else here"
    )


class LoadBalancer(Fragment):
    """What the load balancer does."""

    health_check_path: str = Field(
        default="/ping", pattern=r"^/.*", description="path that says whether a worker is well"
    )
    routing_algorithm: Literal["least_outstanding_requests", "round_robin"] = Field(
        default="least_outstanding_requests", description="how it chooses where there is no router"
    )
    idle_timeout_seconds: Int32 | None = Field(
        default=None, ge=1, le=4000, description="seconds that a connection may be idle"
    )


class ModelMetrics(Fragment):
    """Where the model's container shows its metrics."""

    path: str = Field(default="/metrics", pattern=r"^/[a-zA-Z0-9\-_.\/]*$", description="path of the page")
    port: Int32 = Field(default=8080, ge=1024, le=65535, description="port of the page")


class Metrics(Fragment):
    """What is measured of the endpoint."""

    enabled: bool = Field(default=True, description="whether metrics are gathered")
    metrics_scrape_interval_seconds: Int32 = Field(default=15, ge=5, le=300, description="seconds between two looks")
    model_metrics: ModelMetrics | None = Field(default=None, description="where the model's container shows its own")


class CustomCertificateConfig(Fragment):
    """A certificate of AWS Certificate Manager."""

    acm_arn: str = Field(
        pattern=r"^arn:aws:acm:[a-z0-9-]+:[0-9]{12}:certificate/[a-fA-F0-9-]+$", description="ARN of the certificate"
    )
    domain_name: str = Field(
        max_length=253,
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$",
        description="name that it is for",
    )


class TlsConfig(Fragment):
    """The certificate that clients are shown."""

    tls_certificate_output_s3_uri: str | None = Field(
        default=None, pattern=r"^s3://([^/]+)/?(.*)$", description="where its public part is written for clients"
    )
    custom_certificate_config: CustomCertificateConfig | None = Field(
        default=None, description="a certificate of AWS Certificate Manager in place of one of our own"
    )
