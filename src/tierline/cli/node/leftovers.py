"""``remove-segment``: the memory that a node which is gone has left to its successor, given back to the machine."""

from typing import Annotated

import typer

from tierline.cli.options import ConfigFile


def remove_segment(
    config: ConfigFile = None,
    shared_memory_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the segment under /dev/shm.", show_default="shared_memory"),
    ] = None,
    shared_memory_directory: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the machine's shared memory is.",
            show_default="/dev/shm",  # noqa: S108  (POSIX shared memory lives there)
        ),
    ] = None,
    socket: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="UNIX socket of engines on this machine.", show_default="by port"),
    ] = None,
) -> None:
    """Remove what a node store that has ended left on this machine: its segment under both names, the journal, the
    socket.

    It is to be told what that node was told: the same file, variables or flags. One that runs is left as it is, and
    the exit status is 1. Nothing to remove is no error. Engines that still have the segment mapped keep it; its
    memory is free when the last of them ends.

    \b
    Examples:
      tierline node remove-segment
      tierline node remove-segment --shared-memory-name ai_toolkit_cache --socket /run/tierline/node.sock
    """
    from tierline.cli.printing import Output
    from tierline.configuration import load
    from tierline.node.config import NodeConfig
    from tierline.node.leftovers import remove_leftovers

    settings = load(
        NodeConfig,
        config,
        {
            "shared_memory_name": shared_memory_name,
            "shared_memory_directory": shared_memory_directory,
            "socket": socket,
        },
    )
    output = Output(is_json=False)
    removed = remove_leftovers(settings)
    for path in removed:
        output.line(f"removed {path}")
    if not removed:
        output.line(f"there is no {settings.shared_memory_directory / settings.shared_memory_name}")
