"""Where a model's files come from, and how they get into the pod.

A volume that holds them is mounted where the engine looks for them; what has to be copied first is copied by an init
container into a volume of the pod. PersistentVolumes cannot be changed: they are named after what they are of, so that
another source is another volume.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import annotations, programs
from tierline.operator.manifests.manifest import Made, Manifest, Notice
from tierline.operator.manifests.parts import Parts
from tierline.operator.manifests.sidecars import aws_variables
from tierline.operator.manifests.sizes import binary_quantity
from tierline.operator.names import prefetch_name, within

S3_DRIVER, FSX_DRIVER = "s3.csi.aws.com", "fsx.csi.aws.com"
HUB_TOKEN = "HF_TOKEN"  # noqa: S105  (the name of a variable)

_SOURCE_FOLDER = "/source"
_SOURCE_VOLUME, _COPY_VOLUME = "model-source", "model-copy"
_DEFAULT_FSX_MOUNT = "fsx"
_SIZE = "1200Gi"
"""Kubernetes wants a size; neither driver looks at it. It is the smallest that FSx for Lustre has."""


@dataclass(frozen=True)
class _Volume:
    """A PersistentVolume of our own, and the claim on it.

    Parameters
    ----------
    name
        Of both.
    manifests
        Both of them.
    """

    name: str
    manifests: tuple[Manifest, ...]


def model_source(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return the volumes that an endpoint's model is read from, where the endpoint does not bring its own."""
    volume = _own_volume(endpoint, capabilities, config)
    return Made(volume.manifests if volume is not None else (), _notices(endpoint, capabilities, config))


def source_parts(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Parts:
    """Return what brings the model's files into the pod."""
    source, mount = endpoint.spec.model_source_config, endpoint.spec.worker.model_volume_mount
    own = _own_volume(endpoint, capabilities, config)
    location = (source.model_location or "").strip("/")
    if _is_copied(endpoint, capabilities, config):
        return _copied(endpoint, own, config)
    mounted: dict[str, Any] = {"name": mount.name, "mountPath": mount.mount_path, "readOnly": True}
    if source.model_source_type != "s3" and location:  # of buckets, the volume is the folder
        mounted["subPath"] = location
    if own is None:  # of the user's volumes, by name
        return Parts(mounts=({key: value for key, value in mounted.items() if key != "readOnly"},))
    claim = {"name": mount.name, "persistentVolumeClaim": {"claimName": own.name, "readOnly": True}}
    return Parts(mounts=(mounted,), volumes=(claim,))


def _copied(endpoint: Endpoint, own: _Volume | None, config: OperatorConfig) -> Parts:
    """Return an init container that copies the files into a volume of the pod, and that volume."""
    spec = endpoint.spec
    source, mount = spec.model_source_config, spec.worker.model_volume_mount
    location = (source.model_location or "").strip("/")
    medium = annotations.choice(endpoint, "prefetch-medium", "disk", ("disk", "memory"))
    size_bytes = annotations.size(endpoint, "model-size")
    place: Manifest = {"medium": "Memory"} if medium == "memory" else {}
    if size_bytes is not None:
        place["sizeLimit"] = binary_quantity(size_bytes)
    volumes: list[Manifest] = [{"name": mount.name, "emptyDir": place}]
    mounts: list[Manifest] = [{"name": mount.name, "mountPath": mount.mount_path}]
    environment = aws_variables(endpoint)
    arguments: list[str] = []
    match source.model_source_type:
        case "s3":
            storage = source.s3_storage
            assert storage is not None  # validated
            address = f"s3://{storage.bucket_name}/{location}".rstrip("/")
            arguments.append(f"--s3-region={storage.region}")
            if config.s3_endpoint is not None:
                arguments.append(f"--s3-endpoint={config.s3_endpoint}")
        case "huggingface":
            model = source.hugging_face_model
            assert model is not None  # validated
            address = f"hf://{model.model_id}@{endpoint.commit or 'main'}"
            if config.hf_endpoint is not None:
                arguments.append(f"--hf-endpoint={config.hf_endpoint}")
            environment = []
            if model.token_secret_ref is not None:
                environment.append(
                    {"name": HUB_TOKEN, "valueFrom": {"secretKeyRef": model.token_secret_ref.manifest()}}
                )
        case _:
            address = f"file://{_SOURCE_FOLDER}/{location}".rstrip("/")
            environment = []
            if own is not None:
                claim = {"claimName": own.name, "readOnly": True}
                volumes.append({"name": _SOURCE_VOLUME, "persistentVolumeClaim": claim})
            name = _SOURCE_VOLUME if own is not None else mount.name
            mounts.append({"name": name, "mountPath": _SOURCE_FOLDER, "readOnly": True})
    if source.model_source_type == "kubernetesVolume":
        # The volume by the mount's name is the user's: what is copied needs another.
        volumes[0] = {**volumes[0], "name": _COPY_VOLUME}
        mounts[0] = {**mounts[0], "name": _COPY_VOLUME}
    resources: Manifest = {"requests": {"cpu": "500m", "memory": "512Mi"}}
    if medium == "disk":  # what is written into memory counts for the container that writes it, the whole model
        resources["limits"] = {"memory": "2Gi"}
        if size_bytes is not None:  # else the scheduler counts nothing, and the disk may be too small for it
            resources["requests"]["ephemeral-storage"] = binary_quantity(size_bytes)
    fetch = {
        "name": prefetch_name(endpoint.name),
        "image": config.image,
        "command": ["tierline", "fetch"],
        "args": [address, mount.mount_path, *arguments],
        "env": [*environment, *programs.settings("fetch", {"log_format": "json"})],
        "resources": resources,
        "securityContext": programs.restricted(),
        "volumeMounts": mounts,
    }
    return Parts(
        init_containers=(fetch,),
        volumes=tuple(volumes),
        mounts=(mounts[0],),
    )


def _is_copied(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> bool:
    source = endpoint.spec.model_source_config
    match source.model_source_type:
        case "huggingface":
            return True
        case "s3":
            return source.prefetch_enabled or not _is_s3_mounted(endpoint, capabilities, config)
        case _:
            return source.prefetch_enabled


def s3_way(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Literal["", "mounted", "copied"]:
    """Return how a model in S3 comes to the pods; nothing, where it is not there or the resource says how."""
    source = endpoint.spec.model_source_config
    if source.model_source_type != "s3" or source.prefetch_enabled:
        return ""
    return "mounted" if _is_s3_mounted(endpoint, capabilities, config) else "copied"


def _is_s3_mounted(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> bool:
    way = endpoint.settled.pods.s3 or ("mounted" if S3_DRIVER in capabilities.csi_drivers else "copied")
    return way == "mounted" and config.s3_endpoint is None


def _own_volume(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> _Volume | None:
    source = endpoint.spec.model_source_config
    location = (source.model_location or "").strip("/")
    if source.model_source_type == "s3" and not _is_copied(endpoint, capabilities, config):
        storage = source.s3_storage
        assert storage is not None  # validated
        options = [f"region {storage.region}", "read-only", "allow-other"]
        if location:
            options.append(f"prefix {location}/")
        return _volume(endpoint, S3_DRIVER, None, {"bucketName": storage.bucket_name}, options)
    if source.model_source_type == "fsx":
        system = source.fsx_storage
        assert system is not None  # validated
        attributes = {"mountname": system.mount_name or _DEFAULT_FSX_MOUNT}
        if system.dns_name:
            attributes["dnsname"] = system.dns_name
        return _volume(endpoint, FSX_DRIVER, system.file_system_id, attributes, ["flock"])
    return None


def _volume(
    endpoint: Endpoint, driver: str, handle: str | None, attributes: dict[str, str], options: list[str]
) -> _Volume:
    """Return a volume of a CSI driver and the claim that alone can have it."""
    identity = json.dumps([endpoint.namespace, endpoint.name, driver, handle, attributes, options])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    # Volumes are the cluster's, so the namespace is in the name.
    name = f"{within(f'{endpoint.namespace}-{endpoint.name}', 48)}-model-{digest}"
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": _SIZE},
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": endpoint.namespace,
                "name": name,
            },
            "mountOptions": options,
            "csi": {"driver": driver, "volumeHandle": handle or name, "volumeAttributes": attributes},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": endpoint.namespace},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": name,
            "resources": {"requests": {"storage": _SIZE}},
        },
    }
    return _Volume(name, (volume, claim))


def _notices(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> tuple[Notice, ...]:
    source = endpoint.spec.model_source_config
    notices = []
    match s3_way(endpoint, capabilities, config), S3_DRIVER in capabilities.csi_drivers:
        case "copied", has_driver:
            why = f"the cluster has no CSI driver {S3_DRIVER}"
            if config.s3_endpoint is not None:
                why = "buckets of another S3 endpoint than AWS's are not mounted"
            elif has_driver:
                why = f"the cluster had no CSI driver {S3_DRIVER} when these pods were made"
            notices.append(
                Notice("ModelSourceReady", "CopiedFromS3", f"{why}: each pod copies the model before its engine starts")
            )
        case "mounted", False:
            message = (
                f"the cluster has no CSI driver {S3_DRIVER} any more: pods that run go on, new ones wait for their "
                "volume until it is installed"
            )
            notices.append(Notice("ModelSourceReady", "NoS3Driver", message))
    if source.model_source_type == "fsx":
        if FSX_DRIVER not in capabilities.csi_drivers:
            notices.append(
                Notice(
                    "ModelSourceReady",
                    "NoFsxDriver",
                    f"the cluster has no CSI driver {FSX_DRIVER}: pods wait for their volume until it is installed; or "
                    "mount the file system by spec.kubernetes.volumes and modelSourceType kubernetesVolume",
                )
            )
        if source.fsx_storage is not None and not source.fsx_storage.dns_name:
            notices.append(
                Notice(
                    "ModelSourceReady",
                    "NoDnsName",
                    "spec.modelSourceConfig.fsxStorage.dnsName is not set, and without it the driver does not find the "
                    "file system: it is like fs-0123456789abcdef0.fsx.us-west-2.amazonaws.com",
                )
            )
    return tuple(notices)
