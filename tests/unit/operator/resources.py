"""Resources for tests: whole ones, and ones that differ from them in some fields."""

import copy
from typing import Any

INFERENCE_ENDPOINT_CONFIG: dict[str, Any] = {
    "apiVersion": "inference.sagemaker.aws.amazon.com/v1",
    "kind": "InferenceEndpointConfig",
    "metadata": {"name": "demo", "namespace": "default"},
    "spec": {
        "modelName": "Llama-3.1-8B-Instruct",
        "instanceType": "ml.g5.24xlarge",
        "invocationEndpoint": "v1/chat/completions",
        "modelSourceConfig": {
            "modelSourceType": "s3",
            "s3Storage": {"bucketName": "my-model-bucket", "region": "us-west-2"},
            "modelLocation": "models/Llama-3.1-8B-Instruct",
        },
        "kvCacheSpec": {
            "enableL1Cache": True,
            "enableL2Cache": True,
            "l2CacheSpec": {"l2CacheBackend": "tieredstorage"},
        },
        "intelligentRoutingSpec": {"enabled": True, "routingStrategy": "prefixaware"},
        "metrics": {"enabled": True, "modelMetrics": {"port": 8000}},
        "worker": {
            "resources": {
                "limits": {"nvidia.com/gpu": "4"},
                "requests": {"cpu": "6", "memory": "30Gi", "nvidia.com/gpu": "4"},
            },
            "image": "public.ecr.aws/deep-learning-containers/vllm:0.11.1",
            "args": ["--model", "/opt/ml/model", "--tensor-parallel-size", "4"],
            "modelInvocationPort": {"containerPort": 8000, "name": "http"},
            "modelVolumeMount": {"name": "model-weights", "mountPath": "/opt/ml/model"},
            "environmentVariables": [{"name": "MODEL_CACHE_ROOT", "value": "/opt/ml/model"}],
        },
    },
}
JUMP_START_MODEL: dict[str, Any] = {
    "apiVersion": "inference.sagemaker.aws.amazon.com/v1",
    "kind": "JumpStartModel",
    "metadata": {"name": "deepseek", "namespace": "default"},
    "spec": {
        "model": {"modelId": "deepseek-llm-r1-distill-qwen-1-5b"},
        "server": {"instanceType": "ml.g5.8xlarge"},
    },
}


def changed(resource: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with other values at ``a.b.c`` below ``spec``; ``None`` takes a field away."""
    copied = copy.deepcopy(resource)
    for path, value in changes.items():
        *parents, key = path.split(".")
        place = copied["spec"]
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            place.pop(key, None)
        else:
            place[key] = value
    return copied
