"""A resource's form: what is missing, unknown, or no value for its field, and what to write instead."""

from typing import Any

import pytest
from tests.unit.operator.resources import INFERENCE_ENDPOINT_CONFIG, JUMP_START_MODEL, changed

from tierline.operator.validation import Severity, validate


def said(object_: dict[str, Any]) -> dict[str, str]:
    return {finding.path: finding.message for finding in validate(object_).errors}


@pytest.mark.parametrize("resource", [INFERENCE_ENDPOINT_CONFIG, JUMP_START_MODEL], ids=["iec", "jsm"])
def test_nothing_is_said_of_a_resource_that_is_well(resource: dict[str, Any]) -> None:
    verdict = validate(resource)
    assert verdict.findings == ()
    assert verdict.resource is not None


def test_the_benchmark_s_manifest_is_told_what_to_add() -> None:
    found = said(
        changed(INFERENCE_ENDPOINT_CONFIG, {"worker.modelInvocationPort": None, "worker.modelVolumeMount": None})
    )
    assert "add {containerPort: 8000, name: http}" in found["spec.worker.modelInvocationPort"]
    assert "add {name: model-weights, mountPath: /opt/ml/model}" in found["spec.worker.modelVolumeMount"]


@pytest.mark.parametrize(
    ("arguments", "port"), [(["--port", "8123"], 8123), (["--port=9001"], 9001), ([], 8000), ("--port 1", 8000)]
)
def test_a_missing_port_is_proposed_as_the_engine_is_told_it(arguments: object, port: int) -> None:
    object_ = changed(INFERENCE_ENDPOINT_CONFIG, {"worker.args": arguments, "worker.modelInvocationPort": None})
    assert f"containerPort: {port}" in said(object_)["spec.worker.modelInvocationPort"]


@pytest.mark.parametrize(
    ("path", "given", "words"),
    [
        ("intelligentRoutingSpec.routingStrategy", "prefix-aware", "did you mean prefixaware?"),
        ("intelligentRoutingSpec.routingStrategy", "KVAware", "did you mean kvaware?"),
        ("intelligentRoutingSpec.routingStrategy", "round_robin", "did you mean roundrobin?"),
        ("intelligentRoutingSpec.routingStrategy", "best", "allowed: prefixaware, kvaware, session, roundrobin"),
        ("kvCacheSpec.l2CacheSpec.l2CacheBackend", "tiered-storage", "did you mean tieredstorage?"),
        ("modelSourceConfig.modelSourceType", "HuggingFace", "did you mean huggingface?"),
        ("instanceType", "g5.24xlarge", r"allowed: what fits ^ml\..*"),
        ("replicas", "3", "allowed: a whole number, without quotes"),
        ("replicas", 1.5, "allowed: a whole number"),
        ("modelName", 7, "allowed: a string; put it in quotes"),
        ("kvCacheSpec.enableL1Cache", "yes", "allowed: true or false, without quotes"),
        ("worker.args", "--model x", "allowed: a list"),
        ("worker.probes", "none", "allowed: keys and values"),
        ("worker.modelInvocationPort.containerPort", 0, "allowed: 1 or more"),
        ("worker.requestLimits.overflowStatusCode", 700, "allowed: 599 or less"),
        ("endpointName", "e" * 64, "allowed: at most 63 characters"),
    ],
)
def test_a_wrong_value_is_named_with_its_path_and_what_is_allowed(path: str, given: object, words: str) -> None:
    assert words in said(changed(INFERENCE_ENDPOINT_CONFIG, {path: given}))[f"spec.{path}"]


def test_a_wrong_quantity_is_named_once_and_without_the_branches_of_its_type() -> None:
    found = said(changed(INFERENCE_ENDPOINT_CONFIG, {"worker.resources.limits": {"memory": "30 GiB"}}))
    assert found["spec.worker.resources.limits.memory"] == ("got '30 GiB'; allowed: a quantity such as 4, 500m or 30Gi")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("kvCachSpec", "did you mean kvCacheSpec?"),
        ("worker.env", "no such field"),
        ("worker.modelInvocationport", "did you mean modelInvocationPort?"),
    ],
)
def test_a_field_that_the_api_server_would_drop_is_an_error(path: str, words: str) -> None:
    assert words in said(changed(INFERENCE_ENDPOINT_CONFIG, {path: {}}))[f"spec.{path}"]


def test_unknown_fields_are_found_inside_lists() -> None:
    variables = [{"name": "A", "value": "b"}, {"name": "TOKEN", "valueFrom": {"secretRef": {"name": "x"}}}]
    found = said(changed(INFERENCE_ENDPOINT_CONFIG, {"worker.environmentVariables": variables}))
    assert "did you mean secretKeyRef?" in found["spec.worker.environmentVariables[1].valueFrom.secretRef"]


def test_an_earlier_version_is_refused_by_its_name() -> None:
    found = said(INFERENCE_ENDPOINT_CONFIG | {"apiVersion": "inference.sagemaker.aws.amazon.com/v1alpha1"})
    assert "v1alpha1" in found["apiVersion"]


def test_an_unknown_kind_is_told_the_nearest() -> None:
    assert (
        "did you mean InferenceEndpointConfig?"
        in said(INFERENCE_ENDPOINT_CONFIG | {"kind": "InferenceEndpoint"})["kind"]
    )


def test_a_resource_without_a_spec_lacks_it() -> None:
    object_ = {key: value for key, value in INFERENCE_ENDPOINT_CONFIG.items() if key != "spec"}
    assert said(object_) == {"spec": "is missing"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lmcache", {"mode": "MultiProcess"}),
        ("inferenceGateway", {"enabled": True}),
        ("modelCacheConfig", {"weightsCache": {"enabled": True}}),
    ],
)
def test_fields_of_later_versions_are_kept_and_told_of(field: str, value: dict[str, object]) -> None:
    verdict = validate(changed(INFERENCE_ENDPOINT_CONFIG, {field: value}))
    assert [(finding.severity, finding.path) for finding in verdict.findings] == [
        (Severity.UNSUPPORTED, f"spec.{field}")
    ]
    assert verdict.resource is not None
    assert verdict.resource.spec.manifest()[field] == value


def test_tolerations_are_no_matter_for_a_warning() -> None:
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert validate(changed(INFERENCE_ENDPOINT_CONFIG, {"tolerations": tolerations})).findings == ()


@pytest.mark.parametrize(
    ("key", "path"),
    [("nvidia.com/gpu", "spec[nvidia.com/gpu]"), ("a\nb", "spec['a\\nb']"), ("", "spec['']"), ("a", "spec.a")],
)
def test_a_path_is_one_line_whatever_the_keys_are(key: str, path: str) -> None:
    resource = INFERENCE_ENDPOINT_CONFIG | {"spec": INFERENCE_ENDPOINT_CONFIG["spec"] | {key: 1}}
    assert list(said(resource)) == [path]
