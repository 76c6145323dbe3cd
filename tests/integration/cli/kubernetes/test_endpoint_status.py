"""``tierline endpoint prepare``, ``deploy`` and ``status``: against a real API, with pods that a test speaks for."""

import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.integration.cli.kubernetes.conftest import MERGE, Command, Kube

from tierline.errors import ClusterUnavailable
from tierline.operator.endpoints import standing
from tierline.operator.names import API_VERSION

PREPARE = ("endpoint", "prepare", "demo", "--model", "hf://owner/tiny", "--gpus", "0")


def resource(namespace: str, name: str = "demo") -> str:
    return f"/apis/{API_VERSION}/namespaces/{namespace}/inferenceendpointconfigs/{name}"


@pytest.fixture
def deployed(kube: Kube, run: Command, tmp_path: Path) -> str:
    """A namespace with an endpoint that no operator has seen."""
    namespace = kube.namespace()
    assert run(*PREPARE, "-o", tmp_path / "demo.yaml", "-n", namespace).status == 0
    assert run("endpoint", "deploy", tmp_path / "demo.yaml").status == 0
    return namespace


def condition(kind: str, status: str, message: str = "", generation: int = 1) -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": "Tested",
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def test_what_is_prepared_is_taken_by_the_cluster_and_applied_again_without_a_change(
    kube: Kube, run: Command, tmp_path: Path
) -> None:
    namespace, file = kube.namespace(), tmp_path / "demo.yaml"
    file.write_text(run(*PREPARE).output.replace("namespace: default", f"namespace: {namespace}"))
    assert run("endpoint", "deploy", file).errors == f"InferenceEndpointConfig {namespace}/demo created\n"
    assert run("endpoint", "deploy", file).errors == f"InferenceEndpointConfig {namespace}/demo unchanged\n"
    changed = yaml.safe_load(file.read_text())
    changed["spec"]["replicas"] = 3
    file.write_text(yaml.safe_dump(changed))
    (said,) = run("endpoint", "deploy", file, "--json").document
    assert said == {"kind": "InferenceEndpointConfig", "namespace": namespace, "name": "demo", "outcome": "changed"}
    assert kube.ask("GET", resource(namespace))["spec"]["replicas"] == 3


def test_a_file_without_a_namespace_is_deployed_where_the_command_says(
    kube: Kube, run: Command, tmp_path: Path
) -> None:
    namespace, file = kube.namespace(), tmp_path / "demo.yaml"
    document = yaml.safe_load(run(*PREPARE).output)
    del document["metadata"]["namespace"]
    file.write_text(yaml.safe_dump(document))
    assert run("endpoint", "deploy", file, "-n", namespace).status == 0
    assert kube.exists(resource(namespace))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spec": {}}, "spec.worker"),
        ({"kind": "Pod"}, "allowed: inference.sagemaker.aws.amazon.com/v1 InferenceEndpointConfig and JumpStartModel"),
        ({"metadata": {}}, "metadata.name"),
    ],
)
def test_a_file_that_the_cluster_would_not_take_is_refused_before_it_sees_it(
    run: Command, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(run(*PREPARE).output) | change))
    ended = run("endpoint", "deploy", file)
    assert ended.status == 2
    assert said in ended.errors
    assert ended.errors.count("\n") == 1


def test_an_endpoint_that_no_operator_has_seen_says_so(run: Command, deployed: str) -> None:
    ended = run("endpoint", "status", "demo", "-n", deployed)
    assert "not ready" in ended.output
    assert "no operator has said anything of it" in ended.output


def test_an_endpoint_that_is_not_there_is_a_user_s_mistake(run: Command, deployed: str) -> None:
    ended = run("endpoint", "status", "other", "-n", deployed)
    assert (ended.status, "no endpoint other" in ended.errors) == (2, True)


def test_each_pod_s_phases_are_timed_and_what_keeps_it_is_told(kube: Kube, run: Command, deployed: str) -> None:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    path = kube.pod(
        deployed,
        "demo-1",
        {"app": "demo"},
        conditions=[scheduled],
        containerStatuses=[container_waits("ContainerCreating")],
    )
    uid = kube.ask("GET", path)["metadata"]["uid"]
    kube.create(
        f"/api/v1/namespaces/{deployed}/events",
        metadata={"name": "demo-1.mount"},
        involvedObject={"kind": "Pod", "name": "demo-1", "namespace": deployed, "uid": uid},
        reason="FailedMount",
        type="Warning",
        message="driver name s3.csi.aws.com not found in the list of registered CSI drivers",
    )
    said = run("endpoint", "status", "demo", "-n", deployed, "--json").document
    (pod,) = said["pods"]
    assert [phase["name"] for phase in pod["phases"]] == ["schedule", "start"]
    assert [trouble["reason"] for trouble in pod["troubles"]] == ["DriverMissing"]
    ended = run("endpoint", "status", "demo", "-n", deployed)
    assert "the CSI driver s3.csi.aws.com does not run on that node: install the driver" in ended.output


def container_waits(reason: str) -> dict[str, Any]:
    waiting = {"waiting": {"reason": reason}}
    return {"name": "demo", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": waiting}


def test_a_crashed_container_whose_log_cannot_be_had_is_told_by_its_status(
    kube: Kube, run: Command, deployed: str
) -> None:
    crashed = container_waits("CrashLoopBackOff") | {"lastState": {"terminated": {"exitCode": 3, "reason": "Error"}}}
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    kube.pod(deployed, "demo-1", {"app": "demo"}, conditions=[scheduled], containerStatuses=[crashed])
    assert "container demo: it ended with status 3" in run("endpoint", "status", "demo", "-n", deployed).output


def test_waiting_ends_once_the_endpoint_is_ready(
    kube: Kube, run: Command, deployed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_seen, look = threading.Event(), standing.standing

    async def looked(*arguments: Any, **more: Any) -> standing.Standing:
        stands = await look(*arguments, **more)
        if stands.state == "DeploymentInProgress":
            is_seen.set()
        return stands

    def operator() -> None:
        own = Kube(kube.cluster)  # a connection is one thread's
        own.set_status(resource(deployed), state="DeploymentInProgress", conditions=[condition("Ready", "False")])
        assert is_seen.wait(60)
        own.set_status(resource(deployed), state="DeploymentComplete", conditions=[condition("Ready", "True")])
        own.close()

    monkeypatch.setattr(standing, "standing", looked)
    speaking = threading.Thread(target=operator)
    speaking.start()
    ended = run("endpoint", "status", "demo", "-n", deployed, "--wait", "--timeout", 60)
    speaking.join()
    assert ended.status == 0
    assert "demo: DeploymentInProgress" in ended.output
    assert "demo is ready after" in ended.output.splitlines()[-1]


def test_waiting_ends_at_once_where_the_operator_refuses_the_resource(kube: Kube, run: Command, deployed: str) -> None:
    refused = condition("Validated", "False", "spec.kvCacheSpec.l2CacheSpec: needed")
    kube.set_status(resource(deployed), state="DeploymentFailed", conditions=[refused])
    ended = run("endpoint", "status", "demo", "-n", deployed, "--wait")
    assert ended.status == 1
    assert "endpoint demo has failed: Validated: spec.kvCacheSpec.l2CacheSpec: needed" in ended.errors


def test_what_was_asked_for_before_may_have_failed(kube: Kube, run: Command, deployed: str) -> None:
    kube.set_status(resource(deployed), state="DeploymentFailed", observedGeneration=1)
    kube.ask("PATCH", resource(deployed), {"spec": {"replicas": 2}}, MERGE)
    ended = run("endpoint", "status", "demo", "-n", deployed, "--wait", "--timeout", "0.1")
    assert (ended.status, "is not ready after" in ended.errors) == (1, True)
    kube.set_status(resource(deployed), observedGeneration=2)
    ended = run("endpoint", "status", "demo", "-n", deployed, "--wait", "--timeout", "0.1")
    assert (ended.status, "has failed" in ended.errors) == (1, True)


def test_waiting_outlasts_an_api_that_is_away(
    kube: Kube, run: Command, deployed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    async def hiccuping(*given: Any, **named: Any) -> Any:
        nonlocal looked
        looked += 1
        if looked == 2:
            kube.set_status(resource(deployed), conditions=[condition("Ready", "True")])
            raise ClusterUnavailable("https://api: the Kubernetes API did not answer in time")
        return await looking(*given, **named)

    looking = standing.standing
    monkeypatch.setattr(standing, "standing", hiccuping)
    ended = run("endpoint", "status", "demo", "-n", deployed, "--wait", "--timeout", 60)
    assert ended.status == 0, ended.errors
    assert "did not answer in time; asked again" in ended.errors


def test_waiting_ends_in_time(kube: Kube, run: Command, deployed: str) -> None:
    kube.set_status(resource(deployed), state="DeploymentInProgress", conditions=[condition("Ready", "False")])
    ended = run("endpoint", "status", "demo", "-n", deployed, "--wait", "--timeout", "0.1")
    assert (ended.status, "is not ready after 0.1 s" in ended.errors) == (1, True)


def test_what_a_ready_endpoint_does_without_is_no_trouble(kube: Kube, run: Command, deployed: str) -> None:
    listed = [condition("Ready", "True"), condition("IngressReady", "False", "there is no class of Ingresses")]
    kube.set_status(resource(deployed), state="DeploymentComplete", conditions=listed)
    said = run("endpoint", "status", "demo", "-n", deployed, "--json").document
    assert (said["is_ready"], said["troubles"]) == (True, [])


def test_ready_of_what_was_asked_for_before_is_not_ready(
    kube: Kube, run: Command, deployed: str, tmp_path: Path
) -> None:
    kube.set_status(resource(deployed), state="DeploymentComplete", conditions=[condition("Ready", "True")])
    assert run("endpoint", "status", "demo", "-n", deployed, "--json").document["is_ready"]
    kube.ask("PATCH", resource(deployed), {"spec": {"replicas": 2}}, "application/merge-patch+json")
    assert not run("endpoint", "status", "demo", "-n", deployed, "--json").document["is_ready"]


def test_a_cluster_that_cannot_be_reached_is_said_in_a_line(kube: Kube, run: Command) -> None:
    nowhere = kube.cluster.kubeconfig("nowhere", port=1)
    ended = run("endpoint", "status", "demo", "--kubeconfig", nowhere)
    assert (ended.status, "cannot be reached" in ended.errors) == (1, True)
    stranger = kube.cluster.kubeconfig("stranger", token="a-token-of-nobody")
    ended = run("endpoint", "status", "demo", "--kubeconfig", stranger)
    assert (ended.status, "the Kubernetes API: Unauthorized" in ended.errors) == (1, True)
