"""Ours beside production-stack's ``prefixaware`` as published, on the vendor's cluster, from idle to beyond saturation.

Saturation is what ours without tiers serves of the same requests when all of them come at once. Levels are shares of
it, so that all stand under the same load, whoever copes with it. Documents are asked about with very different
frequency, and by many: what a router makes of a popular one is what they differ in.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tierline.bench.routing_loads import generate_documents
from tierline.simulate import coefficients
from tierline.simulate.results import figures
from tierline.simulate.running import PUBLISHED, Cluster, Load, simulate
from tierline.simulate.tiers import TierModel
from tierline.simulate.vendor import COEFFICIENTS, GIB, L1_LATENCY_S, L2_LATENCY_S, REPLICAS, Held

LEVELS = (0.05, 0.3, 0.6, 0.8, 0.9, 1.1)
_AT_ONCE_PER_S = 1e6
_L1_GIB, _L1_GB_PER_S, _L2_GB_PER_S = 500, 50.0, 11.0
_L1 = TierModel(_L1_GIB * GIB, _L1_GB_PER_S * 1e9, L1_LATENCY_S)
_L2 = TierModel(0, _L2_GB_PER_S * 1e9, L2_LATENCY_S)
HELD = (
    Held(
        "popularity of documents",
        "of N requests, N / 12 documents; rank by a Pareto distribution of shape 0.7",
        "a few are asked about very often, most once or never again; no service published its own",
    ),
    Held("documents", "10 to 60 blocks of 512 tokens, evenly", "5K to 30K tokens: manuals, contracts, papers"),
    Held("answers", "200 tokens on average, exponentially distributed", "what answers on a document take"),
    Held("L1", f"{_L1_GIB} GiB at {_L1_GB_PER_S:g} GB/s", "the central assumptions of the table above"),
    Held("L2", f"the nodes' L1, {_L2_GB_PER_S:g} GB/s a node", "the central assumption: 100 Gb/s between nodes"),
    Held("loads", ", ".join(f"{share:.0%}" for share in LEVELS), "of what ours without tiers serves: idle to too much"),
)
"""What does not change between the levels, beside the load."""


class Contender(NamedTuple):
    """Whom the levels compare: a name, and a cluster."""

    name: str
    cluster: Cluster


class Level(NamedTuple):
    """One contender under one load: its share of saturation, requests a second, and what came of it."""

    share: float
    rate: float
    contender: str
    figures: dict[str, float]


def contenders() -> list[Contender]:
    """Return them, theirs first."""
    known = coefficients.read(COEFFICIENTS)
    return [
        Contender(PUBLISHED, Cluster(known, REPLICAS, PUBLISHED)),
        Contender("tierline prefixaware", Cluster(known, REPLICAS, "prefixaware")),
        Contender("tierline kvaware", Cluster(known, REPLICAS, "kvaware")),
        Contender(
            "tierline prefixaware, L1, L2", Cluster(known, REPLICAS, "prefixaware", l1=_L1, l2=_L2, l2_kind="l1")
        ),
    ]


def climb(requests: int, seed: int, say: Callable[[str], None]) -> list[Level]:
    """Serve the same requests at each level with each contender."""
    trace = generate_documents(seed, requests)
    all_of_them = contenders()
    say("saturation")
    saturated = figures(simulate(all_of_them[1].cluster, Load(trace, rate=_AT_ONCE_PER_S, seed=seed)))
    levels = []
    for share in LEVELS:
        rate = share * saturated["request_throughput"]
        for name, cluster in all_of_them:
            say(f"{share:.0%} of saturation: {name}")
            levels.append(Level(share, rate, name, figures(simulate(cluster, Load(trace, rate=rate, seed=seed)))))
    return levels


def beyond(levels: Sequence[Level]) -> str:
    """Return in a sentence what ours adds over theirs at each level, in the median and the P90 of first tokens."""
    parts = []
    for share in LEVELS:
        theirs, ours = (
            next(each.figures for each in levels if each.share == share and each.contender == name)
            for name in (PUBLISHED, "tierline prefixaware")
        )
        ratios = (ours[f"{rank}_ttft_ms"] / theirs[f"{rank}_ttft_ms"] for rank in ("p50", "p90"))
        parts.append(f"{share:.0%}: " + " and ".join(f"{100 * (ratio - 1):+.0f} %" for ratio in ratios))
    return "TTFT P50 and P90 of tierline prefixaware against production-stack's, by load: " + "; ".join(parts)
