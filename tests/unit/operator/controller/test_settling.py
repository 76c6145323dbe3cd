"""What was decided for an endpoint, read off its objects; and when it is decided anew."""

from typing import Any

import msgspec
from tests.endpoints import endpoint

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.live import Live, kind_of
from tierline.operator.controller.settling import decisive, settle, settled
from tierline.operator.endpoint import Endpoint
from tierline.operator.settled import CONTROLLER, PODS, Entrance, Pods, Settled

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


def live(kind: str, *, spec: dict[str, Any] | None = None, **metadata: Any) -> Live:
    text = msgspec.json.encode({"metadata": {"name": "demo"} | metadata, "spec": spec or {}})
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
