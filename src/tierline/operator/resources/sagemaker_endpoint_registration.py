"""``SageMakerEndpointRegistration``: that an endpoint is to be one of Amazon SageMaker's; kept, and not acted upon."""

from typing import Literal

from pydantic import Field

from tierline.operator.resources.base import Condition, Fragment, Int32, Int64, Metadata, Tag, Timestamp
from tierline.operator.resources.data_capture import CaptureContentTypeHeader, CaptureOption
from tierline.operator.resources.serving import ROLE_ARN
from tierline.operator.resources.status import ENDPOINT_ARN, ENDPOINT_CONFIG_ARN, MODEL_ARN

RegistrationState = Literal[
    "CreationInProgress",
    "CreationFailed",
    "CreationCompleted",
    "DeletionInProgress",
    "DeletionFailed",
    "DeletionCompleted",
    "UpdateInProgress",
    "UpdateFailed",
    "UpdateCompleted",
]


class EksClusterDetails(Fragment):
    """The cluster of Amazon EKS."""

    name: str = Field(description="its name")
    arn: str = Field(description="its ARN")
    vpc_id: str = Field(description="its network")
    cluster_security_group_id: str = Field(description="its own security group")
    security_group_ids: list[str] = Field(description="further security groups")
    subnet_ids: list[str] = Field(description="its subnets")


class RegistrationTlsConfig(Fragment):
    """The certificate of the load balancer."""

    tls_certificate_output_s3_bucket: str = Field(description="bucket of its public part")
    tls_certificate_s3_keys: list[str] = Field(description="keys of its public part")
    tls_server_name_override: str | None = Field(default=None, description="name that it is for, where it is another")


class EndpointDataCaptureConfig(Fragment):
    """Capture at the endpoint of Amazon SageMaker."""

    enabled: bool = Field(description="whether anything is captured")
    destination_s3_uri: str = Field(max_length=512, pattern=r"^s3://([^/]+)(/.*)?$", description="where it is written")
    initial_sampling_percentage: Int32 = Field(ge=0, le=100, description="percent of invocations that are captured")
    capture_options: list[CaptureOption] = Field(
        min_length=1, max_length=32, description="which sides of an invocation"
    )
    capture_content_type_header: CaptureContentTypeHeader | None = Field(
        default=None, description="content types that are kept as text"
    )
    kms_key_id: str | None = Field(
        default=None, max_length=2048, pattern=r"^[a-zA-Z0-9:/_-]*$", description="key of AWS KMS that encrypts them"
    )


class SageMakerEndpointRegistrationSpec(Fragment):
    """What is registered."""

    name: str = Field(max_length=63, pattern="^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", description="name of the endpoint")
    execution_role: str = Field(min_length=20, max_length=2048, pattern=ROLE_ARN, description="role of AWS")
    image_uri: str = Field(max_length=255, description="image of the workers")
    instance_type: str = Field(description="type of machine that workers run on")
    invocation_endpoint: str = Field(default="invocations", description="path of the model's API")
    load_balancer_host_name: str = Field(description="name of the load balancer")
    rest_api_id: str = Field(description="of Amazon API Gateway")
    eks_cluster_details: EksClusterDetails = Field(description="the cluster of Amazon EKS")
    tls_config: RegistrationTlsConfig = Field(description="the certificate of the load balancer")
    tags: list[Tag] | None = Field(default=None, description="tags of the endpoint")
    sage_maker_endpoint_data_capture_config: EndpointDataCaptureConfig | None = Field(
        default=None, description="capture at the endpoint"
    )


class RegisteredEndpoint(Fragment):
    """The endpoint of Amazon SageMaker."""

    arn: str = Field(pattern=ENDPOINT_ARN)
    config_arn: str = Field(pattern=ENDPOINT_CONFIG_ARN)
    model_arn: str = Field(pattern=MODEL_ARN)
    last_modified_time: Timestamp | None = None


class RegisteredLoadBalancer(Fragment):
    """The load balancer behind it."""

    host_name: str


class SageMakerEndpointRegistrationStatus(Fragment):
    """How far the registration has come."""

    state: RegistrationState
    endpoint: RegisteredEndpoint | None = None
    load_balancer: RegisteredLoadBalancer | None = None
    conditions: list[Condition] | None = None
    observed_generation: Int64 | None = None


class SageMakerEndpointRegistration(Fragment):
    """That an endpoint is to be one of Amazon SageMaker's."""

    api_version: Literal["inference.sagemaker.aws.amazon.com/v1"] = "inference.sagemaker.aws.amazon.com/v1"
    kind: Literal["SageMakerEndpointRegistration"] = "SageMakerEndpointRegistration"
    metadata: Metadata = Field(default_factory=Metadata)
    spec: SageMakerEndpointRegistrationSpec
    status: SageMakerEndpointRegistrationStatus | None = None
