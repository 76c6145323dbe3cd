"""What the scheduler half tells the workers for one step, and what they report back; plain data, no behaviour."""

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from tierline.prefix import Shard
from tierline.tracing.context import NOWHERE, Origin
from tierline.wire.messages import LeasedObject


@dataclass(frozen=True, slots=True)
class ChunkLoad:
    """One chunk to be copied into the engine.

    Parameters
    ----------
    chain
        The chunk's key.
    objects
        Its stored shards, one a rank, in rank order.
    block_ids
        The engine blocks that receive it. Fewer than a whole chunk's where the engine's own cache holds the front:
        then these are the chunk's last blocks, for shared blocks must not be written.
    tenant
        Tenant field of the objects' names.
    """

    chain: bytes
    objects: tuple[LeasedObject, ...]
    block_ids: tuple[int, ...]
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class RequestLoad:
    """All chunks that one request loads.

    Parameters
    ----------
    request_id
        vLLM's name of the request.
    node_epoch
        Start of the node store that the leases were given in; extents mean nothing in another.
    chunks
        In the order of the prompt.
    origin
        Whose work it is, as whoever sent the request names it.
    """

    request_id: str
    node_epoch: int
    chunks: tuple[ChunkLoad, ...]
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True)
class ChunkStore:
    """One chunk to be stored once this step has computed its last token.

    Parameters
    ----------
    chain, tenant
        Its key, and whose it is.
    block_ids
        The engine blocks that have it.
    anchor
        Key of the first chunk of the prefix that it is of.
    origin
        Whose work it is.
    """

    chain: bytes
    block_ids: tuple[int, ...]
    tenant: str = ""
    anchor: bytes = b""
    origin: Origin = NOWHERE


@dataclass(slots=True)
class StepPlan(KVConnectorMetadata):  # type: ignore[misc]  # vLLM is not typed for us
    """The scheduler half's orders for one step.

    Parameters
    ----------
    loads
        Requests whose chunks are to be loaded.
    stores
        Chunks that are whole after this step.
    overwritten
        Blocks that this step, or a load that it starts, writes for the first time: stores that still read from
        them must be over, or given up, before.
    measured
        Number by which the step's end is to be reported; 0: it need not be.
    """

    loads: list[RequestLoad] = field(default_factory=list)
    stores: list[ChunkStore] = field(default_factory=list)
    overwritten: set[int] = field(default_factory=set)
    measured: int = 0


@dataclass(slots=True)
class StepReport(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """What a worker has to say after a step.

    Parameters
    ----------
    ended, failed
        Requests whose loads inside the step ended, and those of them that failed on at least one rank.
    loaded
        Of loads that ended well, also between steps, by request: bytes of all ranks, and seconds of the slowest.
    measured
        The step's number, where it has one.
    """

    ended: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    loaded: dict[str, tuple[int, float]] = field(default_factory=dict)
    measured: set[int] = field(default_factory=set)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to say."""
        return not (self.ended or self.loaded or self.measured)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "StepReport":
        """Return this report with another rank's added."""
        assert isinstance(other, StepReport)
        loaded = dict(self.loaded)
        for request_id, (size, seconds) in other.loaded.items():
            ours, slowest = loaded.get(request_id, (0, 0.0))
            loaded[request_id] = ours + size, max(slowest, seconds)
        measured = self.measured | other.measured
        return StepReport(self.ended | other.ended, self.failed | other.failed, loaded, measured)


@dataclass(slots=True)
class WorkerShard(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """How a worker's KV tensors are cut and laid out; it alone has seen them, so it tells the scheduler half."""

    shard: Shard
