"""One worker of a router: ``python -m tierline.router.workers.worker``, started by the supervisor and by nobody else.

It gets its end of a connection, the board and the listening sockets as open descriptors, and its configuration in the
first message. It ends as a router of one process does; when the supervisor is gone, too.
"""

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Sequence

import structlog
import uvloop

from tierline import logs
from tierline.errors import TierlineError, UsageError
from tierline.router.config import RouterConfig
from tierline.router.process import keep_freed_memory, raise_file_limit
from tierline.router.server import running, within_files
from tierline.router.workers.board import Board
from tierline.router.workers.team import Team

log = logs.get("tierline.router.workers.worker")  # as a program, this module is called otherwise


async def work(index: int, connection: int, board: int, listening: Sequence[int]) -> None:
    """Serve as worker ``index``; the rest are descriptors."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    sockets = [socket.socket(fileno=descriptor) for descriptor in listening]
    team = Team(Board(board, len(sockets)), index, sockets, stopped.set)
    await loop.create_unix_connection(lambda: team.channel, sock=socket.socket(fileno=connection))
    stopping = asyncio.ensure_future(stopped.wait())
    await asyncio.wait((team.begin, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not team.begin.done():
        return
    config = RouterConfig.model_validate_json(team.begin.result().config)
    logs.configure(config.log_level, json=config.log_format == "json")
    async with running(within_files(share_of(config, len(sockets)), raise_file_limit()), team) as server:
        gc.collect()
        gc.freeze()
        team.ready()
        await stopping
        team.leave()
        log.info("worker stops", running=len(server.services.clients))


def share_of(config: RouterConfig, workers: int) -> RouterConfig:
    """Return the configuration of one of ``workers``: what a router may have in all is divided among them."""
    connections = -(-config.connections // workers)
    buffered_bytes = max(config.body_bytes, config.buffered_bytes // workers)
    return config.model_copy(update={"connections": connections, "buffered_bytes": buffered_bytes})


def main(arguments: Sequence[str]) -> None:
    """Run a worker as a program; the arguments are :func:`work`'s."""
    index, connection, board, *listening = map(int, arguments)
    structlog.contextvars.bind_contextvars(worker=index)
    keep_freed_memory()
    try:
        uvloop.run(work(index, connection, board, listening))
    except TierlineError as error:
        print(f"tierline: {error}", file=sys.stderr)  # noqa: T201  (as the command line says it)
        sys.exit(2 if isinstance(error, UsageError) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
