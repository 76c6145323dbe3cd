"""What a node counts of one tier, and how it uses it; counting changes nothing."""

import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from tierline.loading import Decision, Speed
from tierline.pool.failures import Failures
from tierline.pool.tier import Tier

WritePolicy = Literal["write-all", "write-through-on-second-use", "read-only"]
StoreResult = Literal["stored", "refused", "dropped", "gone"]

POOL = "tieredstorage"
"""Name of the tier that is other nodes' memory: what is written there is a further copy and no other level."""

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(slots=True)
class TierFigures:
    """What has happened with one tier since the start.

    Parameters
    ----------
    hits
        Objects that it brought, by who answered: a peer's name, or empty.
    misses
        Objects that were asked for and that it did not have.
    fetched_bytes, stored_bytes
        Read from it, and written to it.
    failures
        What went wrong, by reason: ``unanswered`` (a look-up was cut off), ``not_brought`` (what it had said it has),
        ``stalled``, ``claim`` (it said what cannot be), ``no_room`` (here), ``raised``.
    decisions
        Runs that were found, by what was decided: ``load``, ``recompute``, ``unknown``.
    latest
        The last decision, with its inputs.
    stores
        Objects handed to it, by what became of them: ``stored``; ``refused`` by it; ``dropped``, for too many waited;
        ``gone`` before their turn came.
    fetches
        How long fetches took, from the decision to the last object: how many in each of :data:`SECONDS_BUCKETS`.
    fetch_seconds
        All of them together.
    speed
        Of fetches of late.
    """

    hits: Counter[str] = field(default_factory=Counter)
    misses: int = 0
    fetched_bytes: int = 0
    stored_bytes: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    latest: Decision | None = None
    stores: Counter[StoreResult] = field(default_factory=Counter)
    fetches: list[int] = field(default_factory=lambda: [0] * (len(SECONDS_BUCKETS) + 1))
    fetch_seconds: float = 0.0
    speed: Speed = field(default_factory=lambda: Speed(time.monotonic))

    def fetched(self, size_bytes: int, seconds: float) -> None:
        """Take note of a fetch that is over; its hits and bytes are counted as objects come."""
        self.fetches[bisect_left(SECONDS_BUCKETS, seconds)] += 1
        self.fetch_seconds += seconds
        self.speed.observe(size_bytes, seconds)


@dataclass(frozen=True, slots=True)
class TierUse:
    """A tier, and how the node uses it.

    Parameters
    ----------
    policy
        What is written to it: all that is stored here; what is used a second time, the first being its computation;
        nothing.
    promotes
        What it brings stays here; else it goes with its last reader.
    own_failures
        What it counts itself.
    """

    tier: Tier
    policy: WritePolicy = "write-all"
    promotes: bool = True
    own_failures: Failures | None = None
    figures: TierFigures = field(default_factory=TierFigures)

    @property
    def is_pool(self) -> bool:
        """Whether it is other nodes' memory."""
        return self.tier.name == POOL

    def failures(self) -> Counter[str]:
        """Return what has gone wrong, by reason."""
        return self.figures.failures + (Counter() if self.own_failures is None else self.own_failures.counts)

    def label(self, source: str) -> str:
        """Return who answered, for people."""
        return f"{self.tier.name}:{source}" if source else self.tier.name
