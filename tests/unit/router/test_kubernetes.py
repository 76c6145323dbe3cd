"""From objects of a Kubernetes API to endpoints: what is routable, at which port, and what annotations say."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from tierline.errors import ConfigurationError, UsageError
from tierline.kube.api import KubernetesApi, Watched
from tierline.kube.selections import Selection, parse_pods, parse_service
from tierline.kube.slices import EndpointSlice
from tierline.router.discovery.kubernetes import Pod, PodReader, SliceReader, pod_spec

ANY = Selection("ns", "", "", "ns/any")
CONDITIONS = ({"type": "Ready", "status": "True"},)


def pod(
    annotations: dict[str, str] | None = None,
    ports: tuple[dict[str, Any], ...] = ({"containerPort": 8000},),
    conditions: tuple[dict[str, str], ...] = CONDITIONS,
    address: str = "10.0.0.1",
    phase: str = "Running",
    **metadata: Any,
) -> Pod:
    content = {
        "metadata": {"name": "p", "annotations": annotations, **metadata},
        "spec": {"containers": [{"name": "c", "ports": list(ports)}, {"name": "sidecar"}]},
        "status": {"phase": phase, "podIP": address, "hostIP": "10.1.0.1", "conditions": list(conditions)},
    }
    return msgspec.json.decode(msgspec.json.encode(content), type=Pod)


def part(endpoints: list[dict[str, Any]], ports: list[dict[str, Any]]) -> EndpointSlice:
    content = {"metadata": {"name": "s"}, "endpoints": endpoints, "ports": ports}
    return msgspec.json.decode(msgspec.json.encode(content), type=EndpointSlice)


@pytest.mark.parametrize(
    ("text", "namespace", "selector", "port"),
    [
        ("ns/vllm", "ns", "kubernetes.io/service-name=vllm", ""),
        ("a-b/vllm-2:http", "a-b", "kubernetes.io/service-name=vllm-2", "http"),
        ("ns/vllm:8000", "ns", "kubernetes.io/service-name=vllm", "8000"),
    ],
)
def test_a_service_is_read_off_a_setting(text: str, namespace: str, selector: str, port: str) -> None:
    assert parse_service(text) == Selection(namespace, selector, port, text)


def test_pods_are_read_off_a_setting() -> None:
    text = "ns:app=vllm,tier in (a,b),!canary:8000"
    assert parse_pods(text) == Selection("ns", "app=vllm,tier in (a,b),!canary", "8000", text)


@pytest.mark.parametrize("text", ["", "vllm", "ns/", "/vllm", "ns/vllm:", "Ns/vllm", "ns/vllm:80:90", "ns/a/b"])
def test_what_is_no_service_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAMESPACE/NAME"):
        parse_service(text)


@pytest.mark.parametrize("text", ["", "ns", "ns:", ":app=vllm", "ns:app=vllm:", "ns:app=vllm:80:90"])
def test_what_is_no_selection_of_pods_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAMESPACE:SELECTOR"):
        parse_pods(text)


@pytest.mark.parametrize(
    ("changed", "is_routable"),
    [
        ({}, True),
        ({"conditions": ()}, False),
        ({"conditions": ({"type": "Ready", "status": "False"},)}, False),
        ({"conditions": (*CONDITIONS, {"type": "tierline.ai/routable", "status": "True"})}, True),
        ({"conditions": (*CONDITIONS, {"type": "tierline.ai/routable", "status": "False"})}, False),
        ({"conditions": (*CONDITIONS, {"type": "tierline.ai/routable", "status": "Unknown"})}, True),
        ({"phase": "Pending"}, False),
        ({"address": ""}, False),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, False),
    ],
)
def test_a_pod_gets_requests_while_it_is_ready_and_stays(changed: dict[str, Any], is_routable: bool) -> None:
    assert pod(**changed).is_routable is is_routable


@pytest.mark.parametrize(
    ("ports", "wanted", "url"),
    [
        (({"containerPort": 8000},), "", "http://10.0.0.1:8000"),
        (({"containerPort": 1}, {"containerPort": 8000, "name": "http"}), "", "http://10.0.0.1:8000"),
        (({"containerPort": 1}, {"containerPort": 9000, "name": "api"}), "api", "http://10.0.0.1:9000"),
        ((), "8001", "http://10.0.0.1:8001"),
    ],
)
def test_the_port_of_a_pod_is_the_one_named_or_the_only_one(
    ports: tuple[dict[str, Any], ...], wanted: str, url: str
) -> None:
    assert pod_spec(pod(ports=ports), wanted).url == url


def test_annotations_say_what_an_entry_of_the_endpoints_file_would() -> None:
    said = {
        "tierline.ai/weight": "2.5",
        "tierline.ai/roles": "prefill",
        "tierline.ai/models": "a, b",
        "tierline.ai/port": "9000",
        "tierline.ai/scheme": "https",
        "tierline.ai/kv-events": "tcp://*:5557?replay=5558",
        "tierline.ai/node-events": "tcp://*:5560",
        "other/weight": "7",
    }
    spec = pod_spec(pod(said, address="fd00::1"), "8000")
    assert spec.url == "https://[fd00::1]:9000"
    assert (spec.weight, spec.roles, spec.models) == (2.5, frozenset({"prefill"}), frozenset({"a", "b"}))
    assert spec.kv_events == "tcp://[fd00::1]:5557?replay=5558"
    assert spec.node_events == "tcp://10.1.0.1:5560"


def test_pods_of_one_digest_say_the_same_weights_and_those_that_may_have_any_say_their_own() -> None:
    def weights(said: dict[str, str], uid: str) -> str | None:
        return pod_spec(pod(said, uid=uid), "8000").weights

    assert weights({}, "1") is None
    assert weights({"tierline.ai/weights": "f4a080c149d1"}, "1") == "f4a080c149d1"
    for unknown in ("own", ""):
        said = {"tierline.ai/weights": unknown}
        assert len({weights(said, "1"), weights(said, "2"), None, unknown}) == 4


def test_an_annotation_names_no_file_of_the_router_s() -> None:
    assert pod_spec(pod({"tierline.ai/api-key-file": "/etc/shadow"}), "8000").api_key_file is None
    assert pod_spec(pod({"tierline.ai/api_key_file": "/etc/shadow"}), "8000").api_key_file is None


@pytest.mark.parametrize(
    ("said", "ports"),
    [
        ({"tierline.ai/weight": "0"}, ({"containerPort": 1},)),
        ({"tierline.ai/roles": "leader"}, ({"containerPort": 1},)),
        ({"tierline.ai/scheme": "ftp"}, ({"containerPort": 1},)),
        ({"tierline.ai/port": "none"}, ({"containerPort": 1},)),
        ({"tierline.ai/port": "99999"}, ({"containerPort": 1},)),
        ({}, ({"containerPort": 1}, {"containerPort": 2})),
    ],
)
def test_a_pod_that_says_what_is_not_possible_is_refused_by_name(
    said: dict[str, str], ports: tuple[dict[str, Any], ...]
) -> None:
    with pytest.raises(ConfigurationError, match="pod p"):
        pod_spec(pod(said, ports), "")


def test_a_pod_that_becomes_unusable_stays_as_it_was_and_counts_once() -> None:
    reader, good, bad = PodReader(ANY), pod({"tierline.ai/weight": "2"}), pod({"tierline.ai/weight": "two"})
    assert [spec.weight for spec in reader.specs({"a": good})] == [2.0]
    assert [spec.weight for spec in reader.specs({"a": bad, "b": bad})] == [2.0]
    assert [spec.weight for spec in reader.specs({"a": bad, "b": bad})] == [2.0]
    assert reader.refused == 2
    assert reader.specs({}) == []
    assert reader.specs({"a": bad}) == []
    assert reader.refused == 3


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes_asyncio", None)
    with pytest.raises(UsageError, match="pip install 'tierline\\[kubernetes\\]'"):
        KubernetesApi(None)


def test_of_a_slice_what_is_ready_and_stays_is_wanted() -> None:
    endpoints: list[dict[str, Any]] = [
        {"addresses": ["10.0.0.1"], "conditions": {"ready": True}},
        {"addresses": ["10.0.0.2"], "conditions": {"ready": False}},
        {"addresses": ["10.0.0.3"], "conditions": {"ready": True, "terminating": True}},
        {"addresses": ["10.0.0.4"], "conditions": {}},
        {"addresses": ["10.0.0.5"]},
    ]
    specs = SliceReader(ANY).specs({"s": part(endpoints, [{"name": "", "port": 8000}])})
    assert [spec.url for spec in specs] == [f"http://10.0.0.{number}:8000" for number in (1, 4, 5)]


def test_a_pod_of_two_families_of_addresses_is_one_endpoint() -> None:
    """A Service with both has slices of its own for each."""

    def of_family(family: str, **addresses: str) -> EndpointSlice:
        endpoints = [
            {"addresses": [address], "conditions": {}, "targetRef": {"kind": "Pod", "name": uid, "uid": uid}}
            for uid, address in addresses.items()
        ]
        content = {
            "metadata": {"name": family},
            "addressType": family,
            "endpoints": endpoints,
            "ports": [{"port": 8000}],
        }
        return msgspec.json.decode(msgspec.json.encode(content), type=EndpointSlice)

    six = of_family("IPv6", one="fd00::1", two="fd00::2")
    again = of_family("IPv6", two="fd00::2")
    four = of_family("IPv4", one="10.0.0.1")
    found = SliceReader(parse_service("ns/vllm")).specs({"a": six, "b": four, "c": again})
    assert sorted({spec.url for spec in found}) == ["http://10.0.0.1:8000", "http://[fd00::2]:8000"]
    assert {spec.url for spec in SliceReader(parse_service("ns/vllm")).specs({"a": six})} == {
        "http://[fd00::1]:8000",
        "http://[fd00::2]:8000",
    }


@pytest.mark.parametrize(
    ("ports", "wanted", "url"),
    [
        ([{"name": "m", "port": 1}, {"name": "http", "port": 8000}], "", "http://10.0.0.1:8000"),
        (
            [{"name": "m", "port": 1}, {"name": "api", "port": 8000, "appProtocol": "https"}],
            "api",
            "https://10.0.0.1:8000",
        ),
        ([{"name": "m", "port": 1}], "8001", "http://10.0.0.1:8001"),
        ([{"name": "a", "port": 1}, {"name": "b", "port": 2}], "", None),
        ([{"name": "a", "port": 1}], "b", None),
        ([], "", None),
    ],
)
def test_the_port_of_a_slice_is_the_one_named_or_the_only_one(
    ports: list[dict[str, Any]], wanted: str, url: str | None
) -> None:
    reader = SliceReader(Selection("ns", "", wanted, "ns/any"))
    for _ in range(2):
        specs = reader.specs({"s": part([{"addresses": ["10.0.0.1"]}], ports)})
        assert [spec.url for spec in specs] == ([url] if url else [])
    assert reader.refused == (url is None)


@pytest.mark.parametrize("status", [200, 410])
async def test_a_server_that_ends_each_watch_at_once_is_not_asked_without_a_pause(status: int) -> None:
    asked = 0
    watched = asyncio.Event()

    async def answer(http: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if "watch" in http.query:
            watched.set()
            return web.Response(status=status)
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})

    app = web.Application()
    app.add_routes([web.get("/", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with aiohttp.ClientSession() as session:

        async def call(**options: object) -> aiohttp.ClientResponse:
            return await session.get(url, params={"watch": "1"} if "watch" in options else {})

        following = asyncio.create_task(Watched("pods", Pod, "", lambda _: None).follow([call]))
        async with asyncio.timeout(60):
            await watched.wait()
        await asyncio.sleep(0.3)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    await runner.cleanup()
    assert asked < 8


async def test_an_object_that_cannot_be_read_keeps_nobody_from_the_others() -> None:
    spec: dict[str, list[str]] = {"containers": []}
    good = {"metadata": {"name": "good", "uid": "1", "resourceVersion": "1"}, "spec": spec}
    good |= {"status": {"podIP": "10.0.0.1"}}
    bad = good | {"metadata": {"name": "bad", "uid": "2", "resourceVersion": "2"}, "status": {"podIP": 7}}
    seen: list[Mapping[str, Pod]] = []
    watched = Watched("pods", Pod, "", seen.append)

    async def call(**options: object) -> Any:
        page = {"metadata": {"resourceVersion": "2"}, "items": [good, bad]}
        return _Answer(b"" if "watch" in options else msgspec.json.encode(page))

    following = asyncio.create_task(watched.follow([call]))
    async with asyncio.timeout(60):
        while not seen:  # noqa: ASYNC110  (what is followed says nothing else)
            await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert [pod.metadata.name for pod in seen[0].values()] == ["good"]
    changed = {"type": "MODIFIED", "object": good | {"status": {"podIP": False}}}
    watched._take([msgspec.json.encode(changed)])
    assert [pod.status.pod_ip for pod in watched._objects.values()] == ["10.0.0.1"], "what was said last holds"
    assert watched.failures == 2


class _Answer:
    """Of a server."""

    status = 200

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.content = self

    async def __aenter__(self) -> "_Answer":
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def read(self) -> bytes:
        return self._body

    async def iter_any(self) -> AsyncIterator[bytes]:
        await asyncio.sleep(60)
        yield b""
