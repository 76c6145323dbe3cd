"""``rm`` and ``flush``: objects that go because somebody says so."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.node.arguments import AnyBucket, Bucket, Keys, Salt
from tierline.cli.node.connecting import asks_node
from tierline.errors import NodeRefused, UsageError

if TYPE_CHECKING:
    from tierline.cli.printing import Output
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
    from tierline.cli.printing import plural
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


@asks_node
async def flush(
    node: "NodeAdmin",
    output: "Output",
    bucket: AnyBucket = None,
    salt: Salt = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
) -> None:
    """Remove every object of a tenant, of a bucket, or of the whole node; asks first.

    \b
    Examples:
      tierline node flush lmcache
      tierline node flush lmcache --salt tenant-a --yes
    """
    from tierline.cli.printing import harmless, plural
    from tierline.wire.admin import Removed

    what = f"bucket {bucket}" if bucket is not None else "every bucket"
    if salt is not None:
        what += f", tenant {salt}" if salt else ", what belongs to no tenant"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("--yes: needed where nobody can be asked; all objects would be removed")
        typer.confirm(f"Remove all objects of {harmless(what)} at {node.url}?", abort=True, err=True)
    removed = await node.flush(bucket, salt)
    if output.is_json:
        output.document(Removed(removed=removed))
    else:
        output.line(f"{plural(removed, 'object')} removed: {what}")
