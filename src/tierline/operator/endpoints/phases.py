"""What a worker goes through until it serves, and how long each part took or takes. Pure: a pod and the time go in.

Times are the cluster's own, of whole seconds: of conditions, and of containers.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tierline.operator.endpoints.pods import Pod

PhaseName = Literal["schedule", "download", "start", "load", "join"]

MEANINGS: dict[PhaseName, str] = {
    "schedule": "a node with room is looked for",
    "download": "init containers bring the model",
    "start": "volumes are mounted, images pulled, containers made",
    "load": "the engine reads the model until it answers",
    "join": "the router takes it in",
}
USUAL_SECONDS: dict[PhaseName, float] = {"schedule": 60, "download": 180, "start": 120, "load": 300, "join": 15}
"""What a model of some 15 GB takes at most; whoever waits longer is told why that may be."""


@dataclass(frozen=True)
class Phase:
    """One part of the way.

    Parameters
    ----------
    name
        Which.
    seconds
        How long it took, or takes so far.
    is_over
        Whether the next one has begun.
    """

    name: PhaseName
    seconds: float
    is_over: bool

    @property
    def is_slow(self) -> bool:
        """Whether it takes longer than it usually does."""
        return not self.is_over and self.seconds > USUAL_SECONDS[self.name]


def phases(pod: Pod, now: datetime) -> list[Phase]:
    """Return the phases that a pod has been through, and last the one that it is in; all of them once it serves."""
    created = pod.metadata.creation_timestamp
    if created is None:
        return []
    main = pod.main
    running = main.state.running if main is not None else None
    ends: list[tuple[PhaseName, datetime | None]] = [("schedule", pod.became("PodScheduled"))]
    if pod.spec.init_containers:
        ends.append(("download", pod.became("Initialized")))
    ends.append(("start", running.started_at if running is not None else None))
    ends.append(("load", pod.became("ContainersReady")))
    ends.append(("join", pod.became("Ready")))
    found: list[Phase] = []
    begun = created
    for name, end in ends:
        found.append(Phase(name, max(0.0, ((end or now) - begun).total_seconds()), end is not None))
        if end is None:
            break
        begun = max(begun, end)
    return found


def is_serving(pod: Pod) -> bool:
    """Whether the router may send it requests."""
    return pod.metadata.deletion_timestamp is None and pod.became("Ready") is not None
