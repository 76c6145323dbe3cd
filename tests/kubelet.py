"""A small kubelet for tests: it runs the containers of the pods of its machine as processes of this one.

Every pod has a loopback address of its own, or with ``hostNetwork`` its machine's, so programs keep their ports. An
image is a function from a container to a command line; one that nobody knows cannot be pulled. Nothing can be mounted
for a process, so that where a volume is mounted is put right in arguments and variables instead. What pods ask of the
API they ask with their service account's own token.
"""

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import shutil
import signal
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import trustme
from aiohttp import web
from tests.kube import Api, Cluster

RETRY_SECONDS = 0.2
PROBE_SECONDS = 0.25
"""Readiness and startup are asked for more often than a manifest says, so that tests need not wait."""
LONGEST_BACKOFF_SECONDS = 5.0
LOG_PORT = 10250

Json = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """A node, with what pods may ask for."""

    name: str
    instance_type: str = "ml.g5.24xlarge"
    resources: Mapping[str, str] = field(
        default_factory=lambda: {"cpu": "96", "memory": "384Gi", "pods": "110", "nvidia.com/gpu": "4"}
    )
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Container:
    """A container that is to start, with everything filled in.

    ``words`` are its command and arguments as it has them; in ``argv`` paths of volumes are those of this machine.
    """

    name: str
    image: str
    words: list[str]
    argv: list[str]
    environment: dict[str, str]
    address: str


Program = Callable[[Container], list[str]]
"""What an image runs: the command line of a process here."""


def as_it_says(container: Container) -> list[str]:
    """Run a container's own command, ours as this interpreter runs it."""
    program, *arguments = container.argv
    return [sys.executable, "-m", "tierline", *arguments] if program == "tierline" else container.argv


class Addresses:
    """Loopback addresses that nobody else has, most likely: out of 16 million, beginning anywhere."""

    def __init__(self) -> None:
        self._next = random.randrange(2 << 16, 254 << 16)

    def take(self) -> str:
        self._next += 1
        if self._next % 256 in (0, 255):
            self._next += 2 - self._next % 256 % 2
        return f"127.{self._next >> 16}.{self._next >> 8 & 255}.{self._next & 255}"


class Kubelet:
    """Runs the pods of one machine until it is cancelled; see :func:`running_machines`."""

    def __init__(
        self,
        cluster: Cluster,
        api: Api,
        machine: Machine,
        images: Mapping[str, Program],
        environment: Mapping[str, str],
        addresses: Addresses,
    ) -> None:
        self.cluster = cluster
        self.api = api
        self.machine = machine
        self.images = images
        self.environment = environment
        self.addresses = addresses
        self.address = addresses.take()
        self.root = Path(tempfile.mkdtemp(prefix="kubelet-"))
        self.pods: dict[str, Pod] = {}

    async def run(self, is_known: Callable[[], None]) -> None:
        """Announce the machine and follow its pods."""
        runner = await self._serve_logs()
        try:
            await self._announce()
            is_known()
            while True:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                    await self._follow()
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            await self._leave()
            await asyncio.gather(*(pod.kill() for pod in self.pods.values()))
            await runner.cleanup()
            shutil.rmtree(self.root, ignore_errors=True)

    def program(self, image: str) -> Program | None:
        return next((program for prefix, program in self.images.items() if image.startswith(prefix)), None)

    async def event(self, pod: Json, reason: str, message: str) -> None:
        """Tell of something, as ``kubectl describe`` shows it."""
        meta = pod["metadata"]
        now = _now()
        body = {
            "metadata": {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "name": meta["name"], "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "reason": reason, "message": message, "type": "Warning", "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": "kubelet", "host": self.machine.name},
        }  # fmt: skip
        await self.ask("POST", f"/api/v1/namespaces/{meta['namespace']}/events", body)

    async def ask(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Json | None:
        """Ask the API until it answers; ``None``: it refused."""
        while True:
            try:
                async with self.api.session.request(
                    method, path, data=None if body is None else json.dumps(body), headers={"content-type": kind}
                ) as answer:
                    content: Json = await answer.json()
                    if answer.status < 500:
                        return content if answer.status < 300 else None
            except (aiohttp.ClientError, ValueError):
                pass
            await asyncio.sleep(RETRY_SECONDS)

    async def _announce(self) -> None:
        name = self.machine.name
        labels = {
            "kubernetes.io/hostname": name,
            "node.kubernetes.io/instance-type": self.machine.instance_type,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        }
        await self.ask(
            "POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels | {**self.machine.labels}}}
        )
        status = {
            "capacity": self.machine.resources,
            "allocatable": self.machine.resources,
            "addresses": [{"type": "InternalIP", "address": self.address}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": LOG_PORT}},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Tests", "lastHeartbeatTime": _now()}],
        }
        kind = "application/merge-patch+json"
        await self.ask("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, kind)
        # A new node is tainted as not ready, and who would take that away does not run.
        await self.ask("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, kind)

    async def _leave(self) -> None:
        """Take the machine from the cluster, if that is still there: nobody may be sent to it any more."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            await self.api.session.delete(f"/api/v1/nodes/{self.machine.name}")

    async def _follow(self) -> None:
        path = f"/api/v1/pods?fieldSelector=spec.nodeName={self.machine.name}"
        async with self.api.session.get(path) as answer:
            answer.raise_for_status()
            listed = await answer.json()
        for gone in self.pods.keys() - {pod["metadata"]["uid"] for pod in listed["items"]}:
            await self.pods.pop(gone).kill()
        for pod in listed["items"]:
            self._see(pod)
        version = listed["metadata"]["resourceVersion"]
        timeout = aiohttp.ClientTimeout(total=None)
        async with self.api.session.get(
            f"{path}&watch=true&resourceVersion={version}&timeoutSeconds=600", timeout=timeout, read_bufsize=2**22
        ) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                if event["type"] == "DELETED":
                    if (gone_pod := self.pods.pop(event["object"]["metadata"]["uid"], None)) is not None:
                        await gone_pod.kill()
                else:
                    self._see(event["object"])

    def _see(self, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        if uid not in self.pods:
            if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
                return
            self.pods[uid] = Pod(self, pod)
        self.pods[uid].see(pod)

    async def _serve_logs(self) -> web.AppRunner:
        async def logs(request: web.Request) -> web.Response:
            match = request.match_info
            for pod in self.pods.values():
                if (pod.namespace, pod.name) == (match["namespace"], match["pod"]):
                    file = pod.log_file(match["container"])
                    if not file.exists():
                        raise web.HTTPBadRequest(text=f"container {match['container']} is waiting to start")
                    lines = file.read_bytes().splitlines(keepends=True)
                    wanted = int(request.query.get("tailLines", len(lines)))
                    return web.Response(body=b"".join(lines[len(lines) - min(wanted, len(lines)) :]))
            raise web.HTTPNotFound

        app = web.Application()
        app.add_routes([web.get("/containerLogs/{namespace}/{pod}/{container}", logs)])
        runner = web.AppRunner(app)
        await runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme.CA().issue_cert(self.address).configure_cert(context)
        await web.TCPSite(runner, self.address, LOG_PORT, ssl_context=context).start()
        return runner


class Pod:
    """One pod: its address, its files, its containers, and what the API is told of them."""

    def __init__(self, kubelet: Kubelet, pod: Json) -> None:
        self.kubelet = kubelet
        self.pod = pod
        self.spec: Json = pod["spec"]
        self.namespace: str = pod["metadata"]["namespace"]
        self.name: str = pod["metadata"]["name"]
        self.address = kubelet.address if self.spec.get("hostNetwork") else kubelet.addresses.take()
        self.folder: Path = kubelet.root / pod["metadata"]["uid"][:8]
        self.mounted: dict[str, Path] = {}
        self.is_initialized = False
        self.is_ending = False
        self.phase = "Pending"
        self._started_at = _now()
        self._changed = asyncio.Event()
        self._written: Json | None = None
        self._conditions: dict[str, Json] = {}
        self.initial = [Running(self, each) for each in self.spec.get("initContainers") or ()]
        self.containers = [Running(self, each) for each in self.spec["containers"]]
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._tell())]

    def see(self, pod: Json) -> None:
        """Take notice of what the API says of it now."""
        self.pod = pod
        self.changed()
        if pod["metadata"].get("deletionTimestamp") and not self.is_ending:
            self.is_ending = True
            grace_s = pod["metadata"].get("deletionGracePeriodSeconds") or 0
            self._tasks.append(asyncio.create_task(self._end(grace_s)))

    def changed(self) -> None:
        self._changed.set()

    def log_file(self, container: str) -> Path:
        return self.folder / f"{container}.log"

    async def kill(self) -> None:
        """End all at once, and say nothing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(container.stop(0) for container in [*self.initial, *self.containers]))
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _end(self, grace_s: float) -> None:
        self._tasks[0].cancel()
        await asyncio.gather(self._tasks[0], return_exceptions=True)
        await asyncio.gather(*(container.stop(grace_s) for container in [*self.initial, *self.containers]))
        self._tasks[1].cancel()
        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.pod["metadata"]["uid"]}}
        await self.kubelet.ask("DELETE", path, body)

    async def _run(self) -> None:
        self.folder.mkdir(parents=True)
        await self._mount_all()
        for container in self.initial:
            await container.run(restarts=self.spec["restartPolicy"] != "Never")
            if container.exit_code:
                self.phase = "Failed"
                self.changed()
                return
        self.is_initialized = True
        self.phase = "Running"
        self.changed()
        always = self.spec["restartPolicy"] == "Always"
        await asyncio.gather(*(container.run(restarts=always, forever=always) for container in self.containers))
        self.phase = "Failed" if any(container.exit_code for container in self.containers) else "Succeeded"
        self.changed()

    async def _mount_all(self) -> None:
        told = ""
        for volume in self.spec.get("volumes") or ():
            while True:
                try:
                    self.mounted[volume["name"]] = await self._mount(volume)
                    break
                except LookupError as error:
                    if told != str(error):
                        told = str(error)
                        await self.kubelet.event(self.pod, "FailedMount", told)
                    await asyncio.sleep(RETRY_SECONDS)

    async def _mount(self, volume: Json) -> Path:
        """Return where a volume's files are; raises ``LookupError`` while it cannot be mounted."""
        folder: Path = self.folder / "volumes" / volume["name"]
        if said := volume.get("hostPath"):
            return self._host_path(said["path"], said.get("type") or "")
        if said := volume.get("persistentVolumeClaim"):
            claim = await self._object("persistentvolumeclaims", said["claimName"])
            if claim.get("status", {}).get("phase") != "Bound":
                raise LookupError(f"claim {said['claimName']} is not bound")
            folder = self.kubelet.root / "claims" / self.namespace / said["claimName"]
        folder.mkdir(parents=True, exist_ok=True)
        sources = volume["projected"]["sources"] if "projected" in volume else [volume]
        for source in sources:
            for path, content in (await self._files(source)).items():
                file = folder / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                file.chmod(0o600)
        return folder

    def _host_path(self, path: str, kind: str) -> Path:
        # What machines share for real is shared memory; all else is each one's own.
        real = Path(path) if path.startswith("/dev/shm") else self.kubelet.root / "host" / path.lstrip("/")
        if kind == "DirectoryOrCreate":
            real.mkdir(parents=True, exist_ok=True)
        if (kind == "File" and not real.is_file()) or (kind == "Directory" and not real.is_dir()):
            raise LookupError(f"hostPath type check failed: {path} is not a {kind.lower()}")
        return real

    async def _files(self, source: Json) -> dict[str, bytes]:
        match source:
            case {"secret": said}:
                found = await self._object("secrets", said.get("secretName") or said["name"], said.get("optional"))
                content = {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
            case {"configMap": said}:
                found = await self._object("configmaps", said["name"], said.get("optional"))
                content = {key: value.encode() for key, value in (found.get("data") or {}).items()}
            case {"downwardAPI": said}:
                return {item["path"]: self._field(item["fieldRef"]["fieldPath"]).encode() for item in said["items"]}
            case {"serviceAccountToken": said}:
                return {said["path"]: (await self._token()).encode()}
            case {"emptyDir": _} | {"persistentVolumeClaim": _} | {"csi": _} | {"ephemeral": _}:
                return {}
            case _:
                raise LookupError(f"this kubelet has no such volume: {source}")
        if items := said.get("items"):
            return {item["path"]: content[item["key"]] for item in items}
        return content

    async def _object(self, kind: str, name: str, optional: bool | None = False) -> Json:
        found = await self.kubelet.ask("GET", f"/api/v1/namespaces/{self.namespace}/{kind}/{name}")
        if found is None and not optional:
            raise LookupError(f"{kind} {name} not found")
        return found or {}

    async def _token(self) -> str:
        account = self.spec.get("serviceAccountName") or "default"
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        found = await self.kubelet.ask("POST", path, body)
        if found is None:
            raise LookupError(f"serviceaccount {account} not found")
        token: str = found["status"]["token"]
        return token

    async def environment(self, container: Json) -> dict[str, str]:
        """Return the variables of a container; raises ``LookupError`` while one has no value."""
        found: dict[str, str] = {}
        for source in container.get("envFrom") or ():
            kind = "secret" if "secretRef" in source else "configMap"
            said = source[f"{kind}Ref"]
            content = await self._files({kind: said})
            found |= {source.get("prefix", "") + key: value.decode() for key, value in content.items()}
        for variable in container.get("env") or ():
            match variable.get("valueFrom"):
                case None:
                    found[variable["name"]] = _expanded(variable.get("value", ""), found)
                case {"fieldRef": {"fieldPath": path}}:
                    found[variable["name"]] = self._field(path)
                case {"resourceFieldRef": {"resource": resource}}:
                    part, _, name = resource.partition(".")
                    found[variable["name"]] = str((container.get("resources", {}).get(part) or {}).get(name, "0"))
                case {"secretKeyRef": said} | {"configMapKeyRef": said} as source:
                    kind = "secret" if "secretKeyRef" in source else "configMap"
                    content = await self._files({kind: {**said, "items": None}})
                    if said["key"] in content:
                        found[variable["name"]] = content[said["key"]].decode()
                    elif not said.get("optional"):
                        raise LookupError(f"couldn't find key {said['key']} in {kind} {said['name']}")
                case other:
                    raise LookupError(f"this kubelet has no such variable: {other}")
        return found

    async def account(self) -> dict[str, str]:
        """Return what gives programs the rights of the pod's account."""
        if not self.spec.get("serviceAccountName") or self.spec.get("automountServiceAccountToken") is False:
            return {"KUBECONFIG": "/nowhere"}
        file = self.kubelet.cluster.kubeconfig(f"pod-{self.folder.name}.yaml", token=await self._token())
        return {"KUBECONFIG": str(file)}

    def _field(self, path: str) -> str:
        keyed = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
        if keyed is not None:
            return str((self.pod["metadata"].get(keyed[1]) or {}).get(keyed[2], ""))
        own = {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "metadata.uid": self.pod["metadata"]["uid"],
            "spec.nodeName": self.kubelet.machine.name,
            "spec.serviceAccountName": self.spec.get("serviceAccountName", ""),
            "status.hostIP": self.kubelet.address,
            "status.podIP": self.address,
            "status.podIPs": self.address,
        }
        return str(own[path])

    async def _tell(self) -> None:
        """Write the status whenever it is another one."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}/status"
        while True:
            self._changed.clear()
            status = self._status()
            if status != self._written:
                # Conditions of others stay: a strategic merge is by their types.
                await self.kubelet.ask("PATCH", path, {"status": status}, "application/strategic-merge-patch+json")
                self._written = status
            await self._changed.wait()

    def _status(self) -> Json:
        are_ready = self.is_initialized and all(container.is_ready for container in self.containers)
        said = {each["type"]: each["status"] for each in self.pod.get("status", {}).get("conditions") or ()}
        gates = [gate["conditionType"] for gate in self.spec.get("readinessGates") or ()]
        conditions = {
            "PodScheduled": True,
            "Initialized": self.is_initialized,
            "ContainersReady": are_ready,
            "Ready": are_ready and all(said.get(gate) == "True" for gate in gates),
        }
        return {
            "phase": self.phase,
            "hostIP": self.kubelet.address,
            "podIP": self.address,
            "podIPs": [{"ip": self.address}],
            "startTime": self._started_at,
            "conditions": [self._condition(kind, str(value)) for kind, value in conditions.items()],
            "initContainerStatuses": [container.status() for container in self.initial],
            "containerStatuses": [container.status() for container in self.containers],
        }

    def _condition(self, kind: str, status: str) -> Json:
        known = self._conditions.get(kind)
        if known is None or known["status"] != status:
            known = {"type": kind, "status": status, "lastTransitionTime": _now()}
            self._conditions[kind] = known
        return known


class Running:
    """One container of a pod: its process, its probes, its state."""

    def __init__(self, pod: Pod, container: Json) -> None:
        self.pod = pod
        self.container = container
        self.name: str = container["name"]
        self.process: asyncio.subprocess.Process | None = None
        self.exit_code: int | None = None
        self.restarts = 0
        self.is_started = False
        self._is_probed_ready = False
        self._environment: dict[str, str] = {}
        self._state: Json = {
            "waiting": {"reason": "PodInitializing" if pod.spec.get("initContainers") else "ContainerCreating"}
        }
        self._last_state: Json = {}

    @property
    def is_ready(self) -> bool:
        return "running" in self._state and self.is_started and self._is_probed_ready

    def status(self) -> Json:
        return {
            "name": self.name,
            "image": self.container["image"],
            "imageID": "",
            "ready": self.is_ready,
            "started": self.is_started,
            "restartCount": self.restarts,
            "state": self._state,
            "lastState": self._last_state,
        }

    async def run(self, *, restarts: bool, forever: bool = False) -> None:
        """Run it to its end; with ``restarts`` until it succeeds, or ``forever``."""
        backoff_s = RETRY_SECONDS
        while True:
            began = time.monotonic()
            program = await self._pulled()
            await self._start(program)
            await self._watch()
            if not restarts or (self.exit_code == 0 and not forever):
                return
            if time.monotonic() - began > 2 * LONGEST_BACKOFF_SECONDS:
                backoff_s = RETRY_SECONDS
            self._last_state = self._state
            self._set({"waiting": {"reason": "CrashLoopBackOff", "message": f"back-off {backoff_s} s restarting"}})
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_SECONDS)
            self.restarts += 1

    async def stop(self, grace_s: float) -> None:
        """End the process: after ``preStop`` asked first, killed after ``grace_s``."""
        if self.process is None or self.process.returncode is not None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                if hook := (self.container.get("lifecycle") or {}).get("preStop"):
                    with contextlib.suppress(OSError, aiohttp.ClientError):  # that it fails holds nothing up
                        await self._act(hook)
                _signal(self.process, signal.SIGTERM)
                await self.process.wait()
        _signal(self.process, signal.SIGKILL)
        await self.process.wait()

    async def _pulled(self) -> Program:
        image = self.container["image"]
        while (program := self.pod.kubelet.program(image)) is None:
            message = f'Back-off pulling image "{image}"'
            if self._state.get("waiting", {}).get("reason") != "ImagePullBackOff":
                self._set({"waiting": {"reason": "ImagePullBackOff", "message": message}})
                await self.pod.kubelet.event(self.pod.pod, "Failed", f'Failed to pull image "{image}": not found')
            await asyncio.sleep(RETRY_SECONDS)
        return program

    async def _start(self, program: Program) -> None:
        while True:
            try:
                said = await self.pod.environment(self.container)
                account = await self.pod.account()
                break
            except LookupError as error:
                self._set({"waiting": {"reason": "CreateContainerConfigError", "message": str(error)}})
                await asyncio.sleep(RETRY_SECONDS)
        own = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL") if name in os.environ}
        home = {"HOME": str(self.pod.folder), "TMPDIR": str(self.pod.folder), "HOSTNAME": self.pod.name}
        given = {**own, **self.pod.kubelet.environment, **home, **account}
        self._environment = {**given, **{name: self._placed(each) for name, each in said.items()}}
        given_words = [*(self.container.get("command") or ()), *(self.container.get("args") or ())]
        words = [_expanded(word, said) for word in given_words]
        argv = [self._placed(word) for word in words]
        made = Container(self.name, self.container["image"], words, argv, self._environment, self.pod.address)
        self.is_started = self._is_probed_ready = False
        with self.pod.log_file(self.name).open("ab") as log:
            try:
                self.process = await asyncio.create_subprocess_exec(
                    *program(made), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.pod.folder,
                    env=self._environment, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                log.write(f"{error}\n".encode())
                self.process = None
        self._set({"running": {"startedAt": _now()}})

    async def _watch(self) -> None:
        began = _now()
        probing = asyncio.create_task(self._probe())
        try:
            self.exit_code = await self.process.wait() if self.process is not None else 127
        except asyncio.CancelledError:
            probing.cancel()
            raise
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
        if self.process is not None:
            _signal(self.process, signal.SIGKILL)  # what it left behind of its group
        self.is_started = False
        reason = "Completed" if self.exit_code == 0 else "Error"
        code = self.exit_code if self.exit_code >= 0 else 128 - self.exit_code
        self._set({"terminated": {"exitCode": code, "reason": reason, "startedAt": began, "finishedAt": _now()}})

    async def _probe(self) -> None:
        startup, readiness, liveness = (
            self.container.get(f"{kind}Probe") for kind in ("startup", "readiness", "liveness")
        )
        if startup is not None:
            await self._succeeds(startup, startup.get("failureThreshold", 3) * startup.get("periodSeconds", 10))
        self.is_started = True
        self._is_probed_ready = readiness is None
        self.pod.changed()
        failures = 0
        asked_alive = time.monotonic() + (liveness or {}).get("initialDelaySeconds", 0)
        while readiness is not None or liveness is not None:
            if readiness is not None:
                is_ready = await self._passes(readiness)
                failures = 0 if is_ready else failures + 1
                is_certain = is_ready or failures >= readiness.get("failureThreshold", 3)
                if is_certain and is_ready != self._is_probed_ready:
                    self._is_probed_ready = is_ready
                    self.pod.changed()
            if liveness is not None and time.monotonic() >= asked_alive:
                asked_alive = time.monotonic() + liveness.get("periodSeconds", 10)
                await self._lives(liveness)
            await asyncio.sleep(PROBE_SECONDS)

    async def _succeeds(self, probe: Json, within_s: float) -> None:
        until = time.monotonic() + within_s
        while not await self._passes(probe):
            if time.monotonic() > until and self.process is not None:
                _signal(self.process, signal.SIGKILL)
            await asyncio.sleep(PROBE_SECONDS)

    async def _lives(self, probe: Json) -> None:
        for _ in range(probe.get("failureThreshold", 3)):
            if await self._passes(probe):
                return
            await asyncio.sleep(probe.get("periodSeconds", 10))
        if self.process is not None:
            _signal(self.process, signal.SIGTERM)

    async def _passes(self, probe: Json) -> bool:
        try:
            async with asyncio.timeout(probe.get("timeoutSeconds", 1)):
                return await self._act(probe)
        except (OSError, TimeoutError, aiohttp.ClientError):
            return False

    async def _act(self, action: Json) -> bool:
        match action:
            case {"httpGet": said}:
                host = f"{said.get('host') or self.pod.address}:{self._port(said['port'])}"
                url = f"{said.get('scheme', 'HTTP').lower()}://{host}{said.get('path', '/')}"
                headers = {each["name"]: each["value"] for each in said.get("httpHeaders") or ()}
                async with aiohttp.request("GET", url, headers=headers, ssl=False, allow_redirects=False) as answer:
                    return 200 <= answer.status < 400
            case {"tcpSocket": said}:
                _, writer = await asyncio.open_connection(self.pod.address, self._port(said["port"]))
                writer.close()
                return True
            case {"exec": {"command": command}}:
                placed = [self._placed(each) for each in command]
                argv = as_it_says(Container(self.name, "", command, placed, {}, self.pod.address))
                nothing = asyncio.subprocess.DEVNULL
                process = await asyncio.create_subprocess_exec(
                    *argv, stdin=nothing, stdout=nothing, stderr=nothing, env=self._environment
                )
                try:
                    return await process.wait() == 0
                finally:
                    if process.returncode is None:
                        process.kill()
            case {"sleep": {"seconds": seconds}}:
                await asyncio.sleep(seconds)
                return True
        raise NotImplementedError(f"this kubelet has no such probe: {action}")

    def _port(self, said: int | str) -> int:
        if isinstance(said, int):
            return said
        named: int = next(port["containerPort"] for port in self.container["ports"] if port.get("name") == said)
        return named

    def _placed(self, text: str) -> str:
        """Return a text with the places of mounted files as they are here."""
        places = {
            mount["mountPath"].rstrip("/"): str(self.pod.mounted[mount["name"]] / mount.get("subPath", ""))
            for mount in self.container.get("volumeMounts") or ()
        }
        paths = "|".join(re.escape(path) for path in sorted(places, key=len, reverse=True))
        return re.sub(rf"(?<![\w./-])({paths})(?![\w.-])", lambda match: places[match[1]], text) if paths else text

    def _set(self, state: Json) -> None:
        self._state = state
        self.pod.changed()


class Machines:
    """Machines that run; made by :func:`running_machines`."""

    def __init__(self, cluster: Cluster, images: Mapping[str, Program], environment: Mapping[str, str]) -> None:
        self._cluster = cluster
        self._images = images
        self._environment = environment
        self._addresses = Addresses()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kubelet")
        self._thread.start()
        self._running: dict[str, asyncio.Task[None]] = {}

    def add(self, machine: Machine) -> Kubelet:
        """Have one more machine."""
        added: Kubelet = self._do(self._add(machine))
        return added

    def remove(self, name: str) -> None:
        """Have one less, and what runs there ends."""
        self._do(self._remove(name))

    def close(self) -> None:
        for name in [*self._running]:
            self._do(self._remove(name))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Awaitable[Any]) -> Any:
        async def doing() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(doing(), self._loop).result(60)

    async def _add(self, machine: Machine) -> Kubelet:
        known = asyncio.Event()
        connected: asyncio.Future[Kubelet] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            async with self._cluster.connected() as api:
                kubelet = Kubelet(self._cluster, api, machine, self._images, self._environment, self._addresses)
                connected.set_result(kubelet)
                await kubelet.run(known.set)

        task = self._running[machine.name] = asyncio.create_task(run())
        task.add_done_callback(lambda _: known.set())
        await known.wait()
        if task.done():
            await task
        return await connected

    async def _remove(self, name: str) -> None:
        task = self._running.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.contextmanager
def running_machines(
    cluster: Cluster,
    images: Mapping[str, Program],
    *machines: Machine,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Machines]:
    """Run machines, and end all that runs there.

    Parameters
    ----------
    images
        Programs by the beginnings of images' names.
    environment
        What every process has, as on machines that have a role in a cloud.
    """
    running = Machines(cluster, images, environment)
    try:
        for machine in machines:
            running.add(machine)
        yield running
    finally:
        running.close()


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    """Return a text with ``$(NAME)`` replaced where the name is known, and ``$$`` for ``$``."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]+)\)", value, text)


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
