"""Volumes of a pod that belong to no other concern: the engine's shared memory, and what the user mounts besides."""

from typing import Any

from tierline.errors import ConfigurationError
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import annotations
from tierline.operator.manifests.parts import Parts
from tierline.operator.resources.volumes import Volume

_SHARED_MEMORY = "shared-memory"


def volume_parts(endpoint: Endpoint) -> Parts:
    """Return the engine's shared memory, and the mounts that annotation ``volume-mounts`` says.

    Raises
    ------
    ConfigurationError
        The annotation has another form, or names a volume that is not there.
    """
    names = {volume["name"] for volume in own_volumes(endpoint)}
    # A container has 64 MiB otherwise, less than the processes of one engine need to talk to each other.
    return Parts(
        volumes=({"name": _SHARED_MEMORY, "emptyDir": {"medium": "Memory"}},),
        mounts=(
            {"name": _SHARED_MEMORY, "mountPath": "/dev/shm"},  # noqa: S108
            *_mounts(endpoint, names),
        ),
    )


def own_volumes(endpoint: Endpoint) -> list[dict[str, Any]]:
    """Return the volumes that the user says; one that is called like one of ours comes in its place."""
    kubernetes = endpoint.spec.kubernetes
    return [_own(volume) for volume in (kubernetes.volumes or ())] if kubernetes is not None else []


def _own(volume: Volume) -> dict[str, Any]:
    """Return a volume of the user's, its size as text: older servers refuse to apply numbers."""
    made = volume.manifest()
    if "sizeLimit" in made.get("emptyDir", {}):
        made["emptyDir"] = made["emptyDir"] | {"sizeLimit": str(made["emptyDir"]["sizeLimit"])}
    return made


def _mounts(endpoint: Endpoint, names: set[str]) -> list[dict[str, str]]:
    text = endpoint.annotation("volume-mounts")
    if text is None:
        return []
    mounts = []
    for part in text.split(","):
        name, _, path = (piece.strip() for piece in part.partition("="))
        if name not in names or not path.startswith("/"):
            allowed = "NAME=/PATH, with commas between, where NAME is one of spec.kubernetes.volumes"
            raise ConfigurationError(annotations.path("volume-mounts"), text, allowed)
        mounts.append({"name": name, "mountPath": path})
    return mounts
