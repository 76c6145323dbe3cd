"""Endpoints that the command line names, for as long as the router runs."""

from collections.abc import AsyncIterator, Sequence

from tierline.router.specs import EndpointSpec


class StaticSource:
    """One set, once."""

    name = "flags"

    def __init__(self, urls: Sequence[str]) -> None:
        self._specs = tuple(EndpointSpec(url=url) for url in urls)

    async def wanted_sets(self) -> AsyncIterator[Sequence[EndpointSpec]]:
        """See :class:`~tierline.router.discovery.base.Source`."""
        yield self._specs
