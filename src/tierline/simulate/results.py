"""What came of a run, in numbers: under the names that ``vllm bench serve --save-result`` writes, and more of our own.

Names that both have mean the same: times are in milliseconds, ``tpot`` is (end to end − TTFT) / (tokens − 1) of each
answer with more than one token, ``itl`` is over all times between tokens, in classes of a percent, ``duration`` is from
the first request that is measured to the last token. What is simulated says so in ``backend``.
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from tierline import __version__
from tierline.bench.engine_model import GAP_GRAIN, Job
from tierline.bench.rows import JsonValue, percentile
from tierline.simulate.coefficients import provenance
from tierline.simulate.running import Cluster, Outcome
from tierline.simulate.tiers import TIERS, TierModel

SCHEMA = "tierline-simulate/1"
PERCENTS = (50, 90, 95, 99)


def document(outcome: Outcome, started: str, place: str) -> dict[str, JsonValue]:
    """Return the document that ``--json`` writes; ``place`` is where the coefficients are from."""
    load, jobs = outcome.load, [job for job, _ in outcome.measured]
    coefficients = outcome.cluster.coefficients
    return {
        "schema": SCHEMA,
        "version": __version__,
        "date": started,
        "backend": "tierline-simulate",
        "label": load.trace.name,
        "model_id": coefficients.model,
        "num_prompts": len(jobs),
        "request_rate": "inf"
        if load.concurrency is not None
        else round(len(load.trace.requests) / _sent_in_s(outcome), 6),
        "burstiness": None,
        "max_concurrency": load.concurrency,
        "seed": load.seed,
        **figures(outcome),
        "cluster": _cluster(outcome.cluster),
        "coefficients": provenance(place, coefficients),
    }


def figures(outcome: Outcome) -> dict[str, float]:
    """Return what was measured."""
    jobs = [job for job, _ in outcome.measured]
    ended = [job for job, _ in outcome.served if outcome.first_s < job.ended_at_s <= outcome.last_s]
    duration_s = outcome.last_s - outcome.first_s
    tokens_in, tokens_out = sum(job.prompt_tokens for job in ended), sum(job.output_tokens for job in ended)
    times: dict[str, Sequence[float]] = {
        "ttft": [outcome.ttft_s(job) for job in jobs],
        "tpot": [
            (job.ended_at_s - job.first_token_at_s) / (job.output_tokens - 1) for job in jobs if job.output_tokens > 1
        ],
        "e2el": [outcome.latency_s(job) for job in jobs],
    }
    made: dict[str, float] = {
        "duration": duration_s,
        "completed": len(jobs),
        "failed": 0,
        "total_input_tokens": sum(job.prompt_tokens for job in jobs),
        "total_output_tokens": sum(job.output_tokens for job in jobs),
        "request_throughput": len(ended) / duration_s,
        "output_throughput": tokens_out / duration_s,
        "total_token_throughput": (tokens_in + tokens_out) / duration_s,
    }
    for name, seconds in times.items():
        if seconds:
            made[f"mean_{name}_ms"] = 1000 * statistics.fmean(seconds)
            made[f"median_{name}_ms"] = 1000 * percentile(seconds, 50)
            made[f"std_{name}_ms"] = 1000 * statistics.pstdev(seconds)
            made |= {f"p{percent}_{name}_ms": 1000 * percentile(seconds, percent) for percent in PERCENTS}
    return made | _between_tokens(outcome.gaps) | _shares(jobs) | _replicas(outcome)


def cached_tokens(job: Job) -> list[int]:
    """Return what of a prompt was read from each cache: the engine's, then each tier's; together, what it was saved."""
    parts = [job.cached_blocks, *(job.loaded_blocks or [0] * len(TIERS))]
    left, read = job.cached_tokens, []
    for blocks in parts:
        tokens = min(left, blocks * job.block_tokens)
        read.append(tokens)
        left -= tokens
    return read


def _shares(jobs: Sequence[Job]) -> dict[str, float]:
    """Return the shares of prompt tokens that came from each cache."""
    asked = sum(job.prompt_tokens for job in jobs)
    read = [sum(column) / asked for column in zip(*map(cached_tokens, jobs), strict=True)]
    names = ("engine", *TIERS)
    return {"hit_rate": sum(read)} | {f"hit_rate_{name}": share for name, share in zip(names, read, strict=True)}


def _replicas(outcome: Outcome) -> dict[str, float]:
    """Return how many replicas served in the time that is measured: on average, which is what they cost, at most."""
    counts = outcome.replica_counts
    ends = [at_s for at_s, _ in counts[1:]] + [math.inf]
    lasted = [
        (min(end_s, outcome.last_s) - max(at_s, outcome.first_s), count)
        for (at_s, count), end_s in zip(counts, ends, strict=True)
        if at_s < outcome.last_s and end_s > outcome.first_s
    ]
    return {
        "mean_replicas": sum(seconds * count for seconds, count in lasted) / (outcome.last_s - outcome.first_s),
        "most_replicas": max(count for _, count in lasted),
    }


def _between_tokens(gaps: Counter[int]) -> dict[str, float]:
    total = gaps.total()
    if not total:
        return {}
    ordered = sorted(gaps.items())
    mean = sum(_gap_ms(kind) * count for kind, count in ordered) / total
    made = {"mean_itl_ms": mean, "median_itl_ms": _at(ordered, total, 50)}
    made["std_itl_ms"] = math.sqrt(sum(count * (_gap_ms(kind) - mean) ** 2 for kind, count in ordered) / total)
    return made | {f"p{percent}_itl_ms": _at(ordered, total, percent) for percent in PERCENTS}


def _at(ordered: Sequence[tuple[int, int]], total: int, percent: int) -> float:
    passed = 0
    for kind, count in ordered:
        passed += count
        if passed >= total * percent / 100:
            return _gap_ms(kind)
    return _gap_ms(ordered[-1][0])


def _gap_ms(kind: int) -> float:
    return float(1000 * (1 + GAP_GRAIN) ** kind)


def _sent_in_s(outcome: Outcome) -> float:
    return max(outcome.served[-1].job.at_s - outcome.served[0].job.at_s, 1e-9)


def _cluster(cluster: Cluster) -> dict[str, JsonValue]:
    coefficients = cluster.coefficients
    return {
        "replicas": cluster.replicas,
        "replicas_per_node": cluster.replicas_per_node,
        "strategy": cluster.strategy,
        "prefix_caching": cluster.keeps_prefixes,
        "kv_tokens": coefficients.kv_tokens,
        "l1": _tier(cluster.l1),
        "l2": _tier(cluster.l2),
        "l2_kind": None if cluster.l2 is None else cluster.l2_kind,
        "overhead_s": cluster.overhead_s,
        "load_factor": cluster.load_factor,
        "autoscaling": None if cluster.autoscaling is None else asdict(cluster.autoscaling),
    }


def _tier(tier: TierModel | None) -> JsonValue:
    if tier is None:
        return None
    return {
        "size_bytes": tier.size_bytes,
        "bytes_per_s": tier.bytes_per_s,
        "latency_s": tier.latency_s,
        "policy": tier.policy,
    }
