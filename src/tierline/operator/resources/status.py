"""What the operator says of an endpoint; exactly the reference's fields, for ``hyp`` refuses to read any other."""

from typing import Literal

from pydantic import Field

from tierline.operator.resources.base import Condition, Fragment, Int32, Int64, Timestamp

EndpointState = Literal[
    "DeploymentPending",
    "DeploymentInProgress",
    "DeploymentFailed",
    "DeploymentComplete",
    "DeletionPending",
    "DeletionInProgress",
    "DeletionFailed",
    "DeletionComplete",
]


def _arn(kind: str) -> str:
    return rf"(arn:aws[a-z\-]*:sagemaker:[a-z0-9\-]*:[0-9]{{12}}:{kind}/.*|^$)"


ENDPOINT_ARN, ENDPOINT_CONFIG_ARN, MODEL_ARN = _arn("endpoint"), _arn("endpoint-config"), _arn("model")


class DeploymentCondition(Fragment):
    """One aspect of a Deployment's state."""

    type: str
    status: str
    reason: str | None = None
    message: str | None = None
    last_update_time: Timestamp | None = None
    last_transition_time: Timestamp | None = None


class DeploymentObjectStatus(Fragment):
    """A Deployment's own status."""

    observed_generation: Int64 | None = None
    replicas: Int32 | None = None
    updated_replicas: Int32 | None = None
    ready_replicas: Int32 | None = None
    available_replicas: Int32 | None = None
    unavailable_replicas: Int32 | None = None
    terminating_replicas: Int32 | None = None
    collision_count: Int32 | None = None
    conditions: list[DeploymentCondition] | None = Field(
        default=None,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class DeploymentStatus(Fragment):
    """The Deployment of the workers."""

    name: str = Field(description="of the Deployment")
    last_updated: Timestamp = Field(description="when this was written")
    deployment_object_overall_state: str | None = Field(default=None, description="what hyp list shows")
    reason: str | None = Field(default=None, description="why, in a word")
    message: str | None = Field(default=None, description="why, for people")
    status: DeploymentObjectStatus | None = Field(default=None, description="the Deployment's own status")


class SageMakerEndpoint(Fragment):
    """The endpoint of Amazon SageMaker."""

    state: str = Field(description="of its registration")
    endpoint_arn: str | None = Field(default=None, pattern=ENDPOINT_ARN)
    config_arn: str | None = Field(default=None, pattern=ENDPOINT_CONFIG_ARN)
    model_arn: str | None = Field(default=None, pattern=MODEL_ARN)


class Endpoints(Fragment):
    """Where clients reach the model beside the load balancer."""

    sagemaker: SageMakerEndpoint | None = Field(default=None, description="the endpoint of Amazon SageMaker")


class TlsCertificate(Fragment):
    """The certificate that clients are shown."""

    certificate_arn: str | None = Field(
        default=None,
        alias="certificateARN",
        pattern=r"arn:aws[a-z\-]*:acm:[a-z0-9\-]*:[0-9]{12}:certificate/.*",
        description="in AWS Certificate Manager",
    )
    certificate_domain_names: list[str] | None = Field(default=None, description="names that it is for")
    certificate_health: Literal["Valid", "Expiring", "Expired"] | None = Field(default=None, description="of its dates")
    certificate_name: str | None = Field(default=None, description="of its object in the cluster")
    imported_certificates: list[str] | None = Field(default=None, description="earlier ones")
    issuer_name: str | None = Field(default=None, description="who signed it")
    last_cert_expiry_time: Timestamp | None = Field(default=None, description="when it ends")
    tls_certificate_output_s3_bucket: str | None = Field(default=None, description="bucket of its public part")
    tls_certificate_s3_keys: list[str] | None = Field(default=None, description="keys of its public part")


class ModelMetricsStatus(Fragment):
    """Where the model's metrics are read."""

    path: str | None = None
    port: Int32 | None = None


class MetricsStatus(Fragment):
    """Whether metrics are gathered."""

    enabled: bool = Field(description="as the resource asks")
    state: str | None = Field(default=None, description="of the gathering")
    error_message: str | None = Field(default=None, description="why they are not")
    metrics_scrape_interval_seconds: Int32 | None = Field(default=None, description="seconds between two looks")
    model_metrics: ModelMetricsStatus | None = Field(default=None, description="where the model's are read")


class DnsStatus(Fragment):
    """The record in Amazon Route 53."""

    managed_by_operator: bool = Field(description="whether the operator keeps it")
    record_name: str | None = None
    hosted_zone_id: str | None = None
    dns_health: Literal["Active", "Pending", "Error"] | None = None
    message: str | None = None
    last_transition_time: Timestamp | None = None
    previous_record_name: str | None = None
    previous_hosted_zone_id: str | None = None


class ModelPodCaptureStatus(Fragment):
    """How capture in the pods does."""

    status: Literal["Healthy", "Unhealthy"] = Field(description="whether what captures runs")
    reason: str | None = Field(default=None, description="why not, in a word")
    message: str | None = Field(default=None, description="why not, for people")
    last_transition_time: Timestamp | None = Field(default=None, description="since when")


class DataCaptureStatus(Fragment):
    """How capture does."""

    model_pod: ModelPodCaptureStatus | None = Field(default=None, description="in the pods")


class EndpointStatus(Fragment):
    """What the operator says of an ``InferenceEndpointConfig`` or a ``JumpStartModel``."""

    state: EndpointState | None = Field(default=None, description="how far the deployment, or its deletion, has come")
    conditions: list[Condition] | None = Field(default=None, description="each aspect of the endpoint's state")
    observed_generation: Int64 | None = Field(default=None, description="of the resource that all this is about")
    replicas: Int32 | None = Field(default=None, description="workers that there are")
    selector: str | None = Field(default=None, description="labels of the workers, for autoscalers")
    deployment_status: DeploymentStatus | None = Field(default=None, description="the Deployment of the workers")
    endpoints: Endpoints | None = Field(default=None, description="where clients reach the model")
    tls_certificate: TlsCertificate | None = Field(default=None, description="the certificate that clients are shown")
    metrics_status: MetricsStatus | None = Field(default=None, description="whether metrics are gathered")
    dns_status: DnsStatus | None = Field(default=None, description="the record in Amazon Route 53")
    data_capture_status: DataCaptureStatus | None = Field(default=None, description="how capture does")
