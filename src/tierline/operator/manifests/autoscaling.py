"""What scales workers and routers: KEDA's ScaledObjects where KEDA is, else HorizontalPodAutoscalers.

A trigger without a metric, or without a target, is none: ``hyp`` sends such a one with every endpoint. An autoscaler is
made only where a trigger is left, and only then the number of replicas is its own and not the endpoint's.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.manifest import Made, Manifest, Notice
from tierline.operator.manifests.routing import entrance_namespace, is_routed
from tierline.operator.names import decode_name, prefill_name, router_name, scaled_object_name, within, worker_name
from tierline.operator.resources.autoscaling import AutoScalingSpec, CloudWatchTrigger, PrometheusTrigger

KEDA = "keda.sh/v1alpha1"
_AMAZON = re.compile(r"https://aps-workspaces\.(?P<region>[a-z0-9-]+)\.")
_KEDA_METRIC_TYPES = {"Average": "AverageValue", "Value": "Value"}


@dataclass(frozen=True)
class _Target:
    """A Deployment that may be scaled."""

    deployment: str
    namespace: str
    spec: AutoScalingSpec

    @property
    def name(self) -> str:
        return scaled_object_name(self.deployment)

    def metric(self, trigger: "_Usable") -> str:
        """Return the name by which an HPA asks for what a trigger follows."""
        return trigger.name or f"{self.deployment}-{trigger.position}"


@dataclass(frozen=True)
class _Usable:
    """A trigger that has all that it needs: as KEDA has it, and what an HPA can say of it."""

    name: str | None
    position: str
    is_average: bool
    target: float
    keda: Mapping[str, Any]
    needs_aws: bool


def is_scaled(spec: AutoScalingSpec | None, endpoint: Endpoint, config: OperatorConfig) -> bool:
    """Whether an autoscaler is made for this, whose the number of replicas then is."""
    return spec is not None and any(isinstance(found, _Usable) for found in _triggers(spec, endpoint, config))


def autoscaling(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return the autoscalers, and what keeps triggers from being followed."""
    made = Made()
    for target in _targets(endpoint, config):
        made += _scaler(target, endpoint, capabilities, config)
    return made


def _targets(endpoint: Endpoint, config: OperatorConfig) -> Iterator[_Target]:
    spec, namespace = endpoint.spec, endpoint.namespace
    if spec.pd_spec is None:
        if spec.auto_scaling_spec is not None:
            yield _Target(worker_name(endpoint.name), namespace, spec.auto_scaling_spec)
    elif (pairs := spec.pd_spec.auto_scaling_spec) is not None:
        if pairs.prefill_auto_scaling is not None:
            yield _Target(prefill_name(endpoint.name), namespace, pairs.prefill_auto_scaling)
        if pairs.decoding_auto_scaling is not None:
            yield _Target(decode_name(endpoint.name), namespace, pairs.decoding_auto_scaling)
    routing = spec.intelligent_routing_spec
    if is_routed(endpoint) and routing is not None and routing.auto_scaling_spec is not None:
        name = router_name(endpoint.name, endpoint.namespace)
        yield _Target(name, entrance_namespace(endpoint, config), routing.auto_scaling_spec)


def _scaler(target: _Target, endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    found = list(_triggers(target.spec, endpoint, config))
    notices = tuple(trigger for trigger in found if isinstance(trigger, Notice))
    triggers = [trigger for trigger in found if isinstance(trigger, _Usable)]
    if not triggers:
        return Made(notices=notices)
    if capabilities.serves(KEDA, "ScaledObject"):
        return Made(tuple(_scaled_object(target, triggers)), notices)
    version = capabilities.newest("HorizontalPodAutoscaler", "autoscaling/v2", "autoscaling/v2beta2")
    if version is None:
        missing = f"{target.deployment} is not scaled: the cluster has neither KEDA nor autoscaling/v2"
        return Made(notices=(*notices, Notice("AutoscalingReady", "NoAutoscaler", missing)))
    metrics = ", ".join(map(target.metric, triggers))
    instead = Notice(
        "AutoscalingReady",
        "KedaMissing",
        f"KEDA is not there: {target.deployment} is scaled by a HorizontalPodAutoscaler, to which an adapter of "
        f"external.metrics.k8s.io must give {metrics}"
        + ("" if target.spec.min_replica_count else "; without KEDA one replica always stays"),
    )
    return Made((_horizontal(target, triggers, version),), (*notices, instead))


# Triggers -------------------------------------------------------------------------------------------------------------


def _triggers(spec: AutoScalingSpec, endpoint: Endpoint, config: OperatorConfig) -> Iterator[_Usable | Notice]:
    """Yield what can be followed, and what cannot though it was meant."""
    for number, cloud_watch in enumerate(_listed(spec.cloud_watch_trigger_list, spec.cloud_watch_trigger)):
        if cloud_watch.metric_name:
            yield _cloud_watch(cloud_watch, number, endpoint)
    for number, prometheus in enumerate(_listed(spec.prometheus_trigger_list, spec.prometheus_trigger)):
        if prometheus.query:
            yield _prometheus(prometheus, number, config)


def _cloud_watch(trigger: CloudWatchTrigger, number: int, endpoint: Endpoint) -> _Usable | Notice:
    source = endpoint.spec.model_source_config.s3_storage
    region = endpoint.annotation("aws-region") or (source.region if source is not None else None)
    what = f"CloudWatch metric {trigger.metric_name}"
    if trigger.target_value is None or not trigger.namespace:
        return _unusable(what, "has no targetValue" if trigger.target_value is None else "has no namespace")
    if region is None:
        return _unusable(what, "is of no known region: set annotation tierline.ai/aws-region")
    metadata = {
        "awsRegion": region,
        "namespace": trigger.namespace,
        "metricName": trigger.metric_name or "",
        "dimensionName": ";".join(dimension.name for dimension in trigger.dimensions or ()),
        "dimensionValue": ";".join(dimension.value for dimension in trigger.dimensions or ()),
        "targetMetricValue": _number(trigger.target_value),
        "activationTargetMetricValue": _number(trigger.activation_target_value),
        "minMetricValue": _number(trigger.min_value),
        "metricStat": trigger.metric_stat,
        "metricStatPeriod": str(trigger.metric_collection_period),
        "metricCollectionTime": str(trigger.metric_collection_start_time),
    }
    return _usable(trigger, "aws-cloudwatch", f"cloudwatch-{number}", metadata, trigger.target_value, needs_aws=True)


def _prometheus(trigger: PrometheusTrigger, number: int, config: OperatorConfig) -> _Usable | Notice:
    what = f"Prometheus query {trigger.name or number}"
    address = trigger.server_address or config.prometheus_address
    if trigger.target_value is None:
        return _unusable(what, "has no targetValue")
    if address is None:
        return _unusable(what, "names no serverAddress, and the operator has no prometheus_address")
    metadata = {
        "serverAddress": address,
        "query": trigger.query or "",
        "threshold": _number(trigger.target_value),
        "activationThreshold": _number(trigger.activation_target_value),
    }
    if trigger.namespace:
        metadata["namespace"] = trigger.namespace
    if trigger.custom_headers:
        metadata["customHeaders"] = trigger.custom_headers
    amazon = _AMAZON.match(address)
    if amazon is not None:  # asked with a signature of KEDA's own role
        metadata["awsRegion"] = amazon["region"]
    return _usable(
        trigger, "prometheus", f"prometheus-{number}", metadata, trigger.target_value, needs_aws=amazon is not None
    )


def _usable(
    trigger: CloudWatchTrigger | PrometheusTrigger,
    kind: str,
    position: str,
    metadata: Mapping[str, str],
    target: float,
    *,
    needs_aws: bool,
) -> _Usable:
    keda: dict[str, Any] = {
        "type": kind,
        "metricType": _KEDA_METRIC_TYPES[trigger.metric_type],
        "useCachedMetrics": trigger.use_cached_metrics,
        "metadata": {key: value for key, value in metadata.items() if value},
    }
    if trigger.name:
        keda["name"] = trigger.name
    return _Usable(trigger.name, position, trigger.metric_type == "Average", target, keda, needs_aws)


def _unusable(what: str, why: str) -> Notice:
    return Notice("AutoscalingReady", "TriggerIncomplete", f"{what} is not followed: it {why}")


def _listed(several: list[Any] | None, one: Any | None) -> list[Any]:
    return several or ([one] if one is not None else [])


# Objects --------------------------------------------------------------------------------------------------------------


def _scaled_object(target: _Target, triggers: list[_Usable]) -> Iterator[Manifest]:
    authentication = within(f"{target.name}-aws")
    if any(trigger.needs_aws for trigger in triggers):
        yield {
            "apiVersion": KEDA,
            "kind": "TriggerAuthentication",
            "metadata": {"name": authentication, "namespace": target.namespace},
            "spec": {"podIdentity": {"provider": "aws"}},
        }
    spec = target.spec
    yield {
        "apiVersion": KEDA,
        "kind": "ScaledObject",
        "metadata": {"name": target.name, "namespace": target.namespace},
        "spec": {
            "scaleTargetRef": _reference(target),
            "minReplicaCount": spec.min_replica_count,
            "maxReplicaCount": _most(spec),
            "pollingInterval": spec.polling_interval,
            "cooldownPeriod": spec.cooldown_period,
            "initialCooldownPeriod": spec.initial_cooldown_period,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(spec)}},
            "triggers": [
                {**trigger.keda, **({"authenticationRef": {"name": authentication}} if trigger.needs_aws else {})}
                for trigger in triggers
            ],
        },
    }


def _horizontal(target: _Target, triggers: list[_Usable], version: str) -> Manifest:
    spec = target.spec
    return {
        "apiVersion": version,
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": target.name, "namespace": target.namespace},
        "spec": {
            "scaleTargetRef": _reference(target),
            "minReplicas": max(1, spec.min_replica_count),
            "maxReplicas": max(1, _most(spec)),
            "behavior": _behavior(spec),
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": {"name": target.metric(trigger)},
                        "target": {"type": "AverageValue", "averageValue": _number(trigger.target)}
                        if trigger.is_average
                        else {"type": "Value", "value": _number(trigger.target)},
                    },
                }
                for trigger in triggers
            ],
        },
    }


def _reference(target: _Target) -> dict[str, str]:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": target.deployment}


def _behavior(spec: AutoScalingSpec) -> dict[str, Any]:
    return {
        "scaleDown": {"stabilizationWindowSeconds": spec.scale_down_stabilization_time},
        "scaleUp": {"stabilizationWindowSeconds": spec.scale_up_stabilization_time},
    }


def _most(spec: AutoScalingSpec) -> int:
    return max(spec.min_replica_count, spec.max_replica_count)


def _number(value: float) -> str:
    """Return it as metadata and quantities have it: ``5``, ``0.25``."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
