"""``leases``: who holds what, and for how long."""

from typing import TYPE_CHECKING

from tierline.cli.node.arguments import Cursor, Limit
from tierline.cli.node.connecting import asks_node

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.client.admin import NodeAdmin


@asks_node
async def leases(
    node: "NodeAdmin",
    output: "Output",
    limit: Limit = 100,
    cursor: Cursor = "",
) -> None:
    """List live leases: their holders, what they keep from being evicted, and how long they last.

    \b
    Examples:
      tierline node leases
      tierline node leases --limit 1000 --json
    """
    from tierline.cli.printing import byte_size, duration

    page = await node.leases(limit=limit, cursor=cursor)
    if output.is_json:
        output.document(page)
        return
    output.table(
        ("HOLDER", ">OBJECTS", ">BYTES", ">HELD", ">ENDS IN", "LEASE"),
        [
            (
                lease.holder,
                f"{lease.objects:,}",
                byte_size(lease.bytes),
                duration(lease.age_s),
                duration(lease.expires_in_s),
                lease.id,
            )
            for lease in page.leases
        ],
    )
    if page.cursor:
        output.note(f"the first {len(page.leases)}; there are more: --limit")
