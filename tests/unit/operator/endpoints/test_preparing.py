"""Resources from a few words: the cluster would take them, and what contradicts itself is refused."""

from typing import Any

import pytest

from tierline.errors import UsageError
from tierline.operator.endpoints.manifests import checked
from tierline.operator.endpoints.preparing import Wish, prepare

SHA = "0123456789abcdef0123456789abcdef01234567"


def spec(**wanted: Any) -> Any:
    wish = Wish(**{"name": "demo", "namespace": "default", "model": "hf://owner/model", **wanted})
    return checked(prepare(wish), "test")["spec"]


def test_a_model_in_s3_is_where_its_url_says() -> None:
    made = spec(model="s3://my-models/models/Llama-3.1-8B", region="us-west-2")
    assert made["modelSourceConfig"] == {
        "modelSourceType": "s3",
        "s3Storage": {"bucketName": "my-models", "region": "us-west-2"},
        "modelLocation": "models/Llama-3.1-8B",
    }
    assert made["modelName"] == "Llama-3-1-8B"


def test_a_model_of_the_hub_may_be_one_commit_with_a_token() -> None:
    made = spec(model=f"hf://meta-llama/Llama@{SHA}", hf_secret="hf/token")
    assert made["modelSourceConfig"]["huggingFaceModel"] == {
        "modelId": "meta-llama/Llama",
        "commitSHA": SHA,
        "tokenSecretRef": {"name": "hf", "key": "token"},
    }


def test_a_volume_claim_is_mounted_where_the_engine_looks() -> None:
    made = spec(model="pvc://models/llama")
    (volume,) = made["kubernetes"]["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "models"}
    assert volume["name"] == made["worker"]["modelVolumeMount"]["name"]


def test_several_gpus_are_one_replica_s_and_several_types_are_a_preference() -> None:
    made = spec(gpus=4, instance_types=("ml.p5.48xlarge", "ml.g5.24xlarge"), max_model_len=20000)
    assert made["instanceTypes"] == ["ml.p5.48xlarge", "ml.g5.24xlarge"]
    assert made["worker"]["args"][2:] == ["--max-model-len", "20000", "--tensor-parallel-size", "4"]
    assert made["worker"]["resources"]["limits"] == {"nvidia.com/gpu": "4"}


def test_without_a_strategy_there_is_no_router_and_without_l2_none_is_named() -> None:
    made = spec(strategy=None, l2=None)
    assert "intelligentRoutingSpec" not in made
    assert made["kvCacheSpec"] == {"enableL1Cache": True, "enableL2Cache": False}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"model": "http://models/llama"}, "--model: got 'http://models/llama'"),
        ({"model": "s3://bucket-only"}, "--model: got"),
        ({"model": "s3://bucket/model"}, "--s3-region: needed"),
        ({"model": "hf://owner/model@main"}, "the 40 digits"),
        ({"hf_secret": "token"}, "--hf-secret: got 'token'"),
        ({"model": "pvc://claim", "hf_secret": "a/b"}, "--hf-secret: the model does not come from Hugging Face"),
        ({"l2": None, "l2_url": "redis://r:6379"}, "--l2-url: there is no L2"),
        ({"instance_types": ("p5.48xlarge",)}, "spec.instanceType"),
    ],
)
def test_what_cannot_be_is_refused_with_the_flag_or_the_field(wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        spec(**wanted)
    assert said in str(refused.value)
