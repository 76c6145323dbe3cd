"""What pods, events and logs say becomes a reason and something to do; messages are those of real clusters."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from tierline.operator.endpoints.phases import Phase, phases
from tierline.operator.endpoints.pods import Event, Pod, read_events, read_pods
from tierline.operator.endpoints.troubles import Trouble, crashed_containers, troubles

CREATED = datetime.fromisoformat("2026-01-01T10:00:00+00:00")
NOW = CREATED + timedelta(seconds=30)
SCHEDULED = {"type": "PodScheduled", "status": "True", "lastTransitionTime": CREATED.isoformat()}
INITIALIZED = {"type": "Initialized", "status": "True", "lastTransitionTime": CREATED.isoformat()}


def pod(*conditions: dict[str, Any], containers: Any = (), init_containers: Any = ()) -> Pod:
    return read_pods(
        [
            {
                "metadata": {"name": "demo-1", "namespace": "default", "creationTimestamp": CREATED.isoformat()},
                "spec": {
                    "containers": [{"name": "demo"}],
                    "initContainers": [{"name": "fetch"}] if init_containers else [],
                },
                "status": {
                    "conditions": list(conditions),
                    "containerStatuses": list(containers),
                    "initContainerStatuses": list(init_containers),
                },
            }
        ]
    )[0]


def event(reason: str, message: str) -> list[Event]:
    return read_events([{"reason": reason, "message": message, "type": "Warning"}])


def found(coming: Pod, events: list[Event] | None = None, logs: dict[str, str] | None = None) -> list[Trouble]:
    return troubles(coming, phases(coming, NOW)[-1], events or [], logs or {})


def reasons(coming: Pod, events: list[Event] | None = None, logs: dict[str, str] | None = None) -> list[str]:
    return [trouble.reason for trouble in found(coming, events, logs)]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", ["NoRoom"]),
        ("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.", ["NoSuchNode"]),
        ("0/1 nodes are available: 1 node(s) didn't match node selector.", ["NoSuchNode"]),
        (
            "0/2 nodes are available: 1 Insufficient memory, 1 node(s) had untolerated taint {gpu: true}.",
            ["NodeTainted", "NoRoom"],
        ),
        ('persistentvolumeclaim "models" not found', ["VolumeMissing"]),
        ("pod has unbound immediate PersistentVolumeClaims", ["VolumeUnbound"]),
        ("something that no table knows", ["Unschedulable"]),
    ],
)
def test_why_no_node_takes_a_pod_is_told(message: str, expected: list[str]) -> None:
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    assert reasons(pod(unscheduled)) == expected


def test_what_there_is_too_little_of_is_named() -> None:
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    unscheduled = {"type": "PodScheduled", "status": "False", "message": message}
    assert found(pod(unscheduled))[0].what == "no node has enough nvidia.com/gpu left"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            'MountVolume.MountDevice failed for volume "demo-s3": driver name s3.csi.aws.com not found in the list of '
            "registered CSI drivers",
            "DriverMissing",
        ),
        (
            'MountVolume.SetUp failed for volume "shm" : hostPath type check failed: /dev/shm/ai_toolkit_cache is not '
            "a file",
            "NodeStoreAway",
        ),
        (
            'MountVolume.SetUp failed for volume "pv": rpc error: Could not mount "my-bucket": Mount failed: Error: '
            "Failed to create S3 client, HeadBucket failed, 0: Client error, 1: Forbidden: Access Denied",
            "S3RightsMissing",
        ),
        ('MountVolume.SetUp failed for volume "ca" : secret "demo-ca" not found', "ReferenceMissing"),
        ("Unable to attach or mount volumes: timed out waiting for the condition", "MountSlow"),
    ],
)
def test_why_a_volume_is_not_mounted_is_told(message: str, expected: str) -> None:
    creating = {"name": "demo", "state": {"waiting": {"reason": "ContainerCreating"}}}
    coming = pod(SCHEDULED, INITIALIZED, containers=[creating])
    assert reasons(coming, event("FailedMount", message)) == [expected]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('failed to pull image "vllm:nope": manifest unknown', "ImageMissing"),
        ("pull access denied for vllm, repository does not exist or may require 'docker login'", "ImageDenied"),
        ("toomanyrequests: You have reached your pull rate limit", "ImageRateLimited"),
        ("no match for platform in manifest", "ImageOtherPlatform"),
        ("dial tcp: i/o timeout", "ImageNotPulled"),
    ],
)
def test_why_an_image_is_not_pulled_is_told(message: str, expected: str) -> None:
    waiting = {"name": "demo", "state": {"waiting": {"reason": "ImagePullBackOff", "message": message}}}
    assert reasons(pod(SCHEDULED, INITIALIZED, containers=[waiting])) == [expected]


def test_what_the_registry_said_is_in_the_event_of_an_attempt() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "vllm:nope"'}
    coming = pod(SCHEDULED, INITIALIZED, containers=[{"name": "demo", "state": {"waiting": waiting}}])
    assert reasons(coming) == ["ImageNotPulled"]
    assert reasons(coming, event("Failed", 'Failed to pull image "vllm:nope": manifest unknown')) == ["ImageMissing"]


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("An error occurred (AccessDenied) when calling the ListObjectsV2 operation: Access Denied", "S3RightsMissing"),
        ("An error occurred (NoSuchBucket): The specified bucket does not exist", "BucketMissing"),
        ("botocore.exceptions.NoCredentialsError: Unable to locate credentials", "S3CredentialsMissing"),
        ("SignatureDoesNotMatch: the request signature we calculated does not match", "S3CredentialsWrong"),
        ("Access to model meta-llama/Llama-3.1-8B is restricted. You must be authenticated", "ModelGated"),
        ("OSError: [Errno 28] No space left on device", "DiskFull"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB", "GpuMemoryFull"),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utiliz", "GpuMemoryFull"),
        ("8.00 GiB KV cache is needed, which is larger than the available KV cache memory (4 GiB)", "ContextTooLong"),
        ("RuntimeError: The NVIDIA driver on your system is too old", "DriverTooOld"),
        ("api_server.py: error: unrecognized arguments: --nope", "ArgumentWrong"),
        ("tierline: s3://b/p: access is denied; it takes s3:GetObject on the objects", "S3RightsMissing"),
        ("tierline: s3://b/p has no files; is the last part of the path right?", "ModelMissing"),
        ("tierline: o/m: the hub denies access (403); a gated model takes HF_TOKEN", "ModelGated"),
        ("tierline: o/m is not there at https://huggingface.co, in revision main", "ModelMissing"),
        ("Segmentation fault", "Crashing"),
    ],
)
def test_what_a_container_that_ended_said_is_understood(log: str, expected: str) -> None:
    crashed = {
        "name": "demo",
        "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
    }
    coming = pod(SCHEDULED, INITIALIZED, containers=[crashed])
    assert [container.name for container in crashed_containers(coming)] == ["demo"]
    assert reasons(coming, logs={"demo": f"starting\n{log}\n"}) == [expected]


def test_the_line_that_told_is_shown() -> None:
    failed = {"name": "fetch", "state": {"terminated": {"exitCode": 1}}}
    coming = pod(SCHEDULED, init_containers=[failed])
    (trouble,) = found(coming, logs={"fetch": "looking\ns3://b/p: AccessDenied\nthe end\n"})
    assert trouble.said == "s3://b/p: AccessDenied"
    assert "s3:GetObject" in trouble.remedy


def test_a_container_that_used_up_its_memory_needs_no_log() -> None:
    killed = {"name": "demo", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    assert reasons(pod(SCHEDULED, INITIALIZED, containers=[killed])) == ["OutOfMemory"]


def test_a_container_that_runs_again_is_in_no_trouble() -> None:
    back = {
        "name": "demo",
        "state": {"running": {"startedAt": CREATED.isoformat()}},
        "lastState": {"terminated": {"exitCode": 1}},
    }
    assert reasons(pod(SCHEDULED, INITIALIZED, containers=[back])) == []


@pytest.mark.parametrize(("status", "is_passing"), [("503", True), ("404", False)])
def test_a_probe_that_is_answered_otherwise_is_told(status: str, is_passing: bool) -> None:
    running = {"name": "demo", "state": {"running": {"startedAt": CREATED.isoformat()}}}
    coming = pod(SCHEDULED, INITIALIZED, containers=[running])
    message = f"Readiness probe failed: HTTP probe failed with statuscode: {status}"
    (trouble,) = found(coming, event("Unhealthy", message))
    assert (trouble.reason, trouble.is_passing) == ("ProbeRefused", is_passing)


def test_an_engine_that_just_loads_is_in_no_trouble() -> None:
    running = {"name": "demo", "state": {"running": {"startedAt": CREATED.isoformat()}}}
    coming = pod(SCHEDULED, INITIALIZED, containers=[running])
    refused = "Readiness probe failed: Get http://10.0.0.1:8000/health: connect: connection refused"
    assert reasons(coming, event("Unhealthy", refused)) == []


@pytest.mark.parametrize(
    ("phase", "expected"),
    [("download", "DownloadSlow"), ("start", "StartSlow"), ("load", "LoadSlow"), ("join", "RouterAway")],
)
def test_what_takes_longer_than_usual_is_told_and_why_that_may_be(phase: Any, expected: str) -> None:
    (trouble,) = troubles(pod(SCHEDULED), Phase(phase, 10_000, is_over=False), [], {})
    assert trouble.reason == expected
    assert trouble.remedy


def test_a_pod_that_serves_is_in_no_trouble() -> None:
    assert troubles(pod(SCHEDULED), Phase("join", 1, is_over=True), event("FailedMount", "long ago"), {}) == []
