"""A cluster with an operator, machines that run pods, a bucket with models, and ``kubectl``: what a user would see."""

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from tests import ports, provided
from tests.integration.operator.apply.images import IMAGES
from tests.integration.pool import s3_servers
from tests.kube import TOKEN, Cluster, find, running_cluster, running_controllers
from tests.kubelet import Machine, Machines, running_machines

from tierline.operator import documents, names
from tierline.operator.controller.kinds import CHILDREN
from tierline.operator.crds import KINDS, crd
from tierline.operator.manifests import rights
from tierline.operator.manifests.accounts import RBAC

T = TypeVar("T")
Json = dict[str, Any]

WITHIN_SECONDS = 150.0
GROUP = "/apis/inference.sagemaker.aws.amazon.com/v1"
SYSTEM = "hyperpod-inference-system"
ROUTER_PORT, PROXY_PORT = 8081, 9180
MODEL_BUCKET, CERTIFICATES_BUCKET = "my-model-bucket", "my-bucket"
MODEL = "models/Llama-3.1-8B-Instruct"
REFERENCE = Path(__file__).with_name("inference_endpoint_config.yaml")
INSTANCE_TYPE, OTHER_INSTANCE_TYPE = "ml.g5.24xlarge", "ml.g6.12xlarge"


class NotYetError(Exception):
    """What is waited for is not so."""


@dataclass
class World:
    """All of it; made by :func:`running_world`."""

    cluster: Cluster
    machines: Machines
    operator: "subprocess.Popen[bytes]"
    operator_log: Path
    s3: str
    segment: str
    """Name of the node stores' file in shared memory."""
    _children: tuple[str, ...] = ()
    """Paths of the kinds that endpoints are made of."""

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        return kubectl(self.cluster, *arguments, given=given)

    def apply(self, manifest: Json) -> None:
        self.kubectl("apply", "-f", "-", given=yaml.safe_dump(manifest))

    def get(self, path: str) -> Any:
        """Ask the API; ``None``: there is no such thing."""
        context = ssl.create_default_context(cafile=self.cluster.authority)
        request = urllib.request.Request(self.cluster.url + path, headers={"authorization": f"Bearer {TOKEN}"})
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
                raise

    def endpoint(self, name: str, namespace: str = "default", kind: str = "inferenceendpointconfigs") -> Any:
        return self.get(f"{GROUP}/namespaces/{namespace}/{kind}/{name}")

    def made_for(self, uid: str) -> list[str]:
        """Return what there is that was made for a resource, of all kinds that are."""
        if not self._children:
            served: dict[str, str] = {}
            for version in {version for versions in CHILDREN.values() for version in versions}:
                path = f"/{'api' if version == 'v1' else 'apis'}/{version}"
                for each in (self.get(path) or {"resources": ()})["resources"]:
                    if each["kind"] in CHILDREN and "/" not in each["name"]:
                        served[each["kind"]] = f"{path}/{each['name']}"
            self._children = tuple(served.values())
        found = []
        for path in self._children:
            listed = self.get(f"{path}?labelSelector=tierline.ai%2Fowner-uid%3D{uid}")["items"]
            found += [f"{path} {each['metadata']['name']}" for each in listed]
        return found

    def left_by_stores(self) -> list[str]:
        """Return what is in shared memory of the node stores, and who is to keep it there or to remove it."""
        listed = self.get(f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets")["items"]
        return [*(each["metadata"]["name"] for each in listed), *map(str, Path("/dev/shm").glob(f"{self.segment}*"))]

    def end(self) -> None:
        """Delete what tests have left, and wait until nothing of it takes memory."""
        for kind in ("inferenceendpointconfigs", "jumpstartmodels"):
            self.kubectl("delete", f"{kind}.{names.GROUP}", "--all", "--all-namespaces", "--wait=false")

        def look() -> None:
            if left := self.left_by_stores():
                raise NotYetError(left)

        self.until(look)

    def pods(self, app: str, namespace: str = "default") -> list[Any]:
        """Return an app's pods that are not ending, oldest first."""
        listed = self.get(f"/api/v1/namespaces/{namespace}/pods?labelSelector=app%3D{app}")["items"]
        pods = [pod for pod in listed if "deletionTimestamp" not in pod["metadata"]]
        return sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    def ready_pods(self, app: str, count: int, namespace: str = "default") -> list[Any]:
        """Wait until an app has so many pods, all of them ready."""

        def look() -> list[Any]:
            pods = self.pods(app, namespace)
            if len(pods) != count or not all(conditions_of(pod).get("Ready") == "True" for pod in pods):
                raise NotYetError([(pod["metadata"]["name"], pod["status"]) for pod in pods])
            return pods

        return self.until(look)

    def settled(self, name: str, namespace: str = "default", kind: str = "inferenceendpointconfigs") -> Any:
        """Wait until an endpoint is ready, as it is wanted now; return it."""

        def look() -> Any:
            found = self.endpoint(name, namespace, kind)
            status = found.get("status") or {}
            is_seen = status.get("observedGeneration") == found["metadata"]["generation"]
            if not is_seen or conditions_of(found).get("Ready") != "True":
                raise NotYetError(json.dumps(status, indent=1))
            return found

        return self.until(look)

    def until(self, look: Callable[[], T]) -> T:
        """Look until it raises :class:`NotYetError` no more."""
        deadline = time.monotonic() + WITHIN_SECONDS
        while True:
            try:
                return look()
            except NotYetError as error:
                why = str(error)
            log = self.operator_log.read_text()[-5000:]
            if self.operator.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{why}\n{log}")
            time.sleep(0.2)

    def router(self, name: str, namespace: str = "default") -> str:
        """Return the URL of an endpoint's router."""
        [pod] = self.ready_pods(f"{name}-{namespace}-router", 1, namespace)
        return f"http://{pod['status']['podIP']}:{ROUTER_PORT}"


def kubectl(cluster: Cluster, *arguments: str, given: str | None = None) -> str:
    """Run ``kubectl``, and return what it printed."""
    program = find("kubectl") or shutil.which("kubectl")
    if program is None:
        why = "no kubectl in the PATH or KUBEBUILDER_ASSETS: apt-get install kubectl, or kubernetes-client"
        provided.lacks(provided.KUBE, why)
    ran = subprocess.run(
        [program, f"--kubeconfig={cluster.kubeconfig('kubectl.yaml')}", *arguments],
        input=given, capture_output=True, text=True, timeout=WITHIN_SECONDS, check=False,
        env=os.environ | {"HOME": str(cluster.folder)},
    )  # fmt: skip
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def _entry(name: str, *, must_be_accepted: bool = False) -> Json:
    """Return a model of the catalogue, as small as one can be."""
    spec = reference()["spec"]
    kept = ("invocationEndpoint", "modelSourceConfig", "loadBalancer", "metrics", "worker")
    licence = {"name": "Of tests", "url": "https://example.com/licence", "must_be_accepted": must_be_accepted}
    endpoint = {"modelName": name, **{key: spec[key] for key in kept}}
    return {"id": f"tests-{name}", "version": "1.0.0", "licence": licence, "spec": endpoint}


def conditions_of(resource: Any) -> dict[str, str]:
    return {each["type"]: each["status"] for each in (resource.get("status") or {}).get("conditions") or ()}


def condition_of(resource: Any, kind: str) -> Json:
    """Return one of a resource's conditions; empty where it has none of that kind."""
    listed: list[Json] = (resource.get("status") or {}).get("conditions") or []
    return next((each for each in listed if each["type"] == kind), {})


def ask(url: str, prompt: str, model: str = "Llama-3.1-8B-Instruct", path: str = "/v1/chat/completions") -> Json:
    """Have a prompt answered."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 4}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: Json = json.load(answer)
        return content


def cached_tokens(answer: Json) -> int:
    cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def reference(**metadata: str) -> Json:
    """Return the manifest of HyperPod's documents, with other metadata where that is wanted."""
    manifest: Json = yaml.safe_load(REFERENCE.read_text())
    manifest["metadata"] |= metadata
    return manifest


@contextlib.contextmanager
def running_world(folder: Path, machines: Sequence[Machine]) -> Iterator[World]:
    """Start it all: a cluster with our CRDs, a bucket with a model, machines, and an operator."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(running_cluster(folder))
        kubectl(cluster, "apply", "--server-side", "-f", "-", given=documents.text(crd(kind) for kind in KINDS))
        kubectl(cluster, "create", "namespace", SYSTEM)
        # After the CRDs: the garbage collector then knows them.
        stack.enter_context(running_controllers(cluster))
        stack.enter_context(s3_servers.credentials())
        s3 = stack.enter_context(_bucket(folder))
        aws = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        segment = f"tierline-test-{uuid.uuid4().hex[:12]}"
        running = stack.enter_context(running_machines(cluster, IMAGES, *machines, environment=aws))
        log = folder / "operator.log"
        catalogue = folder / "catalogue.yaml"
        catalogue.write_text(yaml.safe_dump({"models": [_entry("small"), _entry("gated", must_be_accepted=True)]}))
        settings = {"s3-endpoint": s3, "catalogue": str(catalogue), "segment-name": segment}
        token = _account(cluster)
        operator = stack.enter_context(_operator(cluster, log, token, settings))
        world = World(cluster, running, operator, log, s3, segment)
        yield world
        world.end()


def _account(cluster: Cluster) -> str:
    """Make an account that may do what the operator needs and no more, and return its token."""
    name = "hyperpod-inference-operator"
    subjects = [{"kind": "ServiceAccount", "name": name, "namespace": SYSTEM}]

    def bound(scope: str, rules: Sequence[Mapping[str, Any]]) -> list[Json]:
        metadata = {"name": name} if scope else {"name": name, "namespace": SYSTEM}
        role = {"apiGroup": RBAC, "kind": f"{scope}Role", "name": name}
        version = f"{RBAC}/v1"
        return [
            {"apiVersion": version, "kind": f"{scope}Role", "metadata": metadata, "rules": rules},
            {
                "apiVersion": version, "kind": f"{scope}RoleBinding", "metadata": metadata, "roleRef": role,
                "subjects": subjects,
            },
        ]  # fmt: skip

    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": SYSTEM}}
    made = [account, *bound("Cluster", rights.cluster_rules(SYSTEM)), *bound("", rights.namespace_rules())]
    kubectl(cluster, "apply", "-f", "-", given=documents.text(made))
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{name}/token"
    token: str = json.loads(kubectl(cluster, "create", f"--raw={path}", "-f", "-", given=json.dumps(asked)))["status"][
        "token"
    ]
    return token


@contextlib.contextmanager
def _bucket(folder: Path) -> Iterator[str]:
    port = ports.free_port()
    with s3_servers.server(folder, port):
        url = f"http://127.0.0.1:{port}"
        client = s3_servers.client(url)
        client.create_bucket(Bucket=CERTIFICATES_BUCKET)
        client.create_bucket(Bucket=MODEL_BUCKET)
        client.put_object(Bucket=MODEL_BUCKET, Key=f"{MODEL}/config.json", Body=b"{}")
        client.put_object(Bucket=MODEL_BUCKET, Key=f"{MODEL}/model.safetensors", Body=os.urandom(100_000))
        yield url


@contextlib.contextmanager
def _operator(
    cluster: Cluster, log: Path, token: str, settings: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    arguments = {
        "kubeconfig": str(cluster.kubeconfig("operator.yaml", token=token)),
        "http": f"127.0.0.1:{ports.free_port()}",
        "node-share-percent": "1",
        **settings,
    }
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    with log.open("wb") as output:
        command = [sys.executable, "-m", "tierline", "operator", "run", *flags]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
