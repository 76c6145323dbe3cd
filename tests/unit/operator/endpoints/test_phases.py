"""How long each phase of a pod took or takes, read from what the cluster says of it."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from tierline.operator.endpoints.phases import USUAL_SECONDS, Phase, is_serving, phases
from tierline.operator.endpoints.pods import Pod, read_pods

CREATED = datetime.fromisoformat("2026-01-01T10:00:00+00:00")


def after(seconds: float) -> str:
    return (CREATED + timedelta(seconds=seconds)).isoformat()


def pod(*, became: dict[str, float], started: float | None = None, has_download: bool = True) -> Pod:
    content: dict[str, Any] = {
        "metadata": {"name": "demo-1", "namespace": "default", "creationTimestamp": after(0)},
        "spec": {
            "containers": [{"name": "demo"}, {"name": "reverse-proxy"}],
            "initContainers": [{"name": "fetch"}] if has_download else [],
        },
        "status": {
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": after(seconds)}
                for kind, seconds in became.items()
            ],
        },
    }
    if started is not None:
        state = {"running": {"startedAt": after(started)}}
        content["status"]["containerStatuses"] = [{"name": "demo", "state": state}]
    return read_pods([content])[0]


def test_every_phase_of_a_pod_that_serves_has_its_own_time() -> None:
    came = pod(
        became={"PodScheduled": 3, "Initialized": 140, "ContainersReady": 400, "Ready": 402},
        started=200,
    )
    assert phases(came, CREATED + timedelta(hours=1)) == [
        Phase("schedule", 3, is_over=True),
        Phase("download", 137, is_over=True),
        Phase("start", 60, is_over=True),
        Phase("load", 200, is_over=True),
        Phase("join", 2, is_over=True),
    ]
    assert is_serving(came)


@pytest.mark.parametrize(
    ("became", "started", "expected"),
    [
        ({}, None, Phase("schedule", 500, is_over=False)),
        ({"PodScheduled": 100}, None, Phase("download", 400, is_over=False)),
        ({"PodScheduled": 100, "Initialized": 200}, None, Phase("start", 300, is_over=False)),
        ({"PodScheduled": 100, "Initialized": 200}, 300, Phase("load", 200, is_over=False)),
        ({"PodScheduled": 1, "Initialized": 2, "ContainersReady": 490}, 3, Phase("join", 10, is_over=False)),
    ],
)
def test_the_last_phase_is_the_one_that_the_pod_is_in(
    became: dict[str, float], started: float | None, expected: Phase
) -> None:
    coming = pod(became=became, started=started)
    assert phases(coming, CREATED + timedelta(seconds=500))[-1] == expected
    assert not is_serving(coming)


def test_a_pod_without_init_containers_downloads_nothing() -> None:
    coming = pod(became={"PodScheduled": 1, "Initialized": 1}, has_download=False)
    assert [phase.name for phase in phases(coming, CREATED)] == ["schedule", "start"]


def test_a_phase_is_slow_once_it_takes_longer_than_usual() -> None:
    coming = pod(became={"PodScheduled": 0})
    usual = USUAL_SECONDS["download"]
    assert not phases(coming, CREATED + timedelta(seconds=usual))[-1].is_slow
    assert phases(coming, CREATED + timedelta(seconds=usual + 1))[-1].is_slow
