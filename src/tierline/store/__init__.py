"""The cache itself: pure, synchronous, no sockets, the clock passed in. :class:`Store` is all that others use."""

from tierline.store.eviction import PolicyName
from tierline.store.extents import MAX_FRAGMENTS, PAGE_BYTES
from tierline.store.index import key_of
from tierline.store.objects import (
    NO_PID,
    BucketRules,
    Entry,
    Explanation,
    Extent,
    Leased,
    LeaseListing,
    LeaseStat,
    Listing,
    Namespace,
    NamespaceStats,
    ObjectKey,
    ObjectStat,
    Orphan,
    Owner,
    Quota,
    Slot,
    StoreLimits,
)
from tierline.store.placement import Placement, SegmentOptions
from tierline.store.segment import Segment, remove_segment
from tierline.store.stats import StoreStats
from tierline.store.store import Store

__all__ = [
    "MAX_FRAGMENTS",
    "NO_PID",
    "PAGE_BYTES",
    "BucketRules",
    "Entry",
    "Explanation",
    "Extent",
    "LeaseListing",
    "LeaseStat",
    "Leased",
    "Listing",
    "Namespace",
    "NamespaceStats",
    "ObjectKey",
    "ObjectStat",
    "Orphan",
    "Owner",
    "Placement",
    "PolicyName",
    "Quota",
    "Segment",
    "SegmentOptions",
    "Slot",
    "Store",
    "StoreLimits",
    "StoreStats",
    "key_of",
    "remove_segment",
]
