"""Which Redis stay beside the one that succeeds them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.endpoints import SPEC, endpoint

from tierline.operator import names
from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.kinds import Reference, reference
from tierline.operator.controller.live import Live, LiveMetadata, kind_of
from tierline.operator.controller.observing import workers_of
from tierline.operator.controller.succeeding import still_needed
from tierline.operator.manifests.desired import shared

REDIS: dict[str, Any] = {"kvCacheSpec": {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "redis"}}}
BEFORE = endpoint(REDIS)
NOW = endpoint(REDIS, annotations={"l2-size": "32GiB"})
UP, ROLLING = 1, 0


def seen(manifest: Mapping[str, Any]) -> Live:
    metadata = manifest["metadata"]
    live = LiveMetadata(metadata["name"], namespace=metadata["namespace"], labels=metadata["labels"])
    return Live(live, kind=manifest["kind"])


REDIS_BEFORE = {reference(each): seen(each) for each in shared([BEFORE], Capabilities(), OperatorConfig()).manifests}
[NAME_BEFORE] = {each.name for each in REDIS_BEFORE}


def pod(redis: str = NAME_BEFORE, phase: str = "Running") -> Live:
    return Live(LiveMetadata("demo-1", labels={names.USES_REDIS: redis}), {"phase": phase}, kind="Pod")


def workers(available: int) -> Mapping[Reference, Live]:
    status = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": available}
    [found] = workers_of(NOW)
    deployment = {"metadata": {"name": found.name, "generation": 1}, "spec": {"replicas": 1}, "status": status}
    return {found: msgspec.convert(deployment, kind_of("Deployment"))}


@pytest.mark.parametrize(
    ("pods", "available", "stays"),
    [
        ([pod()], UP, True),
        ([], ROLLING, True),
        ([pod()], ROLLING, True),
        ([pod(redis="tierline-redis-another")], UP, False),
        ([pod(phase="Failed")], UP, False),
        ([], UP, False),
        (None, UP, True),
    ],
    ids=["used", "rolling", "both", "another is used", "a pod that has ended", "neither", "nobody knows"],
)
def test_a_redis_stays_while_a_pod_uses_it_or_workers_are_not_all_up_to_date(
    pods: list[Live] | None, available: int, stays: bool
) -> None:
    found = still_needed(REDIS_BEFORE, pods, [NOW], lambda _: workers(available))
    assert found == (set(REDIS_BEFORE) if stays else set())
    assert not found or {each.kind for each in found} == {"Deployment", "Service", "NetworkPolicy"}


def test_the_redis_of_an_endpoint_that_is_gone_stays_until_its_pods_have_ended() -> None:
    assert still_needed(REDIS_BEFORE, [pod()], [], lambda _: {}) == set(REDIS_BEFORE)
    assert not still_needed(REDIS_BEFORE, [], [], lambda _: {})


def test_other_endpoints_workers_keep_no_redis() -> None:
    other = replace(endpoint(SPEC, name="other"), uid="uid-other")
    assert not still_needed(REDIS_BEFORE, [], [other], lambda _: {})


def test_what_else_endpoints_share_is_no_redis() -> None:
    stores = {
        reference(each): seen(each) for each in shared([endpoint(SPEC)], Capabilities(), OperatorConfig()).manifests
    }
    assert stores
    assert not still_needed(stores, None, [], lambda _: {})
