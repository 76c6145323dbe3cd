"""Pods and what is told of them, as they are read of the API; only what phases and troubles are made of. Pure."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from tierline.kube.cluster import Object


class Metadata(msgspec.Struct, rename="camel"):
    """Who it is, and since when."""

    name: str
    namespace: str = ""
    uid: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = {}


class Condition(msgspec.Struct, rename="camel"):
    """What is, or is not, so of an object."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None
    observed_generation: int | None = None

    @property
    def is_true(self) -> bool:
        """Whether it is so; what is unknown is not."""
        return self.status == "True"


class Waiting(msgspec.Struct):
    """Of a container that does not run yet, or not now."""

    reason: str = ""
    message: str = ""


class Running(msgspec.Struct, rename="camel"):
    """Of a container that runs."""

    started_at: datetime | None = None


class Terminated(msgspec.Struct, rename="camel"):
    """Of a container that has ended."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""
    finished_at: datetime | None = None


class ContainerState(msgspec.Struct):
    """One of three."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(msgspec.Struct, rename="camel"):
    """How a container stands."""

    name: str
    ready: bool = False
    restart_count: int = 0
    state: ContainerState = msgspec.field(default_factory=ContainerState)
    last_state: ContainerState = msgspec.field(default_factory=ContainerState)


class ContainerPort(msgspec.Struct, rename="camel"):
    """One that a container listens on."""

    container_port: int
    name: str = ""


class EnvironmentVariable(msgspec.Struct):
    """What a container is given; one that is taken from elsewhere has no value here."""

    name: str
    value: str = ""


class Container(msgspec.Struct):
    """What runs."""

    name: str
    image: str = ""
    args: list[str] = []
    command: list[str] = []
    env: list[EnvironmentVariable] = []
    ports: list[ContainerPort] = []


class PodSpec(msgspec.Struct, rename="camel"):
    """What a pod is to be."""

    node_name: str = ""
    containers: list[Container] = []
    init_containers: list[Container] = []


class PodStatus(msgspec.Struct, rename="camel"):
    """How a pod stands."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    conditions: list[Condition] = []
    container_statuses: list[ContainerStatus] = []
    init_container_statuses: list[ContainerStatus] = []


class Pod(msgspec.Struct):
    """A pod."""

    metadata: Metadata
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)

    def condition(self, kind: str) -> Condition | None:
        """Return a condition of it, if that is said."""
        return next((each for each in self.status.conditions if each.type == kind), None)

    def became(self, kind: str) -> datetime | None:
        """Return since when a condition is true, or ``None`` where it is not."""
        condition = self.condition(kind)
        return condition.last_transition_time if condition is not None and condition.is_true else None

    @property
    def main(self) -> ContainerStatus | None:
        """The container that the others are for, the first, once a kubelet says something of it."""
        name = self.spec.containers[0].name if self.spec.containers else ""
        return next((each for each in self.status.container_statuses if each.name == name), None)


class InvolvedObject(msgspec.Struct):
    """What an event is of."""

    kind: str = ""
    name: str = ""
    uid: str = ""


class Event(msgspec.Struct, rename="camel"):
    """What somebody in the cluster noticed."""

    involved_object: InvolvedObject = msgspec.field(default_factory=InvolvedObject)
    type: str = "Normal"
    reason: str = ""
    message: str = ""
    count: int | None = None
    last_timestamp: datetime | None = None
    event_time: datetime | None = None


def read_pods(objects: Sequence[Object]) -> list[Pod]:
    """Return pods, the oldest first, those that are being deleted last."""
    pods = msgspec.convert(objects, list[Pod])
    return sorted(pods, key=lambda pod: (pod.metadata.deletion_timestamp is not None, _age(pod), pod.metadata.name))


def read_events(objects: Sequence[Object]) -> list[Event]:
    """Return events, the latest last."""
    events = msgspec.convert(objects, list[Event])
    return sorted(events, key=lambda event: (event.last_timestamp or event.event_time or _LONG_AGO).timestamp())


_LONG_AGO = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def _age(pod: Pod) -> float:
    return (pod.metadata.creation_timestamp or _LONG_AGO).timestamp()
