"""Replicas that come and go, by the rule of the autoscaler that the operator sets up (Kubernetes' HPA, fed by KEDA).

At every look as many are wanted as requests under way take at the target for each; within a tenth of it nothing
changes. More come at once, at most twice as many as there are or four; fewer only when no look within the cool-down
wanted more (https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/, algorithm and behavior).
"""

import math
from collections import deque
from dataclasses import dataclass

_TOLERANCE = 0.1
_AT_ONCE = 4


@dataclass(frozen=True)
class Autoscaling:
    """What an autoscaler is told.

    Parameters
    ----------
    least, most
        Replicas; there are so many at the beginning as there are at least.
    target_requests
        Under way at each replica, those that wait among them.
    every_s
        Between two looks.
    start_s
        From being wanted until a replica serves: a node, an image, a model that is loaded.
    cool_down_s
        How long fewer must have been enough before any goes.
    """

    least: int
    most: int
    target_requests: float
    every_s: float = 30.0
    start_s: float = 180.0
    cool_down_s: float = 300.0


class Autoscaler:
    """The rule, with what it remembers of earlier looks.

    Attributes
    ----------
    every_s, start_s
        As told.
    """

    def __init__(self, rule: Autoscaling) -> None:
        self.every_s = rule.every_s
        self.start_s = rule.start_s
        self._rule = rule
        self._looks: deque[tuple[float, int]] = deque()

    def wanted(self, now_s: float, under_way: int, replicas: int) -> int:
        """Return how many replicas there should be, where there are so many, those that start among them."""
        rule = self._rule
        asked = under_way / rule.target_requests
        needed = replicas if abs(asked / replicas - 1) <= _TOLERANCE else math.ceil(asked)
        needed = min(max(needed, rule.least), rule.most)
        self._looks.append((now_s, needed))
        while self._looks[0][0] < now_s - rule.cool_down_s:
            self._looks.popleft()
        if needed > replicas:
            return min(needed, max(2 * replicas, replicas + _AT_ONCE))
        return min(replicas, max(count for _, count in self._looks))
