"""``leases``: who holds what, and for how long."""

from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.node.connecting import asks_node

if TYPE_CHECKING:
    from tierline.cli.node.printing import Output
    from tierline.client.admin import NodeAdmin


@asks_node
async def leases(
    node: "NodeAdmin",
    output: "Output",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="List so many at most.")] = 100,
    cursor: Annotated[
        str,
        typer.Option(metavar="CURSOR", help='Go on where a list ended: its "cursor" in JSON.', show_default=False),
    ] = "",
) -> None:
    """List live leases: their holders, what they keep from being evicted, and how long they last.

    \b
    Examples:
      tierline node leases
      tierline node leases --limit 1000 --json
    """
    from tierline.cli.node.printing import byte_size, duration

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
