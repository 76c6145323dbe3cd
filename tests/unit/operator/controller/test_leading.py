"""The Lease on a simulated API: for how long its holder acts, and how he leaves it."""

import asyncio
from collections.abc import Callable
from typing import Any

from tierline.errors import ClusterRefused, ClusterUnavailable
from tierline.kube.cluster import Cluster, Kind
from tierline.operator.controller.leading import Leadership, Terms

TERMS = Terms(valid_s=15.0, renew_within_s=10.0, every_s=0.001)


class SimulatedCluster(Cluster):
    """Keeps a Lease, by its version; a test says what happens at a request."""

    def __init__(self) -> None:
        super().__init__(None, "me")
        self.lease: dict[str, Any] | None = None
        self.at_get: Callable[[], None] = lambda: None
        """Called when what is answered is certain."""
        self.at_write: Callable[[], None] = lambda: None
        """Called when it is done, before it is answered."""

    @property
    def holder(self) -> str:
        assert self.lease is not None
        return str(self.lease["spec"]["holderIdentity"])

    async def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any] | None:
        found = self.lease
        self.at_get()
        return found

    async def create(self, kind: Kind, manifest: dict[str, Any]) -> dict[str, Any]:
        return self.write(manifest, "0")

    async def replace(self, kind: Kind, manifest: dict[str, Any]) -> dict[str, Any]:
        assert self.lease is not None
        if manifest["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ClusterRefused("somebody was faster", 409)
        return self.write(manifest, manifest["metadata"]["resourceVersion"])

    def write(self, manifest: dict[str, Any], former: str) -> dict[str, Any]:
        self.lease = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(int(former) + 1)}}
        self.at_write()
        return self.lease


async def test_who_hears_late_that_he_has_renewed_stops_before_anybody_else_may_take_the_lease() -> None:
    now, cluster = [100.0], SimulatedCluster()
    has_stopped = asyncio.Event()
    times: dict[str, float] = {}

    async def work() -> None:
        cluster.at_write = hears_late
        try:
            await asyncio.Event().wait()
        finally:
            times["stopped"] = now[0]
            has_stopped.set()

    def hears_late() -> None:
        times["renewed"] = now[0]
        now[0] += 8.0
        cluster.at_get = is_away

    def is_away() -> None:
        now[0] += 0.5
        raise ClusterUnavailable("the API is away")

    leading = asyncio.create_task(Leadership(cluster, "system", lambda: now[0], TERMS).lead(work))
    await has_stopped.wait()
    leading.cancel()
    await asyncio.wait([leading])
    assert times["stopped"] < times["renewed"] + TERMS.valid_s


async def test_who_ends_while_he_renews_leaves_the_lease_all_the_same() -> None:
    cluster, begun = SimulatedCluster(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    leadership = Leadership(cluster, "system", lambda: 0.0, Terms(every_s=3600.0))
    leading = asyncio.create_task(leadership.lead(work))
    await begun.wait()

    def broken_off() -> None:
        cluster.at_get = lambda: None
        assert cluster.lease is not None
        cluster.write(cluster.lease, cluster.lease["metadata"]["resourceVersion"])

    cluster.at_get = broken_off  # the renewal is done only now
    assert cluster.holder == leadership.identity
    leading.cancel()
    await asyncio.wait([leading])
    assert cluster.holder == ""
