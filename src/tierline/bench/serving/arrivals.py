"""When requests come in an open loop: whether or not the server has answered those before.

Gaps are gamma distributed, as ``vllm bench serve`` draws them: a burstiness of 1 is a Poisson process, less comes in
bursts, more is steadier, infinity is a clock.
"""

import math
import random
from dataclasses import dataclass
from typing import Literal

from tierline.errors import ConfigurationError


@dataclass(frozen=True)
class Ramp:
    """A rate that changes from the first request to the last, evenly or by equal factors."""

    strategy: Literal["linear", "exponential"]
    start_rps: float
    end_rps: float

    def __post_init__(self) -> None:
        for name, rate in (("start", self.start_rps), ("end", self.end_rps)):
            if not (math.isfinite(rate) and rate > 0):
                raise ConfigurationError(f"--ramp-up-{name}-rps", str(rate), "requests per second, more than 0")

    def rate(self, progress: float) -> float:
        """Return the rate at a share of all requests."""
        if self.strategy == "linear":
            return self.start_rps + (self.end_rps - self.start_rps) * progress
        return float(self.start_rps * (self.end_rps / self.start_rps) ** progress)


def arrival_times(count: int, rate: float | Ramp, burstiness: float, seed: int) -> list[float]:
    """Return when each request comes, in seconds since the start; the first comes at once.

    Raises
    ------
    ConfigurationError
        For a rate or a burstiness that is none.
    """
    if isinstance(rate, float | int) and not rate > 0:
        raise ConfigurationError("--request-rate", str(rate), "requests per second, more than 0; inf: all at once")
    if not burstiness > 0:
        raise ConfigurationError("--burstiness", str(burstiness), "more than 0; 1: Poisson; inf: steady")
    dice = random.Random(f"arrivals {seed}")
    times, now = [], 0.0
    for index in range(count):
        times.append(now)
        at = rate.rate(index / max(1, count - 1)) if isinstance(rate, Ramp) else rate
        if math.isinf(at):
            continue
        if math.isinf(burstiness):
            now += 1 / at
        else:
            now += dice.gammavariate(burstiness, 1 / (at * burstiness))
    return times
