"""``verify``: bytes against checksums, one object or a bucket."""

from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.node.arguments import Bucket
from tierline.cli.node.connecting import asks_node
from tierline.errors import ChecksumMismatch, NodeRefused

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.client.admin import NodeAdmin


@asks_node
async def verify(
    node: "NodeAdmin",
    output: "Output",
    bucket: Bucket,
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="One object.", show_default="all of the bucket")
    ] = None,
) -> None:
    """Compare an object, or every object of a bucket, with its checksum; what does not match is dropped.

    The node reads the bytes itself, in a thread beside its event loop. Exit status 1 when something did not match.

    \b
    Examples:
      tierline node verify lmcache 'model@1@0@5f3a@bfloat16'
      tierline node verify lmcache --json
    """
    from tierline.wire.admin import VerifyResult

    if key is None:
        await _verify_bucket(node, output, bucket)
        return
    result = await node.verify(bucket, key)
    if output.is_json:
        output.document({"result": result})
    elif result is VerifyResult.MATCH:
        output.line(f"{bucket}/{key}: its bytes match their checksum")
    if result is VerifyResult.MISMATCH:
        raise ChecksumMismatch(f"{node.url}: {bucket}/{key} did not match its checksum and was dropped")
    if result is VerifyResult.MISSING:
        raise NodeRefused(f"{node.url}: {bucket}/{key} is not stored", 404)


async def _verify_bucket(node: "NodeAdmin", output: "Output", bucket: str) -> None:
    from tierline.wire.admin import VerifyResult

    found = dict.fromkeys(VerifyResult, 0)
    dropped: list[str] = []
    cursor, is_first = "", True
    with output.progress("verifying") as progress:
        task = progress.add_task("", total=None)
        total = 0
        while cursor or is_first:
            page = await node.objects(bucket, cursor=cursor)
            cursor, is_first = page.cursor, False
            total += len(page.objects)
            progress.update(task, total=total)
            for entry in page.objects:
                result = await node.verify(bucket, entry.name)
                found[result] += 1
                if result is VerifyResult.MISMATCH:
                    dropped.append(entry.name)
                progress.advance(task)
    if output.is_json:
        output.document({**found, "dropped": dropped})
    else:
        output.line(
            f"{bucket}: {found[VerifyResult.MATCH]:,} match, {found[VerifyResult.MISMATCH]:,} do not and were dropped, "
            f"{found[VerifyResult.MISSING]:,} went meanwhile"
        )
        for name in dropped:
            output.line(f"dropped: {name}")
    if dropped:
        raise ChecksumMismatch(f"{node.url}: {len(dropped)} of {total} objects did not match their checksum")
