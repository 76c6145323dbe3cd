"""The status of a resource, exactly as the reference has it: ``hyp`` refuses to read any key that it does not know."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tierline.operator.controller.conditions import Condition
from tierline.operator.resources.status import DeploymentObjectStatus

PENDING, IN_PROGRESS, FAILED, COMPLETE = (
    "DeploymentPending",
    "DeploymentInProgress",
    "DeploymentFailed",
    "DeploymentComplete",
)
DELETING = "DeletionInProgress"
DEADLINE = "DeadlineExceeded"
_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Progress:
    """How far a deployment has come.

    Parameters
    ----------
    state
        In the reference's words.
    since
        When it came into this state, as RFC 3339 has it.
    left_s
        Seconds that it may take still, while it is in progress.
    """

    state: str
    since: str
    left_s: float | None = None


def stamp(now: datetime) -> str:
    """Return a time as RFC 3339 has it."""
    return now.strftime(_FORMAT)


def seconds_since(stamped: str, now: datetime) -> float:
    """Return how long ago it was that :func:`stamp` said so."""
    return (now - datetime.strptime(stamped, f"{_FORMAT[:-1]}%z")).total_seconds()


def progress(
    former: Mapping[str, Any], ready: Condition, *, generation: int, allowed_s: float, now: datetime, is_refused: bool
) -> Progress:
    """Return how far a deployment has come; what came before is read of the former status, for nobody else knows it.

    Parameters
    ----------
    former
        The status as it is.
    ready
        The condition of that name, as it will be.
    generation
        Of the resource; a new one begins a new deployment.
    allowed_s
        Seconds that a deployment may take.
    is_refused
        The resource asks for what cannot be.
    """
    deployment = former.get("deploymentStatus") or {}
    state, since = deployment.get("deploymentObjectOverallState"), deployment.get("lastUpdated") or stamp(now)
    is_same = former.get("observedGeneration") == generation
    if ready.status == "True":
        return Progress(COMPLETE, since if is_same and state == COMPLETE else stamp(now))
    if is_refused:
        return Progress(FAILED, since if is_same and state == FAILED else stamp(now))
    if is_same and state == FAILED and deployment.get("reason") == DEADLINE:
        return Progress(FAILED, since)
    if is_same and state == COMPLETE:  # what comes after, a machine that goes or more replicas, is no deployment
        return Progress(COMPLETE, since)
    if not is_same or state != IN_PROGRESS:
        return Progress(IN_PROGRESS, stamp(now), allowed_s)
    passed_s = seconds_since(since, now)
    if passed_s > allowed_s:
        return Progress(FAILED, stamp(now))
    return Progress(IN_PROGRESS, since, allowed_s - passed_s)


def object_status(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a Deployment's own status what the reference has a place for."""
    return DeploymentObjectStatus.model_validate(status, strict=False).manifest()
