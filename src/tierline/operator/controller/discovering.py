"""What a cluster has, asked of it."""

import re
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec

from tierline.kube.api import PAGE_OBJECTS
from tierline.kube.cluster import Cluster
from tierline.operator.capabilities import Capabilities
from tierline.operator.controller.kinds import KNOWN, Served, newest

DEFAULT_CLASS = "ingressclass.kubernetes.io/is-default-class"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
LOOKS = 3
"""What so many in a row have not found is gone."""
_METADATA = ("Accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json;q=0.5")
"""Of a Node, tens of kilobytes are left away."""


class _Metadata(msgspec.Struct):
    name: str
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Spec(msgspec.Struct):
    controller: str = ""


class _Item(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)


class _Page(msgspec.Struct):
    class Next(msgspec.Struct):
        after: str = msgspec.field(default="", name="continue")

    items: list[_Item] | None
    """``null`` where there are none and metadata alone was asked for."""
    metadata: Next = msgspec.field(default_factory=Next)


class Discovery:
    """What a cluster has had of late.

    A chart that is installed anew takes its classes and drivers away for a moment, and an API server that starts does
    not know all kinds at once: endpoints are not made otherwise for that, and back a minute later.
    """

    @property
    def is_settled(self) -> bool:
        """What was not found is not there: it was looked for often enough."""
        return len(self._looks) == LOOKS

    def __init__(self) -> None:
        self._looks: deque[tuple[Capabilities, Served]] = deque(maxlen=LOOKS)

    async def look(self, cluster: Cluster) -> tuple[Capabilities, Served]:
        """Return what the last looks have found, this one included, of the kinds that matter; see :func:`discover`."""
        self._looks.append(await discover(cluster))
        found = [capabilities for capabilities, _ in self._looks]
        return (
            replace(
                found[-1],
                kinds=frozenset().union(*(each.kinds for each in found)),
                ingress_classes=tuple(sorted({k: v for each in found for k, v in each.ingress_classes}.items())),
                default_ingress_class=next(filter(None, (each.default_ingress_class for each in reversed(found))), ""),
                gateway_classes=tuple(sorted({name for each in found for name in each.gateway_classes})),
                csi_drivers=frozenset().union(*(each.csi_drivers for each in found)),
                instance_types=frozenset().union(*(each.instance_types for each in found)),
            ),
            {key: kind for _, served in self._looks for key, kind in served.items() if kind.name in KNOWN},
        )


async def discover(cluster: Cluster) -> tuple[Capabilities, Served]:
    """Return what a cluster has that endpoints can use, and how its API serves all that it does.

    Parameters
    ----------
    cluster
        That have not been asked for kinds yet.

    Raises
    ------
    ClusterRefused, ClusterUnavailable
        The API does not let us, or says nothing.
    """
    kinds = await cluster.kinds()
    classes = [item async for item in _all(cluster, kinds, "IngressClass")]
    defaults = [
        item.metadata.name for item in classes if (item.metadata.annotations or {}).get(DEFAULT_CLASS) == "true"
    ]
    return (
        Capabilities(
            kinds=frozenset(key for key, kind in kinds.items() if kind.name in KNOWN),
            version=await version_of(cluster),
            ingress_classes=tuple((item.metadata.name, item.spec.controller) for item in classes),
            default_ingress_class=defaults[0] if len(defaults) == 1 else "",
            gateway_classes=tuple([item.metadata.name async for item in _all(cluster, kinds, "GatewayClass")]),
            csi_drivers=frozenset([item.metadata.name async for item in _all(cluster, kinds, "CSIDriver")]),
            instance_types=frozenset(
                [
                    labels[INSTANCE_TYPE]
                    async for item in _all(cluster, kinds, "Node", _METADATA)
                    if INSTANCE_TYPE in (labels := item.metadata.labels or {})
                ]
            ),
        ),
        kinds,
    )


async def _all(cluster: Cluster, kinds: Served, kind: str, *headers: tuple[str, str]) -> AsyncIterator[_Item]:
    """Yield all objects of a kind, of which no more than a page is in memory."""
    found = newest(kinds, kind)
    query = {"limit": str(PAGE_OBJECTS)}
    while found is not None:
        async with cluster.answer("GET", found.path(), query=query, headers=headers) as answer:
            page = msgspec.json.decode(await answer.read(), type=_Page)
        for item in page.items or ():
            yield item
        query["continue"] = page.metadata.after
        if not page.metadata.after:
            return


async def version_of(cluster: Cluster) -> tuple[int, int]:
    """Return which Kubernetes it is: some builds say ``20+``, and some nothing."""
    said: dict[str, str] = await cluster.ask("GET", "/version")
    major, minor = (re.match(r"\d*", said.get(part, "")) for part in ("major", "minor"))
    return int(major[0] or 1 if major else 1), int(minor[0] or 0 if minor else 0)
