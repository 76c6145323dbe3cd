"""Endpoints that the command line names, for as long as the router runs."""

from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType

from tierline.router.specs import EndpointSpec


class StaticSource:
    """One set, once.

    Parameters
    ----------
    urls
        The endpoints.
    kv_events, node_events
        Where they publish KV events, and where the stores of their nodes do, by URL.
    """

    name = "flags"

    def __init__(
        self,
        urls: Sequence[str],
        kv_events: Mapping[str, str] = MappingProxyType({}),
        node_events: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._specs = tuple(
            EndpointSpec(url=url, kv_events=kv_events.get(url), node_events=node_events.get(url)) for url in urls
        )

    async def wanted_sets(self) -> AsyncIterator[Sequence[EndpointSpec]]:
        """See :class:`~tierline.router.discovery.base.Source`."""
        yield self._specs
