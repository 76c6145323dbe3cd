"""``JumpStartModel``: an endpoint of a model that a catalogue knows, by its id."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from tierline.operator.resources.autoscaling import AutoScalingSpec
from tierline.operator.resources.base import Fragment, Int32, Metadata, Tag
from tierline.operator.resources.core import ResourceRequirements, Toleration
from tierline.operator.resources.data_capture import DataCapture
from tierline.operator.resources.serving import (
    ENDPOINT_NAME,
    INSTANCE_TYPE,
    ROLE_ARN,
    UNKNOWN_FIELDS,
    DnsConfig,
    IntelligentRoutingSpec,
    KvCacheSpec,
    LoadBalancer,
    Metrics,
    TlsConfig,
)
from tierline.operator.resources.status import EndpointStatus

_NAME = r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}$"


class CatalogueModel(Fragment):
    """A model of the catalogue."""

    # The reference both asks for acceptEula and gives it a default.
    model_config = ConfigDict(json_schema_extra={"required": ["acceptEula", "modelId"]})
    model_id: str = Field(max_length=63, pattern=_NAME, description="its id in the catalogue")
    model_version: str | None = Field(
        default=None,
        min_length=5,
        max_length=14,
        pattern=r"^\d{1,4}.\d{1,4}.\d{1,4}$",
        description="its version, such as 1.2.0; else the newest",
    )
    accept_eula: bool = Field(default=False, description="whether its licence is accepted, where it has one to accept")
    model_hub_name: str = Field(
        default="SageMakerPublicHub", max_length=63, pattern=_NAME, description="the catalogue it is of"
    )
    gated_model_download_role: str | None = Field(
        default=None, min_length=20, max_length=2048, pattern=ROLE_ARN, description="role of AWS that may download it"
    )
    additional_configs: list[Tag] | None = Field(
        default=None, max_length=10, description="settings that the model's entry in the catalogue knows"
    )


class PlainVariable(Fragment):
    """A variable of the model's container."""

    name: str
    value: str


class ServerValidations(Fragment):
    """What is looked at before the endpoint is made."""

    accelerator_partition_validation: bool = Field(
        default=True, description="whether the instance type has such partitions"
    )


class Server(Fragment):
    """The machines."""

    instance_type: str = Field(pattern=INSTANCE_TYPE, description="the type of machine that workers run on")
    execution_role: str | None = Field(
        default=None, min_length=20, max_length=2048, pattern=ROLE_ARN, description="role of AWS"
    )
    accelerator_partition_type: str | None = Field(
        default=None, pattern="^mig-.*$", description="share of a GPU for each worker, such as mig-1g.5gb"
    )
    validations: ServerValidations | None = Field(default=None, description="what is looked at before")


class SageMakerEndpointName(Fragment):
    """An endpoint of Amazon SageMaker."""

    name: str = Field(default="", max_length=63, pattern=ENDPOINT_NAME, description="its name; none is made without")


class JumpStartModelSpec(Fragment):
    """What the endpoint is to be."""

    model: CatalogueModel = Field(description="the model of the catalogue")
    server: Server = Field(description="the machines")
    replicas: Int32 = Field(default=1, description="how many workers there are, where nothing scales them")
    environment_variables: list[PlainVariable] | None = Field(
        default=None, max_length=100, description="variables of the model's container"
    )
    sage_maker_endpoint: SageMakerEndpointName | None = Field(
        default=None, description="an endpoint of Amazon SageMaker"
    )
    tolerations: list[Toleration] | None = Field(default=None, description="taints of machines that workers bear")
    intelligent_routing_spec: IntelligentRoutingSpec | None = Field(
        default=None, description="the router before the workers"
    )
    kv_cache_spec: KvCacheSpec | None = Field(default=None, description="where keys and values of prompts are kept")
    auto_scaling_spec: AutoScalingSpec | None = Field(default=None, description="how many workers there are")
    load_balancer: LoadBalancer | None = Field(default=None, description="what the load balancer does")
    metrics: Metrics | None = Field(default=None, description="what is measured")
    data_capture: DataCapture | None = Field(default=None, description="which requests and answers are kept")
    tls_config: TlsConfig | None = Field(default=None, description="the certificate that clients are shown")
    dns_config: DnsConfig | None = Field(default=None, description="a record in Amazon Route 53")
    max_deploy_time_in_seconds: Int32 = Field(
        default=3600, description="seconds after which a deployment that is not complete has failed"
    )
    metrics_sidecar_resources: ResourceRequirements | None = Field(
        default=None, description="resources of the proxy before the model"
    )
    metrics_collector_resources: ResourceRequirements | None = Field(
        default=None, description="resources of the metrics' collector"
    )
    s3_uploader_resources: ResourceRequirements | None = Field(
        default=None, description="resources of what writes captured data"
    )
    lmcache: dict[str, Any] | None = Field(
        default=None, description="of later versions; kept, without effect", json_schema_extra=UNKNOWN_FIELDS
    )
    inference_gateway: dict[str, Any] | None = Field(
        default=None, description="of later versions; kept, without effect", json_schema_extra=UNKNOWN_FIELDS
    )
    model_cache_config: dict[str, Any] | None = Field(
        default=None, description="of later versions; kept, without effect", json_schema_extra=UNKNOWN_FIELDS
    )


class JumpStartModel(Fragment):
    """An endpoint of a model that a catalogue knows, by its id."""

    api_version: Literal["inference.sagemaker.aws.amazon.com/v1"] = "inference.sagemaker.aws.amazon.com/v1"
    kind: Literal["JumpStartModel"] = "JumpStartModel"
    metadata: Metadata = Field(default_factory=Metadata)
    spec: JumpStartModelSpec
    status: EndpointStatus | None = None
