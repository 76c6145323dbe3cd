"""``get`` and ``put``: an object's bytes, between the node and a file or a pipe.

A file takes its name when its bytes are whole and match their checksum, so that half an object is never found under it.
"""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from tierline.cli.node.arguments import Bucket, Key
from tierline.cli.node.connecting import asks_node
from tierline.errors import UsageError

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.client.admin import NodeAdmin

_PIPE = Path("-")


@asks_node
async def get(
    node: "NodeAdmin",
    output: "Output",
    bucket: Bucket,
    key: Key,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; - is standard output.")] = _PIPE,
) -> None:
    """Read an object into a file or standard output, and compare it with its checksum.

    \b
    Examples:
      tierline node get lmcache 'model@1@0@5f3a@bfloat16' block.bin
      tierline node get lmcache 'model@1@0@5f3a@bfloat16' | xxh128sum -H3
    """
    if file == _PIPE:
        if output.is_json:
            raise UsageError("--json: the object itself goes to standard output; name a FILE for it")
        if sys.stdout.isatty():
            raise UsageError("FILE: an object is binary and a terminal is no place for it; name a file, or pipe it")
        await node.read(bucket, key, sys.stdout.buffer.write)
        return
    with _written_whole(file) as target:
        size = await node.read(bucket, key, target.write)
    if output.is_json:
        output.document({"bucket": bucket, "name": key, "size": size})
    else:
        output.note(f"{size:,} bytes in {file}, checksum as written")


@asks_node
async def put(
    node: "NodeAdmin",
    output: "Output",
    bucket: Bucket,
    key: Key,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to store; - is standard input.")] = _PIPE,
) -> None:
    """Store a file or standard input as an object; a key that is stored already is refused.

    \b
    Examples:
      tierline node put lmcache 'model@1@0@5f3a@bfloat16' block.bin
      head -c 1M /dev/urandom | tierline node put test random
    """
    with _read_whole(file) as source:
        size = os.fstat(source.fileno()).st_size
        await node.write(bucket, key, source)
    if output.is_json:
        output.document({"bucket": bucket, "name": key, "size": size})
    else:
        output.note(f"{size:,} bytes stored as {bucket}/{key}")


@contextmanager
def _written_whole(file: Path) -> Iterator[BinaryIO]:
    """Open a file that is there under its name once the block has ended well; a device or pipe is just written to."""
    try:
        is_replaced = not file.exists() or stat.S_ISREG(file.stat().st_mode)
        path = file.with_name(f".{file.name}.{os.getpid()}") if is_replaced else file
        with path.open("wb") as target:
            try:
                yield target
            except BaseException:
                if is_replaced:
                    path.unlink()
                raise
        if is_replaced:
            path.replace(file)
    except OSError as error:
        raise UsageError(f"FILE: cannot write {file}: {error.strerror}") from error


@contextmanager
def _read_whole(file: Path) -> Iterator[BinaryIO]:
    """Open a file whose size is known; a pipe's bytes are collected in a temporary one, for a PUT tells it ahead."""
    try:
        with sys.stdin.buffer if file == _PIPE else file.open("rb") as source:
            if stat.S_ISREG(os.fstat(source.fileno()).st_mode):
                yield source
                return
            with tempfile.TemporaryFile() as collected:
                shutil.copyfileobj(source, collected)
                collected.seek(0)
                yield collected
    except OSError as error:
        raise UsageError(f"FILE: cannot read {file}: {error.strerror}") from error
