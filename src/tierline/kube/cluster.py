"""Objects of any kind, a request each: what kinds there are, get, list, apply, delete; and HTTP to what runs in pods.

Rule: an answer is what was asked for, or :class:`~tierline.errors.ClusterRefused`, or
:class:`~tierline.errors.ClusterUnavailable`; nothing is asked twice.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from tierline.errors import ClusterRefused, ClusterUnavailable
from tierline.kube.api import ANSWER_SECONDS, PAGE_OBJECTS, KubernetesApi

Object = dict[str, Any]
"""As the API has it."""

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_LONGEST_SAID = 600
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True)
class Kind:
    """A kind of objects that the API serves.

    Parameters
    ----------
    api_version, name
        As objects state them: ``apps/v1``, ``Deployment``.
    plural
        As paths spell it: ``deployments``.
    is_namespaced
        Whether its objects are in a namespace.
    """

    api_version: str
    name: str
    plural: str
    is_namespaced: bool

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """Return the path of one object, or of all in a namespace or in the cluster."""
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        within = f"/namespaces/{namespace}" if self.is_namespaced and namespace is not None else ""
        return f"{root}{within}/{self.plural}" + (f"/{name}" if name is not None else "")


class Cluster:
    """The objects of a cluster.

    Parameters
    ----------
    connected
        A client of ``kubernetes_asyncio``.
    field_manager
        As whom fields are applied.
    stirred
        Called when a request begins, and when it has ended, however it did.
    """

    def __init__(self, connected: Any, field_manager: str, stirred: Callable[[], None] = lambda: None) -> None:
        self._connected = connected
        self._field_manager = field_manager
        self._stirred = stirred
        self._kinds: dict[str, dict[str, Kind]] = {}

    @property
    def server(self) -> str:
        """Address of the API."""
        return str(self._connected.configuration.host)

    # What there is ------------------------------------------------------------------------------------------------

    async def kinds(self) -> Mapping[tuple[str, str], Kind]:
        """Return all kinds that are served, by API version and name; each version is asked once."""
        groups = (await self.ask("GET", "/apis"))["groups"]
        versions = ["v1", *(each["groupVersion"] for group in groups for each in group["versions"])]
        found = await asyncio.gather(*map(self._kinds_of, versions))
        return {(kind.api_version, kind.name): kind for kinds in found for kind in kinds.values()}

    async def kind(self, api_version: str, name: str) -> Kind | None:
        """Return a kind, or ``None`` where it is not served."""
        return (await self._kinds_of(api_version)).get(name)

    async def _kinds_of(self, api_version: str) -> Mapping[str, Kind]:
        if api_version not in self._kinds:
            try:
                listed = await self.ask("GET", "/api/v1" if api_version == "v1" else f"/apis/{api_version}")
            except ClusterRefused as refusal:
                # Of an API that another server stands for, which is away, the kinds cannot be had; the others can.
                if refusal.status not in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.NOT_FOUND):
                    raise
                return {}
            self._kinds[api_version] = {
                each["kind"]: Kind(api_version, each["kind"], each["name"], each["namespaced"])
                for each in listed["resources"]
                if "/" not in each["name"]
            }
        return self._kinds[api_version]

    # Objects ------------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """Return an object, or ``None`` where there is none of that name."""
        try:
            found: Object = await self.ask("GET", kind.path(namespace, name))
        except ClusterRefused as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return {"apiVersion": kind.api_version, "kind": kind.name, **found}

    async def list(
        self, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """Return all objects of a kind, in a namespace or in the cluster, that selectors name."""
        query = {"limit": str(PAGE_OBJECTS), "labelSelector": labels, "fieldSelector": fields}
        query = {name: value for name, value in query.items() if value}
        found: list[Object] = []
        while True:
            page = await self.ask("GET", kind.path(namespace), query=query)
            found += ({"apiVersion": kind.api_version, "kind": kind.name, **item} for item in page["items"])
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return found

    async def apply(self, kind: Kind, manifest: Object, *, is_trial: bool = False) -> Object:
        """Have the fields of ``manifest`` be so, whoever had them before; a trial changes nothing."""
        metadata = manifest["metadata"]
        query = {"fieldManager": self._field_manager, "force": "true", **({"dryRun": "All"} if is_trial else {})}
        path = kind.path(metadata.get("namespace"), metadata["name"])
        applied: Object = await self.ask("PATCH", path, query=query, body=manifest, content_type=_APPLY)
        return {"apiVersion": kind.api_version, "kind": kind.name, **applied}

    async def create(self, kind: Kind, manifest: Object) -> Object:
        """Make an object."""
        path = kind.path(manifest["metadata"].get("namespace"))
        query = {"fieldManager": self._field_manager}
        created: Object = await self.ask("POST", path, query=query, body=manifest)
        return created

    async def replace(self, kind: Kind, manifest: Object) -> Object:
        """Put an object in the place of the one of its name; a ``resourceVersion`` in it must be that one's."""
        metadata = manifest["metadata"]
        path = kind.path(metadata.get("namespace"), metadata["name"])
        replaced: Object = await self.ask("PUT", path, query={"fieldManager": self._field_manager}, body=manifest)
        return replaced

    async def merge(
        self, kind: Kind, namespace: str | None, name: str, change: Object, *, is_status: bool = False
    ) -> Object:
        """Change some fields of an object, or of its status; ``None`` removes one."""
        query = {"fieldManager": self._field_manager}
        path = kind.path(namespace, name) + ("/status" if is_status else "")
        merged: Object = await self.ask("PATCH", path, query=query, body=change, content_type=_MERGE)
        return merged

    async def delete(self, kind: Kind, namespace: str | None, name: str) -> bool:
        """Delete an object, and in the background what it owns; returns whether it was there."""
        try:
            await self.ask("DELETE", kind.path(namespace, name), body={"propagationPolicy": "Background"})
        except ClusterRefused as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    async def log(self, namespace: str, pod: str, container: str, *, lines: int, of_previous: bool = False) -> str:
        """Return the end of what a container has printed."""
        query = {"container": container, "tailLines": str(lines), **({"previous": "true"} if of_previous else {})}
        async with self.answer("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}/log", query=query) as reply:
            return (await reply.read()).decode(errors="replace")

    # Requests -----------------------------------------------------------------------------------------------------

    async def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> Any:
        """Send a request and return its answer's JSON."""
        async with self.answer(method, path, query=query, body=body, content_type=content_type) as reply:
            answered = await reply.read()
        try:
            return json.loads(answered)
        except ValueError as error:
            raise ClusterRefused(f"{self.server}{path}: what it answers is no JSON", reply.status) from error

    @asynccontextmanager
    async def answer(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        headers: Iterable[tuple[str, str]] = (),
        silence_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; yields an answer that is no refusal, whose body may be read as it comes.

        Parameters
        ----------
        body
            Becomes JSON.
        silence_s
            Longest silence inside the answer, which may then take any time; unless given, all is over soon.
        """
        timeout = (
            aiohttp.ClientTimeout(total=ANSWER_SECONDS)
            if silence_s is None
            else aiohttp.ClientTimeout(total=None, connect=ANSWER_SECONDS, sock_read=silence_s)
        )
        self._stirred()
        try:
            reply = await self._connected.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params={"Accept": "*/*", **dict(headers), "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=timeout,
            )
            async with reply:
                if reply.status >= HTTPStatus.MULTIPLE_CHOICES:
                    raise self._refusal(reply, await reply.read(), method, path)
                yield reply
        except TimeoutError as error:
            raise ClusterUnavailable(f"{self.server}: the Kubernetes API did not answer in time") from error
        except aiohttp.ClientError as error:
            raise ClusterUnavailable(f"{self.server}: the Kubernetes API cannot be reached: {error}") from error
        finally:
            self._stirred()

    def _refusal(self, reply: aiohttp.ClientResponse, body: bytes, method: str, path: str) -> ClusterRefused:
        status, asked = reply.status, reply.headers.get("Retry-After", "")
        retry_after_s = float(asked) if asked.isdecimal() else 0.0
        try:
            said = json.loads(body)
            is_status = said.get("kind") == "Status"
        except (ValueError, AttributeError):
            is_status = False
        if not is_status:  # of what the API handed the request on to
            text = " ".join(body.decode(errors="replace").split())[:_LONGEST_SAID]
            return ClusterRefused(f"{method} {path}: {status} {text}".rstrip(), status, retry_after_s=retry_after_s)
        return ClusterRefused(str(said.get("message", status)), status, str(said.get("reason", "")), retry_after_s)


@asynccontextmanager
async def connected_cluster(kubeconfig: Path | None, field_manager: str) -> AsyncIterator[Cluster]:
    """Give the objects of a cluster for the time of a ``with`` block.

    Raises
    ------
    UsageError
        A package is missing, or there is no way to a cluster.
    """
    async with KubernetesApi(kubeconfig).connected() as connected:
        yield Cluster(connected, field_manager)


def behind_pod(namespace: str, pod: str, port: int, path: str) -> str:
    """Return the path by which the API hands a request on to a port of a pod."""
    return f"/api/v1/namespaces/{namespace}/pods/http:{pod}:{port}/proxy/{path.lstrip('/')}"


def behind_service(namespace: str, service: str, port: int, path: str, *, scheme: str = "http") -> str:
    """Return the path by which the API hands a request on to a port of a Service."""
    return f"/api/v1/namespaces/{namespace}/services/{scheme}:{service}:{port}/proxy/{path.lstrip('/')}"


def current_namespace(kubeconfig: Path | None) -> str:
    """Return the namespace of the current context, or of the pod that this runs in; ``default`` where neither says."""
    if kubeconfig is None and _OWN_NAMESPACE.exists():
        return _OWN_NAMESPACE.read_text().strip()
    return KubernetesApi(kubeconfig).current_namespace() or "default"
