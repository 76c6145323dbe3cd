"""The admission webhook as a function: what it answers to which review."""

from typing import Any

import pytest
from tests.unit.operator.resources import INFERENCE_ENDPOINT_CONFIG, changed

from tierline.operator.admission import LONGEST_WARNING, configurations, review
from tierline.operator.catalogue import read

CATALOGUE = read(None)
WRONG = changed(INFERENCE_ENDPOINT_CONFIG, {"instanceTypes": ["ml.g5.xlarge"], "replicas": -1})


def answer(object_: object, previous: object = None) -> dict[str, Any]:
    asked = {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {"uid": "7", "object": object_, "oldObject": previous},
    }
    found: dict[str, Any] = review(asked, CATALOGUE)["response"]
    return found


def test_what_is_well_is_allowed_without_a_word() -> None:
    assert answer(INFERENCE_ENDPOINT_CONFIG) == {"uid": "7", "allowed": True}


def test_a_refusal_names_every_error() -> None:
    status = answer(WRONG)["status"]
    assert status["code"] == 422
    assert [line.partition(":")[0].strip() for line in status["message"].splitlines()] == [
        "the resource is refused",
        "spec.replicas",
        "spec.instanceTypes",
    ]


def test_a_change_that_leaves_the_spec_is_allowed_whatever_the_spec_is() -> None:
    assert answer(WRONG | {"metadata": {"name": "demo", "finalizers": []}}, WRONG)["allowed"]


def test_a_change_of_an_invalid_spec_must_mend_it() -> None:
    assert not answer(changed(WRONG, {"modelVersion": "2"}), WRONG)["allowed"]
    assert answer(INFERENCE_ENDPOINT_CONFIG, WRONG)["allowed"]


def test_an_annotation_of_ours_is_looked_at_though_the_spec_stays() -> None:
    metadata = {"name": "demo", "annotations": {"tierline.ai/l1-size": "40GB"}}
    changed_only_there = INFERENCE_ENDPOINT_CONFIG | {"metadata": metadata}
    assert "tierline.ai/l1-size" in answer(changed_only_there, INFERENCE_ENDPOINT_CONFIG)["status"]["message"]


def test_a_deletion_is_nobody_s_business() -> None:
    assert answer(None, WRONG)["allowed"]


def test_a_warning_is_no_longer_than_the_api_server_takes() -> None:
    tokens = ["--tensor-parallel-size", "9" * 2 * LONGEST_WARNING]
    warnings = answer(changed(INFERENCE_ENDPOINT_CONFIG, {"worker.args": tokens}))["warnings"]
    assert [len(warning) for warning in warnings] == [LONGEST_WARNING]


def test_a_resource_of_another_operator_s_namespace_passes_unlooked_at() -> None:
    asked = {"apiVersion": "admission.k8s.io/v1", "request": {"uid": "7", "namespace": "b", "object": WRONG}}
    assert not review(asked, CATALOGUE)["response"]["allowed"]
    assert not review(asked, CATALOGUE, {"a", "b"})["response"]["allowed"]
    assert review(asked, CATALOGUE, {"a"})["response"] == {"uid": "7", "allowed": True}


@pytest.mark.parametrize("asked", [{}, {"apiVersion": "admission.k8s.io/v1beta1", "request": {"uid": "7"}}])
def test_what_is_no_review_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="AdmissionReview"):
        review(asked, CATALOGUE)


def test_the_configurations_are_valid_objects_of_kubernetes() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    client = {"service": {"namespace": "system", "name": "operator", "path": "/admission"}, "caBundle": "YQ=="}
    for configuration in configurations(client, "system", {"a", "b"}):
        kubernetes_validate.validate(configuration, "1.34", strict=True)
