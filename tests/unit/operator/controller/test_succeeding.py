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


def workers(
    available: int, *, former: int = 0, updated: int = 1, wanted: int = 1, generation: int = 1
) -> Mapping[Reference, Live]:
    status = {"replicas": former + updated, "updatedReplicas": updated, "availableReplicas": available}
    [found] = workers_of(NOW)
    deployment = {
        "metadata": {"name": found.name, "generation": generation},
        "spec": {"replicas": wanted},
        "status": {"observedGeneration": 1, **status},
    }
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
def test_a_redis_stays_while_a_pod_uses_it_or_no_worker_is_there_in_place_of_those_that_did(
    pods: list[Live] | None, available: int, stays: bool
) -> None:
    found = still_needed(REDIS_BEFORE, pods, [NOW], lambda _: workers(available))
    assert found == (set(REDIS_BEFORE) if stays else set())
    assert not found or {each.kind for each in found} == {"Deployment", "Service", "NetworkPolicy"}


@pytest.mark.parametrize(
    "seen",
    [
        workers(2, former=1, updated=1, wanted=2),
        workers(1, former=1, updated=1, wanted=2),
        workers(2, updated=2, wanted=2, generation=2),
        {},
    ],
    ids=["a former one is left", "and the newer one does not come up", "a template that nobody has seen", "none made"],
)
def test_a_redis_stays_until_its_workers_are_replaced(seen: Mapping[Reference, Live]) -> None:
    assert still_needed(REDIS_BEFORE, [], [NOW], lambda _: seen) == set(REDIS_BEFORE)


@pytest.mark.parametrize(
    "seen",
    [workers(2, updated=3, wanted=3), workers(1, updated=1, wanted=2), workers(0, updated=0, wanted=0)],
    ids=["a pod waits for a machine", "a pod that nobody lets be made", "scaled to zero"],
)
def test_no_redis_piles_up_while_some_workers_have_no_place(seen: Mapping[Reference, Live]) -> None:
    assert not still_needed(REDIS_BEFORE, [], [NOW], lambda _: seen)


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
