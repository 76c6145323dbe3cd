"""Which versions fit, in one place: of what a cluster has, and of engines. ``docs/endpoint.md`` has the same table."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tierline.kube.cluster import Object

Version = tuple[int, int]
_NUMBERS = re.compile(r"v?(\d+)\.(\d+)")


@dataclass(frozen=True)
class Range:
    """Versions of one thing that fit.

    Parameters
    ----------
    oldest
        Major and minor of the first.
    why
        What an older one lacks.
    source
        Who says so.
    newest
        The last that was looked at; a later one is taken to fit, and is told. ``None``: nothing is known of an end.
    """

    oldest: Version
    why: str
    source: str
    newest: Version | None = None


KUBERNETES, KEDA, CERT_MANAGER = "Kubernetes", "KEDA", "cert-manager"
GATEWAY_API, PROMETHEUS_OPERATOR, VLLM = "Gateway API", "Prometheus operator", "vLLM"
RANGES: Mapping[str, Range] = {
    KUBERNETES: Range(
        (1, 20), "nothing older was looked at", "the tests' API server; kubernetes-validate for the newest", (1, 34)
    ),
    KEDA: Range((2, 14), "ScaledObjects have no initialCooldownPeriod", "kedacore/keda-docs#1392"),
    CERT_MANAGER: Range((1, 0), "there is no cert-manager.io/v1", "the API version that is asked for"),
    GATEWAY_API: Range((0, 5), "there is no gateway.networking.k8s.io/v1beta1", "the API versions that are asked for"),
    PROMETHEUS_OPERATOR: Range(
        (0, 31), "there are no PodMonitors", "prometheus-operator's changelog, 0.31.0 / 2019-06-20"
    ),
    VLLM: Range((0, 11), "its LMCache is not known to reach node stores", "HyperPod's example, vLLM 0.11.1"),
}
_OF_DEFINITIONS = {
    "scaledobjects.keda.sh": (KEDA, "labels", "app.kubernetes.io/version"),
    "certificates.cert-manager.io": (CERT_MANAGER, "labels", "app.kubernetes.io/version"),
    "httproutes.gateway.networking.k8s.io": (GATEWAY_API, "annotations", "gateway.networking.k8s.io/bundle-version"),
    "podmonitors.monitoring.coreos.com": (PROMETHEUS_OPERATOR, "annotations", "operator.prometheus.io/version"),
}
"""Where a CustomResourceDefinition says of which version its program is."""


def of_definition(definition: Object) -> tuple[str, str] | None:
    """Return of which program a CustomResourceDefinition is, and its version, where it says so."""
    metadata = definition["metadata"]
    name, place, key = _OF_DEFINITIONS.get(metadata["name"], ("", "labels", ""))
    found = (metadata.get(place) or {}).get(key)
    return (name, str(found)) if found else None


def read(version: str) -> Version | None:
    """Return major and minor of a version as programs write it; ``None`` where it says none."""
    found = _NUMBERS.match(version)
    return (int(found[1]), int(found[2])) if found else None


def text(version: Version) -> str:
    """Return a version as people write it."""
    return "{}.{}".format(*version)


def needed(name: str) -> str:
    """Return which versions fit."""
    return f"{name} {text(RANGES[name].oldest)} or later is needed"


def what_is_wrong(name: str, version: Version | None) -> str:
    """Return what is wrong with a version: empty where it fits, or nobody knows it."""
    known = RANGES[name]
    if version is None or version >= known.oldest:
        return ""
    return f"{needed(name)}: before, {known.why}"


def what_is_new(name: str, version: Version | None) -> str:
    """Return that a version is later than any that was looked at: empty where it is not."""
    newest = RANGES[name].newest
    if version is None or newest is None or version <= newest:
        return ""
    return f"later than {text(newest)}, the latest that was looked at"
