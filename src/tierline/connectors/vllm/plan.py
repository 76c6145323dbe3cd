"""What the scheduler half tells the workers for one step, and what they report back; plain data, no behaviour."""

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from tierline.prefix import Shard
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
    """

    request_id: str
    node_epoch: int
    chunks: tuple[ChunkLoad, ...]


@dataclass(frozen=True, slots=True)
class ChunkStore:
    """One chunk to be stored once this step has computed its last token, under its tenant's name."""

    chain: bytes
    block_ids: tuple[int, ...]
    tenant: str = ""


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
    """

    loads: list[RequestLoad] = field(default_factory=list)
    stores: list[ChunkStore] = field(default_factory=list)
    overwritten: set[int] = field(default_factory=set)


@dataclass(slots=True)
class StepReport(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """Loads inside the step that ended, by request: those that failed on at least one rank, and all of them."""

    ended: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "StepReport":
        """Return this report with another rank's added."""
        assert isinstance(other, StepReport)
        return StepReport(self.ended | other.ended, self.failed | other.failed)


@dataclass(slots=True)
class WorkerShard(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """How a worker's KV tensors are cut and laid out; it alone has seen them, so it tells the scheduler half."""

    shard: Shard
