"""``ls``, ``stat``, ``explain``, ``pin``, ``unpin``: single objects, and why one is not there."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.node.arguments import AnyBucket, Bucket, Cursor, Key, Keys, Limit, Salt
from tierline.cli.node.connecting import asks_node

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.client.admin import NodeAdmin
    from tierline.wire.admin import Pinned


@asks_node
async def ls(
    node: "NodeAdmin",
    output: "Output",
    bucket: AnyBucket = None,
    prefix: Annotated[str, typer.Option(metavar="TEXT", help="Names that start so.", show_default=False)] = "",
    salt: Salt = None,
    limit: Limit = 100,
    cursor: Cursor = "",
) -> None:
    """List objects: size, age, when and how often they were asked for, and what keeps them.

    \b
    Examples:
      tierline node ls
      tierline node ls lmcache --prefix 'meta-llama/Llama-3.1-8B@' --limit 1000
      tierline node ls lmcache --salt tenant-a --json
    """
    from tierline.cli.printing import byte_size, duration

    page = await node.objects(bucket, prefix=prefix, salt=salt, limit=limit, cursor=cursor)
    if output.is_json:
        output.document(page)
        return
    output.table(
        ("BUCKET", "KEY", ">SIZE", ">AGE", ">IDLE", ">HITS", ">LEASES", ">PINNED", ">EXPIRES", "CHECKED"),
        [
            (
                entry.bucket,
                entry.name,
                byte_size(entry.size),
                duration(entry.age_s),
                duration(entry.idle_s),
                f"{entry.hits:,}",
                str(entry.leases or "-"),
                duration(entry.pinned_s or None),
                duration(entry.expires_s),
                "yes" if entry.is_verified else "not yet",
            )
            for entry in page.objects
        ],
    )
    if page.cursor:
        output.note(f"the first {len(page.objects)}; there are more: --limit, or --prefix to narrow the list")


@asks_node
async def stat(node: "NodeAdmin", output: "Output", bucket: Bucket, key: Key) -> None:
    """Print all that the node knows of one object; for one that is not stored, why.

    \b
    Examples:
      tierline node stat lmcache 'model@1@0@5f3a@bfloat16'
      tierline node stat lmcache 'model@1@0@5f3a@bfloat16' --json
    """
    from tierline.cli.node.facts import object_facts

    found = await node.stat(bucket, key)
    if output.is_json:
        output.document(found)
    else:
        output.facts(object_facts(found))


@asks_node
async def explain(node: "NodeAdmin", output: "Output", bucket: Bucket, key: Key) -> None:
    """Say why a key is there, or why it was a miss.

    The answer is one word and a sentence: never_stored, evicted, expired, deleted, flushed, corrupt, quota,
    transit, lost_at_restart, other_tenant, other_layout, being_written or stored. The node remembers a bounded number
    of objects that are gone; what it has forgotten is never_stored.

    \b
    Examples:
      tierline node explain lmcache 'model@1@0@5f3a@bfloat16'
      tierline node explain lmcache 'model@1@0@5f3a@bfloat16' --json
    """
    from tierline.cli.printing import duration

    found = await node.explain(bucket, key)
    if output.is_json:
        output.document(found)
        return
    when = "" if found.ago_s is None else f" {duration(found.ago_s)} ago"
    output.line(f"{found.kind}{when}: {found.detail}")


@asks_node
async def pin(
    node: "NodeAdmin",
    output: "Output",
    bucket: Bucket,
    key: Keys,
    ttl: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="How long.")] = 3600.0,
) -> None:
    """Keep objects for a time: they go only when nothing else can.

    \b
    Examples:
      tierline node pin tierline 5f3a@0 9c1b@0
      tierline node pin tierline 5f3a@0 --ttl 86400
    """
    from tierline.cli.printing import duration, plural

    pinned = [await node.pin(bucket, name, ttl) for name in key]
    if output.is_json:
        output.document(_pins(bucket, key, pinned))
    else:
        shortest = min(each.pinned_s for each in pinned)
        output.line(f"{plural(len(pinned), 'object')} pinned for {duration(shortest)}")


@asks_node
async def unpin(node: "NodeAdmin", output: "Output", bucket: Bucket, key: Keys) -> None:
    """End a pin before its time.

    \b
    Examples:
      tierline node unpin tierline 5f3a@0
    """
    from tierline.cli.printing import plural

    unpinned = [await node.unpin(bucket, name) for name in key]
    if output.is_json:
        output.document(_pins(bucket, key, unpinned))
    else:
        output.line(f"{plural(len(unpinned), 'object')} no longer pinned")


def _pins(bucket: str, names: Sequence[str], pinned: Sequence["Pinned"]) -> dict[str, object]:
    return {
        "objects": [
            {"bucket": bucket, "name": name, "pinned_s": pin.pinned_s} for name, pin in zip(names, pinned, strict=True)
        ]
    }
