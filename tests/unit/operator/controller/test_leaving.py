"""Which machines node stores have left, and for how long they are waited for."""

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.endpoints import SPEC, endpoint

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.leaving import REMOVAL_SECONDS, Leaving, leaving, unfinished
from tierline.operator.manifests.desired import shared
from tierline.operator.manifests.machines import Machines
from tierline.operator.manifests.manifest import Manifest
from tierline.operator.manifests.store_removal import SINCE

CACHED = SPEC | {"kvCacheSpec": {"enableL2Cache": True, "l2CacheSpec": {"l2CacheBackend": "tieredstorage"}}}
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DONE = {"observedGeneration": 1, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 2}
ANYWHERE = ""


def stores(*types: str) -> Manifest | None:
    made = shared(
        [endpoint(CACHED | {"instanceType": f"ml.{each}" if each else None}) for each in types],
        Capabilities(),
        OperatorConfig(),
    )
    return next((each for each in made.manifests if each["kind"] == "DaemonSet"), None)


def look(
    live: Manifest | None, removing: Manifest | None, wanted: Manifest | None, now: datetime = NOW
) -> Leaving | None:
    return leaving(live, removing, [wanted] if wanted is not None else [], OperatorConfig(), Capabilities(), now)


def removal(live: Manifest | None, removing: Manifest | None, wanted: Manifest | None, now: datetime = NOW) -> Manifest:
    found = look(live, removing, wanted, now)
    assert found is not None
    return found.manifest


def as_it_runs(manifest: Manifest, **status: Any) -> Manifest:
    live = copy.deepcopy(manifest)
    live["metadata"]["generation"] = 1
    return {**live, "status": {**DONE, **status}}


def machines(*types: str, is_all_but: bool = False) -> Machines:
    return Machines(frozenset(label for each in types for label in (each, f"ml.{each}")), is_all_but)


@pytest.mark.parametrize(
    ("before", "after", "left"),
    [
        (["a"], [], machines("a")),
        (["a", "b"], ["b"], machines("a")),
        ([ANYWHERE], [], machines(is_all_but=True)),
        ([ANYWHERE], ["a"], machines("a", is_all_but=True)),
    ],
)
def test_where_stores_are_and_are_no_longer_wanted_what_they_leave_is_removed(
    before: list[str], after: list[str], left: Machines
) -> None:
    assert Machines.of(removal(stores(*before), None, stores(*after))) == left


@pytest.mark.parametrize(
    ("before", "after"), [([], []), ([], ["a"]), (["a"], ["a"]), (["a"], ["a", "b"]), (["a"], [""])]
)
def test_where_no_store_leaves_nothing_is_removed(before: list[str], after: list[str]) -> None:
    assert look(stores(*before), None, stores(*after)) is None


def test_it_is_remembered_until_it_is_done_where_stores_have_been() -> None:
    running = as_it_runs(removal(stores("a", "b"), None, stores("b")), numberAvailable=1)
    assert Machines.of(removal(stores("b"), running, stores("b"))) == machines("a")
    assert Machines.of(removal(stores("b"), running, None)) == machines("a", "b")
    assert Machines.of(removal(None, running, None)) == machines("a")


def test_an_endpoint_that_comes_back_has_its_machines_again() -> None:
    running = as_it_runs(removal(stores("a", "b"), None, None), numberAvailable=0)
    assert Machines.of(removal(None, running, stores("b"))) == machines("a")
    assert look(None, running, stores("a", "b")) is None


@pytest.mark.parametrize(
    "behind",
    [{"numberAvailable": 1}, {"updatedNumberScheduled": 1}, {"observedGeneration": 0}, dict.fromkeys(DONE, 0)],
)
def test_it_is_over_once_every_machine_says_so(behind: dict[str, int]) -> None:
    manifest = removal(stores("a"), None, None)
    assert look(None, as_it_runs(manifest, **behind), None) is not None
    assert look(stores("a"), as_it_runs(manifest), None) is not None, "the stores are there still"
    assert look(None, as_it_runs(manifest), None) is None


def test_machines_are_waited_for_from_when_the_stores_are_to_be_gone_and_not_for_ever() -> None:
    first = look(stores("a"), None, None)
    assert first is not None
    assert SINCE not in first.manifest["metadata"].get("annotations", {})
    waiting = as_it_runs(first.manifest, numberAvailable=0)
    later = NOW + timedelta(hours=1)
    found = look(None, waiting, None, later)
    assert found is not None
    assert found.left_s == REMOVAL_SECONDS
    again = look(None, as_it_runs(found.manifest, numberAvailable=0), None, later + timedelta(seconds=100))
    assert again is not None
    assert (again.manifest, again.left_s) == (found.manifest, REMOVAL_SECONDS - 100)


def test_what_removes_is_told_what_the_stores_were_told() -> None:
    [container] = removal(stores("a"), None, None)["spec"]["template"]["spec"]["initContainers"]
    assert {each["name"]: each["value"] for each in container["env"]} == {
        "TIERLINE_NODE_CAPACITY": "20%",
        "TIERLINE_NODE_SHARED_MEMORY_NAME": "ai_toolkit_cache",
        "TIERLINE_NODE_SOCKET": "/run/tierline/node.sock",
    }


def test_machines_that_are_not_done_are_named_also_where_no_pod_got_there() -> None:
    field = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gpu-2"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [field]}}
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    pods: list[Manifest] = [
        {"spec": {"nodeName": "gpu-3"}},
        {"spec": {"affinity": {"nodeAffinity": required}}, "status": {"conditions": []}},
        {"spec": {"nodeName": "gpu-1"}, "status": ready},
    ]
    assert unfinished(pods) == ["gpu-2", "gpu-3"]
