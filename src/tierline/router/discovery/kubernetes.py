"""Endpoints that a Kubernetes cluster has: the ready ones of a Service's EndpointSlices, or pods by their labels.

What is not ready, is being deleted, or has the condition ``tierline.ai/routable`` set to ``False`` is wanted no more:
it drains. Of pods, annotations under ``tierline.ai/`` say what an entry of the endpoints file would.

An annotation can never name a file of the router's: whoever may write pods would have it read, and sent to the pod.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import aiohttp
import msgspec

from tierline import logs
from tierline.duties import Duties
from tierline.errors import ConfigurationError, UsageError
from tierline.kube.api import ApiFailure, Call, KubernetesApi, Metadata, Watched, follow
from tierline.kube.selections import Selection, parse_pods, parse_service
from tierline.kube.slices import EndpointSlice, port_of, slice_calls
from tierline.router.specs import EndpointSpec, read_spec

if TYPE_CHECKING:
    from tierline.router.config import RouterConfig

log = logs.get(__name__)

ANNOTATIONS = "tierline.ai/"
ROUTABLE = "tierline.ai/routable"
"""A pod's condition. ``False`` takes it out of the traffic; as one of its readiness gates it must be ``True``, which a
router says where it is told to."""
WEIGHTS = "weights"
"""Annotation, after :data:`ANNOTATIONS`: a name for what a pod's KV is of."""
OWN_WEIGHTS = "own"
"""Its value where two pods that are made alike may have other weights each."""
GATE_SECONDS, GATE_AGAIN_SECONDS = 0.5, 10.0
"""Between two looks at pods that wait to be let in; after the API did not let us."""
FIRST_SET_SECONDS = 5.0
"""The router's start waits so long for the first answer, and then goes on without these endpoints."""
# What is read of pods -------------------------------------------------------------------------------------------------


class _Condition(msgspec.Struct):
    type: str
    status: str


class _PodStatus(msgspec.Struct, rename="camel"):
    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    host_ip: str = msgspec.field(default="", name="hostIP")
    conditions: list[_Condition] | None = None


class _ContainerPort(msgspec.Struct, rename="camel"):
    container_port: int
    name: str = ""


class _Container(msgspec.Struct):
    ports: list[_ContainerPort] | None = None


class _Gate(msgspec.Struct, rename="camel"):
    condition_type: str = ""


class _PodSpec(msgspec.Struct, rename="camel"):
    containers: list[_Container]
    readiness_gates: list[_Gate] | None = None


class Pod(msgspec.Struct):
    """A pod."""

    metadata: Metadata
    spec: _PodSpec
    status: _PodStatus

    @property
    def is_routable(self) -> bool:
        """Whether it may get requests."""
        return self._may_serve("Ready")

    @property
    def is_routable_but_for_us(self) -> bool:
        """The same, where what its readiness waits for besides is this router's own word."""
        return self._may_serve("ContainersReady" if self._is_gated else "Ready")

    @property
    def awaits_us(self) -> bool:
        """Whether it may get requests, and is held back until somebody says that it does."""
        return self._is_gated and self._may_serve("ContainersReady") and ROUTABLE not in self._conditions

    @property
    def _is_gated(self) -> bool:
        return any(gate.condition_type == ROUTABLE for gate in self.spec.readiness_gates or ())

    @property
    def _conditions(self) -> dict[str, str]:
        return {condition.type: condition.status for condition in self.status.conditions or ()}

    def _may_serve(self, readiness: str) -> bool:
        conditions = self._conditions
        is_running = self.status.phase == "Running" and bool(self.status.pod_ip)
        is_ready = conditions.get(readiness) == "True" and conditions.get(ROUTABLE) != "False"
        return is_running and is_ready and self.metadata.deletion_timestamp is None


# From objects to endpoints --------------------------------------------------------------------------------------------

T = TypeVar("T")


class Reader(Protocol[T]):
    """How one kind of objects tells of endpoints."""

    kind: type[T]
    refused: int
    """Objects that could not be used; one that stays as it is counts once."""
    held_back: dict[str, str]
    """Names of pods that this router is to let in, by their URLs."""

    def calls(self, api: KubernetesApi, connected: Any) -> Sequence[Call]:
        """Return ways to ask for the objects."""

    def specs(self, objects: Mapping[str, T]) -> list[EndpointSpec]:
        """Return the endpoints that are wanted."""


class SliceReader:
    """Reads the EndpointSlices of a Service: what is ready in them. Of a pod with IPv4 and IPv6, IPv4 counts."""

    kind = EndpointSlice

    def __init__(self, selection: Selection) -> None:
        self.refused = 0
        self.held_back: dict[str, str] = {}
        self._selection = selection
        self._refused: frozenset[str] = frozenset()

    def calls(self, api: KubernetesApi, connected: Any) -> Sequence[Call]:
        """See :class:`Reader`."""
        return slice_calls(api, connected, self._selection.namespace)

    def specs(self, objects: Mapping[str, EndpointSlice]) -> list[EndpointSpec]:
        """See :class:`Reader`."""
        specs: list[EndpointSpec] = []
        refused = set()
        families: dict[str, str] = {}  # by the pod
        for uid, part in sorted(objects.items(), key=lambda item: item[1].address_type):
            routable = [endpoint for endpoint in part.endpoints or () if endpoint.is_routable]
            port = port_of(part.ports or [], self._selection.port, "http")
            if port is not None:
                scheme = "https" if port.app_protocol == "https" else "http"
                for each in routable:
                    pod = each.target_ref.uid if each.target_ref is not None else ""
                    if not pod or families.setdefault(pod, part.address_type) == part.address_type:
                        specs.append(EndpointSpec(url=_url(scheme, each.addresses[0], port.port or 0)))
            elif routable:
                refused.add(uid)
                if uid not in self._refused:
                    self.refused += 1
                    log.error(
                        "an EndpointSlice cannot be used",
                        service=self._selection.text,
                        slice=part.metadata.name,
                        why="it has no port of that name, or several and none called http",
                    )
        self._refused = frozenset(refused)
        return specs


class PodReader:
    """Reads pods: those that are ready, and what their annotations say.

    Invariant: ``_usable`` has, of the pods of the moment, what was said last that could be used.

    Parameters
    ----------
    selection
        Which.
    opens_gates
        Whether a pod whose readiness waits for :data:`ROUTABLE` is for this router to let in.
    """

    kind = Pod

    def __init__(self, selection: Selection, *, opens_gates: bool = False) -> None:
        self.refused = 0
        self.held_back: dict[str, str] = {}
        self._opens_gates = opens_gates
        self._selection = selection
        self._usable: dict[str, EndpointSpec] = {}
        self._refused: dict[str, Pod] = {}

    def calls(self, api: KubernetesApi, connected: Any) -> Sequence[Call]:
        """See :class:`Reader`."""
        return [api.pods(connected, self._selection.namespace)]

    def specs(self, objects: Mapping[str, Pod]) -> list[EndpointSpec]:
        """See :class:`Reader`."""
        usable = {uid: spec for uid, pod in objects.items() if (spec := self._spec(uid, pod)) is not None}
        self._usable = usable
        self._refused = {uid: pod for uid, pod in self._refused.items() if uid in objects}
        if not self._opens_gates:
            return [spec for uid, spec in usable.items() if objects[uid].is_routable]
        self.held_back = {
            spec.url: objects[uid].metadata.name for uid, spec in usable.items() if objects[uid].awaits_us
        }
        return [spec for uid, spec in usable.items() if objects[uid].is_routable_but_for_us]

    def _spec(self, uid: str, pod: Pod) -> EndpointSpec | None:
        if not pod.status.pod_ip:
            return None
        try:
            return pod_spec(pod, self._selection.port)
        except ConfigurationError as error:
            if self._refused.get(uid) != pod:
                self._refused[uid] = pod
                self.refused += 1
                log.error("a pod cannot be used as it is", why=str(error))
            return self._usable.get(uid)


def pod_spec(pod: Pod, port: str) -> EndpointSpec:
    """Return the endpoint that a pod is.

    Parameters
    ----------
    pod
        With an address.
    port
        Name or number, where the pod does not say itself; empty: its only one, or the one called ``http``.

    Raises
    ------
    ConfigurationError
        An annotation is wrong, or there is no such port.
    """
    where, address = f"pod {pod.metadata.name}", pod.status.pod_ip
    said = {
        name.removeprefix(ANNOTATIONS): value
        for name, value in (pod.metadata.annotations or {}).items()
        if name.startswith(ANNOTATIONS)
    }
    port = said.get("port", port)
    number = _pod_port(pod, port)
    if number is None:
        raise ConfigurationError(f"{where}: port", port or None, "a number, or the name of a port of its containers")
    content: dict[str, object] = {"url": _url(said.get("scheme", "http"), address, number)}
    if "weight" in said:
        content["weight"] = said["weight"]
    if WEIGHTS in said:
        # Its uid is nobody else's: such a pod takes over no KV, and none of its is taken over.
        content["weights"] = said[WEIGHTS] if said[WEIGHTS] not in ("", OWN_WEIGHTS) else f"pod {pod.metadata.uid}"
    for key in ("roles", "models"):
        if key in said:
            content[key] = [word.strip() for word in said[key].split(",")]
    if "kv-events" in said:  # a publisher binds to *, and is reached where its pod is
        content["kv_events"] = said["kv-events"].replace("//*:", f"//{_host(address)}:")
    if "node-events" in said:
        content["node_events"] = said["node-events"].replace("//*:", f"//{_host(pod.status.host_ip)}:")
    return read_spec(content, where)


class KubernetesSource(Generic[T]):
    """The endpoints of one Service, or of the pods of one selector.

    Parameters
    ----------
    api, selection, reader
        Where to look, for which objects, and how to read them.
    duties
        Guards the following.
    is_up
        Whether the endpoint of a URL passed its last health check.

    Attributes
    ----------
    name
        As :attr:`Endpoint.source` has it.
    """

    def __init__(
        self,
        api: KubernetesApi,
        selection: Selection,
        reader: Reader[T],
        duties: Duties,
        is_up: Callable[[str], bool],
    ) -> None:
        self.name = f"kubernetes {selection.text}"
        self._namespace = selection.namespace
        self._is_up = is_up
        self._unopened = 0
        self._api = api
        self._reader = reader
        self._duties = duties
        self._watched = Watched(self.name, reader.kind, selection.selector, self._take)
        self._specs: tuple[EndpointSpec, ...] = ()
        self._is_changed = asyncio.Event()

    @property
    def failures(self) -> int:
        """Requests that failed, and objects that could not be used."""
        return self._watched.failures + self._reader.refused + self._unopened

    @property
    def is_behind(self) -> bool:
        """Whether what is known may be old."""
        return self._watched.is_behind

    async def wanted_sets(self) -> AsyncIterator[Sequence[EndpointSpec]]:
        """See :class:`~tierline.router.discovery.base.Source`."""
        keep_up = self._duties.keep_up
        tasks = [asyncio.create_task(keep_up("discovery", work)) for work in (self._follow, self._let_in)]
        try:
            try:
                async with asyncio.timeout(FIRST_SET_SECONDS):
                    await self._is_changed.wait()
            except TimeoutError:
                log.warning("the router starts without these endpoints: Kubernetes does not answer", what=self.name)
            while True:
                self._is_changed.clear()
                yield self._specs
                await self._is_changed.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        await follow(self._api, self._watched, lambda connected: self._reader.calls(self._api, connected))

    async def _let_in(self) -> None:
        """Say of pods that wait for it that they get requests, once they pass a health check.

        Never that they get none: another router may have let them in, and who takes them out means it.
        """
        while True:
            await asyncio.sleep(GATE_SECONDS)
            waiting = [pod for url, pod in self._reader.held_back.items() if self._is_up(url)]
            if not waiting:
                continue
            try:
                async with self._api.connected() as connected:
                    for pod in waiting:
                        await self._api.set_condition(connected, self._namespace, pod, ROUTABLE)
                        log.info("pod is let in", pod=pod, what=self.name)
            except (aiohttp.ClientError, ApiFailure, TimeoutError, OSError, UsageError) as error:
                self._unopened += 1
                log.warning("a pod cannot be let in", what=self.name, why=str(error) or type(error).__name__)
                await asyncio.sleep(GATE_AGAIN_SECONDS)

    def _take(self, objects: Mapping[str, T]) -> None:
        specs = {spec.url: spec for spec in self._reader.specs(objects)}
        self._specs = tuple(specs[url] for url in sorted(specs))
        self._is_changed.set()


async def kubernetes_sources(
    config: "RouterConfig", duties: Duties, is_up: Callable[[str], bool]
) -> list[KubernetesSource[Any]]:
    """Return the sources that the configuration names; ``is_up`` says whether a URL's endpoint is healthy.

    Raises
    ------
    UsageError
        It names some, and a package is missing, or there is no way to a cluster.
    """
    readers: list[tuple[Selection, Reader[Any]]] = [
        *((selection, SliceReader(selection)) for selection in map(parse_service, config.kubernetes_services)),
        *(
            (selection, PodReader(selection, opens_gates=config.kubernetes_readiness_gate))
            for selection in map(parse_pods, config.kubernetes_pods)
        ),
    ]
    if not readers:
        return []
    api = KubernetesApi(config.kubeconfig)
    async with api.connected():
        pass  # the configuration can be used; whether somebody answers is another matter
    return [KubernetesSource(api, selection, reader, duties, is_up) for selection, reader in readers]


def _pod_port(pod: Pod, wanted: str) -> int | None:
    if wanted.isdigit():
        return int(wanted)
    ports = [port for container in pod.spec.containers for port in container.ports or ()]
    if not wanted and len(ports) == 1:
        return ports[0].container_port
    return next((port.container_port for port in ports if port.name == (wanted or "http")), None)


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://{_host(host)}:{port}"


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
