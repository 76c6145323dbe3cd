"""Which object goes when room is needed: one file a policy, all behind :class:`EvictionPolicy`."""

from collections.abc import Callable
from typing import Any

from tierline.store.eviction.arc import AdaptiveReplacement
from tierline.store.eviction.base import EvictionPolicy
from tierline.store.eviction.lru import LeastRecentlyUsed

POLICIES: dict[str, Callable[[int], EvictionPolicy[Any]]] = {"arc": AdaptiveReplacement, "lru": LeastRecentlyUsed}
"""Policy by the name it has in a configuration; each is made with the number of pages it governs."""

__all__ = ["POLICIES", "AdaptiveReplacement", "EvictionPolicy", "LeastRecentlyUsed"]
