"""Members by a headless Service of a real Kubernetes API: pods come, get unready, leave; the API goes and is back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kube import Api, Cluster, gate, running_cluster

from tierline.kube.selections import parse_service
from tierline.pool.members import Member
from tierline.pool.members.kubernetes import KubernetesMembers

PORTS = [{"name": "http", "port": 9200}, {"name": "transfer", "port": 9240}]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    async with cluster.connected() as api:
        yield api


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.kube.api.BACKOFF_SECONDS", (0.05,))


class Following:
    """What a source says."""

    def __init__(self, source: KubernetesMembers) -> None:
        self.source = source
        self.sets: list[tuple[Member, ...]] = []

    async def follow(self) -> None:
        async for members in self.source.member_sets():
            self.sets.append(tuple(members))

    async def until(self, *members: Member) -> None:
        await until(lambda: bool(self.sets) and self.sets[-1] == members)


@contextlib.asynccontextmanager
async def following(service: str, kubeconfig: Path) -> AsyncIterator[Following]:
    started = Following(KubernetesMembers(parse_service(service), kubeconfig))
    task = asyncio.create_task(started.follow())
    try:
        yield started
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def endpoint(number: int, *, is_ready: bool = True, **more: Any) -> dict[str, Any]:
    pod = {"kind": "Pod", "name": f"store-{number}", "uid": f"uid-{number}"}
    return {
        "addresses": [f"10.0.0.{number}"],
        "conditions": {"ready": is_ready},
        "targetRef": pod,
        "topology": {"kubernetes.io/hostname": f"machine-{number}"},
        **more,
    }


def member(number: int, port: int = 9240) -> Member:
    return Member(f"machine-{number}", f"10.0.0.{number}", port)


async def test_the_ready_pods_of_a_service_are_members_while_they_are_ready(cluster: Cluster, api: Api) -> None:
    namespace = await api.new_namespace()
    await api.put_slice(namespace, "s-1", "store", [endpoint(1), endpoint(2, is_ready=False)], PORTS)
    await api.put_slice(namespace, "other", "other", [endpoint(9)], PORTS)
    async with following(f"{namespace}/store", cluster.kubeconfig("config")) as found:
        await found.until(member(1))
        assert not found.source.is_behind
        await api.put_slice(namespace, "s-1", "store", [endpoint(1), endpoint(2)], PORTS)
        await found.until(member(1), member(2))
        await api.put_slice(namespace, "s-2", "store", [endpoint(2), endpoint(3, hostname="store-3")], PORTS)
        await found.until(member(1), member(2), Member("store-3", "10.0.0.3", 9240))
        await api.put_slice(namespace, "s-1", "store", [endpoint(2)], PORTS)
        await found.until(member(2), Member("store-3", "10.0.0.3", 9240))
        assert found.source.failures == 0


async def test_while_the_api_is_away_the_last_set_stays_and_what_changed_is_caught_up_with(
    cluster: Cluster, api: Api
) -> None:
    namespace = await api.new_namespace()
    await api.put_slice(namespace, "s-1", "store", [endpoint(1), endpoint(2)], PORTS)
    async with (
        gate(cluster) as standing,
        following(f"{namespace}/store:9241", cluster.kubeconfig("gated", port=standing.port)) as found,
    ):
        await found.until(member(1, 9241), member(2, 9241))
        standing.cut()
        await api.put_slice(namespace, "s-1", "store", [endpoint(2), endpoint(3)], PORTS)
        await until(lambda: found.source.failures >= 3 and found.source.is_behind)
        assert len(found.sets) == 1
        standing.is_open = True
        await found.until(member(2, 9241), member(3, 9241))
        assert not found.source.is_behind


async def test_a_service_without_the_port_has_no_members_and_that_is_counted_once(cluster: Cluster, api: Api) -> None:
    namespace = await api.new_namespace()
    ports = [{"name": "http", "port": 9200}, {"name": "metrics", "port": 1}]
    await api.put_slice(namespace, "s-1", "store", [endpoint(1)], ports)
    async with following(f"{namespace}/store", cluster.kubeconfig("config")) as found:
        await found.until()
        await api.put_slice(namespace, "s-1", "store", [endpoint(1), endpoint(2)], ports)
        await api.put_slice(namespace, "s-2", "store", [endpoint(3)], PORTS)
        await found.until(member(3))
        assert found.source.failures == 1
