"""A real Kubernetes API with our resources, and the command line run against it in this process."""

import http.client
import json
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from tests.kube import TOKEN, Cluster, running_cluster

from tierline.cli.main import main
from tierline.operator.crds import KINDS, crd
from tierline.operator.names import API_VERSION

SYSTEM = "hyperpod-inference-system"
MERGE = "application/merge-patch+json"
SERVED_SECONDS = 60.0
"""Longest wait for the API to serve a kind that it was just told of."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    output: str
    errors: str

    @property
    def document(self) -> Any:
        """The JSON that was printed."""
        return msgspec.json.decode(self.output)


Command = Callable[..., Ended]


class Refused(Exception):  # noqa: N818  (it is what the API did)
    """The API answered a test with an error."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status} {body.decode()}")
        self.status = status


class Kube:
    """What a test asks of the API, with all rights."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.kubeconfig = cluster.kubeconfig("everything")
        context = ssl.create_default_context(cafile=cluster.authority)
        self._connection = http.client.HTTPSConnection("127.0.0.1", cluster.port, context=context, timeout=30)

    def ask(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Any:
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": kind}
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise Refused(answer.status, content)
        return json.loads(content)

    def close(self) -> None:
        self._connection.close()

    def exists(self, path: str) -> bool:
        try:
            self.ask("GET", path)
        except Refused as refused:
            if refused.status != 404:
                raise
            return False
        return True

    def create(self, path: str, **content: Any) -> Any:
        return self.ask("POST", path, content)

    def set_status(self, path: str, **status: Any) -> None:
        self.ask("PATCH", f"{path}/status", {"status": status}, MERGE)

    def namespace(self) -> str:
        made = self.create("/api/v1/namespaces", metadata={"generateName": "t-"})
        return str(made["metadata"]["name"])

    def pod(self, namespace: str, name: str, labels: dict[str, str], spec: Any = None, **status: Any) -> str:
        """Create a pod, say of it what a kubelet would, and return its path."""
        path = f"/api/v1/namespaces/{namespace}/pods"
        containers = {"containers": [{"name": "demo", "image": "i"}]}
        self.create(path, metadata={"name": name, "labels": labels}, spec=spec or containers)
        self.set_status(f"{path}/{name}", **status)
        return f"{path}/{name}"


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


@pytest.fixture(scope="package")
def kube(cluster: Cluster) -> Iterator[Kube]:
    kube = Kube(cluster)
    kube.create("/api/v1/namespaces", metadata={"name": SYSTEM})
    for kind in KINDS:
        kube.ask("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd(kind))
    until_served(kube)
    yield kube
    kube.close()


def until_served(kube: Kube) -> None:
    for kind in KINDS:
        path = f"/apis/{API_VERSION}/{kind.plural}"
        end = time.monotonic() + SERVED_SECONDS
        while not kube.exists(path):
            if time.monotonic() > end:
                pytest.fail(f"{path} is not served")
            time.sleep(0.05)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kube: Kube) -> Command:
    """Run ``tierline …`` with the way to the cluster."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["tierline", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="package")
def address() -> str:
    """An address of this machine that the API hands requests on to; it does not to loopback ones."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has no address but loopback, to which the API hands nothing on")
        found = str(probe.getsockname()[0])
    if found.startswith("127."):
        pytest.skip("this machine has no address but loopback, to which the API hands nothing on")
    return found
