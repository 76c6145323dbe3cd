"""What was decided for an endpoint, read off its objects; and when it is decided anew."""

from typing import Any

import msgspec
import pytest
from tests.endpoints import endpoint

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.live import Live, kind_of
from tierline.operator.controller.settling import decisive, settle, settled
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.workers import stands, workers
from tierline.operator.names import COMPONENT, INSTANCE
from tierline.operator.settled import CONTROLLER, PODS, Entrance, Pods, Settled, read_pods

HUB = {
    "modelSourceConfig": {"modelSourceType": "huggingface", "huggingFaceModel": {"modelId": "owner/model"}},
}
PODS_OF_BEFORE = Pods(
    template="abc", image="ours:1", connector_image="theirs:1", s3="mounted", commit="c" * 40, repository="owner/model"
)
CONFIG = OperatorConfig()


class Commits:
    """Says one commit or none, and counts who asks."""

    def __init__(self, said: str | None = "d" * 40) -> None:
        self.said = said
        self.asked = 0

    async def of(self, endpoint: Endpoint) -> str | None:
        self.asked += 1
        return self.said


def read(*live: Live) -> Settled:
    return settled(live, "demo-default-tls")


def live(
    kind: str, *, spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **metadata: Any
) -> Live:
    text = msgspec.json.encode({"metadata": {"name": "demo"} | metadata, "spec": spec or {}, "status": status})
    return msgspec.json.decode(text, type=kind_of(kind))


DEPLOYMENT = live("Deployment", annotations={PODS: PODS_OF_BEFORE.text()})
INGRESS = live("Ingress", spec={"ingressClassName": "alb"}, annotations={CONTROLLER: "ingress.k8s.aws/alb"})
GATEWAY = live("Gateway", spec={"gatewayClassName": "mesh"})


def test_it_is_read_off_what_is_there() -> None:
    assert read() == Settled()
    assert read(INGRESS, DEPLOYMENT) == Settled(
        pods=PODS_OF_BEFORE, entrance=Entrance("ingress", "alb", "ingress.k8s.aws/alb")
    )
    assert read(GATEWAY).entrance == Entrance("gateway", "mesh")
    assert read(GATEWAY, INGRESS) == read(INGRESS, GATEWAY)


def test_a_certificate_is_our_own_authoritys_unless_cert_manager_is_asked_for_it() -> None:
    secret, certificate = (live(kind, name="demo-default-tls") for kind in ("Secret", "Certificate"))
    assert read(secret).has_own_certificate
    assert not read(secret, certificate).has_own_certificate
    assert not read(live("Secret", name="demo-default-router")).has_own_certificate


def test_a_secret_of_cert_manager_s_is_not_our_own_when_its_certificate_is_deleted_to_be_issued_anew() -> None:
    issued = live("Secret", name="demo-default-tls", annotations={"cert-manager.io/certificate-name": "demo"})
    assert not read(issued).has_own_certificate


def test_an_ingress_that_is_being_deleted_is_no_way_in() -> None:
    going = live("Ingress", spec={"ingressClassName": "alb"}, deletionTimestamp="2026-01-01T00:00:00Z")
    assert read(going).entrance is None


def test_of_annotations_only_those_that_decide_are_kept_in_memory() -> None:
    assert live("Deployment", annotations={"a": "b" * 1000}).metadata.annotations is None


def test_those_objects_are_known_by_their_names() -> None:
    assert [(each.kind, each.name) for each in decisive(endpoint(), CONFIG)] == [
        ("Deployment", "demo"),
        ("Ingress", "alb-demo-default"),
        ("Gateway", "demo-default"),
        ("Secret", "demo-default-tls"),
        ("Certificate", "demo-default-tls"),
    ]


async def _settle(*live: Live, can_stay: bool, said: str | None = "d" * 40) -> tuple[Settled, int]:
    commits = Commits(said)
    found = await settle(endpoint(HUB), live, lambda *_: can_stay, Capabilities(), CONFIG, commits)
    return found.settled, commits.asked


async def test_pods_that_can_stay_keep_all_that_was_decided_and_the_hub_is_not_asked() -> None:
    assert await _settle(DEPLOYMENT, INGRESS, can_stay=True) == (read(DEPLOYMENT, INGRESS), 0)


async def test_pods_that_are_replaced_have_it_decided_anew_and_the_way_in_stays() -> None:
    found, asked = await _settle(DEPLOYMENT, INGRESS, can_stay=False)
    assert found == Settled(pods=Pods(commit="d" * 40, repository="owner/model"), entrance=read(INGRESS).entrance)
    assert asked == 1


async def test_pods_that_are_not_there_yet_have_it_decided() -> None:
    assert await _settle(can_stay=True) == (Settled(pods=Pods(commit="d" * 40, repository="owner/model")), 1)


async def test_a_hub_that_is_silent_takes_no_commit_away_that_it_has_said_before_of_the_same_repository() -> None:
    found, _ = await _settle(DEPLOYMENT, can_stay=False, said=None)
    assert found.pods == Pods(commit="c" * 40, repository="owner/model")
    others = live("Deployment", annotations={PODS: Pods(template="abc", commit="c" * 40, repository="o/other").text()})
    found, _ = await _settle(others, can_stay=False, said=None)
    assert found.pods == Pods()


def _workers(*, former: int = 0, updated: int = 1, available: int = 0) -> Live:
    """Return the workers' Deployment, so many of whose pods are there."""
    counts = {"replicas": former + updated, "updatedReplicas": updated, "availableReplicas": available}
    told = {PODS: PODS_OF_BEFORE.text()}
    return live("Deployment", status={"observedGeneration": 1, **counts}, namespace="default", annotations=told)


def _waiting(
    container: str, reason: str = "ImagePullBackOff", *, of: str = "worker", is_init: bool = False, ended: str = ""
) -> Live:
    """Return a pod, one of whose containers waits; ``ended`` says how it ended before."""
    last = {"restartCount": 1, "lastState": {"terminated": {"reason": ended}}} if ended else {}
    statuses = [{"name": container, "state": {"waiting": {"reason": reason}}, **last}]
    status = {"initContainerStatuses" if is_init else "containerStatuses": statuses}
    return live("Pod", status=status, namespace="default", labels={COMPONENT: of, INSTANCE: "demo"})


async def _images(*seen: Live) -> tuple[str, str]:
    """Return the images that stay; pods would stay with any."""
    found, _ = await _settle(*seen, can_stay=True)
    return found.pods.image, found.pods.connector_image


@pytest.mark.parametrize(
    ("pod", "left"),
    [
        (_waiting("reverse-proxy"), ("", "theirs:1")),
        (_waiting("metrics-collector", "ErrImagePull"), ("", "theirs:1")),
        (_waiting("prefetch-demo-inf", "InvalidImageName", is_init=True), ("", "theirs:1")),
        (_waiting("tierline-connector", is_init=True), ("ours:1", "")),
        (_waiting("reverse-proxy", "CrashLoopBackOff", ended="StartError"), ("", "theirs:1")),
        (_waiting("reverse-proxy", "CrashLoopBackOff", ended="OOMKilled"), ("ours:1", "theirs:1")),
        (_waiting("reverse-proxy", ended="Error"), ("ours:1", "theirs:1")),
        (_waiting("reverse-proxy", "ContainerCreating"), ("ours:1", "theirs:1")),
        (_waiting("demo"), ("ours:1", "theirs:1")),
        (_waiting("router-container", of="router"), ("ours:1", "theirs:1")),
    ],
)
async def test_an_image_of_ours_stays_unless_what_is_to_run_with_it_never_came_to(
    pod: Live, left: tuple[str, str]
) -> None:
    assert await _images(_workers(), pod) == left


@pytest.mark.parametrize(
    ("workers", "stays"),
    [
        (_workers(updated=2, available=1), True),
        (_workers(former=2, updated=1, available=3), True),
        (_workers(former=2, updated=1, available=2), False),
        (_workers(updated=2), False),
    ],
    ids=["another pod runs it", "so does one beside former ones", "former ones alone serve", "nobody serves"],
)
async def test_an_image_that_runs_on_one_machine_stays_though_another_cannot_pull_it(
    workers: Live, stays: bool
) -> None:
    assert await _images(workers, _waiting("reverse-proxy")) == ("ours:1" if stays else "", "theirs:1")


async def test_where_the_images_are_still_the_same_pods_and_what_else_was_decided_stay() -> None:
    config = OperatorConfig(image="ours:1")
    made = endpoint()
    decided = made_as(made, config)
    seen = live("Deployment", namespace="default", annotations={PODS: decided.text()})
    for image, stays in (("ours:1", True), ("ours:2", False)):
        now = config.model_copy(update={"image": image})
        pod = _waiting("reverse-proxy")
        found = await settle(made, [seen, pod], stands, Capabilities(), now, Commits())
        assert (found.settled.pods.template == decided.template) is stays
        assert made_as(found, now).image == image


def made_as(made: Endpoint, config: OperatorConfig) -> Pods:
    """Return what the Deployment of an endpoint's workers says of how its pods are made."""
    [deployment] = workers(made, Capabilities(), config).manifests
    return read_pods(deployment["metadata"]["annotations"][PODS])
