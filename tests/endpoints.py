"""Endpoints for tests of what is made of them: the manifest of the documents, and what a test changes in it."""

from collections.abc import Mapping
from typing import Any

from tierline.operator.endpoint import ANNOTATION_PREFIX, Endpoint
from tierline.operator.resources.inference_endpoint_config import InferenceEndpointConfigSpec

IMAGE = "public.ecr.aws/deep-learning-containers/vllm:0.11.1-gpu-py312-cu129-ubuntu22.04-ec2-v1.0"
SPEC: dict[str, Any] = {
    "modelName": "Llama-3.1-8B-Instruct",
    "instanceType": "ml.g5.24xlarge",
    "replicas": 1,
    "invocationEndpoint": "v1/chat/completions",
    "modelSourceConfig": {
        "modelSourceType": "s3",
        "s3Storage": {"bucketName": "my-model-bucket", "region": "us-west-2"},
        "modelLocation": "models/Llama-3.1-8B-Instruct",
        "prefetchEnabled": False,
    },
    "kvCacheSpec": {
        "enableL1Cache": True,
        "enableL2Cache": True,
        "l2CacheSpec": {"l2CacheBackend": "tieredstorage"},
    },
    "intelligentRoutingSpec": {"enabled": True, "routingStrategy": "prefixaware"},
    "tlsConfig": {"tlsCertificateOutputS3Uri": "s3://my-bucket/certs/"},
    "metrics": {"enabled": True, "modelMetrics": {"port": 8000}},
    "loadBalancer": {"healthCheckPath": "/health"},
    "worker": {
        "resources": {
            "limits": {"nvidia.com/gpu": "4"},
            "requests": {"cpu": "6", "memory": "30Gi", "nvidia.com/gpu": "4"},
        },
        "image": IMAGE,
        "args": ["--model", "/opt/ml/model", "--max-model-len", "20000", "--tensor-parallel-size", "4"],
        "modelInvocationPort": {"containerPort": 8000, "name": "http"},
        "modelVolumeMount": {"name": "model-weights", "mountPath": "/opt/ml/model"},
        "environmentVariables": [
            {"name": "OPTION_ROLLING_BATCH", "value": "vllm"},
            {"name": "SAGEMAKER_SUBMIT_DIRECTORY", "value": "/opt/ml/model/code"},
            {"name": "MODEL_CACHE_ROOT", "value": "/opt/ml/model"},
            {"name": "SAGEMAKER_MODEL_SERVER_WORKERS", "value": "1"},
            {"name": "SAGEMAKER_MODEL_SERVER_TIMEOUT", "value": "3600"},
        ],
    },
}
"""Of the document's manifest, as it is applied."""


def endpoint(
    changes: Mapping[str, Any] | None = None,
    *,
    annotations: Mapping[str, str] | None = None,
    name: str = "demo",
    namespace: str = "default",
) -> Endpoint:
    """Return the document's endpoint.

    Parameters
    ----------
    changes
        Fields of its spec in place of its own; ``None`` takes one out.
    annotations
        Of ours, without the prefix; others with theirs.
    name, namespace
        Its own.
    """
    spec = {key: value for key, value in {**SPEC, **(changes or {})}.items() if value is not None}
    return Endpoint(
        kind="InferenceEndpointConfig",
        name=name,
        namespace=namespace,
        uid="5f2c0f5e-7a35-4c0c-9d52-6a3f1d1f8f11",
        spec=InferenceEndpointConfigSpec.model_validate(spec),
        annotations={
            key if "/" in key else f"{ANNOTATION_PREFIX}{key}": value for key, value in (annotations or {}).items()
        },
    )
