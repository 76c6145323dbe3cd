"""``delete``: an endpoint, until nothing of it is left; with ``--purge`` its cache and its model too."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierline.cli.endpoint.connecting import Name, Target, Timeout, Yes, asks_cluster, confirm
from tierline.cli.endpoint.pushing import S3Endpoint
from tierline.errors import TierlineError, UsageError

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.kube.cluster import Cluster
    from tierline.operator.catalogue import Catalogue
    from tierline.operator.endpoints.models import Place


@asks_cluster
async def delete(
    target: Target,
    output: "Output",
    name: Name,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove what it cached in the node stores, and its model in S3, too.")
    ] = False,
    s3_endpoint: S3Endpoint = None,
    catalogue: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Models that a JumpStartModel may name, as the operator has them.",
            show_default="the packed one",
        ),
    ] = None,
    timeout_s: Timeout = 600.0,
    yes: Yes = False,
) -> None:
    """Remove an endpoint and wait until its resource and its pods are gone; asks first.

    With --purge buckets of the node stores that it alone has are emptied, and the files below modelLocation in S3 are
    removed; not the bucket itself, and nothing while another endpoint has its model there, above, or below, or writes
    below.

    \b
    Examples:
      tierline endpoint delete demo
      tierline endpoint delete demo --purge --yes
    """
    from tierline.cli.printing import byte_size, plural
    from tierline.operator import catalogue as catalogues
    from tierline.operator.endpoints import flushing, models, removal
    from tierline.operator.endpoints.standing import find_resource

    cluster = target.cluster
    _, resource = await find_resource(cluster, target.namespace, name)
    loss = f"endpoint {target.namespace}/{name}"
    stored: list[Any] = []
    buckets: frozenset[str] = frozenset()
    place = _place(resource["spec"], s3_endpoint) if purge else None
    if purge:
        known_buckets = await flushing.buckets_of_endpoints(cluster)
        own = known_buckets.pop((target.namespace, name), frozenset())
        own |= flushing.buckets_of(await flushing.workers_of(cluster, target.namespace, name))
        buckets = own.difference(*known_buckets.values())
        if own - buckets:
            output.note(f"bucket {', '.join(sorted(own - buckets))} stays: other endpoints cache there, too")
        if not own and (resource["spec"].get("kvCacheSpec") or {}).get("enableL2Cache"):
            output.note("none of its workers is left to say in which bucket they cached; nothing cached is removed")
        if buckets:
            loss += f", what is cached in bucket {', '.join(sorted(buckets))} of every node store"
    if place is not None:
        known = catalogues.read(catalogue)
        await _require_unneeded(cluster, resource["metadata"]["uid"], place, known)
        store = models.open_store(place)
        stored = models.stored(store, place)
        size = sum(each["size"] for each in stored)
        loss += f", and {plural(len(stored), 'file')} ({byte_size(size)}) of its model at {place}"
    confirm(f"Remove {loss}?", is_sure=yes, loss=f"{loss} would go")
    pods = await removal.pods_to_go(cluster, target.namespace, name, target.system_namespace)
    kind, uid = await removal.delete(cluster, target.namespace, name)

    async def left() -> list[str]:
        return await removal.left_of(cluster, kind, target.namespace, name, uid, pods)

    try:
        await removal.until_gone(left, timeout_s, lambda found: output.note(f"still there: {', '.join(found)}"))
        flushed = await flushing.flush_stores(cluster, target.system_namespace, buckets)
        for each in flushed:
            if not each.is_empty:
                output.note(f"the cache at {each.pod} may not be empty: {each.why}")
        if place is not None and stored:
            # Whoever came since may have its model there.
            await _require_unneeded(cluster, resource["metadata"]["uid"], place, known)
            models.remove(store, place, [each["path"] for each in stored])
    except TierlineError:
        # The resource may be gone, and with it whatever says what else was to go.
        for command in _left_to_do(target, name, buckets, place if stored else None):
            output.note(f"left to do: {command}")
        raise
    if output.is_json:
        output.document({"removed": f"{target.namespace}/{name}", "caches": flushed, "files": len(stored)})
    else:
        output.line(f"{loss}: removed")


async def _require_unneeded(cluster: "Cluster", uid: str, place: "Place", catalogue: "Catalogue") -> None:
    """Refuse to remove files that somebody else needs, or may need.

    Raises
    ------
    UsageError
        Somebody does, or where somebody's model is cannot be told.
    """
    from tierline.operator.endpoints import removal

    needing, unknown = await removal.who_needs(cluster, uid, place.bucket, place.prefix, catalogue)
    if needing:
        raise UsageError(
            f"--purge: {', '.join(needing)} has its model at {place} too, or above, or below, or writes there; "
            "delete without --purge"
        )
    if unknown:
        raise UsageError(
            f"--purge: where the model of {', '.join(unknown)} is cannot be told; name the operator's --catalogue, "
            "or delete without --purge"
        )


def _left_to_do(target: Target, name: str, buckets: frozenset[str], place: "Place | None") -> list[str]:
    """Return the commands that do what a purge has not come to."""
    found = []
    if buckets:
        named = " ".join(f"--bucket {each}" for each in sorted(buckets))
        found.append(f"tierline endpoint flush {name} --namespace {target.namespace} {named}")
    if place is not None:
        endpoint = "" if place.endpoint is None else f" --endpoint-url {place.endpoint}"
        found.append(f"aws s3 rm --recursive {place}/{endpoint}")
    return found


def _place(spec: dict[str, Any], endpoint: str | None) -> "Place | None":
    """Return where in S3 the model is; ``None`` where it is elsewhere, or has no folder of its own."""
    from tierline.operator.endpoints.models import Place

    source = spec.get("modelSourceConfig") or {}
    storage, location = source.get("s3Storage"), (source.get("modelLocation") or "").strip("/")
    if source.get("modelSourceType") != "s3" or not storage or not location:
        return None
    return Place(storage["bucketName"], location, endpoint, storage["region"])
