"""Clients of a node store on this machine: :class:`NodeClient` blocks, :class:`AsyncNodeClient` is for asyncio."""

from tierline.client.asynchronous import AsyncNodeClient
from tierline.client.blocking import NodeClient
from tierline.client.mapping import SegmentMapping
from tierline.wire.messages import CommitEntry, Extent, Leased, LeasedObject, Refusal, Slot

__all__ = [
    "AsyncNodeClient",
    "CommitEntry",
    "Extent",
    "Leased",
    "LeasedObject",
    "NodeClient",
    "Refusal",
    "SegmentMapping",
    "Slot",
]
