"""Removing an endpoint, and waiting until nothing of it is left; its model and its cache only when that is asked."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from tierline.errors import ClusterUnavailable
from tierline.kube.cluster import Cluster, Kind, Object
from tierline.operator import names
from tierline.operator.catalogue import Catalogue
from tierline.operator.endpoints.standing import POD, find_resource, resource_kinds

_POLL_S = 1.0


async def delete(cluster: Cluster, namespace: str, name: str) -> tuple[Kind, str]:
    """Have an endpoint removed; returns the kind and the uid of its resource.

    Raises
    ------
    UsageError
        There is none of that name.
    """
    kind, resource = await find_resource(cluster, namespace, name)
    await cluster.delete(kind, namespace, name)
    return kind, str(resource["metadata"]["uid"])


async def pods_to_go(cluster: Cluster, namespace: str, name: str, system_namespace: str) -> dict[str, str]:
    """Return the pods of an endpoint, by uid; others with the same label are not its own."""
    router = names.router_name(name, namespace)
    deployments = {names.worker_name(name), names.prefill_name(name), names.decode_name(name), router}
    found = {}
    for place, label in ((namespace, name), (namespace, router), (system_namespace, router)):
        for pod in await cluster.list(POD, place, labels=f"{names.APP}={label}"):
            owners = pod["metadata"].get("ownerReferences", ())
            if any(owner["name"].rpartition("-")[0] in deployments for owner in owners):
                found[pod["metadata"]["uid"]] = f"{place}/{pod['metadata']['name']}"
    return found


async def left_of(
    cluster: Cluster, kind: Kind, namespace: str, name: str, uid: str, pods: Mapping[str, str]
) -> list[str]:
    """Return what is left of an endpoint: its resource while somebody cleans up after it, and of its pods."""
    left = []
    found = await cluster.get(kind, namespace, name)
    if found is not None and found["metadata"]["uid"] == uid:
        finalizers = ", ".join(found["metadata"].get("finalizers", ()))
        left.append(f"{kind.name} {name}" + (f" (held by {finalizers})" if finalizers else ""))
    for pod_uid, pod_name in pods.items():
        place, _, pod = pod_name.partition("/")
        there = await cluster.get(POD, place, pod)
        if there is not None and there["metadata"]["uid"] == pod_uid:
            left.append(f"Pod {pod_name}")
    return left


async def until_gone(
    left: Callable[[], Awaitable[list[str]]], timeout_s: float, told: Callable[[Sequence[str]], None]
) -> None:
    """Wait until nothing is left; ``told`` has what is whenever that changes. An API that is away comes back.

    Raises
    ------
    ClusterUnavailable
        Something is left after ``timeout_s``.
    """
    last: list[str] | None = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    found = await left()
                except ClusterUnavailable as error:
                    found = [f"what the API does not tell ({error})"]
                if not found:
                    return
                if found != last:
                    told(found)
                    last = found
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise ClusterUnavailable(
            f"after {timeout_s:g} s there still is {', '.join(last or ())}; a finalizer is removed by the operator "
            "that set it: is it running?"
        ) from None


async def who_needs(
    cluster: Cluster, uid: str, bucket: str, prefix: str, catalogue: Catalogue
) -> tuple[list[str], list[str]]:
    """Return who needs files below a place in S3, and whose model cannot be told.

    Who needs them has its model there, above, or below, or writes below, as the endpoint itself may; by which region a
    bucket is reached makes no difference.

    Parameters
    ----------
    uid
        Of the resource whose own model it is.
    catalogue
        Says where the model of a ``JumpStartModel`` is.
    """
    place = _folder(bucket, prefix)
    needing, unknown = [], []
    registrations = await cluster.kind(names.API_VERSION, names.REGISTRATION)
    for kind in (*await resource_kinds(cluster), *([registrations] if registrations is not None else ())):
        for resource in await cluster.list(kind):
            metadata, spec = resource["metadata"], resource["spec"]
            name = f"{metadata['namespace']}/{metadata['name']}"
            is_needed = any(each[: len(place)] == place for each in _outputs(spec))
            if metadata["uid"] != uid and kind != registrations:
                source = _source(spec, catalogue)
                if source is None:
                    unknown.append(name)
                elif storage := source.get("s3Storage"):
                    model = _folder(storage["bucketName"], source.get("modelLocation") or "")
                    is_needed = is_needed or model[: len(place)] == place or place[: len(model)] == model
            if is_needed:
                needing.append(name)
    return needing, unknown


def _source(spec: Object, catalogue: Catalogue) -> Object | None:
    """Return where a resource has its model from; ``None`` where the catalogue does not know its model."""
    wanted = spec.get("model")
    if wanted is None:
        return dict(spec.get("modelSourceConfig") or {})
    entry = catalogue.find(wanted["modelId"], wanted.get("modelVersion"))
    return None if entry is None else entry.spec.model_source_config.manifest()


def _outputs(content: Any, key: str = "") -> Iterator[tuple[str, ...]]:
    """Yield the folders that a spec says something is to be written into."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _outputs(value, name)
    elif isinstance(content, str) and key.endswith(("S3Uri", "s3Uri")):
        yield _folder(*content.removeprefix("s3://").split("/", 1))


def _folder(bucket: str, prefix: str = "") -> tuple[str, ...]:
    return (bucket, *(part for part in prefix.split("/") if part))
