"""A request that the router answers itself, but not at once. To its client's connection it is what an exchange is."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from tierline.router.proxy.services import Services

if TYPE_CHECKING:
    from tierline.router.proxy.client import ClientConnection

T = TypeVar("T")


class Answering(Generic[T]):
    """Waits for an answer and writes it.

    Invariant: ``_task`` is set from :meth:`start` until the answer is written or its client has gone.

    Parameters
    ----------
    services, client
        For whom.
    answer, write
        What is waited for, and what is done with it.
    keep_alive
        Whether the client's connection lasts.
    held_bytes
        What the request's body counts for in ``services.held_bytes``.
    """

    def __init__(
        self,
        services: Services,
        client: "ClientConnection",
        answer: Awaitable[T],
        write: Callable[[T], None],
        *,
        keep_alive: bool,
        held_bytes: int,
    ) -> None:
        self._services = services
        self._client = client
        self._answer = answer
        self._write = write
        self._keep_alive = keep_alive
        self._held_bytes = held_bytes
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            self._write(await self._answer)
        finally:
            self._services.held_bytes -= self._held_bytes
            self._task = None
        self._client.exchange_ended(keep_alive=self._keep_alive)

    def client_gone(self) -> None:
        """Nobody waits any more."""
        if self._task is not None:
            self._task.cancel()

    def end_if_begun_before(self, time: float) -> None:
        """What the router answers itself has the time of an answer, and no other."""

    def expired(self) -> None:
        """It takes longer than an endpoint may."""
        self._client.abort()

    def client_paused(self) -> None:
        """There is one write, and it is small."""

    def client_resumed(self) -> None:
        """There is one write, and it is small."""
