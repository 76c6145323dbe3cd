"""What node stores and a Redis keep while they run."""

from typing import Any

import pytest
from tests.endpoints import SPEC, endpoint

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.holding import CAPACITY, held, with_the_image_of
from tierline.operator.controller.kinds import Reference, reference
from tierline.operator.controller.live import Live, LiveMetadata
from tierline.operator.manifests.desired import removal, shared
from tierline.operator.manifests.machines import machines_of
from tierline.operator.manifests.store_removal import settings_of

CACHED = SPEC | {"kvCacheSpec": {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "tieredstorage"}}}


def stores(*sizes: str) -> dict[str, Any]:
    wanting = [endpoint(CACHED, annotations={"tierline.ai/l2-size": size}) for size in sizes]
    made = shared(wanting, Capabilities(), OperatorConfig())
    return next(each for each in made.manifests if each["kind"] == "DaemonSet")


def capacity(daemon_set: dict[str, Any]) -> str:
    variables = daemon_set["spec"]["template"]["spec"]["containers"][0]["env"]
    return str(next(each["value"] for each in variables if each["name"] == CAPACITY))


def memory(daemon_set: dict[str, Any]) -> str:
    return str(daemon_set["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"])


def test_node_stores_that_run_keep_their_size_and_get_the_rest() -> None:
    small, large = stores("1Gi"), stores("1Gi", "2Gi")
    assert capacity(small) != capacity(large)
    large["spec"]["template"]["spec"]["containers"][0]["image"] = "newer"
    found = held(large, small)
    assert capacity(found) == capacity(small)
    assert (memory(small), memory(large), memory(found)) == ("2Gi", "3Gi", "2Gi")
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == "newer"


def test_node_stores_that_come_back_while_the_former_are_removed_have_the_size_of_those() -> None:
    removing = removal(OperatorConfig(), machines_of([]), settings_of(stores("1Gi")), None, Capabilities())
    assert capacity(held(stores("2Gi"), removing)) == capacity(stores("1Gi"))


def test_node_stores_that_are_not_there_get_the_size_that_is_asked_for() -> None:
    assert held(stores("2Gi"), None) == stores("2Gi")


def redis(image: str) -> dict[str, Any]:
    l2 = {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "redis"}}
    made = shared([endpoint({"kvCacheSpec": l2})], Capabilities(), OperatorConfig(redis_image=image))
    return next(each for each in made.manifests if each["kind"] == "Deployment")


def seen(deployment: dict[str, Any], *, ready: int) -> dict[Reference, Live]:
    metadata = deployment["metadata"]
    live = LiveMetadata(metadata["name"], annotations=metadata["annotations"])
    return {reference(deployment): Live(live, {"readyReplicas": ready}, kind="Deployment")}


def pod(deployment: dict[str, Any], waits: str) -> dict[Reference, Live]:
    """Return a pod of a Deployment whose container waits."""
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    statuses = [{"name": "redis", "state": {"waiting": {"reason": waits}}}]
    live = Live(LiveMetadata("redis-1", labels=labels), {"containerStatuses": statuses}, kind="Pod")
    return {live.reference: live}


def test_a_redis_that_runs_keeps_its_image_and_with_it_what_it_holds() -> None:
    runs = redis("valkey:8")
    assert with_the_image_of(redis("valkey:9"), seen(runs, ready=1)) == runs
    assert with_the_image_of(redis("valkey:9"), seen(runs, ready=0)) == runs, "it may be up again soon, with all it has"
    pending = pod(runs, "ContainerCreating")
    assert with_the_image_of(redis("valkey:9"), seen(runs, ready=0) | pending) == runs


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CrashLoopBackOff"])
def test_a_redis_that_cannot_be_started_gets_the_image_that_is_asked_for(reason: str) -> None:
    wrong = redis("valkey:typo")
    assert with_the_image_of(redis("valkey:9"), seen(wrong, ready=0) | pod(wrong, reason)) == redis("valkey:9")
    runs = seen(wrong, ready=1) | pod(wrong, reason)
    assert with_the_image_of(redis("valkey:9"), runs) == wrong, "another pod of it has what is cached"


def test_a_redis_that_is_not_there_has_the_image_that_is_asked_for() -> None:
    assert with_the_image_of(redis("valkey:9"), {}) == redis("valkey:9")
