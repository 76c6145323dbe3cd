"""Which object goes when room is needed: one file a policy, all behind :class:`EvictionPolicy`."""

from collections.abc import Callable
from typing import Any, Literal

from tierline.store.eviction.arc import AdaptiveReplacement
from tierline.store.eviction.base import EvictionPolicy
from tierline.store.eviction.fifo import FirstInFirstOut
from tierline.store.eviction.lfu import LeastFrequentlyUsed
from tierline.store.eviction.lru import LeastRecentlyUsed
from tierline.store.eviction.s3fifo import SmallMainGhost

PolicyName = Literal["arc", "lru", "s3fifo", "lfu", "fifo"]

POLICIES: dict[PolicyName, Callable[[int], EvictionPolicy[Any]]] = {
    "arc": AdaptiveReplacement,
    "lru": LeastRecentlyUsed,
    "s3fifo": SmallMainGhost,
    "lfu": LeastFrequentlyUsed,
    "fifo": FirstInFirstOut,
}
"""Policy by the name it has in a configuration; each is made with the number of pages it governs."""

__all__ = [
    "POLICIES",
    "AdaptiveReplacement",
    "EvictionPolicy",
    "FirstInFirstOut",
    "LeastFrequentlyUsed",
    "LeastRecentlyUsed",
    "PolicyName",
    "SmallMainGhost",
]
