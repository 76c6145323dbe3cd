"""Names of strategies, as users spell them, and how each is built."""

from collections.abc import Callable

from tierline.router.strategies.base import Strategy
from tierline.router.strategies.kvaware import KV_INDEX_BYTES, KvAware
from tierline.router.strategies.leastload import LeastLoad
from tierline.router.strategies.prefixaware import PrefixAware
from tierline.router.strategies.roundrobin import RoundRobin
from tierline.router.strategies.session import SessionAffinity

STRATEGIES: dict[str, Callable[[int, int, int], Strategy]] = {
    "prefixaware": lambda endpoints, index_bytes, _kv_index_bytes: PrefixAware(endpoints, index_bytes),
    "kvaware": KvAware,
    "session": lambda *_sizes: SessionAffinity(),
    "leastload": lambda *_sizes: LeastLoad(),
    "roundrobin": lambda *_sizes: RoundRobin(),
}


def canonical_name(name: str) -> str:
    """Return the name without hyphens or capitals: ``prefix-aware`` is ``prefixaware``.

    Raises
    ------
    ValueError
        Saying which names there are.
    """
    canonical = name.lower().replace("-", "").replace("_", "")
    if canonical not in STRATEGIES:
        raise ValueError(", ".join(STRATEGIES))
    return canonical


def build_strategy(name: str, endpoints: int, index_bytes: int, kv_index_bytes: int = KV_INDEX_BYTES) -> Strategy:
    """Return the strategy of that canonical name.

    Parameters
    ----------
    name
        A key of :data:`STRATEGIES`.
    endpoints
        How many endpoints there are.
    index_bytes
        Memory for what the strategy remembers of prompts.
    kv_index_bytes
        Memory for what it is told by KV events.
    """
    return STRATEGIES[name](endpoints, index_bytes, kv_index_bytes)
