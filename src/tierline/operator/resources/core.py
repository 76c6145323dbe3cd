"""Parts of Kubernetes' own objects that the resources hold: containers with their variables and probes, node affinity.

Their fields are those of ``core/v1``; what they mean is in Kubernetes' reference.
"""

from typing import Annotated

from pydantic import Field

from tierline.operator.resources.base import (
    ATOMIC,
    Atomic,
    Distinct,
    Fragment,
    Int32,
    Int64,
    IntOrString,
    Named,
    Quantity,
)


class KeyReference(Fragment):
    """A key of a Secret or a ConfigMap."""

    model_config = ATOMIC
    key: str
    name: str = ""
    optional: bool | None = None


class FieldReference(Fragment):
    """A field of the pod, such as ``status.hostIP``."""

    model_config = ATOMIC
    field_path: str
    api_version: str | None = None


class FileKeyReference(Fragment):
    """A variable in a file of a volume."""

    model_config = ATOMIC
    key: str
    path: str
    volume_name: str
    optional: bool = False


class ResourceFieldReference(Fragment):
    """A limit or a request of a container."""

    model_config = ATOMIC
    resource: str
    container_name: str | None = None
    divisor: Quantity | None = None


class EnvVarSource(Fragment):
    """Where a variable's value comes from."""

    config_map_key_ref: KeyReference | None = None
    field_ref: FieldReference | None = None
    file_key_ref: FileKeyReference | None = None
    resource_field_ref: ResourceFieldReference | None = None
    secret_key_ref: KeyReference | None = None


class EnvVar(Fragment):
    """A variable of a container's environment."""

    name: str
    value: str | None = None
    value_from: EnvVarSource | None = None


class NameReference(Fragment):
    """A Secret or a ConfigMap as a whole."""

    model_config = ATOMIC
    name: str = ""
    optional: bool | None = None


class EnvFromSource(Fragment):
    """Where several variables come from."""

    prefix: str | None = None
    config_map_ref: NameReference | None = None
    secret_ref: NameReference | None = None


class ExecAction(Fragment):
    """A command in the container."""

    command: Atomic[str] | None = None


class HttpHeader(Fragment):
    """A header of a probe's request."""

    name: str
    value: str


class HttpGetAction(Fragment):
    """A GET to the container."""

    port: IntOrString
    path: str | None = None
    host: str | None = None
    scheme: str | None = None
    http_headers: Atomic[HttpHeader] | None = None


class TcpSocketAction(Fragment):
    """A connection to the container."""

    port: IntOrString
    host: str | None = None


class GrpcAction(Fragment):
    """A call of gRPC's health service."""

    port: Int32
    service: str = ""


class SleepAction(Fragment):
    """Nothing, for some seconds."""

    seconds: Int64


class Probe(Fragment):
    """How a container's health is found out."""

    exec: ExecAction | None = None
    grpc: GrpcAction | None = None
    http_get: HttpGetAction | None = None
    tcp_socket: TcpSocketAction | None = None
    initial_delay_seconds: Int32 | None = None
    period_seconds: Int32 | None = None
    timeout_seconds: Int32 | None = None
    success_threshold: Int32 | None = None
    failure_threshold: Int32 | None = None
    termination_grace_period_seconds: Int64 | None = None


class LifecycleHandler(Fragment):
    """What is done after a container's start or before its end."""

    exec: ExecAction | None = None
    http_get: HttpGetAction | None = None
    sleep: SleepAction | None = None
    tcp_socket: TcpSocketAction | None = None


class Lifecycle(Fragment):
    """What is done after a container's start and before its end."""

    post_start: LifecycleHandler | None = None
    pre_stop: LifecycleHandler | None = None
    stop_signal: str | None = None


class ContainerPort(Fragment):
    """A port that a container listens on."""

    container_port: Int32
    name: str | None = None
    protocol: str = "TCP"
    host_ip: str | None = Field(default=None, alias="hostIP")
    host_port: Int32 | None = None


class ResourceClaim(Fragment):
    """A device that the pod claims."""

    name: str
    request: str | None = None


class ResourceRequirements(Fragment):
    """What a container may use and what is kept for it."""

    limits: dict[str, Quantity] | None = None
    requests: dict[str, Quantity] | None = None
    claims: Named[ResourceClaim] | None = None


class ContainerResizePolicy(Fragment):
    """Whether a container starts anew when a resource of it changes."""

    resource_name: str
    restart_policy: str


class RestartExitCodes(Fragment):
    """Exit statuses."""

    operator: str
    values: Distinct[Int32] | None = None


class RestartRule(Fragment):
    """What happens after an end with these statuses."""

    action: str
    exit_codes: RestartExitCodes | None = None


class SecurityProfile(Fragment):
    """A profile of AppArmor or seccomp."""

    type: str
    localhost_profile: str | None = None


class LinuxCapabilities(Fragment):
    """Rights of root, added and taken."""

    add: Atomic[str] | None = None
    drop: Atomic[str] | None = None


class SeLinuxOptions(Fragment):
    """SELinux's context of a container."""

    level: str | None = None
    role: str | None = None
    type: str | None = None
    user: str | None = None


class WindowsOptions(Fragment):
    """What only containers on Windows know."""

    gmsa_credential_spec: str | None = None
    gmsa_credential_spec_name: str | None = None
    host_process: bool | None = None
    run_as_user_name: str | None = None


class SecurityContext(Fragment):
    """What a container is allowed to do."""

    allow_privilege_escalation: bool | None = None
    app_armor_profile: SecurityProfile | None = None
    capabilities: LinuxCapabilities | None = None
    privileged: bool | None = None
    proc_mount: str | None = None
    read_only_root_filesystem: bool | None = None
    run_as_group: Int64 | None = None
    run_as_non_root: bool | None = None
    run_as_user: Int64 | None = None
    se_linux_options: SeLinuxOptions | None = None
    seccomp_profile: SecurityProfile | None = None
    windows_options: WindowsOptions | None = None


class VolumeDevice(Fragment):
    """A volume as a block device of a container."""

    device_path: str
    name: str


class VolumeMount(Fragment):
    """A volume as a folder or a file of a container."""

    name: str
    mount_path: str
    mount_propagation: str | None = None
    read_only: bool | None = None
    recursive_read_only: str | None = None
    sub_path: str | None = None
    sub_path_expr: str | None = None


class Container(Fragment):
    """A container of a pod."""

    name: str
    image: str | None = None
    image_pull_policy: str | None = None
    command: Atomic[str] | None = None
    args: Atomic[str] | None = None
    working_dir: str | None = None
    env: Named[EnvVar] | None = None
    env_from: Atomic[EnvFromSource] | None = None
    ports: (
        Annotated[
            list[ContainerPort],
            Field(
                json_schema_extra={
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["containerPort", "protocol"],
                }
            ),
        ]
        | None
    ) = None
    resources: ResourceRequirements | None = None
    resize_policy: Atomic[ContainerResizePolicy] | None = None
    restart_policy: str | None = None
    restart_policy_rules: Atomic[RestartRule] | None = None
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    lifecycle: Lifecycle | None = None
    security_context: SecurityContext | None = None
    volume_devices: (
        Annotated[
            list[VolumeDevice],
            Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["devicePath"]}),
        ]
        | None
    ) = None
    volume_mounts: (
        Annotated[
            list[VolumeMount],
            Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["mountPath"]}),
        ]
        | None
    ) = None
    termination_message_path: str | None = None
    termination_message_policy: str | None = None
    stdin: bool | None = None
    stdin_once: bool | None = None
    tty: bool | None = None


class Requirement(Fragment):
    """What a label or a field must be."""

    key: str
    operator: str
    values: Atomic[str] | None = None


class NodeSelectorTerm(Fragment):
    """Nodes whose labels and fields are all as is required."""

    model_config = ATOMIC
    match_expressions: Atomic[Requirement] | None = None
    match_fields: Atomic[Requirement] | None = None


class NodeSelector(Fragment):
    """Nodes that one of the terms fits."""

    model_config = ATOMIC
    node_selector_terms: Atomic[NodeSelectorTerm]


class PreferredSchedulingTerm(Fragment):
    """Nodes that are liked better, by ``weight``."""

    preference: NodeSelectorTerm
    weight: Int32


class NodeAffinity(Fragment):
    """Nodes that pods are for."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: Atomic[PreferredSchedulingTerm] | None = None


class LabelSelector(Fragment):
    """Objects whose labels are so."""

    model_config = ATOMIC
    match_expressions: Atomic[Requirement] | None = None
    match_labels: dict[str, str] | None = None


class LocalReference(Fragment):
    """A Secret in the pod's namespace."""

    model_config = ATOMIC
    name: str = ""


class Toleration(Fragment):
    """A taint of nodes that pods bear."""

    key: str | None = None
    operator: str | None = None
    value: str | None = None
    effect: str | None = None
    toleration_seconds: Int64 | None = None
