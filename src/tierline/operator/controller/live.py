"""What is read of objects as they are: as little as can be, for there are many, and all of them are kept."""

import functools
from typing import Any

import msgspec

from tierline.operator import names
from tierline.operator.controller.kinds import POD, Reference
from tierline.operator.settled import CONTROLLER, PODS

CERT_MANAGERS = "cert-manager.io/certificate-name"
"""An annotation that cert-manager gives to each Secret that it makes."""
_ANNOTATIONS = frozenset((PODS, CONTROLLER, CERT_MANAGERS))
SHARED = ""
"""As the owner of what several endpoints use."""


class _Managed(msgspec.Struct, rename="camel"):
    manager: str = ""
    operation: str = ""
    subresource: str = ""
    fields: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"), name="fieldsV1")


class LiveMetadata(msgspec.Struct, rename="camel"):
    """What every object has."""

    name: str
    uid: str = ""
    resource_version: str = ""
    namespace: str = ""
    generation: int = 0
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    """Those that say what was decided, and by whom."""
    managed_fields: list[_Managed] | None = None
    ours: int = 0
    """Digest of the fields that are ours. Who changes a field takes it over, so that it changes when somebody else
    has written what we say; see https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management."""
    scales: bool = False
    """Of them, ``spec.replicas`` is one."""
    has_ours: bool = False
    """We have written something of it, in whichever way."""

    def __post_init__(self) -> None:
        for entry in self.managed_fields or ():
            self.has_ours |= entry.manager == names.FIELD_MANAGER
            is_ours = entry.manager == names.FIELD_MANAGER and entry.operation == "Apply" and not entry.subresource
            if is_ours:
                fields = msgspec.json.decode(entry.fields)
                self.ours = hash(msgspec.json.encode(fields, order="deterministic"))
                self.scales = "f:replicas" in fields.get("f:spec", {})
        self.managed_fields = None
        ours = {key: value for key, value in (self.annotations or {}).items() if key in _ANNOTATIONS}
        self.annotations = ours or None

    @property
    def owner(self) -> str | None:
        """The uid of the resource that asked for it, as its labels say; :data:`SHARED`; ``None`` where they do not."""
        labels = self.labels or {}
        if labels.get(names.MANAGED_BY) != names.FIELD_MANAGER:
            return None
        return labels.get(names.OWNER_UID, SHARED)


class _Spec(msgspec.Struct, rename="camel"):
    replicas: int | None = None
    ingress_class_name: str = ""
    gateway_class_name: str = ""


class Live(msgspec.Struct):
    """An object that somebody made."""

    metadata: LiveMetadata
    status: dict[str, Any] | None = None
    spec: _Spec | None = None
    kind: str = ""

    @property
    def reference(self) -> Reference:
        """Which object it is."""
        return Reference(self.kind, self.metadata.namespace, self.metadata.name)

    @property
    def owner(self) -> str | None:
        """As its metadata has it; ``None`` of what others have made and labelled like what they made it for.

        KEDA gives its HorizontalPodAutoscalers all labels of their ScaledObjects, and Istio what it makes of a
        Gateway those of that. Pods are never ours to write, and are followed.
        """
        is_ours = self.metadata.has_ours or self.kind == POD
        return self.metadata.owner if is_ours else None

    @property
    def replicas(self) -> int | None:
        """How many it is to have, whoever said so; ``None`` for what has none."""
        return self.spec.replicas if self.spec is not None else None

    @property
    def ingress_class(self) -> str:
        """Of an Ingress or a Gateway, the class that it is of; empty where it says none."""
        return (self.spec.ingress_class_name or self.spec.gateway_class_name) if self.spec is not None else ""


@functools.cache
def kind_of(kind: str) -> type[Live]:
    """Return what is read of objects of one kind.

    Lists do not say the kind of their items, and so it is part of what they are read as.
    """
    made: type[Live] = msgspec.defstruct(f"Live{kind}", [("kind", str, kind)], bases=(Live,))  # type: ignore[assignment]
    return made
