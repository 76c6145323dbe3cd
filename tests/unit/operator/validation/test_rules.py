"""Rules that a schema cannot say: what excludes what, what needs what, and what cannot be changed later."""

from typing import Any

import pytest
from tests.unit.operator.resources import INFERENCE_ENDPOINT_CONFIG, JUMP_START_MODEL, changed

from tierline.operator.validation import Severity, validate

GPU = {"limits": {"nvidia.com/gpu": 1}}
TOKEN = {"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
METRIC = {"metricName": "m", "namespace": "n", "targetValue": 1, "dimensions": [{"name": "a", "value": "b"}]}
S3 = "modelSourceConfig.s3Storage"
PORT = "worker.modelInvocationPort.containerPort"
ACM = {
    "acmArn": "arn:aws:acm:us-west-2:123456789012:certificate/0a",
    "domainName": "models.example.com",
}


def found(resource: dict[str, Any], severity: Severity) -> set[str]:
    return {finding.path for finding in validate(resource).findings if finding.severity is severity}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"instanceTypes": ["ml.g5.xlarge"]}, "instanceTypes"),
        ({S3: None}, "modelSourceConfig.s3Storage"),
        ({"modelSourceConfig": {"modelSourceType": "fsx"}}, "modelSourceConfig.fsxStorage"),
        ({"modelSourceConfig": {"modelSourceType": "huggingface"}}, "modelSourceConfig.huggingFaceModel"),
        ({"modelSourceConfig": {"modelSourceType": "kubernetesVolume"}}, "kubernetes.volumes"),
        ({f"{S3}.bucketName": "s3://bucket"}, "modelSourceConfig.s3Storage.bucketName"),
        ({"modelSourceConfig.modelLocation": "../other"}, "modelSourceConfig.modelLocation"),
        ({"kvCacheSpec.l2CacheSpec": None}, "kvCacheSpec.l2CacheSpec.l2CacheBackend"),
        ({"kvCacheSpec.l2CacheSpec.l2CacheBackend": "my-redis"}, "kvCacheSpec.l2CacheSpec.l2CacheBackend"),
        ({"kvCacheSpec.l2CacheSpec.l2CacheLocalUrl": "redis:host:6379"}, "kvCacheSpec.l2CacheSpec.l2CacheLocalUrl"),
        ({"worker.image": "lmsysorg/sglang:v0.5"}, "kvCacheSpec"),
        ({PORT: 9113}, PORT),
        ({"worker.image": ""}, "worker.image"),
        ({"worker.modelVolumeMount.mountPath": "model"}, "worker.modelVolumeMount.mountPath"),
        ({"worker.environmentVariables": [{"name": "A"}, {"name": "A"}]}, "worker.environmentVariables[1].name"),
        ({"worker.environmentVariables": [{"name": "A", "value": "b", **TOKEN}]}, "worker.environmentVariables[0]"),
        ({"worker.environmentVariables": [{"name": "A", "valueFrom": {}}]}, "worker.environmentVariables[0].valueFrom"),
        (
            {"worker.resources.limits": {"cpu": "500m"}, "worker.resources.requests": {"cpu": 1}},
            "worker.resources.requests[cpu]",
        ),
        ({"worker.resources.limits": {}}, "worker.resources.limits[nvidia.com/gpu]"),
        ({"worker.resources.limits": {"nvidia.com/gpu": 8}}, "worker.resources.requests[nvidia.com/gpu]"),
        ({"worker.probes.readinessProbe": {"periodSeconds": 5}}, "worker.probes.readinessProbe"),
        ({"kubernetes.volumes": [{"name": "a"}]}, "kubernetes.volumes[0]"),
        ({"kubernetes.volumes": [{"name": "a", "emptyDir": {}}] * 2}, "kubernetes.volumes[1].name"),
        ({"kubernetes.initContainers": [{"name": "a"}]}, "kubernetes.initContainers[0].image"),
        ({"autoScalingSpec": {"minReplicaCount": 3, "maxReplicaCount": 2}}, "autoScalingSpec.minReplicaCount"),
        ({"autoScalingSpec": {"prometheusTriggerList": [{}]}}, "autoScalingSpec.prometheusTriggerList[0].query"),
        ({"autoScalingSpec": {"prometheusTrigger": {"query": "q"}}}, "autoScalingSpec.prometheusTrigger.targetValue"),
        (
            {"autoScalingSpec": {"cloudWatchTrigger": METRIC | {"dimensions": []}}},
            "autoScalingSpec.cloudWatchTrigger.dimensions",
        ),
        (
            {"intelligentRoutingSpec.autoScalingSpec": {"maxReplicaCount": 0}},
            "intelligentRoutingSpec.autoScalingSpec.maxReplicaCount",
        ),
        ({"dnsConfig": {"hostedZoneId": "Z1"}}, "dnsConfig"),
        ({"dataCapture": {"modelPod": {"enabled": True}}}, "dataCapture.s3Uri"),
        ({"endpointName": "Demo"}, "endpointName"),
        ({"replicas": -1}, "replicas"),
        ({"maxDeployTimeInSeconds": 0}, "maxDeployTimeInSeconds"),
        ({"invocationEndpoint": "http://host/v1"}, "invocationEndpoint"),
        ({"modelName": "Llama 3"}, "modelName"),
        (
            {"worker.resources": {}, "pdSpec": {"prefillSpec": {"resources": GPU}, "decodingSpec": {}}},
            "pdSpec.decodingSpec.resources",
        ),
    ],
)
def test_what_cannot_be_acted_upon_is_an_error_at_its_field(changes: dict[str, Any], path: str) -> None:
    assert f"spec.{path}" in found(changed(INFERENCE_ENDPOINT_CONFIG, changes), Severity.ERROR)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"nodeAffinity": {}}, "nodeAffinity"),
        ({"instanceType": None, "instanceTypes": ["ml.g5.xlarge", "ml.g5.xlarge"]}, "instanceTypes[1]"),
        ({"instanceType": None, "instanceTypes": ["a100"]}, "instanceTypes[0]"),
        ({"modelSourceConfig.fsxStorage": {"fileSystemId": "fs-1"}}, "modelSourceConfig.fsxStorage"),
        (
            {"modelSourceConfig": {"modelSourceType": "huggingface", "huggingFaceModel": {"modelId": "mistralai/M"}}},
            "modelSourceConfig.huggingFaceModel.commitSHA",
        ),
        ({"kvCacheSpec.enableL2Cache": False}, "kvCacheSpec.l2CacheSpec"),
        (
            {"kvCacheSpec.l2CacheSpec": {"l2CacheBackend": "redis", "l2CacheLocalUrl": "redis://redis.default:6379"}},
            "kvCacheSpec.l2CacheSpec.l2CacheLocalUrl",
        ),
        ({"kvCacheSpec.cacheConfigFile": "/etc/lmcache.yaml"}, "kvCacheSpec.cacheConfigFile"),
        ({"worker.args": ["--tensor-parallel-size=8"]}, "worker.args"),
        ({"worker.requestLimits": {"maxQueueSize": 4}}, "worker.requestLimits.maxQueueSize"),
        ({"InitialReplicaCount": 2}, "InitialReplicaCount"),
        ({"kubernetes.volumes": [{"name": "model-weights", "emptyDir": {}}]}, "kubernetes.volumes[0].name"),
        ({"replicas": 9, "autoScalingSpec": {"cloudWatchTrigger": METRIC}}, "replicas"),
    ],
)
def test_what_is_perhaps_not_meant_is_a_warning_and_no_error(changes: dict[str, Any], path: str) -> None:
    resource = changed(INFERENCE_ENDPOINT_CONFIG, changes)
    assert found(resource, Severity.ERROR) == set()
    assert found(resource, Severity.WARNING) == {f"spec.{path}"}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"endpointName": "demo"}, "endpointName"),
        ({"tlsConfig": {"customCertificateConfig": ACM}}, "tlsConfig.customCertificateConfig.acmArn"),
        ({"dataCapture": {"sagemakerEndpoint": {"enabled": True}}}, "dataCapture.sagemakerEndpoint"),
        ({"tags": [{"name": "team", "value": "a"}]}, "tags"),
    ],
)
def test_what_needs_aws_is_kept_and_listed(changes: dict[str, Any], path: str) -> None:
    resource = changed(INFERENCE_ENDPOINT_CONFIG, changes)
    assert found(resource, Severity.ERROR) == set()
    assert found(resource, Severity.UNSUPPORTED) == {f"spec.{path}"}


@pytest.mark.parametrize(
    "changes",
    [{"tlsConfig": {"customCertificateConfig": ACM}}, {"tags": [{"name": "team", "value": "a"}]}],
)
def test_of_what_a_load_balancer_of_aws_takes_nobody_says_that_nothing_follows(changes: dict[str, Any]) -> None:
    resource = changed(INFERENCE_ENDPOINT_CONFIG, changes)
    [finding] = validate(resource).unsupported
    assert "nothing follows" not in finding.message
    assert "Application Load Balancer" in finding.message


@pytest.mark.parametrize(
    "changes",
    [
        {"kvCacheSpec.l2CacheSpec": {"l2CacheBackend": "Redis"}},
        {"kvCacheSpec": {"enableL1Cache": False}, "worker.image": "lmsysorg/sglang:v0.5"},
        {"autoScalingSpec": {"cloudWatchTrigger": {"dimensions": []}}},
        {
            "autoScalingSpec": {
                "prometheusTrigger": {"query": "q", "targetValue": 1, "serverAddress": "http://prometheus:9090"}
            }
        },
        {"instanceType": None, "instanceTypes": ["ml.g5.24xlarge", "ml.g6.24xlarge"]},
        {"instanceType": None},
        {
            "modelSourceConfig": {"modelSourceType": "kubernetesVolume"},
            "kubernetes.volumes": [{"name": "model-weights", "hostPath": {"path": "/models"}}],
        },
        {"intelligentRoutingSpec.routingStrategy": "kvaware"},
        {"pdSpec": {"prefillSpec": {"replicas": 2}, "decodingSpec": {}}},
        {"worker.probes.readinessProbe": {"httpGet": {"path": "/health", "port": "http"}}},
    ],
)
def test_nothing_is_said_of_what_is_allowed(changes: dict[str, Any]) -> None:
    assert validate(changed(INFERENCE_ENDPOINT_CONFIG, changes)).findings == ()


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"environmentVariables": [{"name": "A", "value": "1"}] * 2}, "environmentVariables[1].name"),
        ({"model.modelVersion": "1x2x3"}, "model.modelVersion"),
        ({"server.acceleratorPartitionType": "mig-7"}, "server.acceleratorPartitionType"),
        ({"sageMakerEndpoint": {"name": "Demo"}}, "sageMakerEndpoint.name"),
        ({"kvCacheSpec": {"enableL2Cache": True}}, "kvCacheSpec.l2CacheSpec.l2CacheBackend"),
    ],
)
def test_a_jump_start_model_has_rules_of_its_own_and_those_of_every_endpoint(
    changes: dict[str, Any], path: str
) -> None:
    assert f"spec.{path}" in found(changed(JUMP_START_MODEL, changes), Severity.ERROR)


@pytest.mark.parametrize("name", ["Demo", "demo.models", "7b", "d" * 64])
def test_a_name_is_one_that_containers_and_services_may_have(name: str) -> None:
    resource = INFERENCE_ENDPOINT_CONFIG | {"metadata": {"name": name}}
    assert found(resource, Severity.ERROR) == {"metadata.name"}


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (True, None), (None, True)])
def test_routing_is_turned_on_or_off_at_the_beginning_or_never(before: bool | None, after: bool | None) -> None:
    was, is_ = (
        changed(INFERENCE_ENDPOINT_CONFIG, {"intelligentRoutingSpec": None if on is None else {"enabled": on}})
        for on in (before, after)
    )
    assert [finding.path for finding in validate(is_, was).errors] == ["spec.intelligentRoutingSpec.enabled"]


def test_a_change_of_the_strategy_is_none_of_routing_itself() -> None:
    after = changed(INFERENCE_ENDPOINT_CONFIG, {"intelligentRoutingSpec.routingStrategy": "session"})
    assert validate(after, INFERENCE_ENDPOINT_CONFIG).findings == ()
