"""Members that a Kubernetes cluster has: the endpoints of a headless Service, as its EndpointSlices list them.

A pod that is ending serves its peers until it is gone, so that what it hands over can be fetched: it is a member as
long as it *serves*, which servers before 1.22 do not say, and there, as long as it is ready.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from tierline import logs
from tierline.kube.api import KubernetesApi, Watched, follow
from tierline.kube.selections import Selection
from tierline.kube.slices import EndpointSlice, SliceEndpoint, port_of, slice_calls
from tierline.pool.members.base import Member

log = logs.get(__name__)

PORT_NAME = "transfer"
"""Of the port between nodes, where a Service has several and none is named."""


class KubernetesMembers:
    """The members of one Service.

    Parameters
    ----------
    selection
        The Service.
    kubeconfig
        As for :class:`~tierline.kube.api.KubernetesApi`.

    Attributes
    ----------
    name
        For people.

    Raises
    ------
    UsageError
        A package is missing.
    """

    def __init__(self, selection: Selection, kubeconfig: Path | None = None) -> None:
        self.name = f"kubernetes {selection.text}"
        self._api = KubernetesApi(kubeconfig)
        self._selection = selection
        self._watched = Watched(self.name, EndpointSlice, selection.selector, self._take)
        self._members: tuple[Member, ...] | None = None
        self._refused: frozenset[str] = frozenset()
        self._unusable = 0
        self._is_changed = asyncio.Event()

    @property
    def failures(self) -> int:
        """Requests that failed, and slices that could not be used."""
        return self._watched.failures + self._unusable

    @property
    def is_behind(self) -> bool:
        """Whether what is known may be old."""
        return self._watched.is_behind

    async def member_sets(self) -> AsyncIterator[Sequence[Member]]:
        """See :class:`~tierline.pool.members.base.MemberSource`."""
        following = asyncio.create_task(
            follow(
                self._api, self._watched, lambda connected: slice_calls(self._api, connected, self._selection.namespace)
            )
        )
        following.add_done_callback(lambda _: self._is_changed.set())
        try:
            while True:
                await self._is_changed.wait()
                self._is_changed.clear()
                if following.done():
                    following.result()
                if self._members is not None:
                    yield self._members
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    def _take(self, slices: Mapping[str, EndpointSlice]) -> None:
        usable, refused = members_of(slices, self._selection.port)
        for uid in refused - self._refused:
            self._unusable += 1
            log.error(
                "an EndpointSlice cannot be used",
                service=self._selection.text,
                slice=slices[uid].metadata.name,
                why=f"it has no port of that name, or several and none called {PORT_NAME}",
            )
        self._refused = refused
        if usable != self._members:
            self._members = usable
            self._is_changed.set()


def members_of(slices: Mapping[str, EndpointSlice], port: str) -> tuple[tuple[Member, ...], frozenset[str]]:
    """Return the members that slices list, in the order of their names, and the uids of slices without a usable port.

    Parameters
    ----------
    slices
        By uid. An endpoint may be in two of them while it moves from one to the other.
    port
        Its name or number; empty: the only one, or the one called :data:`PORT_NAME`.
    """
    found: dict[object, Member] = {}  # by pod, or by address where nothing says which pod it is
    refused = set()
    for uid, part in sorted(slices.items(), key=lambda item: item[1].address_type):  # of a pod with both, IPv4
        serving = [endpoint for endpoint in part.endpoints or () if endpoint.is_serving and endpoint.addresses]
        used = port_of(part.ports or [], port, PORT_NAME)
        if used is None or used.port is None:
            refused |= {uid} if serving else set()
            continue
        for endpoint in serving:
            pod = endpoint.target_ref.uid if endpoint.target_ref is not None else ""
            member = _member(endpoint, used.port)
            found.setdefault(pod or member.address, member)
    return tuple(sorted(found.values())), frozenset(refused)


def _member(endpoint: SliceEndpoint, port: int) -> Member:
    """Return an endpoint as a member, called as its node most likely calls itself: the pod's own name in its Service,
    as in a StatefulSet; the machine's, as in a DaemonSet; else the pod's."""
    pod = endpoint.target_ref.name if endpoint.target_ref is not None else ""
    return Member(endpoint.hostname or endpoint.machine or pod, endpoint.addresses[0], port)
