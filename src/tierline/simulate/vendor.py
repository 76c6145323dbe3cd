"""The vendor's cluster: what HyperPod's announcement says of it, and which assumptions make a simulation say the same.

Rules: **no coefficient is fitted to the table**. What the vendor does not say is an assumption with several plausible
values; what comes out is how often such values reach the table, never that it was reproduced. Amazon, "Managed Tiered
KV Cache and Intelligent Routing for Amazon SageMaker HyperPod", 2025: Llama-3.1-70B-Instruct on 7 replicas of
p5.48xlarge, steady load, against "baseline configurations without optimization", which is all that is said of those.
"""

import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tierline.simulate import coefficients
from tierline.simulate.loads import generate_questions
from tierline.simulate.results import figures
from tierline.simulate.running import Cluster, Load, simulate
from tierline.simulate.tiers import TierModel

COEFFICIENTS = "llama-3.1-70b-tp8-h100"
REPLICAS = 7
GIB = 2**30
NEAR_POINTS = 10.0
"""So many percentage points from the vendor's figure are near it."""
SOURCE = (
    'Amazon, "Managed Tiered KV Cache and Intelligent Routing for Amazon SageMaker HyperPod", 2025; '
    "Llama-3.1-70B-Instruct on 7 replicas of p5.48xlarge"
)
"""Of the table."""
LEAST_SECONDS = 60.0
"""Of a run: in less, no request may come, where a replica is asked for 64K tokens by many at once."""
L1_LATENCY_S = 0.001
L2_LATENCY_S = 0.002
_WARM_UP_S = 60.0
_SETTLES_S = 60.0
_ENOUGH = 5
"""Samples of a kind, to say anything about it."""


class Changes(NamedTuple):
    """What features change against a baseline, in percent: of times and cost less is better, of throughput more."""

    ttft_p90: float
    ttft_p50: float
    throughput: float
    cost: float


MEASURES = ("TTFT P90", "TTFT P50", "throughput", "cost")
TABLE: Mapping[int, Changes] = {8192: Changes(-40, -72, 24, -21), 65536: Changes(-35, -94, 38, -28)}
CLAIM_TTFT, CLAIM_COST = -40.0, -25.0
"""Its other claim: up to so much less, by tools of its own that it does not describe."""

Value = float | str


class Assumption(NamedTuple):
    """Something that the vendor does not say.

    Parameters
    ----------
    name, unit
        What it is.
    values
        All that are plausible, equally likely.
    central
        That with which the others are tried one by one, by context.
    why
        Where the values come from.
    """

    name: str
    unit: str
    values: Mapping[int, Sequence[Value]]
    central: Mapping[int, Value]
    why: str


def _same(name: str, unit: str, values: Sequence[Value], central: Value, why: str) -> Assumption:
    return Assumption(name, unit, dict.fromkeys(TABLE, values), dict.fromkeys(TABLE, central), why)


ASSUMPTIONS = (
    Assumption(
        "clients",
        "a replica",
        {8192: (2, 4, 8, 16, 32), 65536: (1, 2, 4, 8, 16)},
        {8192: 8, 65536: 4},
        "'steady load', 'one c5.12xlarge per 100 concurrent requests': a multiple of 100 or less for 7 replicas",
    ),
    _same("questions", "a document", (2, 3, 4, 5, 8, 20), 4, "'follow-up questions', '20+ turn chats'"),
    _same("answer", "tokens", (128, 256, 512, 1024), 512, "not said; what chat and summaries use"),
    _same("pause", "s", (0, 2, 5, 10, 30), 5, "not said; 0 is a load generator, 30 a reader"),
    _same("overhead", "s", (0.02, 0.1, 0.25), 0.1, "load balancer, router, tokenizing 8K to 64K tokens; not said"),
    _same(
        "baseline caching", "", ("off", "on"), "off", "'without optimization'; vLLM has prefix caching on by default"
    ),
    _same("baseline routing", "", ("roundrobin", "leastload"), "roundrobin", "what load balancers do"),
    _same("strategy", "", ("prefixaware", "kvaware"), "prefixaware", "prefixaware is the vendor's default"),
    _same("L1 size", "GiB", (200, 500, 1000), 500, "p5.48xlarge has 2 TiB of memory; allocation is automatic"),
    _same("L1 speed", "GB/s", (10, 25, 50, 200), 50, "one thread's memcpy; one PCIe 5.0 x16; several; eight"),
    _same("L2 speed", "GB/s", (0, 2, 11, 45, 200), 11, "0: off, its default; Redis; 100 and 400 Gb/s; EFA 3200"),
)


class Held(NamedTuple):
    """Something else that the vendor does not say, and that is the same in every run: its name, value and reason."""

    name: str
    value: str
    why: str


HELD = (
    Held(
        "L2 size",
        f"{REPLICAS} times L1",
        "memory of the nodes beside L1, as much on each; beyond what is asked for, size changes nothing",
    ),
    Held("L1 latency", f"{L1_LATENCY_S * 1000:g} ms", "a look-up and a copy's start; not said"),
    Held("L2 latency", f"{L2_LATENCY_S * 1000:g} ms", "a request to another node and back; not said"),
    Held("warm-up", f"{_WARM_UP_S:g} s and a pause", "not measured: caches fill, clients fall out of step; not said"),
    Held(
        "pauses",
        "exponentially distributed",
        "around the assumed one: readers take some moments often and minutes seldom; not said",
    ),
    Held("readers", "one a document", "whoever shares one finds more: caches are not flattered; not said"),
    Held("replicas", f"{REPLICAS} of 8 H100, none comes or goes", "as the vendor says; of autoscaling it says nothing"),
)

Choice = Mapping[str, Value]


class Tried(NamedTuple):
    """One choice of assumptions, and what came of it."""

    choice: Choice
    changes: Changes


class Swing(NamedTuple):
    """What one assumption does where all others are central: the changes at each of its values."""

    assumption: Assumption
    tried: Sequence[tuple[Value, Changes]]


@dataclass(frozen=True)
class Study:
    """All that was tried for one context length.

    Parameters
    ----------
    central
        With every assumption at its central value.
    samples
        With each drawn from its values.
    swings
        One assumption at a time.
    """

    context: int
    central: Changes
    samples: Sequence[Tried]
    swings: Sequence[Swing]

    def reached(self, measure: int, samples: Iterable[Tried] | None = None) -> float:
        """Return the share of samples that change a measure as much as the vendor's, or more."""
        wanted = TABLE[self.context][measure]
        tried = self.samples if samples is None else list(samples)
        return _share(goes_as_far(each.changes[measure], wanted) for each in tried)

    def near(self, measure: int) -> float:
        """Return the share of samples that are near the vendor's figure."""
        wanted = TABLE[self.context][measure]
        return _share(abs(each.changes[measure] - wanted) <= NEAR_POINTS for each in self.samples)

    @property
    def near_in_all(self) -> float:
        """The share of samples that are near all four."""
        wanted = TABLE[self.context]
        return _share(
            all(abs(got - said) <= NEAR_POINTS for got, said in zip(each.changes, wanted, strict=True))
            for each in self.samples
        )

    @property
    def claimed(self) -> float:
        """The share of samples that reach the other claim, in the median time to first token and in cost at once."""
        return _share(each.changes.ttft_p50 <= CLAIM_TTFT and each.changes.cost <= CLAIM_COST for each in self.samples)

    def where(self, name: str, value: Value) -> list[Tried]:
        """Return the samples in which an assumption has a value."""
        return [each for each in self.samples if each.choice[name] == value]

    @property
    def on_baseline_caching(self) -> str:
        """What the samples say about whether the baseline had prefix caching."""
        off, on = (self.where("baseline caching", value) for value in ("off", "on"))
        if min(len(off), len(on)) < _ENOUGH:
            return "too few samples to say whether the baseline had prefix caching"
        parts = []
        for measure, name in enumerate(MEASURES):
            parts.append(f"{name} {100 * self.reached(measure, off):.0f} % / {100 * self.reached(measure, on):.0f} %")
        text = f"reached with the baseline's prefix caching off / on: {', '.join(parts)}"
        short = [name for measure, name in enumerate(MEASURES) if not self.reached(measure, on)]
        if short and all(self.reached(MEASURES.index(name), off) for name in short):
            text += f"; with it on, none of {len(on)} samples reaches {' or '.join(short)}: it must have been off"
        return text


def goes_as_far(got: float, wanted: float) -> bool:
    """Whether a change goes as far as another, in its direction."""
    return got <= wanted if wanted < 0 else got >= wanted


def study(context: int, samples: int, seed: int, seconds: float, say: Callable[[str], None]) -> Study:
    """Try so many choices of assumptions, and each assumption alone.

    Parameters
    ----------
    context
        A key of :data:`TABLE`.
    seconds
        Of simulated time, that are measured in each run.
    say
        Is told what is being tried.
    """
    central = {each.name: each.central[context] for each in ASSUMPTIONS}
    name = f"{context // 1024}K"
    say(f"{name}: central")
    of_central = try_choice(context, central, seed, seconds)
    swings = []
    for assumption in ASSUMPTIONS:
        say(f"{name}: {assumption.name}")
        swings.append(
            Swing(
                assumption,
                [
                    (value, of_central)
                    if value == central[assumption.name]
                    else (value, try_choice(context, {**central, assumption.name: value}, seed, seconds))
                    for value in assumption.values[context]
                ],
            )
        )
    dice = random.Random(seed)
    tried = []
    for number in range(samples):
        say(f"{name}: sample {number + 1} of {samples}")
        choice = {each.name: dice.choice(each.values[context]) for each in ASSUMPTIONS}
        tried.append(Tried(choice, try_choice(context, choice, seed, seconds)))
    return Study(context, of_central, tried, swings)


def try_choice(context: int, choice: Choice, seed: int, seconds: float) -> Changes:
    """Simulate baseline and features under one choice of assumptions, with the same requests."""
    known = coefficients.read(COEFFICIENTS)
    overhead_s = float(choice["overhead"])
    baseline = Cluster(
        known,
        REPLICAS,
        str(choice["baseline routing"]),
        keeps_prefixes=choice["baseline caching"] == "on",
        overhead_s=overhead_s,
    )
    l1_bytes, l2_speed = int(choice["L1 size"]) * GIB, float(choice["L2 speed"]) * 1e9
    # As on HyperPod: L1 is LMCache's, L2 the memory of daemons beside it, on the same nodes.
    features = Cluster(
        known,
        REPLICAS,
        str(choice["strategy"]),
        l1=TierModel(l1_bytes, float(choice["L1 speed"]) * 1e9, L1_LATENCY_S),
        l2=TierModel(REPLICAS * l1_bytes, l2_speed, L2_LATENCY_S) if l2_speed else None,
        overhead_s=overhead_s,
    )
    before, after = (_run(cluster, context, choice, seed, seconds) for cluster in (baseline, features))
    throughput = after["output_throughput"] / before["output_throughput"]
    return Changes(
        ttft_p90=_percent(after["p90_ttft_ms"] / before["p90_ttft_ms"]),
        ttft_p50=_percent(after["p50_ttft_ms"] / before["p50_ttft_ms"]),
        throughput=_percent(throughput),
        cost=_percent(1 / throughput),
    )


def _run(cluster: Cluster, context: int, choice: Choice, seed: int, seconds: float) -> dict[str, float]:
    clients, asked, answer = REPLICAS * int(choice["clients"]), int(choice["questions"]), int(choice["answer"])
    pause_s = float(choice["pause"])
    until_s = _WARM_UP_S + pause_s + seconds
    # A client cannot ask more often than answers take, however fast they are.
    fastest_s = answer * cluster.coefficients.decode.step_s + pause_s / 2
    documents = clients * (2 + int((until_s + _SETTLES_S) / fastest_s / asked))
    trace = generate_questions(seed, documents, asked, prompt_tokens=context, output_tokens=answer, per_s=1000.0)
    load = Load(
        trace,
        concurrency=clients,
        think_s=pause_s,
        measured_from_s=_WARM_UP_S + pause_s,
        until_s=until_s,
        seed=seed,
    )
    return figures(simulate(cluster, load))


def spread(samples: Sequence[Tried], measure: int) -> tuple[float, float, float]:
    """Return the least, the middle and the most of a measure."""
    values = [each.changes[measure] for each in samples]
    return min(values), statistics.median(values), max(values)


def _percent(ratio: float) -> float:
    return 100 * (ratio - 1)


def _share(hits: Iterable[bool]) -> float:
    counted = list(hits)
    return sum(counted) / len(counted) if counted else 0.0
