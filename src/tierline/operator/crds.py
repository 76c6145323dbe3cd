"""CustomResourceDefinitions of the resources, generated from their models: OpenAPI v3 as a structural schema.

Only version ``v1`` is served: a second version without a conversion of its own would lose what it does not know.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tierline.operator.names import GROUP, VERSION
from tierline.operator.resources.inference_endpoint_config import InferenceEndpointConfig
from tierline.operator.resources.jump_start_model import JumpStartModel
from tierline.operator.resources.sagemaker_endpoint_registration import SageMakerEndpointRegistration

Schema = dict[str, Any]
Resource = InferenceEndpointConfig | JumpStartModel | SageMakerEndpointRegistration

_READY = '.status.conditions[?(@.type=="Ready")].status'
_IS_ROUTED = (
    "has({0}.intelligentRoutingSpec) && has({0}.intelligentRoutingSpec.enabled) && {0}.intelligentRoutingSpec.enabled"
)
RULES = [
    {
        "rule": f"({_IS_ROUTED.format('self')}) == ({_IS_ROUTED.format('oldSelf')})",
        "message": "intelligentRoutingSpec.enabled: cannot be changed later; leave it as it was, or delete the "
        "resource and create it anew",
    }
]
"""What of ``spec`` cannot be changed, for the API to refuse by itself, in the Common Expression Language.

https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#transition-rules"""
_SCALE = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".status.selector",
}


@dataclass(frozen=True)
class ResourceKind:
    """A kind of resource, as the API server and ``kubectl`` know it.

    Parameters
    ----------
    model
        Of one resource.
    kind, plural, short_name
        Its names.
    columns
        What ``kubectl get`` shows beside name and age: heading, path, type, and whether only with ``-o wide``.
    is_scalable
        Whether ``kubectl scale`` and autoscalers may set its replicas.
    """

    model: type[Resource]
    kind: str
    plural: str
    short_name: str
    columns: tuple[tuple[str, str, str, bool], ...]
    is_scalable: bool = True

    @property
    def crd_name(self) -> str:
        """Name of its CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


KINDS = (
    ResourceKind(
        InferenceEndpointConfig,
        "InferenceEndpointConfig",
        "inferenceendpointconfigs",
        "iec",
        (
            ("Model", ".spec.modelName", "string", False),
            ("State", ".status.state", "string", False),
            ("Ready", _READY, "string", False),
            ("Replicas", ".status.replicas", "integer", False),
            ("Strategy", ".spec.intelligentRoutingSpec.routingStrategy", "string", True),
            ("L2", ".spec.kvCacheSpec.l2CacheSpec.l2CacheBackend", "string", True),
            ("Image", ".spec.worker.image", "string", True),
        ),
    ),
    ResourceKind(
        JumpStartModel,
        "JumpStartModel",
        "jumpstartmodels",
        "jsm",
        (
            ("Model", ".spec.model.modelId", "string", False),
            ("State", ".status.state", "string", False),
            ("Ready", _READY, "string", False),
            ("Replicas", ".status.replicas", "integer", False),
            ("Instance", ".spec.server.instanceType", "string", True),
        ),
    ),
    ResourceKind(
        SageMakerEndpointRegistration,
        "SageMakerEndpointRegistration",
        "sagemakerendpointregistrations",
        "ser",
        (("Endpoint", ".spec.name", "string", False), ("State", ".status.state", "string", False)),
        is_scalable=False,
    ),
)


def crd(kind: ResourceKind, *, has_rules: bool = False) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind, as it is applied.

    Parameters
    ----------
    kind
        Which.
    has_rules
        With :data:`RULES`, which Kubernetes knows from 1.25 on; ``kubectl`` refuses them where its API is older.
    """
    columns = [
        {"name": heading, "jsonPath": path, "type": type_} | ({"priority": 1} if is_wide else {})
        for heading, path, type_, is_wide in kind.columns
    ]
    described = schema(kind.model)
    spec = described["properties"]["spec"]
    if has_rules and "intelligentRoutingSpec" in spec["properties"]:
        spec["x-kubernetes-validations"] = RULES
    age = {"name": "Age", "jsonPath": ".metadata.creationTimestamp", "type": "date"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "conversion": {"strategy": "None"},
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [kind.short_name],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [*columns, age],
                    "subresources": {"status": {}} | ({"scale": _SCALE} if kind.is_scalable else {}),
                    "schema": {"openAPIV3Schema": described},
                }
            ],
        },
    }


def schema(model: type[BaseModel]) -> Schema:
    """Return the structural schema of a resource.

    What every object has is left to the API server, and ``spec`` may be missing, as the reference has it.
    """
    generated = model.model_json_schema(by_alias=True)
    whole = _structural(generated, generated.get("$defs", {}))
    plain = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    return {
        "type": "object",
        "description": whole["description"],
        "properties": plain | {part: whole["properties"][part] for part in ("spec", "status")},
    }


def _structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Return a node without references, titles and nulls, which structural schemas have no place for."""
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        return _structural({**target, **{key: value for key, value in node.items() if key != "$ref"}}, definitions)
    kinds = [kind for kind in node.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        return _structural({**kinds[0], **{key: value for key, value in node.items() if key != "anyOf"}}, definitions)
    found: Schema = {}
    for key, value in node.items():
        match key:
            case "title" | "$defs":
                continue
            case "default" if value is None:
                continue
            case "properties":
                found[key] = {name: _structural(part, definitions) for name, part in value.items()}
            case "items":
                found[key] = _structural(value, definitions)
            case "additionalProperties":
                if isinstance(value, dict):
                    found[key] = _structural(value, definitions)
            case "required":
                found[key] = sorted(value)
            case _:
                found[key] = value
    return found
