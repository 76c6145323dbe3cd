"""``tierline endpoint invoke``, ``flush`` and ``delete``: real engines and node stores, reached through a real API."""

import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.integration.cli.kubernetes.conftest import MERGE, SYSTEM, Command, Kube
from tests.integration.pool.redis_servers import listens
from tests.ports import free_ports

from tierline.bench.programs import Program
from tierline.operator.names import API_VERSION, router_name, routing_service_name

READY = {
    "phase": "Running",
    "conditions": [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ],
}
RUNS = [
    {
        "name": "demo",
        "image": "i",
        "imageID": "",
        "ready": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
    }
]


@dataclass(frozen=True)
class Stack:
    """An engine and a node store at an address that the API reaches."""

    address: str
    engine: int
    store: int

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.engine}"

    def put(self, bucket: str, name: str) -> None:
        url = f"http://{self.address}:{self.store}/v1/kv/{bucket}/{name}"
        with urllib.request.urlopen(urllib.request.Request(url, b"x" * 1000, method="PUT"), timeout=10):
            pass

    def objects(self, bucket: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}:{self.store}/v1/kv/{bucket}?list", timeout=10) as answer:
            return bytes(answer.read())


@pytest.fixture(scope="module")
def stack(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    engine, store = free_ports(2, address)
    segment = f"tierline-test-{uuid.uuid4().hex[:12]}"
    folder = tmp_path_factory.mktemp("stack")
    patched = pytest.MonkeyPatch()
    patched.setenv("TIERLINE_NODE_TRUSTED_NETWORK", "true")
    tierline = (sys.executable, "-m", "tierline")
    node = [*tierline, "node", "--host", address, "--port", str(store), "--capacity", "64MiB"]
    node += ["--shared-memory-name", segment, "--socket", str(folder / "node.sock")]
    simulated = [*tierline, "simulate-engine", "--host", address, "--port", str(engine)]
    try:
        with (
            Program(node, folder / "node.log", lambda: listens(store, address)),
            Program(simulated, folder / "engine.log", lambda: listens(engine, address)),
        ):
            yield Stack(address, engine, store)
    finally:
        patched.undo()
        for left in Path("/dev/shm").glob(f"{segment}*"):
            left.unlink()


def resource(namespace: str) -> str:
    return f"/apis/{API_VERSION}/namespaces/{namespace}/inferenceendpointconfigs/demo"


@pytest.fixture
def deployed(kube: Kube, run: Command, stack: Stack, tmp_path: Path) -> Iterator[str]:
    """A namespace with an endpoint, a worker, a Service that leads to it, and a node store."""
    namespace, file = kube.namespace(), tmp_path / "demo.yaml"
    run("endpoint", "prepare", "demo", "--model", "hf://owner/tiny", "--gpus", "0", "-n", namespace, "-o", file)
    assert run("endpoint", "deploy", file).status == 0
    transfer = '--kv-transfer-config={"kv_connector": "TierlineConnector"}'
    worker = {
        "containers": [
            {"name": "demo", "image": "i", "args": [transfer], "ports": [{"containerPort": stack.engine}]},
        ]
    }
    at = {"podIP": stack.address, "podIPs": [{"ip": stack.address}]}
    kube.pod(namespace, "demo-1", {"app": "demo"}, worker, **READY, **at, containerStatuses=RUNS)
    store = {"containers": [{"name": "node", "image": "i", "ports": [{"containerPort": stack.store, "name": "http"}]}]}
    path = kube.pod(SYSTEM, f"node-{namespace}", {"app": "tierline-node"}, store, **READY, **at)
    service = routing_service_name("demo", namespace)
    ports = [{"name": "http", "port": 443, "targetPort": stack.engine}]
    kube.create(f"/api/v1/namespaces/{namespace}/services", metadata={"name": service}, spec={"ports": ports})
    # The API hands requests on to addresses of pods only.
    behind = {"ip": stack.address, "targetRef": {"kind": "Pod", "name": "demo-1", "namespace": namespace}}
    kube.create(
        f"/api/v1/namespaces/{namespace}/endpoints",
        metadata={"name": service},
        subsets=[{"addresses": [behind], "ports": [{"name": "http", "port": stack.engine}]}],
    )
    yield namespace
    kube.ask("DELETE", path, {"gracePeriodSeconds": 0})


def test_an_endpoint_answers_through_the_api_and_says_what_that_took(run: Command, deployed: str) -> None:
    ended = run("endpoint", "invoke", "demo", "hello there", "--max-tokens", 5, "-n", deployed)
    assert ended.status == 0, ended.errors
    assert len(ended.output.split()) == 5
    assert "first token after" in ended.errors
    assert "5 of answer" in ended.errors
    document = run("endpoint", "invoke", "demo", "hello there", "--max-tokens", 5, "-n", deployed, "--json").document
    assert document["completion_tokens"] == 5
    assert document["text"].split() == ended.output.split()


def test_an_endpoint_answers_by_its_url_too(run: Command, deployed: str, stack: Stack) -> None:
    ended = run("endpoint", "invoke", "demo", "a b c", "--completion", "--max-tokens", 3, "--url", stack.url)
    assert (ended.status, len(ended.output.split())) == (0, 3)


def test_a_body_is_sent_as_it_is_and_an_engine_s_refusal_is_told(run: Command, deployed: str, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text('{"model": "simulated-model", "prompt": "a b c", "max_tokens": 2}')
    answer = run("endpoint", "invoke", "demo", "--body", body, "-n", deployed).document
    assert answer["usage"]["completion_tokens"] == 2
    body.write_text('{"model": "another", "prompt": "a"}')
    ended = run("endpoint", "invoke", "demo", "--body", body, "-n", deployed)
    assert ended.status == 1
    assert "another" in ended.errors


def test_an_endpoint_without_anybody_behind_its_service_says_so(kube: Kube, run: Command, deployed: str) -> None:
    service = routing_service_name("demo", deployed)
    kube.ask("DELETE", f"/api/v1/namespaces/{deployed}/endpoints/{service}")
    ended = run("endpoint", "invoke", "demo", "-n", deployed)
    assert (ended.status, "nobody is ready behind it" in ended.errors) == (1, True)
    kube.ask("DELETE", f"/api/v1/namespaces/{deployed}/services/{service}")
    ended = run("endpoint", "invoke", "demo", "-n", deployed)
    assert (ended.status, f"has no Service {service}" in ended.errors) == (2, True)


def cached_tokens(run: Command, stack: Stack) -> int:
    asked = ("endpoint", "invoke", "demo", "word " * 200, "--max-tokens", 1, "--url", stack.url, "--json")
    return int(run(*asked).document["cached_tokens"] or 0)


def test_a_flush_empties_engines_and_the_bucket_of_node_stores(run: Command, deployed: str, stack: Stack) -> None:
    cached_tokens(run, stack)
    assert cached_tokens(run, stack) > 0
    stack.put("vllm", "a")
    stack.put("other", "b")
    ended = run("endpoint", "flush", "demo", "--yes", "-n", deployed)
    assert ended.status == 0, ended.errors
    assert cached_tokens(run, stack) == 0
    assert b'"a"' not in stack.objects("vllm")
    assert b'"b"' in stack.objects("other")


def test_engines_behind_a_router_are_emptied_by_it(
    kube: Kube, run: Command, deployed: str, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1, stack.address)
    name, token, file = router_name("demo", deployed), uuid.uuid4().hex, tmp_path / "token"
    file.write_text(token)
    routing = [sys.executable, "-m", "tierline", "router", "--host", stack.address, "--port", str(port)]
    routing += ["--endpoint", stack.url]
    monkeypatch.setenv("TIERLINE_ROUTER_ADMIN_TOKEN_FILE", str(file))
    container = {"name": "router-container", "image": "i", "ports": [{"containerPort": port, "name": "http"}]}
    at = {"podIP": stack.address, "podIPs": [{"ip": stack.address}]}
    with Program(routing, tmp_path / "router.log", lambda: listens(port, stack.address)):
        pod = kube.pod(deployed, "router-1", {"app": name}, {"containers": [container]}, **READY, **at)
        # Nobody but the router reaches the engine.
        kube.ask("DELETE", f"/api/v1/namespaces/{deployed}/pods/demo-1", {"gracePeriodSeconds": 0})
        worker = {"containers": [{"name": "demo", "image": "i", "ports": [{"containerPort": 1}]}]}
        kube.pod(deployed, "demo-1", {"app": "demo"}, worker, **READY, **at, containerStatuses=RUNS)
        cached_tokens(run, stack)
        assert cached_tokens(run, stack) > 0
        ended = run("endpoint", "flush", "demo", "--yes", "-n", deployed)
        assert ended.status == 1, "without its token the router cannot be asked"
        kube.create(
            f"/api/v1/namespaces/{deployed}/secrets", metadata={"name": name}, stringData={"admin-token": token}
        )
        ended = run("endpoint", "flush", "demo", "--yes", "-n", deployed)
        assert ended.status == 0, ended.errors
        assert cached_tokens(run, stack) == 0
        kube.ask("DELETE", pod, {"gracePeriodSeconds": 0})


def test_nothing_is_flushed_without_a_word_where_nobody_can_be_asked(run: Command, deployed: str) -> None:
    ended = run("endpoint", "flush", "demo", "-n", deployed)
    assert (ended.status, "--yes: needed" in ended.errors) == (2, True)


def test_what_may_not_be_empty_is_told_with_the_reason(kube: Kube, run: Command, deployed: str) -> None:
    kube.set_status(f"/api/v1/namespaces/{deployed}/pods/demo-1", conditions=[])
    ended = run("endpoint", "flush", "demo", "--yes", "--json", "-n", deployed)
    assert ended.status == 1
    assert "--restart" in ended.errors
    (engine,) = [each for each in ended.document if each["what"] == "engine"]
    assert engine == {
        "what": "engine",
        "pod": "demo-1",
        "is_empty": False,
        "objects": None,
        "why": "it does not serve, so that it cannot be asked",
    }


def test_a_flush_by_restart_replaces_all_pods_of_the_deployment(kube: Kube, run: Command, deployed: str) -> None:
    labels = {"app": "demo"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "demo", "image": "i"}]}}
    path = f"/apis/apps/v1/namespaces/{deployed}/deployments"
    kube.create(path, metadata={"name": "demo"}, spec={"selector": {"matchLabels": labels}, "template": template})
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 1)
    kube.set_status(f"{path}/demo", observedGeneration=1, **counts)

    def controller() -> None:
        own = Kube(kube.cluster)  # a connection is one thread's
        while own.ask("GET", f"{path}/demo")["metadata"]["generation"] == 1:
            time.sleep(0.05)
        own.set_status(f"{path}/demo", observedGeneration=2, **counts)
        own.close()

    rolling = threading.Thread(target=controller)
    rolling.start()
    ended = run("endpoint", "flush", "demo", "--restart", "--yes", "-n", deployed)
    rolling.join()
    assert ended.status == 0, ended.errors
    template = kube.ask("GET", f"{path}/demo")["spec"]["template"]
    assert "kubectl.kubernetes.io/restartedAt" in template["metadata"]["annotations"]
    late = run("endpoint", "flush", "demo", "--restart", "--yes", "-n", deployed, "--timeout", "0.1")
    assert (late.status, "were not all replaced in 0.1 s" in late.errors) == (1, True)


def test_an_endpoint_is_deleted_once_nothing_holds_it(kube: Kube, run: Command, deployed: str) -> None:
    held = {"metadata": {"finalizers": ["tests.tierline.ai/held"]}}
    kube.ask("PATCH", resource(deployed), held, MERGE)
    ended = run("endpoint", "delete", "demo", "--yes", "-n", deployed, "--timeout", "0.5")
    assert (ended.status, "held by tests.tierline.ai/held" in ended.errors) == (1, True)
    kube.ask("PATCH", resource(deployed), {"metadata": {"finalizers": None}}, MERGE)
    assert not kube.exists(resource(deployed))


def test_a_deletion_waits_for_the_endpoint_s_own_pods(kube: Kube, run: Command, deployed: str) -> None:
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "demo-5f6d", "uid": "of-a-replica-set"}
    path = f"/api/v1/namespaces/{deployed}/pods/demo-1"  # with a finalizer, as if its kubelet were slow
    kept = {"metadata": {"ownerReferences": [owner], "finalizers": ["tests.tierline.ai/slow"]}}
    kube.ask("PATCH", path, kept, MERGE)
    ended = run("endpoint", "delete", "demo", "--yes", "-n", deployed, "--timeout", "0.5")
    assert (ended.status, f"there still is Pod {deployed}/demo-1" in ended.errors) == (1, True)
    kube.ask("PATCH", path, {"metadata": {"finalizers": None}}, MERGE)


def test_a_purge_empties_the_bucket_of_the_endpoint(kube: Kube, run: Command, deployed: str, stack: Stack) -> None:
    stack.put("vllm", "a")
    ended = run("endpoint", "delete", "demo", "--purge", "--yes", "-n", deployed)
    assert ended.status == 0, ended.errors
    assert not kube.exists(resource(deployed))
    assert b'"a"' not in stack.objects("vllm")
