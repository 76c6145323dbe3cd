"""What is said of capture by what the containers show."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.endpoints import endpoint

from tierline.operator.controller.capturing import capture_status
from tierline.operator.controller.live import Live, LiveMetadata

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CAPTURED = {"dataCapture": {"s3Uri": "s3://captured", "modelPod": {"enabled": True}}, "tlsConfig": None}
RUNNING: dict[str, Any] = {"state": {"running": {}}}
BACK_OFF: dict[str, Any] = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}}


def said(*containers: dict[str, Any], changes: dict[str, Any] = CAPTURED, **more: Any) -> dict[str, Any]:
    pods = [
        Live(LiveMetadata(f"demo-{number}"), {"containerStatuses": [{"name": "reverse-proxy", **each}]})
        for number, each in enumerate(containers)
    ]
    found = capture_status(endpoint(changes), pods, more.get("former", {}), more.get("now", NOW))
    in_pods: dict[str, Any] = (found or {}).get("modelPod", {})
    return in_pods


def test_capture_is_healthy_while_all_that_capture_run() -> None:
    found = said(RUNNING, RUNNING)
    assert (found["status"], found["reason"]) == ("Healthy", "Capturing")
    assert "2 of 2" in found["message"]


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        (BACK_OFF, "CrashLoopBackOff"),
        (BACK_OFF | {"lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}, "OOMKilled"),
        ({"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}, "Error"),
    ],
)
def test_capture_is_not_healthy_once_one_that_captures_does_not_run(container: dict[str, Any], reason: str) -> None:
    found = said(RUNNING, container)
    assert (found["status"], found["reason"]) == ("Unhealthy", reason)
    assert "demo-1" in found["message"]


def test_capture_that_nobody_says_a_place_for_is_not_healthy() -> None:
    found = said(RUNNING, changes={"dataCapture": {"modelPod": {"enabled": True}}, "tlsConfig": None})
    assert found["reason"] == "NoDestination"


def test_nothing_is_said_of_capture_that_nobody_asks_for_or_that_no_pod_has_begun() -> None:
    assert said(RUNNING, changes={}) == {}
    assert said() == {}
    assert said({"state": {"waiting": {"reason": "PodInitializing"}}}) == {}


def test_the_time_of_a_transition_stays_while_capture_does_not_change() -> None:
    first = said(RUNNING)
    later = NOW + timedelta(minutes=1)
    assert said(RUNNING, RUNNING, former={"modelPod": first}, now=later)["lastTransitionTime"] == "2026-01-02T03:04:05Z"
    assert said(BACK_OFF, former={"modelPod": first}, now=later)["lastTransitionTime"] == "2026-01-02T03:05:05Z"
