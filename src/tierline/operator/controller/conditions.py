"""Conditions by KEP-1623: what is true of one aspect of an endpoint, why, and since when."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

READY, VALIDATED, MODEL_SOURCE, WORKERS, ROUTER, CACHE, SERVICE, INGRESS, TLS, AUTOSCALING, METRICS, REGISTERED = (
    "Ready",
    "Validated",
    "ModelSourceReady",
    "WorkersReady",
    "RouterReady",
    "CacheReady",
    "ServiceReady",
    "IngressReady",
    "TLSReady",
    "AutoscalingReady",
    "MetricsReady",
    "EndpointRegistered",
)
UNSUPPORTED, PAUSED = "Unsupported", "Paused"
PROTECTION = "ProtectionReady"
"""Network policies and disruption budgets; said where one could not be written."""
NEEDED = (VALIDATED, MODEL_SOURCE, SERVICE, WORKERS, ROUTER)
"""An endpoint is ready when these are true. Who asks it then is answered; the others say how well, and how safely."""
LONGEST_MESSAGE = 2000
"""Letters; what an API or a runtime says can be a page."""

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True)
class Condition:
    """What is true of one aspect.

    Parameters
    ----------
    type
        The aspect.
    status
        Whether it is as it should be; of :data:`UNSUPPORTED` and :data:`PAUSED`, whether it is so at all.
    reason
        In CamelCase.
    message
        For people.
    is_trouble
        Somebody has to do something.
    """

    type: str
    status: Truth
    reason: str
    message: str = ""
    is_trouble: bool = False


def rolled_up(conditions: Iterable[Condition]) -> Condition:
    """Return ``Ready``: true once all that is needed is, and else what holds it back first."""
    found = {condition.type: condition for condition in conditions}
    lacking = [found[kind] for kind in NEEDED if kind in found and found[kind].status != "True"]
    if not lacking:
        return Condition(READY, "True", "Serving", "all workers are up to date, and requests reach each of them")
    first = next((each for each in lacking if each.is_trouble), lacking[0])
    return Condition(READY, "False", first.reason, f"{first.type}: {first.message}", first.is_trouble)


def written(
    conditions: Iterable[Condition], former: Sequence[Mapping[str, Any]], generation: int, now: str
) -> list[dict[str, Any]]:
    """Return conditions as they stand in a status; the time of a transition stays while the status does."""
    since = {each["type"]: each["lastTransitionTime"] for each in former}
    truth = {each["type"]: each["status"] for each in former}
    return [
        {
            "type": each.type,
            "status": each.status,
            "reason": each.reason,
            "message": each.message[:LONGEST_MESSAGE],
            "lastTransitionTime": since[each.type] if truth.get(each.type) == each.status else now,
            "observedGeneration": generation,
        }
        for each in conditions
    ]


def transitions(conditions: Iterable[Condition], former: Sequence[Mapping[str, Any]]) -> list[Condition]:
    """Return what people are told of by an Event: what changed its truth, and new trouble.

    What is not so yet when an endpoint begins is no news.
    """
    before = {each["type"]: (each["status"], each["reason"]) for each in former}
    told = []
    for each in conditions:
        was = before.get(each.type)
        is_new_trouble = each.is_trouble and was != (each.status, each.reason)
        if is_new_trouble or (was is not None and was[0] != each.status) or (was is None and each.type == READY):
            told.append(each)
    return told
