"""What a look writes, and what it does not, when the API says no or nobody knows enough; on an API of a few lines."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Literal

import msgspec
import pytest
from tests.integration.operator.controller.operators import PLANNER, resource

from tierline.errors import ClusterRefused
from tierline.kube.cluster import Cluster, Kind
from tierline.operator import names
from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.controller import reconciling
from tierline.operator.controller.children import Children
from tierline.operator.controller.events import Events
from tierline.operator.controller.live import kind_of
from tierline.operator.controller.reconciling import Key, Reconciler
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import desired
from tierline.operator.manifests.desired import owner_labels
from tierline.operator.manifests.machines import Machines
from tierline.operator.manifests.manifest import Made
from tierline.operator.manifests.routing import entrance_namespace
from tierline.operator.settled import PODS, Pods

NAMESPACE = "default"
ROOT = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/inferenceendpointconfigs"
INGRESS = Kind("networking.k8s.io/v1", "Ingress", "ingresses", is_namespaced=True)
KINDS = (("v1", "Service"), ("v1", "ConfigMap"), ("v1", "Secret"), ("apps/v1", "Deployment"), ("apps/v1", "DaemonSet"))


class Answer:
    status = 200

    def __init__(self, content: object) -> None:
        self._content = msgspec.json.encode(content)

    async def read(self) -> bytes:
        return self._content


class ApiOfAFewLines(Cluster):
    """Keeps what it is given; refuses what it is told to."""

    def __init__(self) -> None:
        super().__init__(None, names.FIELD_MANAGER)
        self.objects: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, ClusterRefused] = {}
        """By the end of a path."""
        self.reason = "NotFound"
        self.asked: list[tuple[str, str]] = []

    @contextlib.asynccontextmanager
    async def answer(self, method: str, path: str, *, body: Any = None, **_: object) -> AsyncIterator[Any]:
        self.asked.append((method, path))
        for end, refusal in self.refusals.items():
            if path.endswith(end) and method != "GET":
                raise refusal
        match method:
            case "GET" if path in self.objects:
                yield Answer(self.objects[path])
            case "GET":
                raise ClusterRefused("there is none", HTTPStatus.NOT_FOUND, self.reason)
            case "DELETE":
                yield Answer(self.objects.pop(path))
            case "POST":
                yield Answer(self._keep(f"{path}/{body['metadata'].get('name', 'event')}", body))
            case _:
                yield Answer(self._keep(path.removesuffix("/status"), body))

    def _keep(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        who = [{"manager": names.FIELD_MANAGER, "operation": "Apply"}]
        of_the_api = {"resourceVersion": str(len(self.asked)), "generation": 1, "managedFields": who}
        self.objects[path] = {**body, "metadata": {"uid": path, **body["metadata"], **of_the_api}}
        return self.objects[path]

    def written(self, path: str) -> int:
        return sum(method == "PATCH" and asked.endswith(path) for method, asked in self.asked)

    def state(self) -> str:
        return str(self.objects[f"{ROOT}/demo"].get("status", {}).get("state", ""))


@pytest.fixture
def api() -> ApiOfAFewLines:
    api = ApiOfAFewLines()
    put(api, "demo")
    return api


@pytest.fixture
def children(api: ApiOfAFewLines) -> Children:
    children = Children(api, lambda _: None, lambda: 0.0)
    children.served = {
        (version, name): Kind(version, name, f"{name.lower()}s", is_namespaced=True) for version, name in KINDS
    }
    return children


@pytest.fixture
def reconciler(api: ApiOfAFewLines, children: Children) -> Reconciler:
    return Reconciler(api, children, PLANNER, OperatorConfig(namespace="system"), Events(api, "me"), lambda: None)


def key(name: str = "demo") -> Key:
    return Key("InferenceEndpointConfig", NAMESPACE, name)


def put(api: ApiOfAFewLines, name: str, **spec: Any) -> None:
    wanted = resource(name, **spec)
    wanted["metadata"] |= {"namespace": NAMESPACE, "uid": f"uid-{name}", "generation": 1, "resourceVersion": "1"}
    api.objects[f"{ROOT}/{name}"] = wanted


@pytest.mark.parametrize("status", [409, 429, 500, 503])
async def test_an_api_that_asks_for_patience_is_asked_nothing_more_and_nothing_is_told(
    api: ApiOfAFewLines, reconciler: Reconciler, status: int
) -> None:
    api.refusals["services/demo-service"] = ClusterRefused("not now", status)
    with pytest.raises(ClusterRefused, match="not now"):
        await reconciler.reconcile(key())
    assert (api.state(), api.written("deployments/demo")) == ("", 0)


async def test_an_api_that_asks_for_patience_for_long_is_told_of_and_the_rest_is_written(
    api: ApiOfAFewLines, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "PATIENCE_SECONDS", 0.0)
    api.refusals["services/demo-service"] = ClusterRefused("failed calling webhook", 500)
    with pytest.raises(ClusterRefused, match="failed calling"):
        await reconciler.reconcile(key())
    assert (api.state(), api.written("deployments/demo")) == ("DeploymentInProgress", 1)


SHARED = "/api/v1/namespaces/system/configmaps/shared"


def shared(api: ApiOfAFewLines) -> str:
    return str(api.objects[SHARED]["data"]["endpoints"]) if SHARED in api.objects else ""


async def test_what_endpoints_share_is_written_once_all_of_them_were_looked_at(
    api: ApiOfAFewLines, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(key())
    await reconciler.reconcile_shared([key("other")], is_listed=True)
    assert shared(api) == ""
    put(api, "other")
    await reconciler.reconcile(key("other"))
    await reconciler.reconcile_shared([], is_listed=True)
    assert shared(api) == "demo,other"


async def test_what_endpoints_share_is_made_but_neither_changed_nor_deleted_while_some_kind_cannot_be_listed(
    api: ApiOfAFewLines, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(key())
    await reconciler.reconcile_shared([], is_listed=False)
    assert shared(api) == "demo"
    put(api, "other")
    await reconciler.reconcile(key("other"))
    await reconciler.reconcile_shared([], is_listed=False)
    assert shared(api) == "demo"
    for name in ("demo", "other"):
        del api.objects[f"{ROOT}/{name}"]
        await reconciler.reconcile(key(name))
    await reconciler.reconcile_shared([], is_listed=False)
    assert shared(api) == "demo"
    await reconciler.reconcile_shared([], is_listed=True)
    assert shared(api) == ""


async def test_what_a_resource_shares_that_is_wrong_since_before_the_start_stays_as_long_as_it_runs(
    api: ApiOfAFewLines, children: Children, reconciler: Reconciler
) -> None:
    put(api, "other")
    for name in ("demo", "other"):
        await reconciler.reconcile(key(name))
    await reconciler.reconcile_shared([], is_listed=True)
    put(api, "other", modelName="wrong")
    after = Reconciler(api, children, PLANNER, OperatorConfig(namespace="system"), Events(api, "me"), lambda: None)
    for name in ("demo", "other"):
        await after.reconcile(key(name))
    await after.reconcile_shared([], is_listed=True)
    assert shared(api) == "demo,other"
    children.forget("uid-other")
    for path in [path for path in api.objects if path.endswith(("/other", "/other-service", "/other-token"))]:
        if not path.startswith(ROOT):
            gone = api.objects.pop(path)
            live = msgspec.json.decode(msgspec.json.encode(gone), type=kind_of(gone["kind"]))
            children.seen(live.metadata.uid, live, None)
    await after.reconcile_shared([], is_listed=True)
    assert shared(api) == "demo"


async def test_node_stores_stay_on_their_machines_as_long_as_what_removes_what_they_leave_cannot_be_written(
    api: ApiOfAFewLines, children: Children
) -> None:
    def stores(*arguments: Any) -> Made:
        return Made(tuple(each for each in desired.shared(*arguments).manifests if each["kind"] == "DaemonSet"))

    cached = {"kvCacheSpec": {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "tieredstorage"}}}
    planner = replace(PLANNER, shared=stores)
    reconciler = Reconciler(api, children, planner, OperatorConfig(namespace="system"), Events(api, "me"), lambda: None)
    for name in ("demo", "other"):
        put(api, name, instanceType=f"ml.{name}", **cached)
        await reconciler.reconcile(key(name))
    await reconciler.reconcile_shared([], is_listed=True)
    path = "/apis/apps/v1/namespaces/system/daemonsets/tierline-node"
    before = api.objects[path]
    del api.objects[f"{ROOT}/demo"]
    await reconciler.reconcile(key("demo"))
    api.refusals["tierline-node-removal"] = ClusterRefused("a policy says no", 403)
    with pytest.raises(ClusterRefused, match="a policy says no"):
        await reconciler.reconcile_shared([], is_listed=True)
    assert api.objects[path] == before
    api.refusals.clear()
    await reconciler.reconcile_shared([], is_listed=True)
    assert set(Machines.of(api.objects[path]).types) == {"ml.other", "other"}
    assert set(Machines.of(api.objects[f"{path}-removal"]).types) == {"ml.demo", "demo"}


async def test_node_stores_come_to_further_machines_while_it_is_not_known_what_all_want(
    api: ApiOfAFewLines, children: Children
) -> None:
    def stores(*arguments: Any) -> Made:
        return Made(tuple(each for each in desired.shared(*arguments).manifests if each["kind"] == "DaemonSet"))

    cached = {"kvCacheSpec": {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "tieredstorage"}}}
    planner = replace(PLANNER, shared=stores)
    before = Reconciler(api, children, planner, OperatorConfig(namespace="system"), Events(api, "me"), lambda: None)
    put(api, "demo", instanceType="ml.demo", **cached)
    await before.reconcile(key("demo"))
    await before.reconcile_shared([], is_listed=True)
    after = Reconciler(api, children, planner, OperatorConfig(namespace="system"), Events(api, "me"), lambda: None)
    put(api, "other", instanceType="ml.other", **cached)
    await after.reconcile(key("other"))
    await after.reconcile_shared([], is_listed=False)
    path = "/apis/apps/v1/namespaces/system/daemonsets/tierline-node"
    assert set(Machines.of(api.objects[path]).types) == {"ml.demo", "demo", "ml.other", "other"}


async def test_what_serves_stays_as_long_as_something_of_its_successor_is_refused(
    api: ApiOfAFewLines, children: Children
) -> None:
    def renamed(*arguments: Any) -> Made:
        made = PLANNER.desired(*arguments)
        return Made(
            tuple(
                each | {"metadata": each["metadata"] | {"name": "successor"}} if each["kind"] == "Deployment" else each
                for each in made.manifests
            )
        )

    config, path = OperatorConfig(namespace="system"), "/apis/apps/v1/namespaces/default/deployments/demo"
    await Reconciler(api, children, PLANNER, config, Events(api, "me"), lambda: None).reconcile(key())
    changed = replace(PLANNER, desired=renamed)
    after = Reconciler(api, children, changed, config, Events(api, "me"), lambda: None)
    api.refusals["successor"] = ClusterRefused("a policy says no", 403)
    with pytest.raises(ClusterRefused):
        await after.reconcile(key())
    assert path in api.objects
    api.refusals.clear()
    await after.reconcile(key())
    assert path not in api.objects


async def test_a_router_that_is_moved_serves_until_its_successor_is_available(
    api: ApiOfAFewLines, children: Children
) -> None:
    name = names.router_name("demo", NAMESPACE)

    def routed(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
        place = entrance_namespace(endpoint, config)
        service, workers = PLANNER.desired(endpoint, capabilities, config).manifests
        moved = {"namespace": place, "labels": owner_labels(endpoint)}
        router = workers | {"metadata": {**moved, "name": name}}
        entrance = service | {"metadata": {**moved, "name": f"{name}-entrance"}}
        return Made((service, workers, router, entrance))

    def looks(placement: Literal["system", "endpoint"]) -> Reconciler:
        config = OperatorConfig(namespace="system", router_placement=placement)
        planner = replace(PLANNER, desired=routed)
        return Reconciler(api, children, planner, config, Events(api, "me"), lambda: None)

    put(api, "demo", intelligentRoutingSpec={"enabled": True})
    api.objects[f"{ROOT}/demo"]["metadata"]["finalizers"] = [names.FINALIZER]
    await looks("system").reconcile(key())
    router, service = (
        f"{root}/namespaces/{{}}/{kind}/{each}"
        for root, kind, each in (("/apis/apps/v1", "deployments", name), ("/api/v1", "services", f"{name}-entrance"))
    )
    former = {router.format("system"), service.format("system")}
    successors = {router.format(NAMESPACE), service.format(NAMESPACE)}
    after = looks("endpoint")
    await after.reconcile(key())
    assert api.objects.keys() >= former | successors
    moving = after.endpoints[key()]
    assert moving is not None
    assert moving.settled.former_router_namespaces == ("system",)
    counts = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
    found = api.objects[router.format(NAMESPACE)]
    live = msgspec.convert(found, dict[str, Any]) | {"status": {"observedGeneration": 1, **counts}}
    children.seen(
        found["metadata"]["uid"], None, msgspec.json.decode(msgspec.json.encode(live), type=kind_of("Deployment"))
    )
    await after.reconcile(key())
    assert not api.objects.keys() & former
    assert api.objects.keys() >= successors


@pytest.mark.parametrize(
    ("why", "stays"),
    [
        ('a webhook denied the request: host "_" and path "/" is already defined in ingress system/way-in', False),
        ('a policy asks for what "system/way-in-2" has', True),
    ],
)
async def test_an_ingress_goes_before_its_successor_where_that_is_refused_for_its_sake(
    api: ApiOfAFewLines, children: Children, why: str, stays: bool
) -> None:
    def entered(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
        made = PLANNER.desired(endpoint, capabilities, config)
        metadata = {"namespace": entrance_namespace(endpoint, config), "labels": owner_labels(endpoint)}
        ingress = {"apiVersion": INGRESS.api_version, "kind": "Ingress", "metadata": metadata | {"name": "way-in"}}
        return Made((*made.manifests, ingress))

    def looks(placement: Literal["system", "endpoint"]) -> Reconciler:
        config = OperatorConfig(namespace="system", router_placement=placement)
        return Reconciler(api, children, replace(PLANNER, desired=entered), config, Events(api, "me"), lambda: None)

    children.served = {**children.served, (INGRESS.api_version, INGRESS.name): INGRESS}
    put(api, "demo", intelligentRoutingSpec={"enabled": True})
    api.objects[f"{ROOT}/demo"]["metadata"]["finalizers"] = [names.FINALIZER]
    await looks("system").reconcile(key())
    api.refusals[INGRESS.path(NAMESPACE, "way-in")] = ClusterRefused(why, 400)
    with pytest.raises(ClusterRefused):
        await looks("endpoint").reconcile(key())
    assert (INGRESS.path("system", "way-in") in api.objects) is stays


async def test_an_api_that_does_not_know_the_kind_at_the_moment_has_not_lost_its_resources(
    api: ApiOfAFewLines, reconciler: Reconciler
) -> None:
    await reconciler.reconcile(key())
    gone = api.objects.pop(f"{ROOT}/demo")
    api.reason = ""  # 404 page not found
    with pytest.raises(ClusterRefused):
        await reconciler.reconcile(key())
    assert key() in reconciler.endpoints
    api.objects[f"{ROOT}/demo"] = gone
    await reconciler.reconcile(key())
    del api.objects[f"{ROOT}/demo"]
    api.reason = "NotFound"
    await reconciler.reconcile(key())
    assert key() not in reconciler.endpoints


@pytest.mark.parametrize(("was", "is_enabled", "why"), [("enabled", False, "off"), ("disabled", True, "on")])
async def test_routing_is_not_turned_on_or_off_also_where_no_webhook_says_so(
    api: ApiOfAFewLines, children: Children, reconciler: Reconciler, was: str, is_enabled: bool, why: str
) -> None:
    path = "/apis/apps/v1/namespaces/default/deployments/demo"
    labels = {names.MANAGED_BY: names.FIELD_MANAGER, names.OWNER_UID: "uid-demo"}
    metadata = {"name": "demo", "namespace": NAMESPACE, "uid": "1", "labels": labels}
    metadata |= {"annotations": {PODS: msgspec.json.encode({"template": "of-before", "routing": was}).decode()}}
    who = [{"manager": names.FIELD_MANAGER, "operation": "Apply"}]
    found = {"kind": "Deployment", "metadata": {**metadata, "managedFields": who}}
    children.seen("1", None, msgspec.json.decode(msgspec.json.encode(found), type=kind_of("Deployment")))
    put(api, "demo", intelligentRoutingSpec={"enabled": is_enabled})
    await reconciler.reconcile(key())
    assert api.state() == "DeploymentFailed"
    [validated] = [each for each in api.objects[f"{ROOT}/demo"]["status"]["conditions"] if each["type"] == "Validated"]
    assert validated["message"].startswith(f"spec.intelligentRoutingSpec.enabled: cannot be turned {why} later; leave")
    assert not api.written(path)
    put(api, "demo", intelligentRoutingSpec={"enabled": not is_enabled})
    await reconciler.reconcile(key())
    assert api.state() == "DeploymentInProgress"


async def test_what_was_decided_is_asked_of_the_api_where_it_could_not_be_listed(
    api: ApiOfAFewLines, children: Children, reconciler: Reconciler
) -> None:
    deployment = "/apis/apps/v1/namespaces/default/deployments/demo"
    pods = Pods(template="of-before", image="ours:1")
    labels = {names.MANAGED_BY: names.FIELD_MANAGER, names.OWNER_UID: "uid-demo"}
    who = [{"manager": names.FIELD_MANAGER, "operation": "Apply"}]
    metadata = {"name": "demo", "namespace": NAMESPACE, "labels": labels, "annotations": {PODS: pods.text()}}
    api.objects[deployment] = {"kind": "Deployment", "metadata": {**metadata, "uid": "1", "managedFields": who}}
    reconciler.unlisted = frozenset({"Deployment"})
    await reconciler.reconcile(key())
    endpoint = reconciler.endpoints[key()]
    assert endpoint is not None
    assert endpoint.settled.pods == pods


async def test_nothing_is_remembered_of_resources_that_are_gone(
    api: ApiOfAFewLines, children: Children, reconciler: Reconciler
) -> None:
    for number in range(5):
        put(api, f"e{number}")
        await reconciler.reconcile(key(f"e{number}"))
        del api.objects[f"{ROOT}/e{number}"]
        await reconciler.reconcile(key(f"e{number}"))
        for path in [path for path in api.objects if not path.startswith(ROOT)]:
            gone = api.objects.pop(path)
            live = msgspec.json.decode(msgspec.json.encode(gone), type=kind_of(gone["kind"]))
            children.seen(live.metadata.uid, live, None)
    for holder in (children, reconciler, reconciler.keeper):
        left = {name for name, value in vars(holder).items() if isinstance(value, dict) and "uid-e" in repr(value)}
        assert not left, holder
