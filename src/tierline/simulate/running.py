"""One simulated cluster under one load: what a run is told, and what comes of it.

The same cluster, load and seed give the same outcome to the last digit: nothing here reads a clock or the machine.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from tierline.bench.engine_model import Job
from tierline.bench.fleet import Fleet, Served
from tierline.bench.routing_loads import arrivals, router_blocks
from tierline.bench.traces import Trace
from tierline.errors import ConfigurationError
from tierline.router.index import PLACEMENT_BYTES
from tierline.router.strategies import STRATEGIES, Strategy, build_strategy
from tierline.router.strategies.kvaware import KV_INDEX_BYTES
from tierline.simulate.autoscaling import Autoscaler, Autoscaling
from tierline.simulate.coefficients import Coefficients
from tierline.simulate.loads import Clients, sharing_nothing
from tierline.simulate.pooled import PoolKind
from tierline.simulate.published import PublishedPrefixAware
from tierline.simulate.tiers import NodeTiers, TierModel, Tiers, block_bytes

PUBLISHED = PublishedPrefixAware.name
"""Beside the router's own strategies, for comparison only."""


@dataclass(frozen=True)
class Cluster:
    """What serves.

    Parameters
    ----------
    coefficients
        Of each replica.
    replicas
        How many; with autoscaling, how many at the beginning.
    strategy
        A name of the router's, or :data:`PUBLISHED`.
    keeps_prefixes
        Whether engines have a prefix cache.
    l1, l2
        Tiers below that; ``None``: there is none.
    l2_kind
        Where L2 is.
    replicas_per_node
        How many share L1 and a node's links.
    overhead_s
        What router, network and tokenizing add to each request, beside what the coefficients say of that.
    load_factor
        Of load or recompute.
    autoscaling
        By what replicas come and go; ``None``: they do not.
    """

    coefficients: Coefficients
    replicas: int = 1
    strategy: str = "prefixaware"
    keeps_prefixes: bool = True
    l1: TierModel | None = None
    l2: TierModel | None = None
    l2_kind: PoolKind = "nodes"
    replicas_per_node: int = 1
    overhead_s: float = 0.0
    load_factor: float = 1.0
    autoscaling: Autoscaling | None = None

    @property
    def most_replicas(self) -> int:
        """How many there may be."""
        return self.replicas if self.autoscaling is None else self.autoscaling.most

    @property
    def nodes(self) -> int:
        """How many nodes there are at the beginning."""
        return -(-self.replicas // self.replicas_per_node)

    def __post_init__(self) -> None:
        if self.most_replicas < self.replicas:
            raise ConfigurationError("--max-replicas", self.most_replicas, f"at least --replicas, {self.replicas}")
        if self.strategy not in STRATEGIES and self.strategy != PUBLISHED:
            raise ConfigurationError("--strategy", self.strategy, ", ".join([*STRATEGIES, PUBLISHED]))
        if not self.keeps_prefixes and (self.l1 or self.l2):
            raise ConfigurationError("--no-prefix-caching", True, "no --l1-size and no --l2-size beside it")
        if self.l2_kind == "service" and self.l2 is None:
            raise ConfigurationError("--l2-kind", self.l2_kind, "only with --l2-size, which it has")
        if self.l2_kind == "l1" and (self.l1 is None or not self.l1.size_bytes):
            raise ConfigurationError("--l2-kind", self.l2_kind, "only with --l1-size, for that memory it is")
        if self.l2_kind == "l1" and self.l2 is not None and self.l2.size_bytes:
            raise ConfigurationError(
                "--l2-size", self.l2.size_bytes, "nothing with --l2-kind l1: it is --l1-size of each node"
            )


@dataclass(frozen=True)
class Load:
    """What it serves: a trace, in one of two ways.

    Parameters
    ----------
    trace
        The requests.
    rate
        Requests a second on average, in the trace's rhythm; ``None``: as they came.
    concurrency
        A closed loop of so many clients instead, each with a session of the trace at a time.
    think_s
        A client's pause, on average.
    measured_from_s, until_s
        Requests that are sent in this time are measured; a closed loop ends then.
    """

    trace: Trace
    rate: float | None = None
    concurrency: int | None = None
    think_s: float = 0.0
    measured_from_s: float = 0.0
    until_s: float = inf
    seed: int = 0

    @property
    def time_scale(self) -> float:
        """What the trace's times are multiplied by."""
        if self.rate is None:
            return 1.0
        requests = self.trace.requests
        lasts_s = requests[-1].at_s - requests[0].at_s
        return (len(requests) - 1) / self.rate / lasts_s if lasts_s else 1.0


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Parameters
    ----------
    served
        All requests, in the order in which they came.
    measured
        Those that count.
    first_s, last_s
        The time that throughput is of.
    gaps
        As of :class:`~tierline.bench.engine_model.Engine`, of all of them.
    refused_blocks
        Of each tier, blocks that were there and not worth loading.
    replica_counts
        When there were how many replicas that serve.
    """

    cluster: Cluster
    load: Load
    served: Sequence[Served]
    measured: Sequence[Served]
    first_s: float
    last_s: float
    gaps: Counter[int] = field(default_factory=Counter)
    refused_blocks: Sequence[int] = ()
    replica_counts: Sequence[tuple[float, int]] = ()

    @property
    def overhead_s(self) -> float:
        """What is added to every request's times."""
        return self.cluster.overhead_s + self.cluster.coefficients.request_s

    def ttft_s(self, job: Job) -> float:
        """Return when a request's first token came, from when it was sent."""
        return job.first_token_at_s - job.at_s + self.overhead_s

    def latency_s(self, job: Job) -> float:
        """Return when its last token came."""
        return job.ended_at_s - job.at_s + self.overhead_s


def simulate(cluster: Cluster, load: Load, strategy: Strategy | None = None) -> Outcome:
    """Serve a load.

    Parameters
    ----------
    strategy
        Chooses instead of the cluster's; it is this run's alone.

    Raises
    ------
    ConfigurationError
        A prompt is longer than an engine's cache.
    """
    block_tokens = load.trace.block_tokens
    blocks = cluster.coefficients.kv_tokens // block_tokens
    largest = max(len(request.blocks) - (-request.output_tokens // block_tokens) for request in load.trace.requests)
    if largest > blocks:
        raise ConfigurationError(
            "--coefficients",
            f"kv_tokens: {cluster.coefficients.kv_tokens}",
            f"{largest * block_tokens} or more: so long is a request",
        )
    tiers = Tiers(
        cluster.l1,
        cluster.l2,
        block_bytes=block_bytes(cluster.coefficients.kv_bytes_per_token, block_tokens),
        prefill=cluster.coefficients.prefill_cost.of_blocks(block_tokens),
        kind=cluster.l2_kind,
        replicas_per_node=cluster.replicas_per_node,
        nodes=cluster.nodes,
        load_factor=cluster.load_factor,
    )
    has_tiers = cluster.l1 is not None or cluster.l2 is not None
    fleet = Fleet(
        strategy or _strategy(cluster, load, blocks),
        cluster.replicas,
        blocks,
        cluster.coefficients.engine_model(),
        tiers.below if has_tiers else None,
        block_tokens,
        None if cluster.autoscaling is None else Autoscaler(cluster.autoscaling),
        tiers.gone if has_tiers else None,
    )
    coming = arrivals(load.trace)
    if not cluster.keeps_prefixes:
        coming = sharing_nothing(coming)
    if load.concurrency is None:
        served = fleet.serve(coming, load.time_scale)
    else:
        overhead_s = cluster.overhead_s + cluster.coefficients.request_s
        clients = Clients(
            coming,
            load.concurrency,
            think_s=load.think_s,
            overhead_s=overhead_s,
            stop_s=load.until_s,
            seed=load.seed,
        )
        served = fleet.serve(clients.first(), next_of=clients.next_of)
    measured = [each for each in served if load.measured_from_s <= each.job.at_s < load.until_s]
    if not measured:
        raise ConfigurationError(
            "--warmup", load.measured_from_s, f"less than {served[-1].job.at_s:.0f} s, when the last request comes"
        )
    gaps: Counter[int] = Counter()
    refused = [0, 0]
    for engine in fleet.engines:
        gaps.update(engine.gaps)
        if isinstance(engine.below, NodeTiers):
            refused = [a + b for a, b in zip(refused, engine.below.refused_blocks, strict=True)]
    return Outcome(
        cluster,
        load,
        served,
        measured,
        first_s=max(load.measured_from_s, measured[0].job.at_s),
        last_s=min(load.until_s, max(job.ended_at_s for job, _ in measured)),
        gaps=gaps,
        refused_blocks=refused,
        replica_counts=fleet.counts,
    )


def _strategy(cluster: Cluster, load: Load, blocks: int) -> Strategy:
    if cluster.strategy == PUBLISHED:
        return PublishedPrefixAware(load.seed)
    index_bytes = 2 * cluster.most_replicas * blocks * router_blocks(load.trace.block_tokens) * PLACEMENT_BYTES
    return build_strategy(cluster.strategy, cluster.most_replicas, index_bytes, KV_INDEX_BYTES)
