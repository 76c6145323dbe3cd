"""What was decided for an endpoint counts for more than what its cluster and its operator have become."""

from dataclasses import replace
from typing import Any

import pytest
from tests.endpoints import SPEC, endpoint

from tierline.operator.assumed import cluster
from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests.buckets import bucket, is_pinned
from tierline.operator.manifests.certificates import certificates, kept_secrets
from tierline.operator.manifests.entrance import ALB_CONTROLLER, GATEWAY, NGINX_CONTROLLER, entrance
from tierline.operator.manifests.manifest import Notice
from tierline.operator.manifests.sources import S3_DRIVER, model_source
from tierline.operator.manifests.workers import stands, workers
from tierline.operator.settled import PODS, Entrance, Pods, Settled, read_pods

PLAIN = cluster()
MOUNTS = cluster(["s3-csi"])
USUAL = OperatorConfig(image="ours:1", connector_image="theirs:1")
NEWER = USUAL.model_copy(update={"image": "ours:2", "connector_image": "theirs:2"})
COMMIT = "c" * 40
HUB: dict[str, Any] = {
    "modelSourceConfig": {"modelSourceType": "huggingface", "huggingFaceModel": {"modelId": "org/model"}}
}
NGINX = Entrance("ingress", "nginx", NGINX_CONTROLLER)
ALB = Entrance("ingress", "alb", ALB_CONTROLLER)
OWN = Entrance("gateway", "default")


def with_entrance(standing: Entrance, **annotations: str) -> Endpoint:
    given = {key.replace("_", "-"): value for key, value in annotations.items()}
    return replace(endpoint(annotations=given), settled=Settled(entrance=standing))


def as_made(asked: Endpoint, has: Capabilities = PLAIN, config: OperatorConfig = USUAL) -> Endpoint:
    """Return an endpoint as the next look finds it."""
    made = workers(asked, has, config)
    pods = read_pods(made.manifests[0]["metadata"]["annotations"][PODS])
    return replace(asked, settled=Settled(pods=pods))


def templates(asked: Endpoint, has: Capabilities = PLAIN, config: OperatorConfig = USUAL) -> list[Any]:
    return [each["spec"]["template"] for each in workers(asked, has, config).manifests]


@pytest.mark.parametrize("standing", [NGINX, OWN])
def test_a_way_in_that_is_there_stays_whatever_else_comes(standing: Entrance) -> None:
    assert entrance(with_entrance(standing), cluster(["alb", "nginx", "gateway"])) == standing


def test_a_class_that_is_gone_takes_no_ingress_away() -> None:
    assert entrance(with_entrance(ALB), PLAIN) == ALB


def test_a_gateway_is_not_kept_where_nobody_can_write_one_any_more() -> None:
    assert entrance(with_entrance(OWN), cluster(["nginx"])) == NGINX


def test_what_the_user_names_counts_for_more_than_what_is_there() -> None:
    assert entrance(with_entrance(NGINX, gateway_class="mesh"), PLAIN) == Entrance("gateway", "mesh")
    assert isinstance(entrance(with_entrance(NGINX, ingress_class="none"), PLAIN), Notice)
    assert entrance(with_entrance(ALB, ingress_class="alb"), PLAIN) == ALB, "its controller is known from before"


def test_an_ingress_that_somebody_gave_another_class_is_told_what_the_controller_of_that_needs() -> None:
    edited = replace(NGINX, controller=ALB_CONTROLLER)
    assert entrance(with_entrance(edited), cluster(["nginx"])) == NGINX


def test_a_certificate_that_clients_trust_stays_when_cert_manager_comes() -> None:
    managed, standing = cluster(["cert-manager"]), Settled(has_own_certificate=True)
    kept = replace(endpoint(), settled=standing)
    assert [each.name for each in kept_secrets(kept, managed, USUAL)] == ["tierline-authority", "demo-default-tls"]
    assert certificates(kept, managed, USUAL).manifests == ()
    assert "come later" in certificates(kept, managed, USUAL).notices[0].message
    named = replace(endpoint(annotations={"issuer": "Issuer/ours"}), settled=standing)
    for other in (endpoint(), named):
        assert kept_secrets(other, managed, USUAL) == ()
        assert certificates(other, managed, USUAL).manifests
    assert kept_secrets(named, PLAIN, USUAL), "what is named is not there"


def test_the_class_that_is_marked_as_the_default_decides_among_several() -> None:
    several = Capabilities(ingress_classes=(("a", "example.com/a"), ("b", "example.com/b")))
    assert isinstance(entrance(endpoint(), several), Notice)
    marked = replace(several, default_ingress_class="b")
    assert entrance(endpoint(), marked) == Entrance("ingress", "b", "example.com/b")
    balancers = Capabilities(ingress_classes=(("a", ALB_CONTROLLER), ("b", ALB_CONTROLLER)), default_ingress_class="b")
    assert entrance(endpoint(), balancers) == Entrance("ingress", "b", ALB_CONTROLLER)
    several_gateways = replace(marked, kinds=frozenset({(GATEWAY, "Gateway"), (GATEWAY, "HTTPRoute")}))
    assert entrance(endpoint(), replace(several_gateways, gateway_classes=("x", "y"))) == entrance(endpoint(), marked)


@pytest.mark.parametrize(("before", "after"), [(PLAIN, MOUNTS), (MOUNTS, PLAIN)])
def test_a_driver_that_comes_or_goes_replaces_no_pods_and_keeps_volumes(
    before: Capabilities, after: Capabilities
) -> None:
    made = as_made(endpoint(), before)
    assert stands(made, after, USUAL)
    assert templates(made, after) == templates(endpoint(), before)
    assert model_source(made, after, USUAL).manifests == model_source(endpoint(), before, USUAL).manifests
    assert model_source(made, after, USUAL).notices, "that it is otherwise than it could be is told"


def test_buckets_of_another_endpoint_of_s3_are_copied_though_they_were_mounted() -> None:
    made = as_made(endpoint(), MOUNTS)
    elsewhere = USUAL.model_copy(update={"s3_endpoint": "http://minio:9000"})
    assert not stands(made, MOUNTS, elsewhere)
    assert model_source(made, MOUNTS, elsewhere).manifests == ()


def test_another_image_of_ours_replaces_no_pods_until_something_else_does() -> None:
    made = as_made(endpoint(HUB))
    assert stands(made, PLAIN, NEWER)
    assert templates(made, config=NEWER) == templates(endpoint(HUB))
    assert stands(replace(made, generation=2, spec=endpoint({**HUB, "replicas": 7}).spec), PLAIN, NEWER)
    assert not stands(replace(made, spec=endpoint({**HUB, "modelVersion": "2"}).spec), PLAIN, NEWER)


def test_setting_at_once_replaces_them() -> None:
    at_once = NEWER.model_copy(update={"worker_updates": "at-once"})
    assert not stands(as_made(endpoint()), PLAIN, at_once)
    assert "ours:2" in str(templates(as_made(endpoint()), config=at_once))
    assert stands(as_made(endpoint(), config=at_once), PLAIN, at_once)


def test_prefill_and_decode_are_decided_together() -> None:
    pairs = endpoint({"pdSpec": {"prefillSpec": {}, "decodingSpec": {}}})
    told = [each["metadata"]["annotations"][PODS] for each in workers(pairs, PLAIN, USUAL).manifests]
    assert len(told) == 2
    assert told[0] == told[1]


def test_a_commit_that_was_settled_on_is_that_of_all_pods_and_of_their_cache() -> None:
    asked = replace(endpoint(HUB), settled=Settled(pods=Pods(commit=COMMIT)))
    pinned = endpoint(
        {
            "modelSourceConfig": {
                **HUB["modelSourceConfig"],
                "huggingFaceModel": {"modelId": "org/model", "commitSHA": COMMIT},
            }
        }
    )
    assert is_pinned(asked)
    assert not is_pinned(endpoint(HUB))
    assert bucket(asked) == bucket(pinned)
    assert templates(asked) == templates(pinned), "who writes it down later replaces nothing"
    assert stands(as_made(asked), PLAIN, USUAL)
    assert as_made(asked).commit == COMMIT


def test_another_model_is_not_of_that_commit() -> None:
    made = as_made(replace(endpoint(HUB), settled=Settled(pods=Pods(commit=COMMIT))))
    other = {"modelSourceConfig": {**HUB["modelSourceConfig"], "huggingFaceModel": {"modelId": "org/other"}}}
    assert not stands(replace(made, spec=endpoint(other).spec), PLAIN, USUAL)
    assert replace(made, spec=endpoint({"modelSourceConfig": SPEC["modelSourceConfig"]}).spec).commit is None


def test_pods_of_which_nobody_wrote_how_they_were_made_are_made_anew() -> None:
    assert not stands(endpoint(), PLAIN, USUAL)
    assert read_pods(None) == read_pods("{") == read_pods('{"s3": "sometimes"}') == Pods()


def test_what_decides_is_the_driver_by_its_name() -> None:
    assert as_made(endpoint(), Capabilities(csi_drivers=frozenset({S3_DRIVER}))).settled.pods.s3 == "mounted"
    assert as_made(endpoint(), Capabilities(csi_drivers=frozenset({"other"}))).settled.pods.s3 == "copied"
    assert as_made(endpoint(HUB), MOUNTS).settled.pods.s3 == ""
