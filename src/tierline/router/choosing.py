"""Which strategy chooses for a request: its model's own, or the one for all others.

Rule: a request is one *arm*'s from start to end, and what becomes of its choices is told to that arm's strategy. What
becomes of an endpoint is told to all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tierline.router.config import RouterConfig
from tierline.router.endpoints import Endpoint
from tierline.router.metrics import ArmCounts
from tierline.router.strategies import build_strategy
from tierline.router.strategies.base import RoutingRequest, Strategy
from tierline.router.strategies.kvaware import KvAware
from tierline.router.strategies.prefixaware import PrefixAware


@dataclass(eq=False, slots=True)
class Arm:
    """A strategy, for some of the requests.

    Parameters
    ----------
    strategy
        It chooses for them.
    model
        Whose requests these are; empty: those of all models that have no strategy of their own.
    counts
        What is counted of them.
    """

    strategy: Strategy
    model: str = ""
    counts: ArmCounts = field(default_factory=ArmCounts)
    needs_tokens: bool = field(init=False)
    """Whether the strategy makes use of a prompt's tokens."""

    def __post_init__(self) -> None:
        self.needs_tokens = isinstance(self.strategy, KvAware)


class Choosing:
    """All strategies of a router.

    Parameters
    ----------
    default
        For requests of models that are not in ``models``.
    models
        By name.
    """

    def __init__(self, default: Arm, models: Mapping[str, Arm] | None = None) -> None:
        self.default = default
        self._models = models or {}
        self.arms = (default, *self._models.values())

    @classmethod
    def of(cls, config: RouterConfig) -> "Choosing":
        """Return what is configured."""
        endpoints = max(1, len(config.endpoints))
        return cls(Arm(build_strategy(config.strategy, endpoints, config.index_bytes, config.kv_index_bytes)))

    def arm_of(self, request: RoutingRequest) -> Arm:
        """Return the arm that a request belongs to."""
        return self._models.get(request.model, self.default)

    def forget(self, endpoint: Endpoint) -> None:
        """The endpoint has lost what it held, or does not serve."""
        for arm in self.arms:
            arm.strategy.forget(endpoint)

    @property
    def kvaware(self) -> KvAware | None:
        """The strategy that wants to be told of KV events."""
        return next((arm.strategy for arm in self.arms if isinstance(arm.strategy, KvAware)), None)

    @property
    def index_bytes(self) -> int:
        """Memory of the prefix indexes."""
        return sum(arm.strategy.index.size_bytes for arm in self.arms if isinstance(arm.strategy, PrefixAware))

    @property
    def index_placements(self) -> int:
        """Pairs of a block and an endpoint in the prefix indexes."""
        return sum(len(arm.strategy.index) for arm in self.arms if isinstance(arm.strategy, PrefixAware))
