"""Settings of ``tierline node``; each has its entry in docs/node.md."""

import grp
import ipaddress
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from socket import gethostname
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from tierline.configuration import ByteSize, ProgramConfig, parse_byte_size
from tierline.kube.selections import parse_service
from tierline.node.buckets import EVERY_BUCKET, BucketPattern, parse_pattern
from tierline.node.memory import total_memory_bytes
from tierline.node.tier_figures import WritePolicy
from tierline.pool.members import parse_member
from tierline.pool.members.etcd_address import parse_etcd
from tierline.store import BucketRules, Quota
from tierline.store.eviction import PolicyName
from tierline.wire.http import MIN_HEAD_LIMIT_BYTES

_KIB = 1024
_DAY_S = 86_400
_MIB = 1024 * _KIB
_BETWEEN_TIERS = re.compile(r"[\s,]+(?=[a-z0-9+]+://|tieredstorage)")
_SEGMENT_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$"


def parse_file_mode(value: object) -> int:
    """Return permission bits from ``"0666"``, ``"666"``, ``"0o666"`` or an integer.

    Raises
    ------
    ValueError
        For anything that is no file mode.
    """
    allowed = "an octal file mode such as 0666"
    if isinstance(value, str):
        try:
            value = int(value, 8)
        except ValueError:
            raise ValueError(allowed) from None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o777:
        raise ValueError(allowed)
    return value


def parse_capacity(value: object) -> int:
    """Return a size in bytes, or the share of the machine's memory that ``"20%"`` says.

    Raises
    ------
    ValueError
        For anything else.
    """
    try:
        if isinstance(value, str) and value.strip().endswith("%"):
            share = float(value.strip()[:-1])
            if 0 < share <= 100:
                return int(total_memory_bytes() * share / 100)
        return parse_byte_size(value)
    except ValueError:
        raise ValueError("a size such as 512MiB or 1.5GiB, or a share of this machine's memory such as 20%") from None


def parse_group(value: object) -> int:
    """Return the id of the group with a name, or the id itself.

    Raises
    ------
    ValueError
        This machine has no such group.
    """
    if isinstance(value, str) and not value.isdecimal():
        try:
            return grp.getgrnam(value).gr_gid
        except KeyError:
            raise ValueError("a group of this machine, by its name or id") from None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a group of this machine, by its name or id")
    return int(value)


def split_address(value: object) -> tuple[str, int]:
    """Return host and port of ``"127.0.0.1:9200"`` or ``"[::]:9200"``; raises ``ValueError`` for anything else."""
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not (host and colon and port.isdecimal()):
        raise ValueError("an address and a port, such as 127.0.0.1:9200 or [::]:9200")
    return host, int(port)


def parse_json(value: object) -> object:
    """Return what a variable of the environment says in JSON; what a file says is returned as it is.

    Raises
    ------
    ValueError
        It is text, and no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("a table in a file, or JSON") from None


def parse_bucket(value: str) -> str:
    """Return the name of one bucket, or ``*``; raises ``ValueError`` for anything else."""
    if parse_pattern(value) != EVERY_BUCKET and value.endswith("*"):
        raise ValueError("the name of one bucket, or * for those that are not named")
    return value


def parse_tiers(value: object) -> object:
    """Return a list of tables, ``{"url": …}`` where a tier is named by its URL alone.

    A variable of the environment, or a flag, says several with spaces or commas between them, or in JSON.

    >>> parse_tiers("tieredstorage, redis+cluster://a:6379,b:6379")
    [{'url': 'tieredstorage'}, {'url': 'redis+cluster://a:6379,b:6379'}]
    """
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = _BETWEEN_TIERS.split(value.strip()) if value.strip() else []
    value = parse_json(value)
    return [{"url": tier} if isinstance(tier, str) else tier for tier in value] if isinstance(value, list) else value


BucketName = Annotated[str, AfterValidator(parse_bucket)]
Capacity = Annotated[int, BeforeValidator(parse_capacity)]
GroupId = Annotated[int, BeforeValidator(parse_group)]
FileMode = Annotated[int, BeforeValidator(parse_file_mode)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class QuotaConfig(_Part):
    """Bounds of what is stored: above a soft one its own objects go first, a hard one is never passed."""

    soft_bytes: ByteSize | None = None
    hard_bytes: ByteSize | None = None
    soft_objects: Annotated[int, Field(ge=1)] | None = None
    hard_objects: Annotated[int, Field(ge=1)] | None = None

    @field_validator("hard_bytes", "hard_objects")
    @classmethod
    def _is_no_less_than_soft(cls, value: int | None, info: ValidationInfo) -> int | None:
        soft = info.data.get(str(info.field_name).replace("hard", "soft"))
        if value is not None and soft is not None and value < soft:
            raise ValueError(f"no less than the soft one, {soft}")
        return value

    def quota(self) -> Quota:
        """Return it as the store takes it."""
        return Quota(self.soft_bytes, self.hard_bytes, self.soft_objects, self.hard_objects)


class BucketConfig(QuotaConfig):
    """What holds in a bucket: a quota of its own, one of each of its tenants, how long objects are kept, and where.

    ``copies`` are those that nodes of a pool make of themselves; readers keep what they fetched in any case.
    """

    tenant: QuotaConfig = QuotaConfig()
    ttl_s: Annotated[float, Field(gt=0)] | None = None
    copies: Annotated[int, Field(ge=1, le=2)] = 1

    def rules(self) -> BucketRules:
        """Return it as the store takes it."""
        return BucketRules(self.quota(), self.tenant.quota(), self.ttl_s)


class SegmentConfig(_Part):
    """A segment for some buckets, whose clients share no memory with those of others."""

    name: str = Field(pattern=_SEGMENT_NAME)
    capacity: Annotated[Capacity, Field(ge=2 * _MIB)]
    buckets: Annotated[list[BucketPattern], Field(min_length=1)]
    mode: FileMode = 0o600
    group: GroupId | None = None
    numa_node: Annotated[int, Field(ge=0)] | None = None
    huge_pages: bool = False
    eviction: PolicyName | None = None


class TierConfig(_Part):
    """A tier below the node's memory: ``tieredstorage``, or a URL; unset, the rest is as for all of them."""

    url: Annotated[str, Field(min_length=1)]
    write_policy: WritePolicy | None = None
    promote: bool | None = None


class NodeConfig(ProgramConfig):
    """Settings of one node store."""

    program: ClassVar[str] = "node"
    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "server": ("address",),
        "cache": ("capacity", "shared_memory_name"),
        "transfer": ("address",),
    }

    host: str = Field(default="127.0.0.1", description="address that HTTP listens on")
    port: int = Field(default=9200, ge=1, le=65535, description="port that HTTP listens on")
    socket: Path | None = Field(
        default=None,
        description="UNIX socket of our own clients; unset: tierline-PORT.sock in $XDG_RUNTIME_DIR, or /tmp",
    )
    socket_mode: FileMode = Field(default=0o660, description="permissions of the UNIX socket")
    node_name: str = Field(default_factory=gethostname, description="name of the node, as clients see it")

    shared_memory_name: str = Field(
        default="shared_memory",
        pattern=_SEGMENT_NAME,
        description="name of the segment: a file in /dev/shm",
    )
    shared_memory_directory: Path = Field(
        default=Path("/dev/shm"),  # noqa: S108  (POSIX shared memory lives there)
        description="where the segment is; another place than /dev/shm is for tests",
    )
    shared_memory_mode: FileMode = Field(
        default=0o666,
        description="permissions of the segment; LMCache's in-process client of another user needs 0666",
    )
    shared_memory_group: GroupId | None = Field(
        default=None, description="group that the segment is given to; unset: the process's own"
    )
    numa_node: int | None = Field(
        default=None, ge=0, description="NUMA node that the segment is allocated on; unset: where the kernel likes"
    )
    huge_pages: bool = Field(default=False, description="allocate the segment in transparent huge pages")
    capacity: Capacity = Field(
        default=512 * _MIB, ge=2 * _MIB, description="size of the segment, also as 20%; fixed for its life"
    )
    eviction: PolicyName = Field(default="arc", description="who goes when room is needed")

    buckets: Annotated[dict[BucketName, BucketConfig], BeforeValidator(parse_json)] = Field(
        default={}, description="quotas and time to live by bucket; * stands for those that are not named"
    )

    segments: Annotated[list[SegmentConfig], BeforeValidator(parse_json)] = Field(
        default=[], description="further segments, for buckets whose clients must not share memory with others"
    )

    max_ttl_s: float = Field(default=60.0, gt=0, description="longest time to live of a lease; more is cut to it")
    grace_s: float = Field(default=2.0, ge=0, description="an object stays readable so long after its lease's release")
    quarantine_s: float = Field(
        default=5.0, ge=0, description="pages of a lease that expired are not reused for so long"
    )
    max_leases_per_client: int = Field(
        default=16_384,
        ge=1,
        description="most leases of one connection of the socket; over HTTP, of one token or one address",
    )
    max_object: ByteSize | None = Field(
        default=None, ge=1, description="largest object, or slot, that is taken; unset: what the segment can hold"
    )
    max_reserved: ByteSize | None = Field(
        default=None, ge=1, description="most bytes one connection may hold in open slots; unset: half the capacity"
    )

    scrub_rate: ByteSize | None = Field(
        default=None,
        ge=0,
        description="bytes a second compared with their checksums; 0: none; unset: all in a day, 64 MiB at most",
    )

    tokens_file: Path | None = Field(
        default=None, description="YAML file with bearer tokens and their rights; unset: everybody may do everything"
    )
    trusted_network: bool = Field(
        default=False,
        description="everybody whom the network lets connect may do what clients without a token may do",
    )

    tls_certificate: Path | None = Field(
        default=None, description="PEM file of the certificate that HTTP is served with; unset: without TLS"
    )
    tls_key: Path | None = Field(
        default=None, validate_default=True, description="PEM file of the certificate's key, without a passphrase"
    )
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of the authorities whose certificates clients must show; unset: none"
    )

    transfer_address: str | None = Field(
        default=None, description="HOST:PORT that the other nodes of a pool reach this one at"
    )

    pool_name: str = Field(
        default="tierline",
        min_length=1,
        max_length=200,
        description="name of the pool; nodes of another are turned away",
    )
    pool_token_file: Path | None = Field(
        default=None, description="file with the secret that all nodes of the pool know each other by"
    )
    pool_tls_certificate: Path | None = Field(
        default=None, description="PEM file of the certificate that this node shows to the others, and they to it"
    )
    pool_tls_key: Path | None = Field(default=None, validate_default=True, description="PEM file of its key")
    pool_tls_ca: Path | None = Field(
        default=None, validate_default=True, description="PEM file of the authorities of the nodes' certificates"
    )
    pool_tls_name: str = Field(
        default="", description="a name that every node's certificate has; unset: each has that of its node or address"
    )

    peers: list[str] = Field(
        default=[], description="the pool's other nodes: HOST:PORT or NAME=HOST:PORT of their transfer_address"
    )
    peers_kubernetes: str | None = Field(
        default=None,
        description="the pool's nodes are the endpoints of a headless Service: NAMESPACE/NAME or NAMESPACE/NAME:PORT",
    )
    peers_etcd: str | None = Field(
        default=None,
        description="the pool's nodes keep keys in etcd: http(s)://[USER@]HOST:PORT[,HOST:PORT...][/PREFIX]",
    )
    peers_etcd_password_file: Path | None = Field(default=None, description="password of the user of peers_etcd")
    peers_etcd_ca: Path | None = Field(
        default=None, description="PEM file of the authorities that etcd is trusted by; unset: the system's"
    )
    peers_etcd_certificate: Path | None = Field(
        default=None, description="PEM file with a certificate and its key, for an etcd that asks for one"
    )

    l1: bool = Field(
        default=True,
        description="keep what is stored here, and what tiers brought; else it goes with its last reader",
    )
    tiers: Annotated[list[TierConfig], BeforeValidator(parse_tiers)] = Field(
        default=[],
        description="what a miss is asked of, in this order: tieredstorage (the pool), URLs such as redis://HOST; "
        "unset: tieredstorage where the node is in a pool",
    )
    write_policy: WritePolicy = Field(default="write-all", description="which of what is stored here tiers get")
    promote: bool = Field(default=True, description="what a tier brings stays here; else it goes with its last reader")
    lookup_cap_ms: float = Field(
        default=20.0, gt=0, le=60_000, description="a miss waits no longer for what tiers have, all of them together"
    )
    load_factor: float = Field(
        default=1.0, gt=0, description="what a second of computing is worth in seconds of loading"
    )

    kv_events: str | None = Field(
        default=None,
        description="ZeroMQ address that events of blocks are published at, such as tcp://127.0.0.1:5560; unset: none",
    )

    opentelemetry: bool = Field(
        default=False, description="send spans of what is done for traced requests by OTLP, as the OTEL_* variables say"
    )
    traces_file: Path | None = Field(
        default=None, description="file that such spans are appended to, for tierline trace show; unset: none"
    )

    max_connections: int = Field(default=2048, ge=1, description="HTTP connections served at once")
    max_connections_per_address: int | None = Field(
        default=None, ge=1, description="most of them from one address; unset: three quarters of max_connections"
    )
    max_head: ByteSize = Field(
        default=16 * _KIB, ge=MIN_HEAD_LIMIT_BYTES, le=1024 * _KIB, description="longest request line and headers"
    )
    max_discarded: ByteSize = Field(
        default=256 * _MIB,
        ge=0,
        description="a refused body is read and thrown away up to this, to keep its connection",
    )
    slowest_rate: ByteSize = Field(
        default=_MIB, ge=1, description="bytes a second, over the whole of a body or reply, below which it is given up"
    )
    keep_alive_s: float = Field(
        default=120.0, ge=75, description="an idle HTTP connection is closed after this; clients keep theirs 30 s"
    )
    head_timeout_s: float = Field(default=10.0, gt=0, description="a request's head must be there after this")
    body_timeout_s: float = Field(default=10.0, gt=0, description="longest pause inside a body, or a reply not read")
    drain_s: float = Field(default=5.0, ge=0, description="on SIGTERM, bodies under way may take so long to end")
    event_loop: Literal["asyncio", "uvloop"] = Field(
        default="uvloop", description="event loop; docs/decisions has the measurements"
    )

    @classmethod
    def fields_of(cls, table: str, key: str, value: object) -> Mapping[str, object]:
        """Return what a key of HyperPod's daemon stands for."""
        match table, key:
            case "server", _:
                host, port = split_address(value)
                return {"host": host, "port": port}
            case "transfer", _:
                return {"transfer_address": value}
            case _:
                return {key: value}

    @field_validator("segments")
    @classmethod
    def _are_distinct(cls, value: list[SegmentConfig], info: ValidationInfo) -> list[SegmentConfig]:
        names = [str(info.data.get("shared_memory_name")), *(segment.name for segment in value)]
        patterns = [pattern for segment in value for pattern in segment.buckets]
        if len(set(names)) < len(names):
            raise ValueError("segments of different names, shared_memory_name among them")
        if len(set(patterns)) < len(patterns) or EVERY_BUCKET in patterns:
            raise ValueError("each bucket in one segment; all that are not named are in the first")
        return value

    @field_validator("transfer_address")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @field_validator("pool_tls_key", "pool_tls_ca")
    @classmethod
    def _belongs_to_the_pools_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if (value is None) != (info.data.get("pool_tls_certificate") is None):
            raise ValueError("pool_tls_certificate, pool_tls_key and pool_tls_ca together, or none of them")
        return value

    @field_validator("peers")
    @classmethod
    def _are_members(cls, value: list[str], info: ValidationInfo) -> list[str]:
        for peer in value:
            parse_member(peer)
        if value and info.data.get("transfer_address") is None:
            raise ValueError("this key together with transfer_address, where peers reach this node")
        return value

    @field_validator("peers_kubernetes", "peers_etcd")
    @classmethod
    def _says_where_members_are(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return value
        (parse_etcd if info.field_name == "peers_etcd" else parse_service)(value)
        if info.data.get("peers") or info.data.get("peers_kubernetes"):
            raise ValueError("one of peers, peers_kubernetes and peers_etcd")
        if info.data.get("transfer_address") is None:
            raise ValueError("this key together with transfer_address, where peers reach this node")
        return value

    @field_validator("kv_events")
    @classmethod
    def _can_be_bound(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or value.removeprefix("ipc://").startswith("/"):
            return value
        host, port = split_address(value.removeprefix("tcp://"))
        if not value.startswith("tcp://") or not 0 < int(port) < 65_535:
            raise ValueError("tcp://ADDRESS:PORT (the next port is taken, too) or ipc:///PATH")
        if host != "localhost" and not _is_loopback(host) and not info.data.get("trusted_network"):
            raise ValueError(
                "an address of this machine only, such as tcp://127.0.0.1:5560: subscribers show no token; set "
                "trusted_network where a NetworkPolicy or a firewall decides who can connect (docs/security.md)"
            )
        return value

    @field_validator("tls_key", "tls_client_ca")
    @classmethod
    def _belongs_to_a_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        has_certificate = info.data.get("tls_certificate") is not None
        if value is not None and not has_certificate:
            raise ValueError("this key together with tls_certificate")
        if value is None and has_certificate and info.field_name == "tls_key":
            raise ValueError("a PEM file, for tls_certificate is set")
        return value

    def bucket_rules(self) -> dict[str, BucketRules]:
        """Return the rules of the buckets that are named."""
        return {name: bucket.rules() for name, bucket in self.buckets.items() if name != EVERY_BUCKET}

    def default_rules(self) -> BucketRules:
        """Return the rules of all other buckets."""
        return self.buckets.get(EVERY_BUCKET, BucketConfig()).rules()

    def copies_of(self, bucket: str) -> int:
        """Return how many nodes of the pool shall have a bucket's objects."""
        return (self.buckets.get(bucket) or self.buckets.get(EVERY_BUCKET) or BucketConfig()).copies

    @property
    def is_in_a_pool(self) -> bool:
        """Whether other nodes can reach this one, and it knows who they are."""
        has_peers = bool(self.peers or self.peers_kubernetes or self.peers_etcd)
        return self.transfer_address is not None and has_peers

    def connections_per_address(self) -> int:
        """Return how many HTTP connections one address may have."""
        if self.max_connections_per_address is not None:
            return self.max_connections_per_address
        return max(self.max_connections * 3 // 4, 1)

    def socket_path(self) -> Path:
        """Return where the UNIX socket is."""
        return self.socket if self.socket is not None else default_socket_path(self.port)

    def scrub_bytes_per_s(self, segment_bytes: int) -> float:
        """Return how fast objects of a segment are compared with their checksums; 0 where they are not."""
        if self.scrub_rate is not None:
            return self.scrub_rate
        return min(segment_bytes / _DAY_S, 64 * _MIB)

    def reserved_limit(self, segment_bytes: int) -> int:
        """Return how many bytes one connection may hold in open slots of a segment."""
        return self.max_reserved if self.max_reserved is not None else segment_bytes // 2

    def reserved_limit_of_all(self, segment_bytes: int) -> int:
        """Return how many bytes all connections together may hold so: a quarter stays for what is stored."""
        return max(self.reserved_limit(segment_bytes), segment_bytes // 4 * 3)

    def all_segments(self) -> list[SegmentConfig]:
        """Return the first segment, which has every bucket that no other names, and the further ones."""
        first = SegmentConfig(
            name=self.shared_memory_name,
            capacity=self.capacity,
            buckets=[EVERY_BUCKET],
            mode=self.shared_memory_mode,
            group=self.shared_memory_group,
            numa_node=self.numa_node,
            huge_pages=self.huge_pages,
        )
        return [first, *self.segments]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_socket_path(port: int) -> Path:
    """Return where the node on ``port`` of this machine has its UNIX socket unless told otherwise."""
    return Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp")) / f"tierline-{port}.sock"  # noqa: S108
