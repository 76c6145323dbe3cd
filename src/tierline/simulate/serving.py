"""What came of a run as a result of ``tierline bench run``, so that its reports draw it and its comparisons read it.

Every record says that it is simulated, and so does what is drawn of it. A session is a family, and requests are cold by
the rule of measured ones: by what came before, whether or not a cache had it. The model keeps no request's gaps between
tokens, so there are none: ``itl`` is in the simulator's own document only.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import takewhile

from tierline import __version__
from tierline.bench.report import Machine
from tierline.bench.routing_loads import sessions_of
from tierline.bench.rows import TokenSplit
from tierline.bench.serving.plan import MORE_THAN_HALF
from tierline.bench.serving.records import Record
from tierline.bench.serving.results import SIMULATION, Result, Settings
from tierline.simulate.coefficients import provenance
from tierline.simulate.results import cached_tokens
from tierline.simulate.running import Outcome


def result_of(outcome: Outcome, place: str, *, started: str, started_s: float, command: str) -> Result:
    """Return a run as such a result.

    Parameters
    ----------
    place
        Of the coefficients, as they were asked for.
    started, started_s
        When the simulation was made; records count simulated seconds from there.
    command
        That makes it again.
    """
    load, cluster = outcome.load, outcome.cluster
    measured = {id(job) for job, _ in outcome.measured}
    records = [
        Record(
            index=index,
            family=f"session {job.session.decode()}",
            is_cold=is_cold,
            sent_s=job.at_s,
            late_s=None,
            ttft_s=outcome.ttft_s(job),
            latency_s=outcome.latency_s(job),
            prompt_tokens=job.prompt_tokens,
            output_tokens=job.output_tokens,
            cached_tokens=job.cached_tokens,
            endpoint=f"engine-{position}",
            is_simulated=True,
            is_measured=id(job) in measured,
        )
        for index, ((job, position), is_cold) in enumerate(zip(outcome.served, _are_cold(outcome), strict=True))
    ]
    read = [cached_tokens(job) for job, _ in outcome.measured]
    engine, l1, l2 = (sum(column) for column in zip(*read, strict=True))
    asked = sum(job.prompt_tokens for job, _ in outcome.measured)
    known = provenance(place, cluster.coefficients)
    return Result(
        version=__version__,
        command=command,
        started=started,
        started_s=started_s,
        machine=Machine.here(),
        settings=Settings(
            base_url=SIMULATION,
            endpoint="",
            model=cluster.coefficients.model,
            workload=load.trace.name,
            input_len=0,
            output_len=0,
            turns=0,
            prefixes=0,
            requests=len(records),
            is_open_loop=load.concurrency is None,
            request_rate=load.rate,
            max_concurrency=load.concurrency,
            seed=load.seed,
            metadata={"strategy": cluster.strategy, "replicas": f"{cluster.replicas}", **known},
        ),
        tokens_per_word=1.0,
        loads=[],
        notes=[
            _asked(outcome),
            f"Coefficients {known['file']}: {known['model']} on {known['hardware']}, {known['date']}.",
            f"Source of the coefficients: {known['source']}",
            f"Fit: {known['fit']}. Validated: {known['validation']}.",
        ],
        split=TokenSplit(engine_cache=engine, node_store=l1, other_node=l2, computed=asked - engine - l1 - l2),
        records=records,
    )


def _are_cold(outcome: Outcome) -> Iterator[bool]:
    """Yield of each request whether most of its prompt is new, by the trace: engines without a cache change nothing."""
    trace = outcome.load.trace
    prompts: dict[bytes, deque[Sequence[int]]] = defaultdict(deque)
    for request, session in zip(trace.requests, sessions_of(trace), strict=True):
        prompts[b"%d" % session].append(request.blocks)
    seen = set[int]()
    for job, _ in outcome.served:
        blocks = prompts[job.session].popleft()
        known = sum(1 for _ in takewhile(seen.__contains__, blocks))
        seen.update(blocks)
        yield known <= MORE_THAN_HALF * len(blocks)


def _asked(outcome: Outcome) -> str:
    """Say what was asked for, and of what."""
    load, cluster = outcome.load, outcome.cluster
    jobs = [job for job, _ in outcome.measured]
    prompts, answers = [job.prompt_tokens for job in jobs], [job.output_tokens for job in jobs]
    if load.concurrency is not None:
        pause = f", who pause for {load.think_s:g} s on average" if load.think_s else ""
        came = f"closed loop, {load.concurrency} clients{pause}"
    elif load.rate is not None:
        came = f"open loop, {load.rate:g} requests/s in the rhythm of the trace"
    else:
        came = f"open loop, {len(jobs) / (jobs[-1].at_s - jobs[0].at_s or 1.0):.3g} requests/s as they came"
    return (
        f"{load.trace.name}: prompts of {min(prompts):,} to {max(prompts):,} tokens, answers of {min(answers):,} to "
        f"{max(answers):,}; {came}; model {cluster.coefficients.model}, {cluster.replicas} replicas behind "
        f"{cluster.strategy}."
    )
