"""Volumes of a pod with all their sources, as ``core/v1`` has them; they are handed on as they are."""

from typing import Any

from pydantic import Field

from tierline.operator.resources.base import ATOMIC, Atomic, Fragment, Int32, Int64, Quantity
from tierline.operator.resources.core import FieldReference, LabelSelector, LocalReference, ResourceFieldReference


class KeyToPath(Fragment):
    """A key of a ConfigMap or a Secret as a file."""

    key: str
    path: str
    mode: Int32 | None = None


class DownwardApiFile(Fragment):
    """A field of the pod as a file."""

    path: str
    field_ref: FieldReference | None = None
    mode: Int32 | None = None
    resource_field_ref: ResourceFieldReference | None = None


class AwsElasticBlockStore(Fragment):
    """A disk of AWS."""

    volume_id: str = Field(alias="volumeID")
    fs_type: str | None = None
    partition: Int32 | None = None
    read_only: bool | None = None


class AzureDisk(Fragment):
    """A disk of Azure."""

    disk_name: str
    disk_uri: str = Field(alias="diskURI")
    caching_mode: str | None = None
    fs_type: str = "ext4"
    kind: str | None = None
    read_only: bool = False


class AzureFile(Fragment):
    """A share of Azure."""

    secret_name: str
    share_name: str
    read_only: bool | None = None


class CephFs(Fragment):
    """A file system of Ceph."""

    monitors: Atomic[str]
    path: str | None = None
    read_only: bool | None = None
    secret_file: str | None = None
    secret_ref: LocalReference | None = None
    user: str | None = None


class Cinder(Fragment):
    """A disk of OpenStack."""

    volume_id: str = Field(alias="volumeID")
    fs_type: str | None = None
    read_only: bool | None = None
    secret_ref: LocalReference | None = None


class ConfigMapVolume(Fragment):
    """A ConfigMap as files."""

    model_config = ATOMIC
    name: str = ""
    default_mode: Int32 | None = None
    items: Atomic[KeyToPath] | None = None
    optional: bool | None = None


class Csi(Fragment):
    """What a CSI driver gives for the life of the pod."""

    driver: str
    fs_type: str | None = None
    node_publish_secret_ref: LocalReference | None = None
    read_only: bool | None = None
    volume_attributes: dict[str, str] | None = None


class DownwardApi(Fragment):
    """Fields of the pod as files."""

    default_mode: Int32 | None = None
    items: Atomic[DownwardApiFile] | None = None


class EmptyDir(Fragment):
    """An empty folder on the node's disk or in its memory."""

    medium: str | None = None
    size_limit: Quantity | None = None


class TypedReference(Fragment):
    """An object of the claim's namespace."""

    model_config = ATOMIC
    kind: str
    name: str
    api_group: str | None = None


class NamespacedReference(Fragment):
    """An object of any namespace."""

    kind: str
    name: str
    api_group: str | None = None
    namespace: str | None = None


class VolumeResources(Fragment):
    """How large a claimed volume is."""

    limits: dict[str, Quantity] | None = None
    requests: dict[str, Quantity] | None = None


class VolumeClaimSpec(Fragment):
    """What a claim asks for."""

    access_modes: Atomic[str] | None = None
    data_source: TypedReference | None = None
    data_source_ref: NamespacedReference | None = None
    resources: VolumeResources | None = None
    selector: LabelSelector | None = None
    storage_class_name: str | None = None
    volume_attributes_class_name: str | None = None
    volume_mode: str | None = None
    volume_name: str | None = None


class VolumeClaimTemplate(Fragment):
    """A claim that is made with the pod."""

    spec: VolumeClaimSpec
    metadata: dict[str, Any] | None = None


class Ephemeral(Fragment):
    """A volume that is made and deleted with the pod."""

    volume_claim_template: VolumeClaimTemplate | None = None


class FibreChannel(Fragment):
    """A disk over Fibre Channel."""

    fs_type: str | None = None
    lun: Int32 | None = None
    read_only: bool | None = None
    target_wwns: Atomic[str] | None = Field(default=None, alias="targetWWNs")
    wwids: Atomic[str] | None = None


class FlexVolume(Fragment):
    """What a program on the node mounts."""

    driver: str
    fs_type: str | None = None
    options: dict[str, str] | None = None
    read_only: bool | None = None
    secret_ref: LocalReference | None = None


class Flocker(Fragment):
    """A data set of Flocker."""

    dataset_name: str | None = None
    dataset_uuid: str | None = Field(default=None, alias="datasetUUID")


class GcePersistentDisk(Fragment):
    """A disk of Google's cloud."""

    pd_name: str
    fs_type: str | None = None
    partition: Int32 | None = None
    read_only: bool | None = None


class GitRepo(Fragment):
    """A clone of a repository."""

    repository: str
    directory: str | None = None
    revision: str | None = None


class Glusterfs(Fragment):
    """A volume of Gluster."""

    endpoints: str
    path: str
    read_only: bool | None = None


class HostPath(Fragment):
    """A file or a folder of the node."""

    path: str
    type: str | None = None


class ImageVolume(Fragment):
    """An image's files."""

    reference: str | None = None
    pull_policy: str | None = None


class Iscsi(Fragment):
    """A disk over iSCSI."""

    iqn: str
    lun: Int32
    target_portal: str
    chap_auth_discovery: bool | None = None
    chap_auth_session: bool | None = None
    fs_type: str | None = None
    initiator_name: str | None = None
    iscsi_interface: str = "default"
    portals: Atomic[str] | None = None
    read_only: bool | None = None
    secret_ref: LocalReference | None = None


class Nfs(Fragment):
    """A folder of an NFS server."""

    path: str
    server: str
    read_only: bool | None = None


class ClaimedVolume(Fragment):
    """A volume by its claim."""

    claim_name: str
    read_only: bool | None = None


class PhotonDisk(Fragment):
    """A disk of Photon."""

    pd_id: str = Field(alias="pdID")
    fs_type: str | None = None


class Portworx(Fragment):
    """A volume of Portworx."""

    volume_id: str = Field(alias="volumeID")
    fs_type: str | None = None
    read_only: bool | None = None


class ClusterTrustBundle(Fragment):
    """Certificates that are trusted, as a file."""

    path: str
    label_selector: LabelSelector | None = None
    name: str | None = None
    optional: bool | None = None
    signer_name: str | None = None


class ProjectedFiles(Fragment):
    """A ConfigMap or a Secret among other sources."""

    model_config = ATOMIC
    name: str = ""
    items: Atomic[KeyToPath] | None = None
    optional: bool | None = None


class ProjectedDownwardApi(Fragment):
    """Fields of the pod among other sources."""

    items: Atomic[DownwardApiFile] | None = None


class PodCertificate(Fragment):
    """A certificate of the pod's own."""

    key_type: str
    signer_name: str
    certificate_chain_path: str | None = None
    credential_bundle_path: str | None = None
    key_path: str | None = None
    max_expiration_seconds: Int32 | None = None
    user_annotations: dict[str, str] | None = None


class ServiceAccountToken(Fragment):
    """A token of the pod's account."""

    path: str
    audience: str | None = None
    expiration_seconds: Int64 | None = None


class ProjectedSource(Fragment):
    """One of the sources that a projected volume puts together."""

    cluster_trust_bundle: ClusterTrustBundle | None = None
    config_map: ProjectedFiles | None = None
    downward_api: ProjectedDownwardApi | None = Field(default=None, alias="downwardAPI")
    pod_certificate: PodCertificate | None = None
    secret: ProjectedFiles | None = None
    service_account_token: ServiceAccountToken | None = None


class Projected(Fragment):
    """Several sources as one folder."""

    default_mode: Int32 | None = None
    sources: Atomic[ProjectedSource] | None = None


class Quobyte(Fragment):
    """A volume of Quobyte."""

    registry: str
    volume: str
    group: str | None = None
    read_only: bool | None = None
    tenant: str | None = None
    user: str | None = None


class Rbd(Fragment):
    """A block device of Ceph."""

    image: str
    monitors: Atomic[str]
    fs_type: str | None = None
    keyring: str = "/etc/ceph/keyring"
    pool: str = "rbd"
    read_only: bool | None = None
    secret_ref: LocalReference | None = None
    user: str = "admin"


class ScaleIo(Fragment):
    """A volume of ScaleIO."""

    gateway: str
    secret_ref: LocalReference
    system: str
    fs_type: str = "xfs"
    protection_domain: str | None = None
    read_only: bool | None = None
    ssl_enabled: bool | None = None
    storage_mode: str = "ThinProvisioned"
    storage_pool: str | None = None
    volume_name: str | None = None


class SecretVolume(Fragment):
    """A Secret as files."""

    secret_name: str | None = None
    default_mode: Int32 | None = None
    items: Atomic[KeyToPath] | None = None
    optional: bool | None = None


class StorageOs(Fragment):
    """A volume of StorageOS."""

    fs_type: str | None = None
    read_only: bool | None = None
    secret_ref: LocalReference | None = None
    volume_name: str | None = None
    volume_namespace: str | None = None


class VsphereVolume(Fragment):
    """A disk of vSphere."""

    volume_path: str
    fs_type: str | None = None
    storage_policy_id: str | None = Field(default=None, alias="storagePolicyID")
    storage_policy_name: str | None = None


class Volume(Fragment):
    """A volume of a pod: a name, and one of the sources."""

    name: str
    aws_elastic_block_store: AwsElasticBlockStore | None = None
    azure_disk: AzureDisk | None = None
    azure_file: AzureFile | None = None
    cephfs: CephFs | None = None
    cinder: Cinder | None = None
    config_map: ConfigMapVolume | None = None
    csi: Csi | None = None
    downward_api: DownwardApi | None = Field(default=None, alias="downwardAPI")
    empty_dir: EmptyDir | None = None
    ephemeral: Ephemeral | None = None
    fc: FibreChannel | None = None
    flex_volume: FlexVolume | None = None
    flocker: Flocker | None = None
    gce_persistent_disk: GcePersistentDisk | None = None
    git_repo: GitRepo | None = None
    glusterfs: Glusterfs | None = None
    host_path: HostPath | None = None
    image: ImageVolume | None = None
    iscsi: Iscsi | None = None
    nfs: Nfs | None = None
    persistent_volume_claim: ClaimedVolume | None = None
    photon_persistent_disk: PhotonDisk | None = None
    portworx_volume: Portworx | None = None
    projected: Projected | None = None
    quobyte: Quobyte | None = None
    rbd: Rbd | None = None
    scale_io: ScaleIo | None = Field(default=None, alias="scaleIO")
    secret: SecretVolume | None = None
    storageos: StorageOs | None = None
    vsphere_volume: VsphereVolume | None = None
