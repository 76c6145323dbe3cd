"""``orphans``: pages that wait for clients of a former process, and their release by who knows that those are gone."""

from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.node.connecting import asks_node

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.client.admin import NodeAdmin


@asks_node
async def orphans(
    node: "NodeAdmin",
    output: "Output",
    release: Annotated[
        str | None, typer.Option(metavar="CLIENT", help="Free what this client held. It must not be writing any more.")
    ] = None,
) -> None:
    """List clients that were connected before the node was started anew and may be writing still; their pages wait.

    A client that comes back, or whose process is seen to have ended, is not listed any more. Process 0: the node cannot
    tell, as of clients in other pods without hostPID. Free those by hand, once they are gone.

    \b
    Examples:
      tierline node orphans
      tierline node orphans --release 'vllm-0@worker-1:4711'
    """
    from tierline.cli.printing import byte_size, plural
    from tierline.wire.admin import OrphanList, Removed

    if release is not None:
        removed = await node.release_orphans(release)
        if output.is_json:
            output.document(Removed(removed=removed))
        else:
            output.line(f"{plural(removed, 'slot')} freed")
        return
    found = await node.orphans()
    if output.is_json:
        output.document(OrphanList(orphans=found))
        return
    output.table(
        ("CLIENT", ">PROCESS", ">BYTES"),
        [(orphan.client, str(orphan.pid), byte_size(orphan.size_bytes)) for orphan in found],
    )
