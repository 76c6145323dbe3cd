"""The groups of workers that an endpoint has: one, or with prefill and decode apart, one for each of the two."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.autoscaling import is_scaled
from tierline.operator.manifests.engines import overlaid
from tierline.operator.manifests.routing import worker_selector
from tierline.operator.manifests.sizes import resources_of
from tierline.operator.names import APP, ROLE, decode_name, prefill_name, worker_name
from tierline.operator.resources.autoscaling import AutoScalingSpec
from tierline.operator.resources.inference_endpoint_config import RoleSpec

Role = Literal["prefill", "decode"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Workers that are all alike.

    Parameters
    ----------
    name
        Of their Deployment, and of the first container of their pods.
    role
        Which part of requests they serve; ``None``: both.
    replicas
        How many there are; ``None``: an autoscaler says.
    arguments
        That the user gives the engine.
    resources
        Of the engine, as Kubernetes writes them.
    node_selector
        Labels of nodes that they run on.
    """

    name: str
    role: Role | None
    replicas: int | None
    arguments: tuple[str, ...]
    resources: Mapping[str, Any]
    node_selector: Mapping[str, str] = field(default_factory=dict)

    def selector(self, endpoint: Endpoint) -> dict[str, str]:
        """Return the labels by which their Deployment knows the pods of this group; they cannot be changed later."""
        return {APP: worker_name(endpoint.name), **({ROLE: self.role} if self.role else {})}

    def labels(self, endpoint: Endpoint) -> dict[str, str]:
        """Return the labels of those pods."""
        return {**self.selector(endpoint), **worker_selector(endpoint)}


def groups(endpoint: Endpoint, config: OperatorConfig) -> tuple[Group, ...]:
    """Return the groups of workers of an endpoint."""
    spec, pairs = endpoint.spec, endpoint.spec.pd_spec
    if pairs is None:
        is_left_alone = is_scaled(spec.auto_scaling_spec, endpoint, config)
        return (
            Group(
                name=worker_name(endpoint.name),
                role=None,
                replicas=None if is_left_alone else spec.replicas,
                arguments=tuple(spec.worker.args or ()),
                resources=resources_of(spec.worker.resources),
            ),
        )
    scaling = pairs.auto_scaling_spec
    prefill_scaling = scaling.prefill_auto_scaling if scaling is not None else None
    decode_scaling = scaling.decoding_auto_scaling if scaling is not None else None
    return (
        _of_role(endpoint, config, "prefill", pairs.prefill_spec, prefill_scaling),
        _of_role(endpoint, config, "decode", pairs.decoding_spec, decode_scaling),
    )


def _of_role(
    endpoint: Endpoint, config: OperatorConfig, role: Role, stated: RoleSpec, scaling: AutoScalingSpec | None
) -> Group:
    worker = endpoint.spec.worker
    return Group(
        name=prefill_name(endpoint.name) if role == "prefill" else decode_name(endpoint.name),
        role=role,
        replicas=None if is_scaled(scaling, endpoint, config) else stated.replicas,
        arguments=overlaid(worker.args or (), stated.args or ()),
        resources=resources_of(stated.resources or worker.resources),
        node_selector=stated.node_selector or {},
    )
