"""``status`` and ``buckets``: what is in the node, and who uses it."""

from typing import TYPE_CHECKING

from tierline.cli.node.connecting import asks_node

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.client.admin import NodeAdmin


@asks_node
async def status(node: "NodeAdmin", output: "Output") -> None:
    """Print what the node holds and what it has done since it started.

    \b
    Examples:
      tierline node status
      tierline node status --url http://10.0.0.7:9200 --json
    """
    from tierline.cli.node.facts import status_facts

    if output.is_json:
        output.document(await node.stats_document())
    else:
        output.facts(status_facts(node.url, await node.stats()))


@asks_node
async def buckets(node: "NodeAdmin", output: "Output") -> None:
    """List buckets and the tenants in them: what they hold, their quotas, how often they find what they ask for.

    \b
    Examples:
      tierline node buckets
      tierline node buckets --json
    """
    from tierline.cli.printing import byte_size, percentage
    from tierline.wire.admin import NamespaceList

    namespaces = await node.buckets()
    if output.is_json:
        output.document(NamespaceList(namespaces=namespaces))
        return
    output.table(
        (
            "BUCKET",
            "TENANT",
            ">OBJECTS",
            ">BYTES",
            ">SOFT",
            ">HARD",
            ">HITS",
            ">MISSES",
            ">HIT RATE",
            ">EVICTED",
            ">REFUSED",
        ),
        [
            (
                entry.bucket,
                entry.salt or "-",
                f"{entry.objects:,}",
                byte_size(entry.bytes),
                _bound(entry.quota.soft_bytes, entry.quota.soft_objects),
                _bound(entry.quota.hard_bytes, entry.quota.hard_objects),
                f"{entry.hits:,}",
                f"{entry.misses:,}",
                percentage(entry.hits, entry.hits + entry.misses),
                f"{entry.evictions:,}",
                f"{entry.refusals:,}",
            )
            for entry in sorted(namespaces, key=lambda entry: entry.bytes, reverse=True)
        ],
    )


def _bound(size_bytes: int | None, objects: int | None) -> str:
    """Return both halves of a quota, or ``-``."""
    from tierline.cli.printing import byte_size, plural

    parts = [byte_size(size_bytes)] if size_bytes is not None else []
    parts += [plural(objects, "object")] if objects is not None else []
    return ", ".join(parts) or "-"
