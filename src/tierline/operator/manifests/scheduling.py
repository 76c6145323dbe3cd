"""Where workers run: instance types in their order of preference, labels of nodes, taints, and who is near whom."""

from typing import Any

from tierline.operator.capabilities import Capabilities
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import sizes
from tierline.operator.manifests.manifest import Notice
from tierline.operator.manifests.pairs import Group
from tierline.operator.manifests.routing import worker_selector

INSTANCE_TYPE_LABEL = "node.kubernetes.io/instance-type"
ZONE_LABEL = "topology.kubernetes.io/zone"
HIGHEST_WEIGHT = 100
"""Of preferences, in Kubernetes."""
_HYPERPOD_PREFIX = "ml."
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def scheduling(endpoint: Endpoint, group: Group) -> dict[str, Any]:
    """Return the fields of a pod that say where it runs."""
    spec = endpoint.spec
    found: dict[str, Any] = {}
    if group.node_selector:
        found["nodeSelector"] = dict(group.node_selector)
    if affinity := _affinity(endpoint):
        found["affinity"] = affinity
    # Machines with accelerators are tainted by their resource's name, so that nobody else gets there.
    tolerations = [
        {"key": name, "operator": "Exists", "effect": "NoSchedule"} for name in sizes.accelerators(group.resources)
    ]
    tolerations += [toleration.manifest() for toleration in spec.tolerations or ()]
    if tolerations:
        found["tolerations"] = tolerations
    if spec.kubernetes is not None and spec.kubernetes.scheduler_name:
        found["schedulerName"] = spec.kubernetes.scheduler_name
    return found


def scheduling_notices(endpoint: Endpoint, capabilities: Capabilities) -> tuple[Notice, ...]:
    """Return what stands in the way of a place for the workers."""
    notices = []
    wanted = sizes.wanted_instance_types(endpoint)
    there = capabilities.instance_types
    if wanted and there and not there & {label for name in wanted for label in labels_of(name)}:
        notices.append(
            Notice(
                "WorkersReady",
                "NoSuchInstanceType",
                f"no node of the cluster is of {' or '.join(wanted)}; there are {', '.join(sorted(there))}: workers "
                "wait until there is one",
            )
        )
    pairs = endpoint.spec.pd_spec
    if pairs is not None and pairs.topology_spec is not None and pairs.topology_spec.placement_group:
        notices.append(
            Notice(
                "WorkersReady",
                "PlacementGroupIgnored",
                "spec.pdSpec.topologySpec.placementGroup: no label says which placement group a node is in; pin "
                "workers with nodeSelector of prefillSpec and decodingSpec",
            )
        )
    return tuple(notices)


def labels_of(instance_type: str) -> tuple[str, ...]:
    """Return how nodes of a type are labelled: HyperPod's with ``ml.`` before the name, all others without."""
    bare = instance_type.removeprefix(_HYPERPOD_PREFIX)
    return (instance_type,) if bare == instance_type else (instance_type, bare)


def _affinity(endpoint: Endpoint) -> dict[str, Any]:
    affinity = {}
    if nodes := _node_affinity(endpoint):
        affinity["nodeAffinity"] = nodes
    pairs = endpoint.spec.pd_spec
    if pairs is not None:
        topology = pairs.topology_spec
        zone = topology.availability_zone if topology is not None else None
        near = {"labelSelector": {"matchLabels": worker_selector(endpoint)}, "topologyKey": ZONE_LABEL}
        if topology is None:  # nobody asked for it, and a node without a zone would be out
            affinity["podAffinity"] = {_PREFERRED: [{"weight": HIGHEST_WEIGHT, "podAffinityTerm": near}]}
        elif topology.same_az and zone is None:
            affinity["podAffinity"] = {_REQUIRED: [near]}
    return affinity


def _node_affinity(endpoint: Endpoint) -> dict[str, Any]:
    """Return the user's node affinity, with the instance types in each of its terms, for they are alternatives."""
    spec = endpoint.spec
    own = spec.node_affinity.manifest() if spec.node_affinity is not None else {}
    required = own.get(_REQUIRED, {}).get("nodeSelectorTerms", [])
    preferred = list(own.get(_PREFERRED, []))
    conditions = []
    if types := sizes.wanted_instance_types(endpoint):
        conditions.append(_is_one_of(INSTANCE_TYPE_LABEL, *(label for name in types for label in labels_of(name))))
        if len(types) > 1:
            preferred = [
                {
                    "weight": weight,
                    "preference": {"matchExpressions": [_is_one_of(INSTANCE_TYPE_LABEL, *labels_of(name))]},
                }
                for name, weight in zip(types, _weights(len(types)), strict=True)
            ] + preferred
    topology = spec.pd_spec.topology_spec if spec.pd_spec is not None else None
    if topology is not None and topology.availability_zone:
        conditions.append(_is_one_of(ZONE_LABEL, topology.availability_zone))
    if conditions:
        required = [
            {**term, "matchExpressions": [*term.get("matchExpressions", []), *conditions]} for term in required or [{}]
        ]
    merged: dict[str, Any] = {}
    if required:
        merged[_REQUIRED] = {"nodeSelectorTerms": required}
    if preferred:
        merged[_PREFERRED] = preferred
    return merged


def _weights(count: int) -> list[int]:
    """Return weights from the highest down, apart by as much as there is room for."""
    return [max(1, HIGHEST_WEIGHT - place * HIGHEST_WEIGHT // count) for place in range(count)]


def _is_one_of(label: str, *values: str) -> dict[str, Any]:
    return {"key": label, "operator": "In", "values": list(values)}
