"""``flush``: the caches of an endpoint, emptied."""

from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.endpoint.connecting import Name, Target, Timeout, Yes, asks_cluster, confirm
from tierline.errors import EngineError

if TYPE_CHECKING:
    from tierline.cli.printing import Output


@asks_cluster
async def flush(
    target: Target,
    output: "Output",
    name: Name,
    restart: Annotated[
        bool, typer.Option("--restart", help="Replace the workers one after the other: what any engine keeps goes.")
    ] = False,
    bucket: Annotated[
        list[str] | None,
        typer.Option(metavar="BUCKET", help="Bucket in the node stores; repeat.", show_default="those of its workers"),
    ] = None,
    timeout_s: Timeout = 1800.0,
    yes: Yes = False,
) -> None:
    """Empty the caches of an endpoint: what its engines keep, and its buckets in the node stores.

    Engines are asked by POST /reset_prefix_cache, which vLLM has with VLLM_SERVER_DEV_MODE=1 only, and which does not
    reach what LMCache keeps in the engine's process; the endpoint's router asks them, where there is one and you may
    read its Secret. Where that does not do, --restart replaces the pods, as fast as the endpoint's rollout strategy
    lets it. A bucket is emptied for every endpoint that shares it; one that is named also when its endpoint is gone.

    The exit status is 1 if something may not be empty; what, and why, is told.

    \b
    Examples:
      tierline endpoint flush demo
      tierline endpoint flush demo --restart --yes
    """
    from tierline.operator.endpoints import flushing
    from tierline.operator.endpoints.standing import find_resource, pods_of
    from tierline.operator.names import router_name

    if not bucket:
        await find_resource(target.cluster, target.namespace, name)
    workers = await flushing.workers_of(target.cluster, target.namespace, name)
    _, routers = await pods_of(target.cluster, target.namespace, name, target.system_namespace)
    buckets = frozenset(bucket) if bucket else flushing.buckets_of(workers)
    what = f"{len(workers)} workers" + (f" and of bucket {', '.join(sorted(buckets))}" if buckets else "")
    confirm(f"Empty the caches of {what}?", is_sure=yes, loss="what is cached would be computed again")
    done = await flushing.flush_stores(target.cluster, target.system_namespace, buckets)
    if restart:
        await flushing.restart_workers(target.cluster, target.namespace, name, timeout_s=timeout_s)
        done += [flushing.Flushed(flushing.ENGINE, pod.metadata.name, is_empty=True) for pod in workers]
    else:
        done += await flushing.flush_engines(target.cluster, workers, routers, router_name(name, target.namespace))
    again = await flushing.flush_stores(target.cluster, target.system_namespace, buckets)
    done = [*flushing.joined(done, again), *flushing.not_ours(workers)]
    if output.is_json:
        output.document(done)
    else:
        output.table(
            ("CACHE", "WHERE", ">OBJECTS", "EMPTY", "WHY"),
            [
                (
                    each.what,
                    each.pod,
                    "-" if each.objects is None else f"{each.objects:,}",
                    "yes" if each.is_empty else "perhaps not",
                    each.why,
                )
                for each in done
            ],
        )
    if not all(each.is_empty for each in done):
        hint = "" if restart else "; --restart replaces the workers, which empties any engine"
        raise EngineError(f"not every cache of {name} is certainly empty{hint}")
