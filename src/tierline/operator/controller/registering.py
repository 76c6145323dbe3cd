"""``SageMakerEndpointRegistration``: nothing is made of one, and its status says so, with what it would need."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from tierline.operator.controller import conditions, status
from tierline.operator.controller.conditions import Condition, Truth
from tierline.operator.controller.planning import Plan

FAILED = "CreationFailed"
_OURS = (conditions.VALIDATED, conditions.UNSUPPORTED)


def standing(plan: Plan) -> list[Condition]:
    """Return the conditions of a registration."""
    valid: Truth = "False" if plan.problems else "True"
    message = "; ".join(plan.problems or plan.warnings) or "every rule is kept"
    listed = [
        Condition(conditions.VALIDATED, valid, "Invalid" if plan.problems else "Valid", message, bool(plan.problems))
    ]
    if plan.unsupported:
        listed.append(
            Condition(conditions.UNSUPPORTED, "True", "NeedsAws", "; ".join(plan.unsupported), is_trouble=True)
        )
    return listed


def registration_status(resource: Mapping[str, Any], found: Iterable[Condition], now: datetime) -> dict[str, Any]:
    """Return the status of a registration; what HyperPod's operator said of one that it has made on AWS stays."""
    former, generation = resource.get("status") or {}, resource["metadata"]["generation"]
    listed = former.get("conditions") or ()
    others = [each for each in listed if each["type"] not in _OURS]
    return {
        **former,
        "state": former.get("state", FAILED) if former.get("endpoint") else FAILED,
        "observedGeneration": generation,
        "conditions": [*others, *conditions.written(found, listed, generation, status.stamp(now))],
    }
