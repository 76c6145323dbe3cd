"""Members by a headless Service of a real Kubernetes API: pods come, get unready, leave; the API goes and is back."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from tests.integration.node.processes import NodeProcess
from tests.kube import Api, Cluster, gate, running_cluster
from tests.ports import free_ports

from tierline.configuration import load
from tierline.kube.selections import parse_service
from tierline.node.config import NodeConfig
from tierline.pool.members import Member
from tierline.pool.members.kubernetes import PORT_NAME, KubernetesMembers
from tierline.wire.cluster import ClusterView

MANIFEST = Path(__file__).parents[4] / "deploy/node-pool.yaml"

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
async def following(service: str, kubeconfig: Path | None) -> AsyncIterator[Following]:
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


async def test_real_nodes_find_each_other_by_a_service_and_leave_with_its_endpoints(
    cluster: Cluster, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An API takes no loopback addresses: the nodes are reached at the machine's own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way_out:
        try:
            way_out.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = way_out.getsockname()[0]
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig("config")))
    namespace = await api.new_namespace()
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    nodes: list[NodeProcess] = []
    with contextlib.ExitStack() as stack:
        for number, port in enumerate(free_ports(2)):
            transfer = [{"name": "transfer", "port": port}]
            await api.put_slice(namespace, f"s-{number}", "store", [endpoint(number, addresses=[address])], transfer)
            settings: dict[str, Any] = {
                "transfer_address": f"0.0.0.0:{port}",
                "peers_kubernetes": f"{namespace}/store",
                "pool_token_file": token,
                "node_name": f"machine-{number}",
            }
            node = await asyncio.to_thread(partial(NodeProcess, tmp_path, capacity="4MiB", **settings))
            nodes.append(stack.enter_context(contextlib.closing(node)))

        def states(node: NodeProcess) -> dict[str, str]:
            view = msgspec.json.decode(node.get("/v1/cluster")[1], type=ClusterView)
            return {member.name: member.state for member in view.members}

        await until(lambda: states(nodes[0]) == {"machine-0": "self", "machine-1": "alive"})
        await until(lambda: states(nodes[1]) == {"machine-0": "alive", "machine-1": "self"})
        await api.put_slice(namespace, "s-1", "store", [], [])
        await until(lambda: states(nodes[0]) == {"machine-0": "self"})


# The manifest ---------------------------------------------------------------------------------------------------------


def of_kind(kind: str) -> dict[str, Any]:
    content: dict[str, Any] = next(one for one in yaml.safe_load_all(MANIFEST.read_text()) if one["kind"] == kind)
    return content


def unsaid(given: Any, stored: Any, where: str = "") -> list[str]:
    """Return what of ``given`` the API did not take: it drops, without a word, fields that it does not know."""
    if isinstance(given, dict):
        return [lost for key, value in given.items() for lost in unsaid(value, stored.get(key, {}), f"{where}.{key}")]
    if isinstance(given, list) and len(given) == len(stored):
        return [lost for pair in zip(given, stored, strict=True) for lost in unsaid(*pair, f"{where}[]")]
    return [] if given == stored else [f"{where}: {given!r} is {stored!r}"]


async def test_the_manifest_is_what_the_api_takes_and_a_pod_s_account_may_follow_the_members(
    cluster: Cluster, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = await api.new_namespace()
    plurals = {
        "ServiceAccount": "api/v1/{}/serviceaccounts",
        "Role": "apis/rbac.authorization.k8s.io/v1/{}/roles",
        "RoleBinding": "apis/rbac.authorization.k8s.io/v1/{}/rolebindings",
        "Service": "api/v1/{}/services",
        "NetworkPolicy": "apis/networking.k8s.io/v1/{}/networkpolicies",
        "DaemonSet": "apis/apps/v1/{}/daemonsets",
    }
    for content in yaml.safe_load_all(MANIFEST.read_text()):
        for subject in content.get("subjects", ()):
            subject["namespace"] = namespace  # as kubectl apply --namespace has it for accounts
        path = plurals[content["kind"]].format(f"namespaces/{namespace}")
        assert unsaid(content, await api.ask("POST", f"/{path}", content)) == []
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/tierline-node/token"
    answer = await api.ask("POST", account, {"spec": {"expirationSeconds": 3600}})
    (tmp_path / "token").write_text(answer["status"]["token"])
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
    incluster = "kubernetes_asyncio.config.incluster_config.SERVICE"
    monkeypatch.setattr(f"{incluster}_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(f"{incluster}_CERT_FILENAME", str(cluster.authority))
    await api.put_slice(
        namespace, "s-1", "tierline-node", [endpoint(1), endpoint(2)], [{"name": "transfer", "port": 9240}]
    )
    variables = {
        one["name"]: one.get("value", "")
        for one in of_kind("DaemonSet")["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    async with following(variables["TIERLINE_NODE_PEERS_KUBERNETES"].replace("$(NAMESPACE)", namespace), None) as found:
        await found.until(member(1), member(2))


def test_the_parts_of_the_manifest_fit_together() -> None:
    """Labels, ports, paths and names, which no API compares."""
    pod = of_kind("DaemonSet")["spec"]["template"]
    [container] = pod["spec"]["containers"]
    said = {one["name"]: one.get("value", "ns") for one in container["env"]}
    settings = {name: value.replace("$(NAMESPACE)", "ns") for name, value in said.items() if name != "NAMESPACE"}
    config = load(NodeConfig, None, {}, settings)
    assert {config.environment_variable(field) for field in NodeConfig.model_fields} >= settings.keys()
    service, policy = of_kind("Service")["spec"], of_kind("NetworkPolicy")["spec"]
    assert config.peers_kubernetes == f"ns/{of_kind('Service')['metadata']['name']}"
    assert service["selector"] == policy["podSelector"]["matchLabels"] == pod["metadata"]["labels"]
    assert policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"] == pod["metadata"]["labels"]
    listened = {config.port, 9240, 5560, 5561}
    assert {port["containerPort"] for port in container["ports"]} == listened
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == listened
    assert (config.transfer_address, config.kv_events) == ("0.0.0.0:9240", "tcp://0.0.0.0:5560")
    assert service["ports"] == [{"name": PORT_NAME, "port": 9240}]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert mounts.keys() >= {str(config.shared_memory_directory), str(config.socket_path().parent)}
    assert volumes[mounts["/etc/tierline/pool"]]["secret"]["secretName"] == "tierline-pool"
    probe = container["readinessProbe"]
    patience_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > patience_s > 2 * config.drain_s
    assert f"secret generic {volumes['pool']['secret']['secretName']} " in MANIFEST.read_text()
