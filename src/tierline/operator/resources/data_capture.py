"""Which requests and answers are kept, and where: ``dataCapture``."""

from typing import Literal

from pydantic import Field

from tierline.operator.resources.base import Distinct, Fragment, Int32

_KMS_KEY = r"^[a-zA-Z0-9:/_-]*$"


class CaptureOption(Fragment):
    """One side of an invocation."""

    capture_mode: Literal["Input", "Output"] = Field(description="requests, or answers")


class CaptureContentTypeHeader(Fragment):
    """Which content types are kept as text."""

    csv_content_types: Distinct[str] | None = Field(
        default=None, min_length=1, max_length=10, description="content types that are CSV"
    )
    json_content_types: Distinct[str] | None = Field(
        default=None, min_length=1, max_length=10, description="content types that are JSON"
    )


class BufferConfig(Fragment):
    """When what was captured is written."""

    batch_size: Int32 = Field(default=10, ge=1, le=1000, description="written once there are so many invocations")
    flush_interval_seconds: Int32 = Field(default=60, ge=10, le=300, description="or so many seconds have gone by")


class PayloadConfig(Fragment):
    """How much of a body is kept."""

    max_payload_size_kb: Int32 = Field(
        default=0, ge=0, le=10240, alias="maxPayloadSizeKB", description="KiB of a body that are kept; 0: all"
    )


class SageMakerEndpointCapture(Fragment):
    """Capture at the endpoint of Amazon SageMaker."""

    enabled: bool = Field(description="whether anything is captured there")
    initial_sampling_percentage: Int32 | None = Field(
        default=None, ge=0, le=100, description="percent of invocations that are captured"
    )
    kms_key_id: str | None = Field(
        default=None, max_length=2048, pattern=_KMS_KEY, description="key of AWS KMS that encrypts them"
    )
    capture_options: list[CaptureOption] | None = Field(
        default=None, min_length=1, max_length=32, description="which sides of an invocation"
    )
    capture_content_type_header: CaptureContentTypeHeader | None = Field(
        default=None, description="content types that are kept as text"
    )


class LoadBalancerCapture(Fragment):
    """The load balancer's access log."""

    enabled: bool = Field(description="whether there is one")


class ModelPodCapture(SageMakerEndpointCapture):
    """Capture in the pods, by the proxy before the model."""

    buffer_config: BufferConfig | None = Field(default=None, description="when what was captured is written")
    payload_config: PayloadConfig | None = Field(default=None, description="how much of a body is kept")


class DataCapture(Fragment):
    """Which requests and answers are kept, and where."""

    s3_uri: str | None = Field(
        default=None,
        max_length=512,
        pattern=r"^s3://([^/]+)(/[^,=]*)?$",
        description="where they are written; without it, data-capture/ in the bucket of the certificate",
    )
    sagemaker_endpoint: SageMakerEndpointCapture | None = Field(
        default=None, description="capture at the endpoint of Amazon SageMaker"
    )
    load_balancer: LoadBalancerCapture | None = Field(default=None, description="the load balancer's access log")
    model_pod: ModelPodCapture | None = Field(default=None, description="capture in the pods")
