"""Rules of an ``InferenceEndpointConfig`` that its schema cannot say."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from tierline.operator.names import COLLECTOR_PORT, PROXY_METRICS_PORT, PROXY_PORT
from tierline.operator.resources.core import EnvVar, Probe, ResourceRequirements
from tierline.operator.resources.inference_endpoint_config import (
    InferenceEndpointConfigSpec,
    ModelSourceConfig,
    PdSpec,
    Worker,
)
from tierline.operator.resources.quantities import amount
from tierline.operator.resources.volumes import Volume
from tierline.operator.validation.endpoint import autoscaling, endpoint, sagemaker_endpoint
from tierline.operator.validation.findings import Finding, error, unsupported, warning

_TAKEN_PORTS = {
    PROXY_PORT: "the proxy",
    PROXY_METRICS_PORT: "the proxy's metrics",
    COLLECTOR_PORT: "the metrics' collector",
}
_OTHER_ENGINES = ("sglang", "text-generation-inference", "tgi-inference", "djl-inference", "tritonserver")
"""In an image's name: what cannot take LMCache's connector of vLLM."""
_TENSOR_PARALLEL = re.compile(r"(?:--tensor-parallel-size|-tp)(?:=|\s+)(\d+)")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]", re.ASCII)
_BLOCKS = {"s3": "s3Storage", "fsx": "fsxStorage", "huggingface": "huggingFaceModel"}


def inference_endpoint_config(spec: InferenceEndpointConfigSpec) -> Iterator[Finding]:
    """Yield what is to be said of a spec."""
    yield from endpoint(spec)
    yield from _machines(spec)
    yield from _source(spec.model_source_config)
    yield from _volumes(spec)
    yield from _worker(spec.worker)
    yield from _engine(spec)
    if spec.pd_spec is not None:
        yield from _phases(spec, spec.pd_spec)
    yield from sagemaker_endpoint(spec.endpoint_name, "spec.endpointName")
    if re.search(r"\s", spec.model_name):
        yield error(
            "spec.modelName", f"got {spec.model_name!r}; allowed: a name without blanks, for clients ask for it"
        )
    if "://" in spec.invocation_endpoint:
        yield error(
            "spec.invocationEndpoint", f"got {spec.invocation_endpoint!r}; allowed: a path, such as invocations"
        )
    if spec.initial_replica_count is not None:
        yield warning("spec.InitialReplicaCount", "is without effect; spec.replicas is how many there are")
    if spec.tags:
        yield unsupported(
            "spec.tags", "an Application Load Balancer gets them, on AWS; nothing else is made that could have them"
        )


def _machines(spec: InferenceEndpointConfigSpec) -> Iterator[Finding]:
    if spec.instance_type is not None and spec.instance_types:
        yield error("spec.instanceTypes", "cannot be beside spec.instanceType; name all in spec.instanceTypes")
    if spec.node_affinity is not None and (spec.instance_type is not None or spec.instance_types):
        yield warning(
            "spec.nodeAffinity",
            "is joined with the instance types: machines must fit both; HyperPod's operator refuses both",
        )
    for index, name in _repeated(spec.instance_types or ()):
        yield warning(f"spec.instanceTypes[{index}]", f"names {name} again; the first place counts")
    for index, name in enumerate(spec.instance_types or ()):
        if not name.startswith("ml."):
            yield warning(
                f"spec.instanceTypes[{index}]",
                f"got {name!r}, which no HyperPod machine is; their types begin with ml.",
            )


def _source(source: ModelSourceConfig) -> Iterator[Finding]:
    path = "spec.modelSourceConfig"
    given = {
        "s3Storage": source.s3_storage,
        "fsxStorage": source.fsx_storage,
        "huggingFaceModel": source.hugging_face_model,
    }
    wanted = _BLOCKS.get(source.model_source_type)
    if wanted is not None and given[wanted] is None:
        yield error(f"{path}.{wanted}", f"is missing, with modelSourceType {source.model_source_type}")
    for block, value in given.items():
        # A volume of the user's own may have a bucket to fall back on.
        if value is not None and wanted is not None and block != wanted:
            yield warning(f"{path}.{block}", f"is without effect, for modelSourceType is {source.model_source_type}")
    if source.s3_storage is not None and not _BUCKET.fullmatch(source.s3_storage.bucket_name):
        yield error(
            f"{path}.s3Storage.bucketName",
            f"got {source.s3_storage.bucket_name!r}; allowed: a bucket's name; the folder in it is modelLocation",
        )
    if source.model_location is not None and ".." in source.model_location.split("/"):
        yield error(
            f"{path}.modelLocation", f"got {source.model_location!r}; allowed: a folder within the source, without .."
        )
    model = source.hugging_face_model
    if source.model_source_type == "huggingface" and model is not None and model.commit_sha is None:
        yield warning(
            f"{path}.huggingFaceModel.commitSHA",
            "is missing: the operator takes what the main branch is whenever the pods change; where it cannot ask the "
            "Hub, each pod takes what that is when it starts, so pods may answer differently, and share no L2 cache",
        )
    token = source.hugging_face_model.token_secret_ref if source.hugging_face_model is not None else None
    if token is not None and not token.name:
        yield error(f"{path}.huggingFaceModel.tokenSecretRef.name", "is missing: the Secret that holds the token")


def _volumes(spec: InferenceEndpointConfigSpec) -> Iterator[Finding]:
    volumes = (spec.kubernetes.volumes if spec.kubernetes is not None else None) or []
    containers = (spec.kubernetes.init_containers if spec.kubernetes is not None else None) or []
    path = "spec.kubernetes.volumes"
    model_volume = spec.worker.model_volume_mount.name
    is_users_own = spec.model_source_config.model_source_type == "kubernetesVolume"
    if is_users_own and model_volume not in {volume.name for volume in volumes}:
        yield error(
            path,
            f"has no volume {model_volume!r}, which spec.worker.modelVolumeMount names: "
            "with modelSourceType kubernetesVolume it is yours to add",
        )
    for index, name in _repeated(volume.name for volume in volumes):
        yield error(f"{path}[{index}].name", f"got {name!r} again; each volume has a name of its own")
    for index, volume in enumerate(volumes):
        if volume.name == model_volume and not is_users_own:
            yield warning(
                f"{path}[{index}].name",
                f"got {model_volume!r}, the volume of the model: yours comes in place of the operator's own",
            )
        sources = _sources(volume)
        if len(sources) != 1:
            found = ", ".join(sources) or "none"
            yield error(f"{path}[{index}]", f"has the sources {found}; a volume has one, such as emptyDir: {{}}")
    for index, name in _repeated(container.name for container in containers):
        yield error(f"spec.kubernetes.initContainers[{index}].name", f"got {name!r} again; each container has its own")
    for index, container in enumerate(containers):
        if not container.image:
            yield error(f"spec.kubernetes.initContainers[{index}].image", "is missing")


def _sources(volume: Volume) -> list[str]:
    return [key for key in volume.manifest() if key != "name"]


def _worker(worker: Worker) -> Iterator[Finding]:
    path = "spec.worker"
    if not worker.image or re.search(r"\s", worker.image):
        yield error(f"{path}.image", f"got {worker.image!r}; allowed: an image, such as vllm/vllm-openai:v0.11.1")
    port = worker.model_invocation_port.container_port
    if port in _TAKEN_PORTS:
        yield error(
            f"{path}.modelInvocationPort.containerPort",
            f"got {port}, where {_TAKEN_PORTS[port]} listens in the same pod; take another one, such as 8000",
        )
    if not worker.model_volume_mount.mount_path.startswith("/"):
        folder = worker.model_volume_mount.mount_path
        yield error(f"{path}.modelVolumeMount.mountPath", f"got {folder!r}; allowed: a folder that begins with /")
    yield from _variables(worker.environment_variables or (), f"{path}.environmentVariables")
    yield from _resources(worker.resources, f"{path}.resources")
    if worker.probes is not None:
        for name, probe in (
            ("livenessProbe", worker.probes.liveness_probe),
            ("readinessProbe", worker.probes.readiness_probe),
            ("startupProbe", worker.probes.startup_probe),
        ):
            if probe is not None:
                yield from _probe(probe, f"{path}.probes.{name}")
    limits = worker.request_limits
    if limits is not None and limits.max_queue_size is not None and limits.max_concurrent_requests is None:
        yield warning(
            f"{path}.requestLimits.maxQueueSize", "is without effect without maxConcurrentRequests: nothing waits"
        )


def _variables(variables: Iterable[EnvVar], path: str) -> Iterator[Finding]:
    listed = list(variables)
    for index, name in _repeated(variable.name for variable in listed):
        yield error(f"{path}[{index}].name", f"got {name!r} again; each variable has one value")
    for index, variable in enumerate(listed):
        if variable.value_from is None:
            continue
        if variable.value:
            yield error(f"{path}[{index}]", "has value and valueFrom; a variable has one of them")
        sources = list(variable.value_from.manifest())
        if len(sources) != 1:
            found = ", ".join(sources) or "none"
            yield error(f"{path}[{index}].valueFrom", f"has the sources {found}; a variable has one")


def _resources(resources: ResourceRequirements, path: str) -> Iterator[Finding]:
    limits, requests = resources.limits or {}, resources.requests or {}
    for name, requested in requests.items():
        if name in limits and amount(requested) > amount(limits[name]):
            yield error(f"{path}.requests[{name}]", f"got {requested}, more than the limit of {limits[name]}")
    for name in {**requests, **limits}:
        # Devices cannot be shared out: what is kept for a pod is what it gets.
        if "/" not in name:
            continue
        if name not in limits:
            yield error(f"{path}.limits[{name}]", "is missing: a device that is requested must be a limit as well")
        elif name in requests and amount(requests[name]) < amount(limits[name]):
            yield error(
                f"{path}.requests[{name}]", f"got {requests[name]}; allowed: as many as the limit, {limits[name]}"
            )


def _probe(probe: Probe, path: str) -> Iterator[Finding]:
    ways = [way for way in probe.manifest() if way in ("exec", "grpc", "httpGet", "tcpSocket")]
    if len(ways) != 1:
        found = " and ".join(ways) or "no way to ask"
        yield error(path, f"has {found}; a probe has one of exec, grpc, httpGet, tcpSocket")


def _engine(spec: InferenceEndpointConfigSpec) -> Iterator[Finding]:
    image = spec.worker.image.rpartition("/")[2]
    engine = next((name for name in _OTHER_ENGINES if name in spec.worker.image), None)
    cache = spec.kv_cache_spec
    if cache is not None and engine is not None and (cache.enable_l1_cache or cache.enable_l2_cache):
        yield error(
            "spec.kvCacheSpec", f"needs vLLM, and {image} is {engine}; leave it out, or set both caches to false"
        )
    found = _TENSOR_PARALLEL.search(" ".join(spec.worker.args or ()))
    gpus = (spec.worker.resources.limits or {}).get("nvidia.com/gpu")
    if found and gpus is not None and int(found[1]) > amount(gpus) and spec.pd_spec is None:
        yield warning("spec.worker.args", f"asks for {found[1]} GPUs by {found[0]!r}, and a worker has {gpus}")


def _phases(spec: InferenceEndpointConfigSpec, pair: PdSpec) -> Iterator[Finding]:
    for name, role in (("prefillSpec", pair.prefill_spec), ("decodingSpec", pair.decoding_spec)):
        path = f"spec.pdSpec.{name}"
        resources = role.resources
        if resources is not None:
            yield from _resources(resources, f"{path}.resources")
        wanted = resources or spec.worker.resources
        if not any("/" in device for device in {**(wanted.requests or {}), **(wanted.limits or {})}):
            yield error(
                f"{path}.resources", "has no accelerator, such as nvidia.com/gpu, and neither has worker.resources"
            )
    if pair.topology_spec is not None and pair.topology_spec.placement_group:
        yield unsupported(
            "spec.pdSpec.topologySpec.placementGroup",
            "kept, and nothing follows from it: machines are put into a placement group where they are made, in AWS",
        )
    if pair.auto_scaling_spec is not None:
        for name, scaling in (
            ("prefillAutoScaling", pair.auto_scaling_spec.prefill_auto_scaling),
            ("decodingAutoScaling", pair.auto_scaling_spec.decoding_auto_scaling),
        ):
            if scaling is not None:
                yield from autoscaling(scaling, f"spec.pdSpec.autoScalingSpec.{name}")
    if spec.auto_scaling_spec is not None:
        yield warning("spec.autoScalingSpec", "is without effect with pdSpec, whose autoScalingSpec has one a phase")
    if "replicas" in spec.manifest() and spec.replicas != 1:
        yield warning("spec.replicas", "is without effect with pdSpec, whose phases have replicas of their own")


def _repeated(names: Iterable[str]) -> Iterator[tuple[int, str]]:
    seen = Counter[str]()
    for index, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:
            yield index, name
