"""Where clients connect: plain, or encrypted with a certificate that can be renewed.

Rule: renewing loses no connection. A second server accepts from the same sockets with the new certificate before the
first one stops; what was accepted before goes on as it is.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from tierline.certificates import Certificate
from tierline.errors import EnvironmentTooSmall

BACKLOG = 1024


class Listener:
    """Accepts clients' connections.

    Parameters
    ----------
    make_protocol
        Makes a connection's protocol.
    certificate
        Encrypts them; ``None`` leaves them plain.
    """

    def __init__(self, make_protocol: Callable[[], asyncio.Protocol], certificate: Certificate | None) -> None:
        self._make_protocol = make_protocol
        self._certificate = certificate
        self._shown = certificate.context if certificate else None
        self._servers: dict[int, asyncio.Server] = {}
        """By the descriptor of the socket that was given; 0: one of this listener's own."""
        self._changing = asyncio.Lock()
        self.host, self.port = "", 0

    async def listen(self, host: str, port: int) -> None:
        """Accept from now on.

        Raises
        ------
        EnvironmentTooSmall
            When the address cannot be had.
        """
        try:
            server = await asyncio.get_running_loop().create_server(
                self._make_protocol, host, port, backlog=BACKLOG, ssl=self._shown
            )
        except OSError as error:
            raise EnvironmentTooSmall(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self._servers = {0: server}
        self.host, self.port = server.sockets[0].getsockname()[:2]

    async def renew(self) -> None:
        """Show the certificate of the moment to who connects from now on."""
        if self._certificate is None or self._certificate.context is self._shown:
            return
        self._shown = self._certificate.context
        async with self._changing:
            former = self._servers
            self._servers = {
                key: await self._serve(listening) for key, server in former.items() for listening in server.sockets
            }
            for server in former.values():
                server.close()

    async def accept_from(self, given: Sequence[socket.socket]) -> None:
        """Accept from these sockets, which listen already, and from no others, from now on.

        They stay their owner's: what waits in one that is no longer accepted from is lost only when all have closed it.
        """
        async with self._changing:
            self.host, self.port = given[0].getsockname()[:2]
            wanted = {listening.fileno(): listening for listening in given}
            for key in self._servers.keys() - wanted.keys():
                self._servers.pop(key).close()
            for key, listening in wanted.items():
                if key not in self._servers:
                    self._servers[key] = await self._serve(listening)

    async def _serve(self, listening: socket.socket) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            self._make_protocol,
            sock=socket.socket(fileno=os.dup(listening.fileno())),
            backlog=BACKLOG,
            ssl=self._shown,
        )

    def close(self) -> None:
        """Accept no more."""
        for server in self._servers.values():
            server.close()
