"""A real Kubernetes API for tests: etcd and kube-apiserver on free ports, and where a test asks for them, controllers.

The binaries are those of ``KUBEBUILDER_ASSETS``, else what ``scripts/kube/build.sh`` built. Nothing runs pods: a test
writes their status itself, or has :mod:`tests.kubelet` run them. A gate stands before the API, so that a test can cut
it off.
"""

import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests import ports, provided

ASSETS = "KUBEBUILDER_ASSETS"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tierline"
BUILT = CACHE / "kube/bin"
TOKEN = "tests-of-tierline"
START_SECONDS = 90.0


@dataclass
class Cluster:
    """An API that runs."""

    port: int
    etcd_port: int
    folder: Path
    authority: Path
    command: list[str] = field(default_factory=list)
    """Of the API server."""
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Run the API server, and wait until it is ready."""
        with self.log.open("a") as output:
            self._process = subprocess.Popen(self.command, stdout=output, stderr=output)
        until = time.monotonic() + START_SECONDS
        while not _is_ready(self):
            log = self.log.read_text()[-2000:]
            assert self._process.poll() is None, log
            assert time.monotonic() < until, log
            time.sleep(0.1)

    def stop(self) -> None:
        """End the API server's process at once; etcd runs on."""
        if self._process is not None:
            _end(self._process)

    @property
    def log(self) -> Path:
        return self.folder / "kube-apiserver.log"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def kubeconfig(self, name: str, *, port: int | None = None, token: str = TOKEN) -> Path:
        """Write a file for ``kubectl``, for the API itself or for a gate before it."""
        file = self.folder / name
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "tests",
                    "cluster": {
                        "server": f"https://127.0.0.1:{port or self.port}",
                        "certificate-authority": str(self.authority),
                    },
                }
            ],
            "users": [{"name": "tests", "user": {"token": token}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
            "current-context": "tests",
        }
        file.write_text(yaml.safe_dump(content))
        return file

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator["Api"]:
        """Give a client with all rights."""
        context = ssl.create_default_context(cafile=self.authority)
        async with aiohttp.ClientSession(
            self.url, connector=aiohttp.TCPConnector(ssl=context), headers={"authorization": f"Bearer {TOKEN}"}
        ) as session:
            yield Api(session)

    def compact(self) -> None:
        """Forget all history, as etcd does by itself every few minutes."""
        newest = self._ask_etcd("kv/range", {"key": "AA=="})["header"]["revision"]
        self._ask_etcd("kv/compaction", {"revision": newest, "physical": True})

    def _ask_etcd(self, path: str, body: dict[str, Any]) -> Any:
        url = f"http://127.0.0.1:{self.etcd_port}/v3/{path}"
        with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=30) as answer:
            return json.load(answer)


@dataclass
class Api:
    """What a test asks of the API."""

    session: aiohttp.ClientSession

    async def ask(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Any:
        async with self.session.request(
            method, path, data=None if body is None else json.dumps(body), headers={"content-type": kind}
        ) as answer:
            content = await answer.json()
            assert answer.status < 300, content
            return content

    async def new_namespace(self) -> str:
        body = {"metadata": {"generateName": "t-"}}
        name: str = (await self.ask("POST", "/api/v1/namespaces", body))["metadata"]["name"]
        return name

    async def create_pod(
        self,
        namespace: str,
        name: str,
        port: int,
        *,
        address: str = "127.0.0.1",
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        is_ready: bool = True,
        gates: Sequence[str] = (),
    ) -> None:
        """Create a pod, and say of it what a kubelet would."""
        pod = {
            "metadata": {"name": name, "labels": labels or {"app": "vllm"}, "annotations": annotations or {}},
            "spec": {
                "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": port}]}],
                "readinessGates": [{"conditionType": gate} for gate in gates],
            },
        }
        await self.ask("POST", f"/api/v1/namespaces/{namespace}/pods", pod)
        await self.set_status(namespace, name, podIP=address, podIPs=[{"ip": address}], phase="Running")
        await self.set_conditions(namespace, name, Ready=is_ready)

    async def set_status(self, namespace: str, name: str, **status: object) -> None:
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        await self.ask("PATCH", path, {"status": status}, "application/merge-patch+json")

    async def set_conditions(self, namespace: str, name: str, **conditions: bool) -> None:
        listed = [{"type": kind, "status": str(value)} for kind, value in conditions.items()]
        await self.set_status(namespace, name, conditions=listed)

    async def conditions(self, namespace: str, name: str) -> dict[str, str]:
        pod = await self.ask("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
        return {condition["type"]: condition["status"] for condition in pod["status"]["conditions"]}

    async def annotate(self, namespace: str, name: str, **annotations: str) -> None:
        body = {"metadata": {"annotations": {f"tierline.ai/{key}": value for key, value in annotations.items()}}}
        await self.ask("PATCH", f"/api/v1/namespaces/{namespace}/pods/{name}", body, "application/merge-patch+json")

    async def delete_pod(self, namespace: str, name: str, *, grace_s: int = 0) -> None:
        await self.ask("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", {"gracePeriodSeconds": grace_s})

    async def put_slice(
        self, namespace: str, name: str, service: str, endpoints: list[dict[str, Any]], ports: list[dict[str, Any]]
    ) -> None:
        """Write an EndpointSlice, new or in place of the one of that name."""
        path = f"/apis/discovery.k8s.io/v1beta1/namespaces/{namespace}/endpointslices"
        body = {
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports,
        }
        known = await self.ask("GET", path)
        if any(item["metadata"]["name"] == name for item in known["items"]):
            await self.ask("PUT", f"{path}/{name}", body)
        else:
            await self.ask("POST", path, body)


@dataclass
class Gate:
    """Passes connections on to the API, or does not."""

    target: int
    port: int = 0
    is_open: bool = True
    passed: int = 0
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def cut(self) -> None:
        """Break all connections, and take no more."""
        self.is_open = False
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_api, to_api = await asyncio.open_connection("127.0.0.1", self.target)
        if not self.is_open:
            writer.transport.abort()
            to_api.transport.abort()
            return
        self.passed += 1
        self._writers += [writer, to_api]
        await asyncio.gather(_pump(reader, to_api), _pump(from_api, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def gate(cluster: Cluster) -> AsyncIterator[Gate]:
    """Stand before the API."""
    standing = Gate(cluster.port)
    server = await asyncio.start_server(standing.serve, "127.0.0.1", 0)
    standing.port = server.sockets[0].getsockname()[1]
    try:
        yield standing
    finally:
        standing.cut()
        server.close()


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Run etcd and kube-apiserver; skips the test where they were not built."""
    etcd, api_server = binaries("etcd", "kube-apiserver")
    etcd_port, peer_port, port = ports.free_ports(3)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1", "localhost", "10.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        folder / "api.pem"
    )
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM
    (folder / "accounts.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )
    (folder / "tokens.csv").write_text(f'{TOKEN},tests,tests,"system:masters"\n')
    etcd_url, peer_url = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
    cluster = Cluster(port, etcd_port, folder, folder / "ca.pem")
    etcd_options = [
        f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync=true",
        f"--listen-client-urls={etcd_url}", f"--advertise-client-urls={etcd_url}",
        f"--listen-peer-urls={peer_url}", f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=default={peer_url}",
    ]  # fmt: skip
    cluster.command = [
        str(api_server),
        f"--etcd-servers={etcd_url}", f"--secure-port={port}",
        "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--service-cluster-ip-range=10.0.0.0/24",
        f"--tls-cert-file={folder / 'api.pem'}", f"--tls-private-key-file={folder / 'api.pem'}",
        f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC", "--anonymous-auth=false",
        f"--service-account-key-file={folder / 'accounts.pem'}",
        f"--service-account-signing-key-file={folder / 'accounts.pem'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        # Without a controller-manager no namespace has an account for its pods.
        "--disable-admission-plugins=ServiceAccount",
        # So that a watch asks etcd, which is told to forget.
        "--watch-cache=false",
    ]  # fmt: skip
    with _running(etcd, etcd_options, folder):
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@contextlib.contextmanager
def running_controllers(cluster: Cluster) -> Iterator[None]:
    """Run the controllers and the scheduler: Deployments have pods, pods have machines, what has no owner goes.

    CRDs that are there before are known to the garbage collector at once, later ones half a minute later.
    """
    manager, scheduler = binaries("kube-controller-manager", "kube-scheduler")
    kubeconfig = cluster.kubeconfig("controllers.yaml")
    common = [f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--port=0", "--secure-port=0"]
    # Who takes machines away that do not tell of themselves does not run, nor do those that would want a cloud.
    without = ("nodelifecycle", "nodeipam", "route", "service", "cloud-node-lifecycle", "serviceaccount-token")
    options = [
        f"--service-account-private-key-file={cluster.folder / 'accounts.pem'}", f"--root-ca-file={cluster.authority}",
        "--controllers=*," + ",".join(f"-{name}" for name in without),
        "--horizontal-pod-autoscaler-sync-period=1s",
    ]  # fmt: skip
    with _running(manager, [*common, *options], cluster.folder), _running(scheduler, common, cluster.folder):
        yield


def find(name: str) -> Path | None:
    """Return where one of the programs is."""
    return next((folder / name for folder in _folders() if (folder / name).exists()), None)


def binaries(*names: str) -> list[Path]:
    """Return where programs are; skips the test where one is missing."""
    found = {name: find(name) for name in names}
    if missing := [name for name, path in found.items() if path is None]:
        where = " or ".join(map(str, _folders()))
        provided.lacks(
            provided.KUBE, f"no {' and '.join(missing)} in {where}: run scripts/kube/build.sh, or set {ASSETS}"
        )
    return [path for path in found.values() if path is not None]


def _folders() -> list[Path]:
    return [Path(folder) for folder in [os.environ.get(ASSETS)] if folder] + [BUILT]


@contextlib.contextmanager
def _running(binary: Path, options: Sequence[str], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with (folder / f"{binary.name}.log").open("w") as output:
        process = subprocess.Popen([binary, *options], stdout=output, stderr=output)
    try:
        yield process
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def _is_ready(cluster: Cluster) -> bool:
    """Whether it serves, and has made the namespace that it makes itself."""
    return all(_is_answered(cluster, path) for path in ("/readyz", "/api/v1/namespaces/default"))


def _is_answered(cluster: Cluster, path: str) -> bool:
    context = ssl.create_default_context(cafile=cluster.authority)
    request = urllib.request.Request(cluster.url + path, headers={"authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=5, context=context):
            return True
    except OSError:  # URLError and HTTPError are
        return False
