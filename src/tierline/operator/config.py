"""What the operator can be told. ``docs/operator.md`` has an entry for every key; a test holds it to that."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from tierline.configuration import ProgramConfig


class OperatorConfig(ProgramConfig):
    """Configuration of ``tierline operator run``; the manifests read of it what they need."""

    program = "operator"
    flags: ClassVar[dict[str, str]] = {"watched_namespaces": "--watch-namespace"}

    kubeconfig: Path | None = Field(
        default=None, description="the way to the cluster; else the pod's own account, or kubectl's file"
    )
    namespace: str = Field(
        default="hyperpod-inference-system",
        description="where the operator is, with what endpoints share: node stores, Redis, its Lease and Secrets",
    )
    watched_namespaces: tuple[str, ...] = Field(default=(), description="the namespaces it serves; none: all of them")
    image: str = Field(
        default="ghcr.io/tierline/tierline:latest",
        description="image of our programs: node store, router, proxy, collector and init containers",
    )
    connector_image: str = Field(
        default="ghcr.io/tierline/tierline-connector:latest",
        description="image that holds our vLLM connector, which an init container copies beside the engine",
    )
    worker_updates: Literal["with-changes", "at-once"] = Field(
        default="with-changes",
        description="workers get another image of our programs when they are replaced anyway, or all of them at once",
    )
    redis_image: str = Field(
        default="docker.io/valkey/valkey:8-alpine",
        description="image of the Redis that is made for endpoints that ask for one and name none",
    )
    router_placement: Literal["endpoint", "system"] = Field(
        default="endpoint", description="routers beside their endpoint, or in the operator's namespace as HyperPod does"
    )
    connector: Literal["lmcache", "tierline"] = Field(
        default="lmcache", description="what joins engines to the cache: the image's own LMCache, or our vLLM connector"
    )
    segment_name: str = Field(
        default="ai_toolkit_cache", description="name of the node store's file in /dev/shm, as LMCache's clients map it"
    )
    node_share_percent: int = Field(
        default=20, ge=1, le=90, description="percent of a node's memory that its store may hold"
    )
    node_priority_class: str = Field(
        default="system-node-critical",
        description="PriorityClass of node stores: no pod takes their place, and no shortage ends them; empty for none",
    )
    instance_types: Path | None = Field(
        default=None, description="file of instance types with their memory, beside those that come along"
    )
    cluster_name: str | None = Field(default=None, description="name of the cluster, a label of the endpoints' metrics")
    prometheus_address: str | None = Field(
        default=None, description="URL of the Prometheus that autoscaling asks where a trigger names none"
    )
    s3_endpoint: str | None = Field(
        default=None, description="URL of the S3 endpoint of model sources and certificates; none: AWS's of the region"
    )
    hf_endpoint: str | None = Field(
        default=None, description="URL of the Hugging Face hub of models, or of a mirror; none: huggingface.co"
    )
    s3_region: str | None = Field(
        default=None,
        description="region of the buckets of certificates and captured data; none: that of the model's bucket",
    )
    catalogue: Path | None = Field(
        default=None, description="file of the models that a JumpStartModel may name; none: the one that comes along"
    )
    http: str = Field(
        default="127.0.0.1:9320", description="HOST:PORT of /healthz, /readyz and /metrics; empty for none"
    )
    webhook: str = Field(
        default="",
        description="HOST:PORT where the API server asks about resources before it takes them; empty for none",
    )
    webhook_address: str = Field(
        default="tierline-operator-webhook",
        description="name of the Service, or the URL, by which the API server reaches that",
    )
    workers: int = Field(default=8, ge=1, le=64, description="resources that are looked at at once")
    lease_s: float = Field(
        default=15.0, ge=1.0, description="seconds after which another operator takes over from one that is silent"
    )
