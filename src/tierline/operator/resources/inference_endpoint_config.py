"""``InferenceEndpointConfig``: an endpoint of a model and a container of the user's own."""

from typing import Any, Literal

from pydantic import Field

from tierline.operator.resources.autoscaling import AutoScalingSpec
from tierline.operator.resources.base import Fragment, Int32, Metadata, Named, Tag
from tierline.operator.resources.core import (
    Container,
    EnvVar,
    KeyReference,
    NodeAffinity,
    Probe,
    ResourceRequirements,
    Toleration,
)
from tierline.operator.resources.data_capture import DataCapture
from tierline.operator.resources.serving import (
    ENDPOINT_NAME,
    INSTANCE_TYPE,
    UNKNOWN_FIELDS,
    DnsConfig,
    IntelligentRoutingSpec,
    KvCacheSpec,
    LoadBalancer,
    Metrics,
    TlsConfig,
)
from tierline.operator.resources.status import EndpointStatus
from tierline.operator.resources.volumes import Volume

ModelSourceType = Literal["fsx", "s3", "huggingface", "kubernetesVolume"]
_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"


class S3Storage(Fragment):
    """A bucket that holds the model."""

    bucket_name: str = Field(description="the bucket")
    region: str = Field(description="its region")


class FsxStorage(Fragment):
    """A file system of Amazon FSx for Lustre that holds the model."""

    file_system_id: str = Field(description="the file system")
    dns_name: str | None = Field(default=None, description="its name, where it is not the usual one")
    mount_name: str | None = Field(default=None, description="what it is mounted by, where it is not the usual name")


class HuggingFaceModel(Fragment):
    """A repository of the Hugging Face Hub that holds the model."""

    model_id: str = Field(pattern=r"^[a-zA-Z0-9_.-]+/[a-zA-Z0-9_.-]+$", description="as OWNER/NAME")
    commit_sha: str | None = Field(
        default=None, alias="commitSHA", pattern=r"^[0-9a-f]{40}$", description="commit to take; else the main branch"
    )
    token_secret_ref: KeyReference | None = Field(
        default=None, description="Secret with the token of gated repositories; only the download sees it"
    )


class ModelSourceConfig(Fragment):
    """Where the model's files come from."""

    model_source_type: ModelSourceType = Field(description="which of the sources")
    model_location: str | None = Field(default=None, description="folder of the model within the source")
    prefetch_enabled: bool = Field(default=False, description="copy the files into the pod before the model starts")
    s3_storage: S3Storage | None = Field(default=None, description="the source s3")
    fsx_storage: FsxStorage | None = Field(default=None, description="the source fsx")
    hugging_face_model: HuggingFaceModel | None = Field(default=None, description="the source huggingface")


class ModelInvocationPort(Fragment):
    """The port that the model is served at."""

    container_port: Int32 = Field(ge=1, le=65535, description="the port's number")
    name: str = Field(default="http", pattern="^http$|^grpc$", description="its name: http or grpc")


class ModelVolumeMount(Fragment):
    """Where the container finds the model's files."""

    name: str = Field(description="name of the volume")
    mount_path: str = Field(default="/opt/ml/model", description="folder of the container")


class Probes(Fragment):
    """How the health of the model's container is found out; as in Kubernetes."""

    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None


class RequestLimits(Fragment):
    """How many requests a pod takes at a time."""

    max_concurrent_requests: Int32 | None = Field(default=None, ge=1, description="handed to the model at a time")
    max_queue_size: Int32 | None = Field(default=None, ge=0, description="that wait beyond those")
    overflow_status_code: Int32 = Field(default=429, ge=400, le=599, description="what any further one is answered")


class Worker(Fragment):
    """The container that serves the model."""

    image: str = Field(description="image of the container")
    command: list[str] | None = Field(default=None, description="in place of the image's entry point")
    args: list[str] | None = Field(default=None, description="arguments of the command")
    working_dir: str | None = Field(default=None, description="folder that the command starts in")
    model_invocation_port: ModelInvocationPort = Field(description="port that the model is served at")
    model_volume_mount: ModelVolumeMount = Field(description="where the model's files are")
    resources: ResourceRequirements = Field(description="what the container may use and what is kept for it")
    environment_variables: Named[EnvVar] | None = Field(default=None, description="variables of the container")
    probes: Probes | None = Field(default=None, description="in place of the operator's own probes")
    request_limits: RequestLimits | None = Field(default=None, description="how many requests a pod takes at a time")


class KubernetesSpec(Fragment):
    """What is handed to the workers' pods as it is."""

    init_containers: list[Container] | None = Field(default=None, description="run after the operator's own")
    volumes: list[Volume] | None = Field(default=None, description="beside the operator's own")
    scheduler_name: str | None = Field(
        default=None, max_length=253, pattern=_SUBDOMAIN, description="scheduler of the pods"
    )
    service_account_name: str | None = Field(
        default=None, max_length=253, pattern=_SUBDOMAIN, description="account of the pods"
    )
    pod_template_annotations: dict[str, str] | None = Field(default=None, description="annotations of the pods")


class RoleSpec(Fragment):
    """The workers of one of the two phases."""

    replicas: Int32 = Field(default=1, ge=1, description="how many")
    args: list[str] | None = Field(default=None, description="arguments that come before those of worker.args")
    resources: ResourceRequirements | None = Field(default=None, description="in place of worker.resources")
    node_selector: dict[str, str] | None = Field(default=None, description="labels of nodes that they run on")


class TopologySpec(Fragment):
    """How near prefill and decode are to each other."""

    same_az: bool = Field(default=True, alias="sameAZ", description="in one availability zone")
    availability_zone: str | None = Field(default=None, description="in this one")
    placement_group: str | None = Field(default=None, description="in this placement group")


class PdAutoScalingSpec(Fragment):
    """How many workers of each phase there are."""

    prefill_auto_scaling: AutoScalingSpec | None = Field(default=None, description="of prefill")
    decoding_auto_scaling: AutoScalingSpec | None = Field(default=None, description="of decode")


class PdSpec(Fragment):
    """Prefill and decode by workers of their own."""

    prefill_spec: RoleSpec = Field(description="the workers of prefill")
    decoding_spec: RoleSpec = Field(description="the workers of decode")
    routing_threshold: Int32 = Field(
        default=4096, ge=0, description="tokens from which on a prompt goes to prefill first"
    )
    topology_spec: TopologySpec | None = Field(default=None, description="how near they are to each other")
    auto_scaling_spec: PdAutoScalingSpec | None = Field(default=None, description="how many there are")


class InferenceEndpointConfigSpec(Fragment):
    """What the endpoint is to be."""

    model_name: str = Field(
        max_length=63, pattern="^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", description="the name that clients ask for"
    )
    model_version: str | None = Field(default=None, description="version of the model; a label of its metrics")
    model_source_config: ModelSourceConfig = Field(description="where the model's files come from")
    worker: Worker = Field(description="the container that serves the model")
    replicas: Int32 = Field(default=1, description="how many workers there are, where nothing scales them")
    initial_replica_count: Int32 | None = Field(
        default=None, alias="InitialReplicaCount", description="of earlier versions; without effect"
    )
    instance_type: str | None = Field(
        default=None, pattern=INSTANCE_TYPE, description="the type of machine that workers run on"
    )
    instance_types: list[str] | None = Field(default=None, description="types of machines, the most liked first")
    node_affinity: NodeAffinity | None = Field(default=None, description="machines that workers run on, by labels")
    tolerations: list[Toleration] | None = Field(default=None, description="taints of machines that workers bear")
    invocation_endpoint: str = Field(default="invocations", description="path of the model's API")
    endpoint_name: str | None = Field(
        default=None, max_length=63, pattern=ENDPOINT_NAME, description="name of an endpoint of Amazon SageMaker"
    )
    intelligent_routing_spec: IntelligentRoutingSpec | None = Field(
        default=None, description="the router before the workers"
    )
    kv_cache_spec: KvCacheSpec | None = Field(default=None, description="where keys and values of prompts are kept")
    pd_spec: PdSpec | None = Field(default=None, description="prefill and decode by workers of their own")
    auto_scaling_spec: AutoScalingSpec | None = Field(default=None, description="how many workers there are")
    load_balancer: LoadBalancer | None = Field(default=None, description="what the load balancer does")
    metrics: Metrics | None = Field(default=None, description="what is measured")
    data_capture: DataCapture | None = Field(default=None, description="which requests and answers are kept")
    tls_config: TlsConfig | None = Field(default=None, description="the certificate that clients are shown")
    dns_config: DnsConfig | None = Field(default=None, description="a record in Amazon Route 53")
    kubernetes: KubernetesSpec | None = Field(default=None, description="what is handed to the pods as it is")
    max_deploy_time_in_seconds: Int32 = Field(
        default=3600, description="seconds after which a deployment that is not complete has failed"
    )
    tags: list[Tag] | None = Field(default=None, description="tags of what is made in AWS")
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


class InferenceEndpointConfig(Fragment):
    """An endpoint of a model and a container of the user's own."""

    api_version: Literal["inference.sagemaker.aws.amazon.com/v1"] = "inference.sagemaker.aws.amazon.com/v1"
    kind: Literal["InferenceEndpointConfig"] = "InferenceEndpointConfig"
    metadata: Metadata = Field(default_factory=Metadata)
    spec: InferenceEndpointConfigSpec
    status: EndpointStatus | None = None
