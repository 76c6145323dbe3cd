"""From ``kubectl apply`` of HyperPod's manifest to an answered chat, and what becomes of it as the manifest changes.

The engines are simulated, all else is what would run in a cluster: the API, its controllers, the operator, the router,
the node store, the containers beside the engines, and what they may ask of the API.
"""

import json
import threading
import urllib.error
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.integration.operator.apply.world import (
    CERTIFICATES_BUCKET,
    GROUP,
    OTHER_INSTANCE_TYPE,
    PROXY_PORT,
    SYSTEM,
    NotYetError,
    World,
    ask,
    cached_tokens,
    condition_of,
    reference,
)
from tests.integration.pool import s3_servers

pytestmark = pytest.mark.timeout(600)

DOCUMENT = "the quick brown fox jumps over the lazy dog " * 100
DOCUMENT_TOKENS = len(DOCUMENT) // 4
IMAGE = "public.ecr.aws/deep-learning-containers/vllm"


@pytest.fixture(scope="module")
def others(world: World) -> Iterator[list[tuple[str, str]]]:
    """Smaller endpoints on another machine, applied at once: they start while the first one is waited for."""
    fallback = reference(name="fallback")
    del fallback["spec"]["instanceType"], fallback["spec"]["kvCacheSpec"], fallback["spec"]["intelligentRoutingSpec"]
    fallback["spec"]["instanceTypes"] = ["ml.p5.48xlarge", OTHER_INSTANCE_TYPE]
    # At the node store of the first one's machine, whose accelerators are all taken.
    neighbour = reference(name="neighbour")
    del neighbour["spec"]["intelligentRoutingSpec"]
    neighbour["spec"]["worker"]["resources"] = {"requests": {"cpu": "1", "memory": "4Gi"}}
    for manifest in (fallback, neighbour, jump_start("small"), jump_start("gated")):
        world.apply(manifest)
    applied = [("inferenceendpointconfigs", "fallback"), ("inferenceendpointconfigs", "neighbour")]
    applied += [("jumpstartmodels", "small"), ("jumpstartmodels", "gated")]
    yield applied
    delete(world, applied)


@pytest.fixture(scope="module")
def demo(world: World, others: list[tuple[str, str]]) -> Iterator[str]:
    """The endpoint of HyperPod's manifest, ready, with two replicas, which is all that its machine has room for."""
    world.apply(reference())
    world.settled("demo")
    assert cached_tokens(ask(world.router("demo"), DOCUMENT)) == 0
    world.kubectl("scale", "inferenceendpointconfig", "demo", "--replicas=2")
    world.settled("demo")
    yield "demo"
    delete(world, [("inferenceendpointconfigs", "demo")])


def change(world: World, name: str, spec: Any) -> None:
    patch = json.dumps({"spec": spec})
    world.kubectl("patch", "inferenceendpointconfig", name, "--type=merge", f"--patch={patch}")


def delete(world: World, endpoints: Sequence[tuple[str, str]]) -> None:
    """Delete resources, as far as they are there, and wait until all is gone that was made for them."""
    found = {name: world.endpoint(name, kind=kind) for kind, name in endpoints}
    for kind, name in endpoints:
        if found[name] is not None:
            world.kubectl("delete", f"{kind}.inference.sagemaker.aws.amazon.com", name, "--wait=false")
    uids = [each["metadata"]["uid"] for each in found.values() if each is not None]

    def look() -> None:
        left = [each for uid in uids for each in world.made_for(uid)]
        still = [name for kind, name in endpoints if world.endpoint(name, kind=kind) is not None or world.pods(name)]
        if left or still:
            raise NotYetError([*left, *still])

    world.until(look)


@contextmanager
def asked_all_along(url: str) -> Iterator[list[str]]:
    """Ask again and again, from several sides at once; what failed is in the list."""
    failures: list[str] = []
    is_over = threading.Event()

    def asking() -> None:
        while not is_over.wait(0.05):
            try:
                ask(url, "hello")
            except (OSError, urllib.error.URLError) as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=asking) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_a_chat_is_answered_through_the_router_once_the_manifest_is_applied(world: World, demo: str) -> None:
    made = " ".join(world.made_for(world.endpoint(demo)["metadata"]["uid"]))
    assert "/deployments demo" in made
    assert "/poddisruptionbudgets " in made, "what is looked for when all is to be gone is found while it is there"
    status = world.endpoint(demo)["status"]
    assert (status["state"], status["replicas"]) == ("DeploymentComplete", 2)
    for worker in world.ready_pods(demo, 2):
        assert [each["name"] for each in worker["spec"]["containers"]] == [demo, "reverse-proxy", "metrics-collector"]
        assert worker["spec"]["nodeName"] == "gpu-1"
    [router] = world.ready_pods(f"{demo}-default-router", 1)
    assert [each["name"] for each in router["spec"]["containers"]] == ["router-container", "metrics-collector"]
    answer = ask(world.router(demo), "hello")
    assert answer["model"] == "Llama-3.1-8B-Instruct"
    assert answer["choices"][0]["message"]["content"]
    assert ask(world.router(demo), "hello", path="/invocations")["choices"] == answer["choices"]


def test_the_certificate_is_where_the_manifest_says(world: World, demo: str) -> None:
    assert condition_of(world.endpoint(demo), "TLSReady")["status"] == "True"
    listed = s3_servers.client(world.s3).list_objects_v2(Bucket=CERTIFICATES_BUCKET, Prefix="certs/")
    assert listed["KeyCount"] > 0


def test_what_the_first_replica_computed_the_second_finds_in_the_node_store(world: World, demo: str) -> None:
    _, second = world.ready_pods(demo, 2)
    answer = ask(f"http://{second['status']['podIP']}:{PROXY_PORT}", DOCUMENT)
    assert cached_tokens(answer) == DOCUMENT_TOKENS // 256 * 256
    [store] = world.ready_pods("tierline-node", 1, SYSTEM)
    assert store["status"]["podIP"] == second["status"]["hostIP"]


def test_another_endpoint_at_the_same_store_finds_nothing_of_it(
    world: World, demo: str, others: list[tuple[str, str]]
) -> None:
    """Both are asked for a model of one name, from one path; only their buckets are not the same."""
    world.settled("neighbour")
    [neighbour], [first, _] = world.ready_pods("neighbour", 1), world.ready_pods(demo, 2)
    assert neighbour["status"]["hostIP"] == first["status"]["hostIP"]
    assert cached_tokens(ask(f"http://{neighbour['status']['podIP']}:{PROXY_PORT}", DOCUMENT)) == 0


def test_another_image_is_rolled_out_where_all_accelerators_are_taken_and_every_request_is_answered(
    world: World, demo: str
) -> None:
    with asked_all_along(world.router(demo)) as failures:
        change(world, demo, {"worker": {"image": f"{IMAGE}:0.11.2"}})
        world.settled(demo)
        pods = world.ready_pods(demo, 2)
    assert failures == []
    assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {f"{IMAGE}:0.11.2"}


def test_an_image_that_is_not_there_is_told_and_what_serves_goes_on(world: World, demo: str) -> None:
    was = world.endpoint(demo)["spec"]["worker"]["image"]
    change(world, demo, {"worker": {"image": "example.com/misspelt:1"}})

    def look() -> Any:
        condition = condition_of(world.endpoint(demo), "WorkersReady")
        if condition.get("reason") != "ImagePullBackOff":
            raise NotYetError(condition)
        return condition

    condition = world.until(look)
    assert "example.com/misspelt:1" in condition["message"]
    assert condition_of(world.endpoint(demo), "Ready")["status"] == "False"
    assert ask(world.router(demo), "hello")["choices"]
    change(world, demo, {"worker": {"image": was}})
    world.settled(demo)


def test_another_strategy_is_another_router_and_no_other_workers(world: World, demo: str) -> None:
    workers = {pod["metadata"]["uid"] for pod in world.ready_pods(demo, 2)}
    change(world, demo, {"intelligentRoutingSpec": {"routingStrategy": "roundrobin"}})
    world.settled(demo)
    [router] = world.ready_pods(f"{demo}-default-router", 1)
    variables = {each["name"]: each.get("value") for each in router["spec"]["containers"][0]["env"]}
    assert variables["TIERLINE_ROUTER_STRATEGY"] == "roundrobin"
    assert {pod["metadata"]["uid"] for pod in world.ready_pods(demo, 2)} == workers
    assert ask(world.router(demo), "hello")["choices"]


def test_the_second_instance_type_is_taken_where_only_that_one_is_there(
    world: World, others: list[tuple[str, str]]
) -> None:
    world.settled("fallback")
    [worker] = world.ready_pods("fallback", 1)
    assert worker["spec"]["nodeName"] == "gpu-2"
    assert ask(f"http://{worker['status']['podIP']}:{PROXY_PORT}", "hello")["choices"]


def jump_start(model: str, **more: object) -> Any:
    return {
        "apiVersion": GROUP.removeprefix("/apis/"),
        "kind": "JumpStartModel",
        "metadata": {"name": model, "namespace": "default"},
        "spec": {
            "model": {"modelId": f"tests-{model}", "acceptEula": False, **more},
            "server": {"instanceType": OTHER_INSTANCE_TYPE},
        },
    }


def test_a_model_whose_licence_is_to_be_accepted_is_served_once_it_is(
    world: World, others: list[tuple[str, str]]
) -> None:
    def look() -> Any:
        condition = condition_of(world.endpoint("gated", kind="jumpstartmodels"), "Validated")
        if condition.get("status") != "False":
            raise NotYetError(condition)
        return condition

    assert "spec.model.acceptEula" in world.until(look)["message"]
    assert world.pods("gated") == []
    world.apply(jump_start("gated", acceptEula=True))
    world.settled("gated", kind="jumpstartmodels")
    world.ready_pods("gated", 1)


def test_a_model_of_the_catalogue_is_served_by_its_name_alone(world: World, others: list[tuple[str, str]]) -> None:
    world.settled("small", kind="jumpstartmodels")
    [worker] = world.ready_pods("small", 1)
    assert ask(f"http://{worker['status']['podIP']}:{PROXY_PORT}", "hello", "small")["choices"]


def test_nothing_is_left_of_what_is_deleted_and_the_last_takes_the_node_stores_along(
    world: World, demo: str, others: list[tuple[str, str]]
) -> None:
    assert len(world.left_by_stores()) == len(["tierline-node", "segment", "segment.keep", "segment.journal"])
    delete(world, [("inferenceendpointconfigs", demo), *others])

    def look() -> None:
        pods = [each["metadata"]["name"] for each in world.get("/api/v1/pods")["items"]]
        if pods or world.left_by_stores():
            raise NotYetError([*pods, *world.left_by_stores()])

    world.until(look)
    assert [*Path("/dev/shm").glob(f"{world.segment}*")] == []
