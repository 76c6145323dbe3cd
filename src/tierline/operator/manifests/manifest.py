"""An object of Kubernetes as it is applied, and what a set of functions answers that make them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
"""As ``kubectl apply`` takes it: ``apiVersion``, ``kind``, ``metadata``, and only the fields that are ours to say."""


@dataclass(frozen=True)
class Notice:
    """Something wanted that the cluster, or this program, cannot give, or gives otherwise; becomes part of a condition.

    Parameters
    ----------
    condition
        Type of the condition that tells of it, such as ``AutoscalingReady``.
    reason
        In CamelCase, such as ``KedaMissing``.
    message
        What is missing, what was done instead, what would mend it.
    """

    condition: str
    reason: str
    message: str


@dataclass(frozen=True)
class Made:
    """What one kind of child is made of.

    Parameters
    ----------
    manifests
        To be applied, in this order.
    notices
        What could not be had.
    """

    manifests: tuple[Manifest, ...] = ()
    notices: tuple[Notice, ...] = ()

    def __add__(self, other: "Made") -> "Made":
        return Made(self.manifests + other.manifests, self.notices + other.notices)


def with_metadata(manifest: Manifest, *, labels: Mapping[str, str], annotations: Mapping[str, str]) -> Manifest:
    """Return ``manifest`` with labels and annotations under those that it has."""
    metadata = dict(manifest["metadata"])
    if merged := {**labels, **metadata.get("labels", {})}:
        metadata["labels"] = merged
    if merged := {**annotations, **metadata.get("annotations", {})}:
        metadata["annotations"] = merged
    return {**manifest, "metadata": metadata}
