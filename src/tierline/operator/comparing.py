"""What would be otherwise in a cluster if resources were applied: each object as it is beside what the API would have.

The API itself is asked, by a trial that changes nothing, so that defaults and fields of others are in both.
"""

import difflib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

import msgspec

from tierline.errors import ClusterRefused
from tierline.kube.cluster import Cluster, Kind
from tierline.operator import documents
from tierline.operator.capabilities import Capabilities
from tierline.operator.commits import HubCommits
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.kinds import POD, Reference, Served, children, newest, reference
from tierline.operator.controller.live import Live, kind_of
from tierline.operator.controller.settling import decisive, settle
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.manifest import Manifest
from tierline.operator.manifests.workers import stands
from tierline.operator.names import API_VERSION, OWNER_UID
from tierline.operator.rendering import render

_OF_THE_API = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")
_SHOWN_APART = ("apiVersion", "kind", "metadata", "status")
_OF_CONTROLLERS = ("deployment.kubernetes.io/revision", "deprecated.daemonset.template.generation")
"""Annotations that change by themselves."""


@dataclass(frozen=True)
class Difference:
    """What would be otherwise of one object.

    Parameters
    ----------
    object
        Which.
    lines
        As ``diff -u`` prints them.
    """

    object: Reference
    lines: tuple[str, ...]


async def seen(cluster: Cluster, endpoint: Endpoint) -> Endpoint:
    """Return the endpoint as the one that the cluster has under its name, so that its objects are known by its uid."""
    kind = await cluster.kind(API_VERSION, endpoint.kind)
    found = await cluster.get(kind, endpoint.namespace, endpoint.name) if kind is not None else None
    return replace(endpoint, uid=found["metadata"]["uid"]) if found is not None else endpoint


async def compare(
    cluster: Cluster, served: Served, endpoints: Sequence[Endpoint], capabilities: Capabilities, config: OperatorConfig
) -> list[Difference]:
    """Return what would be otherwise if the operator saw these endpoints; what they share counts only as they want it.

    Raises
    ------
    ClusterRefused, ClusterUnavailable
        The API does not let us look, or says nothing.
    """
    endpoints = [await _settled(cluster, served, endpoint, capabilities, config) for endpoint in endpoints]
    rendered = render(endpoints, capabilities, config)
    differences = []
    for manifest in rendered.manifests:
        kind = served[manifest["apiVersion"], manifest["kind"]]
        found = await cluster.get(kind, manifest["metadata"].get("namespace"), manifest["metadata"]["name"])
        wanted = await _on_trial(cluster, kind, manifest)
        if difference := _difference(reference(manifest), found, wanted):
            differences.append(difference)
    keep = {reference(manifest) for manifest in rendered.manifests}
    keep |= {Reference("Secret", secret.namespace, secret.name) for secret in rendered.secrets}
    for endpoint in endpoints:
        if endpoint.uid:
            differences += await _swept(cluster, served, endpoint, keep)
    return differences


async def _settled(
    cluster: Cluster, served: Served, endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig
) -> Endpoint:
    """Return the endpoint with what the operator would go by that finds it in this cluster."""
    live: list[Live] = []
    for child in decisive(endpoint, config) if endpoint.uid else ():
        kind = newest(served, child.kind)
        found = await cluster.get(kind, child.namespace, child.name) if kind is not None else None
        if found is not None:
            live.append(msgspec.json.decode(msgspec.json.encode(found), type=kind_of(child.kind)))
    own = [each for each in live if each.owner == endpoint.uid]
    commits = HubCommits(cluster, config.hf_endpoint, time.monotonic)
    return await settle(endpoint, own, stands, capabilities, config, commits)


async def _on_trial(cluster: Cluster, kind: Kind, manifest: Manifest) -> Manifest:
    try:
        return await cluster.apply(kind, manifest, is_trial=True)
    except ClusterRefused as refusal:
        if refusal.status != HTTPStatus.NOT_FOUND:
            raise
        return manifest  # its namespace is not there yet


async def _swept(cluster: Cluster, served: Served, endpoint: Endpoint, keep: Iterable[Reference]) -> list[Difference]:
    """Return what the endpoint has and would not have any more."""
    kept = frozenset(keep)
    kinds = [kind for kind in children(served) if kind.name != POD]
    found = [each for kind in kinds for each in await cluster.list(kind, labels=f"{OWNER_UID}={endpoint.uid}")]
    unwanted = [each for each in found if reference(each) not in kept]
    return [gone for each in unwanted if (gone := _difference(reference(each), each, None)) is not None]


def _difference(what: Reference, found: Manifest | None, wanted: Manifest | None) -> Difference | None:
    before, after = _lines(found), _lines(wanted)
    name = f"{what.kind}/{what.namespace}/{what.name}"
    lines = difflib.unified_diff(
        before,
        after,
        f"cluster/{name}" if found is not None else "/dev/null",
        f"wanted/{name}" if wanted is not None else "/dev/null",
        lineterm="",
    )
    listed = tuple(lines)
    return Difference(what, listed) if listed else None


def _lines(manifest: Manifest | None) -> list[str]:
    """Return an object as text, without what the API and controllers say of it."""
    if manifest is None:
        return []
    metadata = {key: value for key, value in manifest["metadata"].items() if key not in _OF_THE_API}
    said = {key: value for key, value in metadata.pop("annotations", {}).items() if key not in _OF_CONTROLLERS}
    if said:
        metadata["annotations"] = said
    shown: dict[str, Any] = {
        "apiVersion": manifest["apiVersion"],
        "kind": manifest["kind"],
        "metadata": _sorted(metadata),
        **{key: _sorted(value) for key, value in sorted(manifest.items()) if key not in _SHOWN_APART},
    }
    if manifest["kind"] == "Secret":
        shown["data"] = dict.fromkeys(manifest.get("data", {}), "…")
    return documents.text([shown]).splitlines()


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
