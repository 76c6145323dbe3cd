"""What the proxy can be told. ``docs/proxy.md`` has an entry for every key; a test holds it to that."""

from collections.abc import Mapping
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from tierline.configuration import ByteSize
from tierline.dimensions import DimensionedConfig
from tierline.router.specs import plain_url


class ProxyConfig(DimensionedConfig):
    """Configuration of ``tierline proxy``."""

    program = "proxy"
    flags: ClassVar[Mapping[str, str]] = {
        "capture_modes": "--capture-mode",
        "capture_json_types": "--capture-json-type",
        "capture_csv_types": "--capture-csv-type",
    }

    host: str = Field(default="127.0.0.1", description="address that the proxy listens on")
    port: int = Field(default=9180, ge=0, le=65535, description="port that the proxy listens on; 0 takes a free one")
    upstream: str = Field(description="URL of the model's server, such as http://127.0.0.1:8000")
    metrics_port: int = Field(
        default=9113,
        ge=0,
        le=65535,
        description="port of /metrics, /healthz and /drain, at the same address; 0: a free one",
    )
    max_concurrent_requests: int = Field(
        default=0, ge=0, description="invocations at the model at once, HyperPod's maxConcurrentRequests; 0: any number"
    )
    max_queue_size: int = Field(
        default=0, ge=0, description="invocations that wait while that is reached, HyperPod's maxQueueSize"
    )
    overflow_status: int = Field(
        default=429, ge=400, le=599, description="answer to one for which there is no place, or not in time"
    )
    queue_timeout_s: float = Field(default=60.0, gt=0, description="seconds that an invocation may wait")

    weights: str | None = Field(
        default=None, min_length=1, description="what the model's KV is of; requests that are about other KV get 412"
    )

    capture_uri: str | None = Field(
        default=None, description="where invocations are recorded: s3://BUCKET/PREFIX or file:///FOLDER; none: nowhere"
    )
    capture_percent: int = Field(default=100, ge=0, le=100, description="percent of the invocations to record")
    capture_modes: tuple[Literal["input", "output"], ...] = Field(
        default=("input", "output"), min_length=1, description="what to record of each: input, output"
    )
    capture_json_types: tuple[str, ...] = Field(
        default=("application/json",), description="content types whose payloads are recorded as JSON in a string"
    )
    capture_csv_types: tuple[str, ...] = Field(
        default=("text/csv",), description="content types whose payloads are recorded as text; all others as Base64"
    )
    capture_batch: int = Field(default=10, ge=1, le=1000, description="records of one file")
    capture_flush_interval_s: float = Field(
        default=60.0, gt=0, le=300, description="seconds after which fewer records are written too"
    )
    capture_payload_kb: int = Field(
        default=0, ge=0, le=10240, description="KiB of a payload that are recorded, the rest is cut off; 0: all of it"
    )
    capture_kms_key: str = Field(default="", description="KMS key that S3 encrypts the files with; empty: the bucket's")
    capture_buffer_bytes: ByteSize = Field(
        default=64 * 1024**2, ge=1024, description="memory for records that are not written yet; beyond it none is kept"
    )
    s3_endpoint: str | None = Field(default=None, description="URL of the S3 endpoint; none: AWS's of the region")
    s3_region: str | None = Field(default=None, description="region of the bucket; none: as AWS_REGION says")

    connect_timeout_s: float = Field(default=5.0, gt=0, description="seconds to connect to the model's server")
    response_timeout_s: float = Field(
        default=3600.0, gt=0, description="seconds from a request to the first byte of its answer"
    )
    stream_timeout_s: float = Field(default=300.0, gt=0, description="seconds between two reads of one answer")
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

    @field_validator("upstream")
    @classmethod
    def _is_url(cls, url: str) -> str:
        return plain_url(url)

    @field_validator("max_queue_size")
    @classmethod
    def _has_a_limit_to_wait_for(cls, size: int, info: ValidationInfo) -> int:
        if size and not info.data.get("max_concurrent_requests"):
            raise ValueError("0 without max_concurrent_requests, for then nobody waits")
        return size

    @field_validator("capture_uri")
    @classmethod
    def _is_destination(cls, uri: str | None) -> str | None:
        if uri is not None:
            parts = urlsplit(uri)
            is_bucket = parts.scheme == "s3" and bool(parts.netloc) and not parts.username
            is_folder = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
            if not (is_bucket or is_folder) or parts.query or parts.fragment:
                raise ValueError("s3://BUCKET/PREFIX or file:///FOLDER")
        return uri

    @field_validator("s3_endpoint")
    @classmethod
    def _is_endpoint(cls, url: str | None) -> str | None:
        return url and plain_url(url)
