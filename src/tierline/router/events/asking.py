"""The ladder of a router that asks a controller: first a prompt's tokens, then who holds their blocks."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tierline.metrics import families
from tierline.router.endpointkeys import EndpointKeys
from tierline.router.endpoints import Endpoint, Endpoints
from tierline.router.events.following import routing_families
from tierline.router.events.remote import RemoteIndex
from tierline.router.strategies.base import RoutingRequest
from tierline.router.strategies.kvaware import KvAware
from tierline.router.tls import EndpointTls
from tierline.router.tokenizer import LocalTokenizer
from tierline.router.tokens import Question, TokenLadder

_AT_HAND = Question(b"", None, "", None, None, {})
"""Stands for a question whose tokens are known already: only the controller is to be asked."""


class AskingLadder(TokenLadder):
    """Finds the tokens of prompts, and has a controller say who holds them.

    Parameters
    ----------
    remote
        The controller; what else there is, is as for :class:`~tierline.router.tokens.TokenLadder`.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        tokenizers: Mapping[str, LocalTokenizer],
        remote: RemoteIndex,
        *,
        tls: EndpointTls,
        keys: EndpointKeys,
    ) -> None:
        super().__init__(endpoints, tokenizers, tls=tls, keys=keys)
        self._remote = remote

    def at_once(self, routing: RoutingRequest, body: bytes) -> Question | None:
        """See :class:`~tierline.router.tokens.TokenLadder`; nothing that has tokens is answered at once."""
        question = super().at_once(routing, body)
        return _AT_HAND if question is None and routing.tokens is not None else question

    async def climb(self, routing: RoutingRequest, question: Question) -> None:
        """Give the request its tokens, and what the controller says of them, if both can be had in time."""
        if question is not _AT_HAND:
            await super().climb(routing, question)
        await self._remote.look_up(routing, self._endpoints.serving(routing.model or None))


class RemoteFollower(Collector):
    """A companion of the set of endpoints: keeps the controller told of them, and shows in the metrics how it answers.

    Parameters
    ----------
    strategy, ladder, remote
        Whose figures are shown. ``remote`` is started here and closed with this.
    """

    def __init__(self, strategy: KvAware, ladder: TokenLadder, remote: RemoteIndex) -> None:
        self._strategy = strategy
        self._ladder = ladder
        self._remote = remote
        remote.start()

    def joined(self, endpoint: Endpoint) -> None:
        """Tell the controller."""
        self._remote.joined(endpoint)

    def left(self, endpoint: Endpoint) -> None:
        """Tell the controller."""
        self._remote.left(endpoint)

    async def close(self) -> None:
        """Ask no more."""
        await self._remote.close()

    def collect(self) -> Iterable[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        remote = self._remote
        yield families.gauge("tierline_router_kv_controller_up", remote.is_connected)
        yield families.counters("tierline_router_kv_controller_lookups_total", remote.outcomes)
        yield families.counter("tierline_router_kv_controller_failures_total", remote.failures)
        yield from routing_families(self._strategy, self._ladder)
