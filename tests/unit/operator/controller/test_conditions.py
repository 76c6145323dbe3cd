"""Conditions: since when they are so, what is told of them, and what makes an endpoint ready."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.endpoints import endpoint

from tierline.operator import names
from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.controller import status
from tierline.operator.controller.conditions import Condition, rolled_up, transitions, written
from tierline.operator.controller.kinds import Reference, reference
from tierline.operator.controller.live import Live, LiveMetadata
from tierline.operator.controller.observing import Observation, observe
from tierline.operator.manifests.desired import desired
from tierline.operator.manifests.manifest import Made
from tierline.operator.manifests.redis import redis_name

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
READY = Condition("Ready", "True", "Serving")
NOT_READY = Condition("Ready", "False", "RollingOut")


def test_an_endpoint_is_ready_once_all_that_it_needs_is() -> None:
    needed = [Condition(kind, "True", "Fine") for kind in ("Validated", "ModelSourceReady", "ServiceReady")]
    unneeded = Condition("IngressReady", "False", "NoAddress")
    assert rolled_up([*needed, Condition("WorkersReady", "True", "Fine"), unneeded]).status == "True"
    assert rolled_up([*needed, Condition("WorkersReady", "Unknown", "NothingSaid"), unneeded]).status == "False"


def test_trouble_is_named_before_what_only_takes_its_time() -> None:
    waiting = Condition("ModelSourceReady", "Unknown", "NotReadYet")
    trouble = Condition("WorkersReady", "False", "ImagePullBackOff", is_trouble=True)
    assert rolled_up([waiting, trouble]).reason == "ImagePullBackOff"


def test_the_time_of_a_transition_stays_while_the_truth_does() -> None:
    first = written([NOT_READY], [], 1, "then")
    assert written([Condition("Ready", "False", "Other")], first, 2, "now")[0]["lastTransitionTime"] == "then"
    assert written([READY], first, 2, "now")[0]["lastTransitionTime"] == "now"


def test_people_are_told_of_a_change_and_of_new_trouble_and_of_nothing_twice() -> None:
    before = written([NOT_READY], [], 1, "then")
    assert transitions([READY], before) == [READY]
    assert transitions([NOT_READY], before) == []
    trouble = Condition("Ready", "False", "ImagePullBackOff", is_trouble=True)
    assert transitions([trouble], before) == [trouble]
    assert transitions([trouble], written([trouble], before, 1, "now")) == []


def progress(former: dict[str, Any], *, generation: int = 1, later_s: float = 0.0) -> status.Progress:
    now = NOW + timedelta(seconds=later_s)
    return status.progress(former, NOT_READY, generation=generation, allowed_s=60, now=now, is_refused=False)


def former(state: str, reason: str = "") -> dict[str, Any]:
    deployment = {"deploymentObjectOverallState": state, "lastUpdated": status.stamp(NOW), "reason": reason}
    return {"observedGeneration": 1, "deploymentStatus": deployment}


def test_a_deployment_has_failed_when_its_time_is_over_and_stays_so_until_the_next_one() -> None:
    running = former(status.IN_PROGRESS)
    assert progress(running, later_s=59).left_s == 1
    assert progress(running, later_s=61).state == status.FAILED
    failed = former(status.FAILED, status.DEADLINE)
    assert progress(failed, later_s=90).state == status.FAILED
    assert progress(failed, generation=2, later_s=90) == status.Progress(
        status.IN_PROGRESS, status.stamp(NOW + timedelta(seconds=90)), 60
    )


def test_what_was_complete_stays_so_until_the_next_deployment_however_long_it_is_not_ready() -> None:
    complete = former(status.COMPLETE)
    assert progress(complete, later_s=1000) == status.Progress(status.COMPLETE, status.stamp(NOW))
    assert progress(complete, generation=2, later_s=1000).left_s == 60


@pytest.mark.parametrize(("whose", "truth"), [("demo", "True"), ("other", "False")])
def test_a_cache_is_ready_once_its_own_redis_is(whose: str, truth: str) -> None:
    cached = {"kvCacheSpec": {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "redis"}}}
    ready = Live(LiveMetadata("redis"), {"readyReplicas": 1})
    shared = {Reference("Deployment", "system", redis_name(endpoint(cached, name=whose))): ready}
    seen = Observation(endpoint=endpoint(cached), made=Made(), live={}, shared=shared)
    found = {each.type: each for each in observe(seen)}["CacheReady"]
    assert (found.status, found.reason) == (truth, "Redis")
    assert redis_name(endpoint(cached)) in found.message


def test_what_no_request_waits_for_holds_no_endpoint_back_when_it_is_refused() -> None:
    refused = {Reference(kind, "default", "demo"): "no" for kind in ("NetworkPolicy", "PodDisruptionBudget")}
    found = {
        each.type: each for each in observe(Observation(endpoint=endpoint(), made=Made(), live={}, failures=refused))
    }
    assert (found["ProtectionReady"].status, found["ProtectionReady"].is_trouble) == ("False", True)
    assert found["WorkersReady"].reason != "Refused"


def available(name: str) -> dict[Reference, Live]:
    status = {"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1, "replicas": 1}
    return {Reference("Deployment", "default", name): Live(LiveMetadata(name, generation=1), status)}


@pytest.mark.parametrize("name", ["demo", "x-router", "a" * 50])
def test_the_router_is_known_by_its_whole_name_whatever_that_of_its_endpoint_is(name: str) -> None:
    routed = endpoint(name=name)
    made = desired(routed, Capabilities(), OperatorConfig())

    def truth(live: dict[Reference, Live]) -> dict[str, str]:
        return {each.type: each.status for each in observe(Observation(endpoint=routed, made=made, live=live))}

    workers, router = available(name), available(names.router_name(name, "default"))
    assert {*workers, *router} <= {*map(reference, made.manifests)}
    assert (truth(workers)["WorkersReady"], truth(workers)["RouterReady"]) == ("True", "False")
    assert (truth(router)["WorkersReady"], truth(router)["RouterReady"]) == ("False", "True")


def test_workers_whose_name_ends_as_a_routers_are_no_router() -> None:
    unrouted = endpoint({"intelligentRoutingSpec": None}, name="x-router")
    made = desired(unrouted, Capabilities(), OperatorConfig())
    refused = {Reference("Deployment", "default", "x-router"): "no"}
    seen = Observation(endpoint=unrouted, made=made, live={}, failures=refused)
    reasons = {each.type: each.reason for each in observe(seen)}
    assert "RouterReady" not in reasons
    assert reasons["WorkersReady"] == "Refused"
