"""Tiers below engines: what the nodes' memory (L1) and what lies beyond them (L2) hold, and how long loading takes.

What stays is the store's eviction policies' to say, what is worth loading :mod:`tierline.loading`'s, as in connector
and node: both run here unmodified, with the speeds that were observed in the simulation. A link carries one load after
the other, so loads wait for loads. A prompt that was computed is written to every tier at once, which costs the engine
nothing: links carry both ways, and the connector writes beside the engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tierline.bench.engine_model import CacheListener, Job
from tierline.bench.replay import PolicyCache
from tierline.bench.traces import BLOCK_TOKENS
from tierline.loading import PrefillCost, Speed, decide
from tierline.store import PolicyName

TIERS = ("l1", "l2")
"""Below an engine's own cache, the nearest first."""


@dataclass(frozen=True)
class TierModel:
    """One tier.

    Parameters
    ----------
    size_bytes
        Of a node's part of it in L1, of all of it in L2; 0: there is none.
    bytes_per_s, latency_s
        Of one node's link to it.
    policy
        What goes when room is needed.
    """

    size_bytes: int
    bytes_per_s: float
    latency_s: float
    policy: PolicyName = "arc"


class Link:
    """Carries one load after the other, each at the whole bandwidth.

    Invariant: a load ends no sooner than the one before it.
    """

    def __init__(self, bytes_per_s: float, latency_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._latency_s = latency_s
        self._free_at_s = 0.0

    def carry(self, size_bytes: int, now_s: float) -> float:
        """Return when a load is there that is asked for now."""
        self._free_at_s = max(self._free_at_s, now_s) + size_bytes / self._bytes_per_s
        return self._free_at_s + self._latency_s


class Tiers:
    """The tiers of a fleet.

    Parameters
    ----------
    l1, l2
        ``None``: there is none.
    block_bytes
        Of one block's KV, of all of an engine's accelerators together.
    prefill
        What computing a block takes.
    replicas_per_node
        How many engines share a node's memory.
    load_factor
        As in :func:`tierline.loading.decide`.
    """

    def __init__(
        self,
        l1: TierModel | None,
        l2: TierModel | None,
        *,
        block_bytes: int,
        prefill: PrefillCost,
        replicas_per_node: int = 1,
        load_factor: float = 1.0,
    ) -> None:
        self._l1, self._l2 = l1, l2
        self._block_bytes = block_bytes
        self._prefill = prefill
        self._replicas_per_node = replicas_per_node
        self._load_factor = load_factor
        self._nodes: dict[int, _Node] = {}
        self._pool = None if l2 is None else PolicyCache(l2.policy, l2.size_bytes // block_bytes)

    def below(self, position: int, listener: CacheListener | None) -> "NodeTiers":
        """Return what is below the engine at that position; ``listener`` is told of its node's L1."""
        number = position // self._replicas_per_node
        node = self._nodes.get(number)
        if node is None:
            node = self._nodes[number] = _Node(self._l1, self._l2, self._block_bytes)
        node.replicas[position] = listener
        return NodeTiers(node, self._pool, self._block_bytes, self._prefill, self._load_factor)

    def gone(self, position: int) -> None:
        """The engine at that position is no more; with its last one a node is given back, and its memory with it."""
        number = position // self._replicas_per_node
        del self._nodes[number].replicas[position]
        if not self._nodes[number].replicas:
            del self._nodes[number]


class _Node:
    """A node's memory, and its links to that and to what lies beyond."""

    def __init__(self, l1: TierModel | None, l2: TierModel | None, block_bytes: int) -> None:
        self.replicas: dict[int, CacheListener | None] = {}
        """The engines here, by position, and who is told of the node's memory for each."""
        self.l1: PolicyCache | None = None
        self.l1_link = self.l2_link = Link(1.0, 0.0)
        if l1 is not None:
            self.l1 = PolicyCache(l1.policy, l1.size_bytes // block_bytes, on_evicted=self._evicted)
            self.l1_link = Link(l1.bytes_per_s, l1.latency_s)
        if l2 is not None:
            self.l2_link = Link(l2.bytes_per_s, l2.latency_s)

    def write(self, blocks: Sequence[int], now_s: float) -> None:
        """Store what L1 does not hold of a prompt, and tell of it."""
        if self.l1 is None:
            return
        written = set(self.l1.write(blocks, now_s))
        listeners = self._listeners()
        if not written or not listeners:
            return
        start: int | None = None
        for place, block in enumerate([*blocks, None]):
            if block in written:
                start = place if start is None else start
            elif start is not None:
                for listener in listeners:
                    listener.stored(blocks[start - 1] if start else None, blocks[start:place])
                start = None

    def _evicted(self, block: int) -> None:
        for listener in self._listeners():
            listener.removed(block)

    def _listeners(self) -> list[CacheListener]:
        return [listener for listener in self.replicas.values() if listener is not None]


class NodeTiers:
    """What is below one engine: its node's L1, and the L2 of all.

    Attributes
    ----------
    refused_blocks
        Blocks that a tier had and that were not worth loading, by tier.
    """

    def __init__(
        self, node: _Node, pool: PolicyCache | None, block_bytes: int, prefill: PrefillCost, load_factor: float
    ) -> None:
        self.refused_blocks = [0] * len(TIERS)
        self._node = node
        self._block_bytes = block_bytes
        self._prefill = prefill
        self._load_factor = load_factor
        self._pool = pool
        self._now_s = 0.0
        self._places: list[tuple[PolicyCache | None, Link, Speed]] = [
            (node.l1, node.l1_link, Speed(self._clock)),
            (pool, node.l2_link, Speed(self._clock)),
        ]

    def load(self, job: Job, start: int, now_s: float) -> tuple[Sequence[int], float]:
        """See :class:`~tierline.bench.engine_model.Below`."""
        self._now_s = ready_at_s = now_s
        loaded = [0] * len(TIERS)
        for tier, (cache, link, speed) in enumerate(self._places):
            if cache is None:
                continue
            blocks = job.blocks[start:]
            found = cache.match(blocks)
            taken = decide(found, self._seconds_of(speed), self._prefill, start=start, factor=self._load_factor).blocks
            self.refused_blocks[tier] += found - taken
            if taken:
                cache.release(cache.lease(blocks, taken, now_s))
                there_at_s = link.carry(taken * self._block_bytes, now_s)
                speed.observe(taken * self._block_bytes, there_at_s - now_s)
                ready_at_s = max(ready_at_s, there_at_s)
                loaded[tier] = taken
                start += taken
            if taken < found:
                break  # what lies behind is of no use without what is not taken
        if loaded[1]:  # what came from beyond the node stays on it
            self._node.write(job.blocks[:start], now_s)
        return loaded, ready_at_s

    def computed(self, job: Job, now_s: float) -> None:
        """See :class:`~tierline.bench.engine_model.Below`."""
        self._node.write(job.blocks, now_s)
        if self._pool is not None:
            self._pool.write(job.blocks, now_s)

    def _seconds_of(self, speed: Speed) -> Callable[[int], float | None]:
        return lambda blocks: speed.seconds(blocks * self._block_bytes)

    def _clock(self) -> float:
        return self._now_s


def block_bytes(kv_bytes_per_token: int, block_tokens: int = BLOCK_TOKENS) -> int:
    """Return what a block of a trace takes."""
    return kv_bytes_per_token * block_tokens
