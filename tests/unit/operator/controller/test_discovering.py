"""What a cluster has, when it has it no more for a moment, and when it is large."""

import contextlib
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import msgspec

from tierline.kube.cluster import Cluster, Kind
from tierline.operator.controller.discovering import DEFAULT_CLASS, INSTANCE_TYPE, LOOKS, Discovery, discover

DRIVERS, NODES = "/apis/storage.k8s.io/v1/csidrivers", "/api/v1/nodes"
CLASSES = "/apis/networking.k8s.io/v1/ingressclasses"
PLURALS = {"IngressClass": "ingressclasses"}
IMAGES = [{"names": [f"registry.example/{number}:{'x' * 100}"], "sizeBytes": 1} for number in range(50)]


class Answer:
    def __init__(self, content: object) -> None:
        self._content = msgspec.json.encode(content)

    async def read(self) -> bytes:
        return self._content


class ClusterWith(Cluster):
    """Serves what a test says; lists come in pages, of whole objects."""

    def __init__(self, kinds: Iterable[str], listed: Mapping[str, list[dict[str, Any]]]) -> None:
        super().__init__(None, "me")
        self._names, self._listed = kinds, listed

    async def kinds(self) -> Mapping[tuple[str, str], Kind]:
        versions = {
            "CSIDriver": "storage.k8s.io/v1",
            "Node": "v1",
            "PodMonitor": "monitoring.coreos.com/v1",
            "IngressClass": "networking.k8s.io/v1",
        }
        return {
            (version, name): Kind(version, name, PLURALS.get(name, f"{name.lower()}s"), is_namespaced=False)
            for name in self._names
            for version in (versions.get(name, "v1"),)
        }

    @contextlib.asynccontextmanager
    async def answer(self, method: str, path: str, *, query: Any = None, **_: object) -> AsyncIterator[Any]:
        if path == "/version":
            yield _Version()
            return
        start, limit = int(query.get("continue") or 0), int(query["limit"])
        items = self._listed.get(path, [])
        after = str(start + limit) if start + limit < len(items) else ""
        yield Answer({"items": items[start : start + limit] or None, "metadata": {"continue": after}})


class _Version(Answer):
    status = 200

    def __init__(self) -> None:
        super().__init__({"major": "1", "minor": "30+"})


async def test_what_is_not_there_for_a_moment_is_there_still_and_what_stays_away_is_gone() -> None:
    whole = ClusterWith(["CSIDriver", "PodMonitor"], {DRIVERS: [{"metadata": {"name": "s3.csi.aws.com"}}]})
    less = ClusterWith([], {})
    discovery = Discovery()
    found = await discovery.look(whole)
    for _ in range(LOOKS - 1):
        assert await discovery.look(less) == found
    assert "s3.csi.aws.com" in found[0].csi_drivers
    capabilities, served = await discovery.look(less)
    assert (capabilities.csi_drivers, capabilities.kinds, served) == (frozenset(), frozenset(), {})
    assert (await discovery.look(whole))[0] == found[0]


async def test_the_default_class_of_ingresses_is_the_one_that_is_marked_so() -> None:
    marked = {DEFAULT_CLASS: "true"}
    plain, first, second = (
        {"metadata": {"name": name, "annotations": annotations}, "spec": {"controller": f"example.com/{name}"}}
        for name, annotations in (("plain", {}), ("first", marked), ("second", marked))
    )
    for classes, default in (([plain], ""), ([plain, first], "first"), ([plain, first, second], "")):
        found, _ = await discover(ClusterWith(["IngressClass"], {CLASSES: classes}))
        assert found.default_ingress_class == default
        assert len(found.ingress_classes) == len(classes)


async def test_a_kind_that_nothing_is_made_of_changes_nothing() -> None:
    discovery = Discovery()
    found = await discovery.look(ClusterWith(["Node"], {}))
    assert await discovery.look(ClusterWith(["Node", "Whatever"], {})) == found


async def test_of_many_machines_most_are_not_in_memory() -> None:
    labels = {INSTANCE_TYPE: "ml.g5.24xlarge"}
    node = {"metadata": {"name": "n", "labels": labels}, "status": {"images": IMAGES}}
    cluster = ClusterWith(["Node"], {NODES: [node] * 4000})
    tracemalloc.start()
    try:
        capabilities, _ = await Discovery().look(cluster)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert capabilities.instance_types == {"ml.g5.24xlarge"}
    assert most < 4000 * len(msgspec.json.encode(node)) / 2
