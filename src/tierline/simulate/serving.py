"""What came of a run as a result of ``tierline bench run``, so that its reports draw it and its comparisons read it.

Every record says that it is simulated, and so does what is drawn of it. The model keeps no request's gaps between
tokens, so there are none: ``itl`` is in the simulator's own document only.
"""

from tierline import __version__
from tierline.bench.report import Machine
from tierline.bench.rows import TokenSplit
from tierline.bench.serving.records import Record
from tierline.bench.serving.results import Result, Settings
from tierline.simulate.coefficients import provenance
from tierline.simulate.results import cached_tokens
from tierline.simulate.running import Outcome

_BASE_URL = "simulate:"


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
            family=f"{job.blocks[0]}",
            is_cold=not job.cached_tokens,
            sent_s=job.at_s,
            ttft_s=outcome.ttft_s(job),
            latency_s=outcome.latency_s(job),
            prompt_tokens=job.prompt_tokens,
            output_tokens=job.output_tokens,
            cached_tokens=job.cached_tokens,
            endpoint=f"engine-{position}",
            is_simulated=True,
            is_measured=id(job) in measured,
        )
        for index, (job, position) in enumerate(outcome.served)
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
            base_url=_BASE_URL,
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
            f"Coefficients {known['file']}: {known['model']} on {known['hardware']}, {known['date']}.",
            f"Source of the coefficients: {known['source']}",
            f"Fit: {known['fit']}. Validated: {known['validation']}.",
        ],
        split=TokenSplit(engine_cache=engine, node_store=l1, other_node=l2, computed=asked - engine - l1 - l2),
        records=records,
    )
