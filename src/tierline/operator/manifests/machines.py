"""Which machines something runs on: those of some instance types, or all but those of some; as Kubernetes says it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from tierline.operator.manifests.scheduling import INSTANCE_TYPE_LABEL

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


@dataclass(frozen=True)
class Machines:
    """A set of machines, by the values of their label for the instance type.

    Parameters
    ----------
    types
        The values.
    is_all_but
        All machines that have none of them, whichever there are.
    """

    types: frozenset[str] = frozenset()
    is_all_but: bool = False

    @classmethod
    def of(cls, daemon_set: Mapping[str, Any]) -> Self:
        """Return where the pods of a DaemonSet are by :meth:`node_affinity`; all machines where somebody changed it."""
        pod = daemon_set["spec"]["template"]["spec"]
        match (pod.get("affinity") or {}).get("nodeAffinity", {}).get(_REQUIRED):
            case {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": key, "operator": "In" | "NotIn" as operator, "values": values}]}
                ]
            } if key == INSTANCE_TYPE_LABEL:
                return cls(frozenset(values), operator == "NotIn")
        return cls(is_all_but=True)

    def __bool__(self) -> bool:
        return bool(self.types) or self.is_all_but

    def __invert__(self) -> "Machines":
        return Machines(self.types, not self.is_all_but)

    def __or__(self, other: "Machines") -> "Machines":
        match self.is_all_but, other.is_all_but:
            case False, False:
                return Machines(self.types | other.types)
            case True, True:
                return Machines(self.types & other.types, True)
            case True, False:
                return Machines(self.types - other.types, True)
            case _:
                return Machines(other.types - self.types, True)

    def __sub__(self, other: "Machines") -> "Machines":
        return ~(~self | other)

    def node_affinity(self) -> dict[str, Any]:
        """Return what holds pods to these machines; nothing where it is all of them."""
        if not self.types:
            return {}
        condition = {
            "key": INSTANCE_TYPE_LABEL,
            "operator": "NotIn" if self.is_all_but else "In",
            "values": sorted(self.types),
        }
        return {"nodeAffinity": {_REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [condition]}]}}}


def machines_of(types: Iterable[str]) -> Machines:
    """Return the machines of some types; of none: all of them."""
    named = frozenset(types)
    return Machines(named, not named)
