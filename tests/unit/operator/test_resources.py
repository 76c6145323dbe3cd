import pytest
from pydantic import ValidationError

from tierline.operator import names
from tierline.operator.resources.base import Quantity
from tierline.operator.resources.core import Probe, ResourceRequirements
from tierline.operator.resources.inference_endpoint_config import InferenceEndpointConfig
from tierline.operator.resources.jump_start_model import JumpStartModel
from tierline.operator.resources.volumes import Volume

SPEC = {
    "modelName": "Llama-3.1-8B-Instruct",
    "modelSourceConfig": {"modelSourceType": "s3", "s3Storage": {"bucketName": "models", "region": "us-west-2"}},
    "kvCacheSpec": {"l2CacheSpec": {"l2CacheBackend": "tieredstorage"}},
    "worker": {
        "image": "vllm",
        "modelInvocationPort": {"containerPort": 8000},
        "modelVolumeMount": {"name": "model-weights"},
        "resources": {"limits": {"nvidia.com/gpu": "4", "cpu": 6}},
        "environmentVariables": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}],
    },
}


def endpoint(**changes: object) -> InferenceEndpointConfig:
    return InferenceEndpointConfig.model_validate({"metadata": {"name": "demo"}, "spec": SPEC | changes})


def test_a_key_is_an_attribute_in_snake_case() -> None:
    spec = endpoint(InitialReplicaCount=3).spec
    assert spec.model_source_config.s3_storage is not None
    assert spec.model_source_config.s3_storage.bucket_name == "models"
    assert spec.initial_replica_count == 3
    assert spec.worker.environment_variables is not None
    assert spec.worker.environment_variables[0].value_from is not None


def test_what_is_left_out_has_the_schemas_default_or_is_none() -> None:
    spec = endpoint().spec
    assert spec.kv_cache_spec is not None
    assert spec.kv_cache_spec.enable_l1_cache
    assert not spec.kv_cache_spec.enable_l2_cache
    assert spec.worker.model_volume_mount.mount_path == "/opt/ml/model"
    assert spec.intelligent_routing_spec is None


def test_a_manifest_has_what_was_written_and_nothing_else() -> None:
    assert endpoint().spec.manifest() == SPEC


def test_null_is_the_same_as_nothing() -> None:
    spec = endpoint(replicas=None, metrics=None).spec
    assert spec.replicas == 1
    assert "replicas" not in spec.manifest()


@pytest.mark.parametrize("replicas", ["3", 1.5, True])
def test_a_number_is_a_number(replicas: object) -> None:
    with pytest.raises(ValidationError):
        endpoint(replicas=replicas)


@pytest.mark.parametrize("quantity", [4, "500m", "30Gi", "1e3", "1.5"])
def test_a_quantity_is_kept_as_it_was_written(quantity: Quantity) -> None:
    assert ResourceRequirements.model_validate({"limits": {"cpu": quantity}}).manifest() == {
        "limits": {"cpu": quantity}
    }


@pytest.mark.parametrize("quantity", ["much", "1 Gi", 1.5, True])
def test_what_is_no_quantity_is_refused(quantity: object) -> None:
    with pytest.raises(ValidationError):
        ResourceRequirements.model_validate({"limits": {"cpu": quantity}})


def test_a_port_may_be_a_name() -> None:
    assert Probe.model_validate({"httpGet": {"port": "http", "path": "/health"}}).manifest() == {
        "httpGet": {"port": "http", "path": "/health"}
    }


@pytest.mark.parametrize(
    "source",
    [
        {"awsElasticBlockStore": {"volumeID": "v"}},
        {"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"fc": {"targetWWNs": ["a"]}},
        {"csi": {"driver": "s3.csi.aws.com", "volumeAttributes": {"bucketName": "b"}}},
        {"scaleIO": {"gateway": "g", "secretRef": {"name": "s"}, "system": "s"}},
    ],
)
def test_a_volume_keeps_the_spelling_of_kubernetes(source: dict[str, object]) -> None:
    assert Volume.model_validate({"name": "v", **source}).manifest() == {"name": "v", **source}


def test_a_jump_start_model_needs_no_more_than_a_model_and_a_machine() -> None:
    model = JumpStartModel.model_validate(
        {"spec": {"model": {"modelId": "deepseek"}, "server": {"instanceType": "ml.g5.8xlarge"}}}
    )
    assert not model.spec.model.accept_eula
    assert model.api_version == names.API_VERSION
