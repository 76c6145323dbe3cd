"""A resource from a few words: what to serve, from where, on what, with which cache and routing. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from tierline.errors import UsageError
from tierline.kube.cluster import Object
from tierline.operator import names

IMAGE = "public.ecr.aws/deep-learning-containers/vllm:0.11.1-gpu-py312-cu129-ubuntu22.04-ec2-v1.0"
"""vLLM with LMCache in it, on a registry that asks for no account."""
PORT = 8000
MODEL_FOLDER = "/opt/ml/model"
_VOLUME = "model-weights"
_GPU = "nvidia.com/gpu"
_SHA = re.compile(r"[0-9a-f]{40}")
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9-]+")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is wanted of an endpoint.

    Parameters
    ----------
    name, namespace
        Of the resource.
    model
        ``s3://BUCKET/PREFIX``, ``hf://OWNER/MODEL``, with ``@`` and the SHA of a commit for that one, or
        ``pvc://CLAIM/FOLDER``.
    model_name
        What clients call it; ``None``: the last part of ``model``.
    region
        Of the bucket.
    image, arguments
        Of the engine.
    instance_types
        In the order of preference; none: wherever there is room.
    gpus, cpu, memory
        Of each replica, as Kubernetes writes quantities.
    replicas
        How many.
    max_model_len
        Tokens of the longest context; ``None``: the model's own.
    strategy
        Of the router; ``None``: no router.
    has_l1, l2, l2_url
        Caches in the memory of the machine, and of the cluster.
    hf_secret
        Name and key of the Secret with Hugging Face's token, as ``NAME/KEY``.
    """

    name: str
    namespace: str
    model: str
    model_name: str | None = None
    region: str | None = None
    image: str = IMAGE
    arguments: Sequence[str] = ()
    instance_types: Sequence[str] = ()
    gpus: int = 1
    cpu: str = "6"
    memory: str = "30Gi"
    replicas: int = 1
    max_model_len: int | None = None
    strategy: str | None = "prefixaware"
    has_l1: bool = True
    l2: Literal["tieredstorage", "redis"] | None = "tieredstorage"
    l2_url: str | None = None
    hf_secret: str | None = None


@dataclass(frozen=True)
class _Source:
    config: Object
    name: str
    volumes: list[Object] = field(default_factory=list)


def prepare(wish: Wish) -> Object:
    """Return the ``InferenceEndpointConfig`` that asks for what is wanted.

    Raises
    ------
    UsageError
        Something is wanted that cannot be said, or contradicts itself.
    """
    source = _source(wish)
    cache: Object = {"enableL1Cache": wish.has_l1, "enableL2Cache": wish.l2 is not None}
    if wish.l2 is not None:
        cache["l2CacheSpec"] = {"l2CacheBackend": wish.l2}
        if wish.l2_url is not None:
            cache["l2CacheSpec"]["l2CacheLocalUrl"] = wish.l2_url
    elif wish.l2_url is not None:
        raise UsageError("--l2-url: there is no L2; add --l2 redis")
    requests = {"cpu": wish.cpu, "memory": wish.memory, **({_GPU: str(wish.gpus)} if wish.gpus else {})}
    spec: Object = {
        "modelName": wish.model_name or _NOT_IN_NAMES.sub("-", source.name).strip("-")[: names.LONGEST_NAME],
        **_machines(wish.instance_types),
        "replicas": wish.replicas,
        "invocationEndpoint": "v1/chat/completions",
        "modelSourceConfig": source.config,
        "kvCacheSpec": cache,
        "metrics": {"enabled": True, "modelMetrics": {"port": PORT}},
        "loadBalancer": {"healthCheckPath": "/health"},
        "worker": {
            "image": wish.image,
            "args": _arguments(wish),
            "resources": {"limits": {_GPU: str(wish.gpus)} if wish.gpus else {}, "requests": requests},
            "modelInvocationPort": {"containerPort": PORT, "name": "http"},
            "modelVolumeMount": {"name": _VOLUME, "mountPath": MODEL_FOLDER},
        },
    }
    if wish.strategy is not None:
        spec["intelligentRoutingSpec"] = {"enabled": True, "routingStrategy": wish.strategy}
    if source.volumes:
        spec["kubernetes"] = {"volumes": source.volumes}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "InferenceEndpointConfig",
        "metadata": {"name": wish.name, "namespace": wish.namespace},
        "spec": spec,
    }


def _machines(instance_types: Sequence[str]) -> Object:
    if not instance_types:
        return {}
    return {"instanceType": instance_types[0]} if len(instance_types) == 1 else {"instanceTypes": list(instance_types)}


def _arguments(wish: Wish) -> list[str]:
    arguments = ["--model", MODEL_FOLDER]
    if wish.max_model_len is not None:
        arguments += ["--max-model-len", str(wish.max_model_len)]
    if wish.gpus > 1:
        arguments += ["--tensor-parallel-size", str(wish.gpus)]
    return [*arguments, *wish.arguments]


def _source(wish: Wish) -> _Source:
    parts = urlsplit(wish.model)
    path = parts.path.strip("/")
    refused = UsageError(
        f"--model: got {wish.model!r}; allowed: s3://BUCKET/PREFIX, hf://OWNER/MODEL[@COMMIT], pvc://CLAIM[/FOLDER]"
    )
    if not parts.netloc or parts.query or parts.fragment:
        raise refused
    if wish.hf_secret is not None and parts.scheme != "hf":
        raise UsageError("--hf-secret: the model does not come from Hugging Face")
    if parts.scheme == "s3" and path:
        if wish.region is None:
            raise UsageError(
                "--s3-region: needed for s3://, or AWS_REGION; of an endpoint that is not AWS's any will do"
            )
        storage = {"bucketName": parts.netloc, "region": wish.region}
        config: Object = {"modelSourceType": "s3", "s3Storage": storage, "modelLocation": path}
        return _Source(config, path.rpartition("/")[2])
    if parts.scheme == "hf" and path.count("/") == 0 and path:
        return _of_hub(wish, wish.model.removeprefix("hf://").strip("/"))
    if parts.scheme == "pvc":
        config = {"modelSourceType": "kubernetesVolume", **({"modelLocation": path} if path else {})}
        volume = {"name": _VOLUME, "persistentVolumeClaim": {"claimName": parts.netloc}}
        return _Source(config, path.rpartition("/")[2] or wish.name, [volume])
    raise refused


def _of_hub(wish: Wish, named: str) -> _Source:
    model, _, commit = named.partition("@")
    if commit and _SHA.fullmatch(commit) is None:
        raise UsageError(f"--model: got {commit!r} behind the @; allowed: the 40 digits of a commit's SHA")
    hub: Object = {"modelId": model, **({"commitSHA": commit} if commit else {})}
    if wish.hf_secret is not None:
        name, _, key = wish.hf_secret.partition("/")
        if not name or not key:
            raise UsageError(f"--hf-secret: got {wish.hf_secret!r}; allowed: NAME/KEY of a Secret")
        hub["tokenSecretRef"] = {"name": name, "key": key}
    return _Source({"modelSourceType": "huggingface", "huggingFaceModel": hub}, model.rpartition("/")[2])
