"""Names of strategies, as users spell them, and how each is built."""

from collections.abc import Callable

from tierline.router.strategies.base import Strategy
from tierline.router.strategies.leastload import LeastLoad
from tierline.router.strategies.prefixaware import PrefixAware
from tierline.router.strategies.roundrobin import RoundRobin
from tierline.router.strategies.session import SessionAffinity

STRATEGIES: dict[str, Callable[[int, int], Strategy]] = {
    "prefixaware": PrefixAware,
    "session": lambda _endpoints, _index_bytes: SessionAffinity(),
    "leastload": lambda _endpoints, _index_bytes: LeastLoad(),
    "roundrobin": lambda _endpoints, _index_bytes: RoundRobin(),
}


def canonical_name(name: str) -> str:
    """Return the name without hyphens or capitals: ``prefix-aware`` is ``prefixaware``.

    Raises
    ------
    ValueError
        Saying which names there are.
    """
    canonical = name.lower().replace("-", "").replace("_", "")
    if canonical == "kvaware":
        raise ValueError(f"{', '.join(STRATEGIES)}; kvaware is not available yet, prefixaware comes nearest to it")
    if canonical not in STRATEGIES:
        raise ValueError(", ".join(STRATEGIES))
    return canonical


def build_strategy(name: str, endpoints: int, index_bytes: int) -> Strategy:
    """Return the strategy of that canonical name.

    Parameters
    ----------
    name
        A key of :data:`STRATEGIES`.
    endpoints
        How many endpoints there are.
    index_bytes
        Memory for what the strategy remembers of prompts.
    """
    return STRATEGIES[name](endpoints, index_bytes)
