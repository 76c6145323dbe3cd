"""How an endpoint is chosen: ``base`` states the interface, each other module is one strategy."""

from tierline.router.strategies.base import Decision, RoutingRequest, Strategy
from tierline.router.strategies.names import STRATEGIES, build_strategy

__all__ = ["STRATEGIES", "Decision", "RoutingRequest", "Strategy", "build_strategy"]
