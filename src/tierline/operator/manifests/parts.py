"""What one concern adds to a pod of workers; all of them together make the pod."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tierline.operator.manifests.manifest import Manifest, Notice


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is added to the pod, and to its first container, the engine.

    Parameters
    ----------
    arguments
        Of the engine, one group of a flag and its values each.
    environment
        Variables of the engine, in the order in which they refer to each other.
    mounts
        Of the engine.
    volumes, init_containers, annotations
        Of the pod.
    notices
        What could not be had.
    """

    arguments: tuple[tuple[str, ...], ...] = ()
    environment: tuple[Manifest, ...] = ()
    mounts: tuple[Manifest, ...] = ()
    volumes: tuple[Manifest, ...] = ()
    init_containers: tuple[Manifest, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()

    def __add__(self, other: "Parts") -> "Parts":
        return Parts(
            arguments=self.arguments + other.arguments,
            environment=self.environment + other.environment,
            mounts=self.mounts + other.mounts,
            volumes=self.volumes + other.volumes,
            init_containers=self.init_containers + other.init_containers,
            annotations={**self.annotations, **other.annotations},
            notices=self.notices + other.notices,
        )


def variable(name: str, value: str) -> Manifest:
    """Return a variable of a container."""
    return {"name": name, "value": value}


def unique(items: Iterable[Manifest], key: str = "name") -> list[dict[str, Any]]:
    """Return ``items`` with the last of those that have the same ``key``, where it stands."""
    ordered = list(items)
    last = {item[key]: position for position, item in enumerate(ordered)}
    return [item for position, item in enumerate(ordered) if last[item[key]] == position]
