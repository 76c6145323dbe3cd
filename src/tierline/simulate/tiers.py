"""Tiers below engines: a node's memory (L1), what lies beyond it (L2), and what reading and writing them takes.

What stays is the store's eviction policies' to say, what is worth loading :mod:`tierline.loading`'s, as in connector
and node: both run here unmodified, with the speeds that were observed in the simulation. All that moves takes its turn
on a link: between engines and their node's memory, and between nodes, each direction apart. Nobody waits for what is
written but who wants to read it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from tierline.bench.engine_model import CacheListener, Job
from tierline.bench.traces import BLOCK_TOKENS
from tierline.loading import PrefillCost, Speed, decide
from tierline.simulate.links import Link
from tierline.simulate.memories import Memory
from tierline.simulate.pooled import Place, Pool, PoolKind, send
from tierline.store import PolicyName

TIERS = ("l1", "l2")
"""Below an engine's own cache, the nearest first."""


@dataclass(frozen=True)
class TierModel:
    """One tier.

    Parameters
    ----------
    size_bytes
        Of a node's part of it in L1, of all of it in L2; 0: nothing stays there, or L1 is L2.
    bytes_per_s, latency_s
        Of one node's link to it, in each direction.
    policy
        What goes when room is needed.
    """

    size_bytes: int
    bytes_per_s: float
    latency_s: float
    policy: PolicyName = "arc"

    def memory(self, blocks: int) -> Memory | None:
        """Return one with so much room, ``None`` without any."""
        return Memory(self.policy, blocks) if blocks else None


NO_LIMIT = TierModel(0, inf, 0.0)
"""Of links that nothing is said of."""


class Tiers:
    """The tiers of a fleet.

    Parameters
    ----------
    l1, l2
        ``None``: there is none.
    kind
        Where L2 is.
    block_bytes
        Of one block's KV, of all of an engine's accelerators together.
    prefill
        What computing a block takes.
    replicas_per_node
        How many engines share a node's memory.
    nodes
        How many share L2's size; who comes later brings as much.
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
        kind: PoolKind = "nodes",
        replicas_per_node: int = 1,
        nodes: int = 1,
        load_factor: float = 1.0,
    ) -> None:
        self._l1, self._l2 = l1 or NO_LIMIT, l2 or NO_LIMIT
        self._kind = kind
        self._block_bytes = block_bytes
        self._prefill = prefill
        self._replicas_per_node = replicas_per_node
        self._load_factor = load_factor
        self._nodes: dict[int, Node] = {}
        self._l1_blocks = self._l1.size_bytes // block_bytes
        self._part_blocks = (
            self._l1_blocks
            if kind == "l1"
            else self._l2.size_bytes // block_bytes // (1 if kind == "service" else nodes)
        )
        self._pool: Pool | None = None
        self._service: Place | None = None
        if l2 is not None and self._part_blocks:
            self._pool = Pool()
            if kind == "service":
                self._service = Place("service", l2.memory(self._part_blocks), l2.bytes_per_s)
                self._pool.join(self._service)

    def below(self, position: int, host: CacheListener | None, shared: CacheListener | None) -> "NodeTiers":
        """Return what is below the engine at that position.

        Parameters
        ----------
        host, shared
            Are told of what its node holds in L1, and of what it holds of L2.
        """
        number = position // self._replicas_per_node
        node = self._nodes.get(number)
        if node is None:
            node = self._nodes[number] = self._new_node(number)
        node.join(position, host, shared)
        return NodeTiers(
            node,
            self._pool,
            self._service,
            block_bytes=self._block_bytes,
            latencies_s=(self._l1.latency_s, self._l2.latency_s),
            prefill=self._prefill,
            load_factor=self._load_factor,
        )

    def _new_node(self, number: int) -> "Node":
        l1 = self._l1.memory(self._l1_blocks)
        pooled: Memory | None = None
        if self._pool is not None and self._kind != "service":
            pooled = l1 if self._kind == "l1" else self._l2.memory(self._part_blocks)
        node = Node(f"node-{number}", l1, pooled, self._l1.bytes_per_s, self._l2.bytes_per_s)
        if self._pool is not None and pooled is not None:
            self._pool.join(node)
        return node

    def gone(self, position: int) -> None:
        """The engine at that position is no more; with its last one a node is given back, and its memory with it."""
        number = position // self._replicas_per_node
        node = self._nodes[number]
        node.leave(position)
        if not node.has_replicas:
            del self._nodes[number]
            if self._pool is not None and node.pooled is not None:
                self._pool.leave(node)


class Node(Place):
    """A machine: its memory, and its links to its engines and to what lies beyond.

    Parameters
    ----------
    l1
        What it keeps for its engines; ``None``: nothing, what they read and write passes through.
    engine_bytes_per_s
        Of the link between memory and engines.

    Others as of :class:`Place`.
    """

    def __init__(
        self, name: str, l1: Memory | None, pooled: Memory | None, engine_bytes_per_s: float, bytes_per_s: float
    ) -> None:
        super().__init__(name, pooled, bytes_per_s)
        self.l1 = l1
        self.to_engines, self.from_engines = Link(engine_bytes_per_s), Link(engine_bytes_per_s)
        self._replicas: dict[int, list[tuple[Memory, CacheListener]]] = {}

    @property
    def has_replicas(self) -> bool:
        """Whether an engine is left."""
        return bool(self._replicas)

    def join(self, position: int, host: CacheListener | None, shared: CacheListener | None) -> None:
        """An engine begins here."""
        told = [(self.l1, host), (self.pooled, shared)]
        self._replicas[position] = [(memory, each) for memory, each in told if memory is not None and each is not None]
        for memory, listener in self._replicas[position]:
            memory.listeners.append(listener)

    def leave(self, position: int) -> None:
        """An engine is no more."""
        for memory, listener in self._replicas.pop(position):
            memory.listeners.remove(listener)


class NodeTiers:
    """What is below one engine: its node's L1, and the L2 of all.

    Attributes
    ----------
    refused_blocks
        Blocks that a tier had and that were not worth loading, by tier.
    """

    def __init__(
        self,
        node: Node,
        pool: Pool | None,
        service: Place | None,
        *,
        block_bytes: int,
        latencies_s: tuple[float, float],
        prefill: PrefillCost,
        load_factor: float,
    ) -> None:
        self.refused_blocks = [0] * len(TIERS)
        self._node = node
        self._pool = pool
        self._service = service
        self._block_bytes = block_bytes
        self._l1_latency_s, self._l2_latency_s = latencies_s
        self._prefill = prefill
        self._load_factor = load_factor
        self._now_s = 0.0
        self._here, self._afar = Speed(self._clock), Speed(self._clock)
        """Of the node's memory, and of what lies beyond it."""

    def load(self, job: Job, start: int, now_s: float) -> tuple[Sequence[int], float]:
        """See :class:`~tierline.bench.engine_model.Below`."""
        self._now_s = ready_at_s = now_s
        loaded = [0] * len(TIERS)
        node, pool = self._node, self._pool
        for tier, memory in ((0, node.l1), (1, node.pooled if node.pooled is not node.l1 else None)):
            if memory is None:
                continue
            found = memory.match(job.blocks[start:])
            taken = self._worth_loading(tier, found, start, self._here)
            if taken:
                run = job.blocks[start : start + taken]
                ready_at_s = max(ready_at_s, memory.read(run, now_s), self._into_engine(taken, now_s))
                if tier:
                    self._keep(run, job.blocks, now_s, ready_at_s)
                loaded[tier] += taken
                start += taken
            if taken < found:
                return loaded, ready_at_s  # what lies behind is of no use without what is not taken
        if pool is not None:
            taken = self._worth_loading(1, pool.match(job.blocks[start:], now_s), start, self._afar)
            if taken:
                run = job.blocks[start : start + taken]
                ready_at_s = max(ready_at_s, self._fetch(pool, run, job.blocks, now_s))
                loaded[1] += taken
        return loaded, ready_at_s

    def computed(self, job: Job, now_s: float) -> None:
        """See :class:`~tierline.bench.engine_model.Below`."""
        node, pool = self._node, self._pool
        fresh: Sequence[int]
        if node.l1 is not None:
            fresh = node.l1.write(job.blocks, job.blocks, now_s)
        else:  # what is not kept here passes through on its way to L2, and only what is not there
            fresh = [] if pool is None else [block for block in job.blocks if block not in pool]
        if not fresh:
            return
        there_at_s = node.from_engines.carry(len(fresh) * self._block_bytes, now_s)
        if node.l1 is not None:
            node.l1.arrive(fresh, there_at_s)
        if pool is None or (node.l1 is not None and node.pooled is node.l1):
            return
        keeper = self._service or (node if node.l1 is not None else pool.home(job.blocks[0]))
        assert keeper.pooled is not None
        written = keeper.pooled.write(fresh, job.blocks, now_s)
        if written and keeper is not node:
            sent_at_s = send(len(written) * self._block_bytes, node, keeper, now_s) + self._l2_latency_s
            there_at_s = max(there_at_s, sent_at_s)
        keeper.pooled.arrive(written, there_at_s)

    def _worth_loading(self, tier: int, found: int, start: int, speed: Speed) -> int:
        """Return how many of the blocks that were found are to be loaded."""
        taken = decide(found, self._seconds_of(speed), self._prefill, start=start, factor=self._load_factor).blocks
        self.refused_blocks[tier] += found - taken
        return taken

    def _into_engine(self, blocks: int, now_s: float) -> float:
        """Load from the node's memory; return when all is in the engine."""
        size = blocks * self._block_bytes
        there_at_s = self._node.to_engines.carry(size, now_s) + self._l1_latency_s
        self._here.observe(size, there_at_s - now_s)
        return there_at_s

    def _fetch(self, pool: Pool, run: Sequence[int], prompt: Sequence[int], now_s: float) -> float:
        """Fetch from beyond the node, and load what comes; return when all is in the engine."""
        node = self._node
        there_at_s = now_s
        written_at_s = now_s
        for holder, blocks in pool.share_out(run, self._block_bytes, node, now_s).items():
            assert holder.pooled is not None
            written_at_s = max(written_at_s, holder.pooled.read(blocks, now_s))
            if holder is not node:
                there_at_s = max(there_at_s, send(len(blocks) * self._block_bytes, holder, node, now_s))
        size = len(run) * self._block_bytes
        # Into the engine it goes as it comes.
        there_at_s = max(there_at_s + self._l2_latency_s, node.to_engines.carry(size, now_s) + self._l1_latency_s)
        self._afar.observe(size, there_at_s - now_s)
        there_at_s = max(there_at_s, written_at_s)
        self._keep(run, prompt, now_s, there_at_s)
        return there_at_s

    def _keep(self, run: Sequence[int], prompt: Sequence[int], now_s: float, there_at_s: float) -> None:
        """What came from L2 stays in the node's memory, where it keeps anything of its own."""
        if self._node.l1 is None:
            return
        for memory in {id(each): each for each in (self._node.l1, self._node.pooled)}.values():
            if memory is not None:
                memory.arrive(memory.write(run, prompt, now_s), there_at_s)

    def _seconds_of(self, speed: Speed) -> Callable[[int], float | None]:
        return lambda blocks: speed.seconds(blocks * self._block_bytes)

    def _clock(self) -> float:
        return self._now_s


def block_bytes(kv_bytes_per_token: int, block_tokens: int = BLOCK_TOKENS) -> int:
    """Return what a block of a trace takes."""
    return kv_bytes_per_token * block_tokens
