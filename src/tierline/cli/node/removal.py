"""``rm``: objects that go because somebody says so."""

from typing import TYPE_CHECKING

from tierline.cli.node.arguments import Bucket, Keys
from tierline.cli.node.connecting import asks_node
from tierline.errors import NodeRefused

if TYPE_CHECKING:
    from tierline.cli.node.printing import Output
    from tierline.client.admin import NodeAdmin


@asks_node
async def rm(node: "NodeAdmin", output: "Output", bucket: Bucket, key: Keys) -> None:
    """Remove objects; who holds a lease on one keeps its bytes until the lease ends.

    A key that is not stored is reported, the others are removed, and the exit status is 1.

    \b
    Examples:
      tierline node rm lmcache 'model@1@0@5f3a@bfloat16'
      tierline node ls lmcache --json | jq -r '.objects[].name' | xargs -d '\\n' tierline node rm lmcache
    """
    from tierline.cli.node.printing import plural
    from tierline.wire.admin import Removed

    missing = []
    for name in key:
        try:
            await node.delete(bucket, name)
        except NodeRefused as refusal:
            if refusal.status != 404:
                raise
            missing.append(refusal)
    removed = len(key) - len(missing)
    if output.is_json:
        output.document(Removed(removed=removed))
    else:
        output.line(f"{plural(removed, 'object')} removed")
    if missing:
        for earlier in missing[:-1]:
            output.note(f"tierline: {earlier}")
        raise missing[-1]
