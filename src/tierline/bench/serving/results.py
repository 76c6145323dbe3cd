"""The result of a run, and the shapes that others read: ours, vLLM's flat names, aiperf's, CSV.

Every view is computed from the same records when it is written, and so is what is merged from several client hosts.
"""

import csv
import datetime as dt
import io
import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from tierline.bench.report import Machine
from tierline.bench.rows import TokenSplit, percentile
from tierline.bench.serving.arrivals import Ramp
from tierline.bench.serving.measures import Slos, Spread, Summary, duration, most_in_flight, samples, spread, summarize
from tierline.bench.serving.prices import Costs, Fleet, PriceList, costs
from tierline.bench.serving.records import ClientLoad, Record
from tierline.bench.serving.text import Lengths
from tierline.errors import UsageError

SCHEMA = "tierline-serving/1"
SIMULATION = "simulate:"
"""In place of a server's URL: there was none, nor a client; a simulation made the result."""

_AIPERF_PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_MS = 1000.0


class Billing(msgspec.Struct, frozen=True):
    """Which instances serve, and the price list that says what they cost."""

    prices: PriceList
    instance_type: str
    instances: int


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for; two results compare as far as these are equal.

    Infinity has no place in JSON: an open loop without a rate sends all at once, one without a burstiness is steady.
    """

    base_url: str
    endpoint: str
    model: str
    workload: str
    trace: str = ""
    trace_speed: float = 1.0
    input_len: int
    output_len: int
    turns: int
    prefixes: int
    requests: int
    is_open_loop: bool = False
    request_rate: float | None = None
    burstiness: float | None = 1.0
    ramp: Ramp | None = None
    max_concurrency: int | None = None
    ramp_s: float = 0.0
    duration_s: float | None = None
    warmups: int = 0
    ignores_eos: bool = True
    processes: int = 1
    share: Annotated[str, msgspec.Meta(pattern=r"^\d+/\d+(\+\d+/\d+)*$")] = "1/1"
    seed: int = 0
    goodput_ms: Mapping[str, float] = {}
    percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    metadata: Mapping[str, str] = {}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run found.

    Parameters
    ----------
    started
        When, ISO 8601 in UTC.
    started_s
        The same in seconds of the Unix epoch: records count from here.
    machine
        Of the client.
    tokens_per_word
        What the server makes of a word of the run's text.
    opening_tokens, turn_tokens
        What its chat template adds to a prompt, and to it with every further turn.
    loads
        Of the client's processes.
    doubts
        Why these figures may be the client's and not the server's.
    unchecked
        Why nobody knows how late the client sent; empty: it is known.
    records
        One a request.
    split
        Who answered the prompts' tokens, by the engines' counters; ``None``: they were not asked.
    billing
        What serves; ``None``: no price list was given.
    driver
        Whose figures these are, where another load generator ran in place of our client.
    """

    schema: str = SCHEMA
    version: str
    command: str
    started: str
    started_s: float
    machine: Machine
    settings: Settings
    tokens_per_word: float
    opening_tokens: int = 0
    turn_tokens: int = 0
    loads: Sequence[ClientLoad]
    doubts: Sequence[str] = ()
    unchecked: str = ""
    notes: Sequence[str] = ()
    split: TokenSplit | None = None
    billing: Billing | None = None
    driver: str = ""
    records: Sequence[Record]

    @property
    def lengths(self) -> Lengths:
        """What the server makes of text."""
        return Lengths(self.tokens_per_word, self.opening_tokens, self.turn_tokens)

    @property
    def measured(self) -> list[Record]:
        """The records that count."""
        return [record for record in self.records if record.is_measured]

    @property
    def is_simulated(self) -> bool:
        """Whether any answer said that no model made it."""
        return any(record.is_simulated for record in self.records)

    @property
    def is_simulation(self) -> bool:
        """Whether nothing was sent anywhere."""
        return self.settings.base_url == SIMULATION

    @property
    def slos(self) -> Slos:
        """What answers had to keep."""
        return Slos(self.settings.goodput_ms)

    def summary(self) -> Summary:
        """Sum up what is measured."""
        return self._summary(self.measured)

    def parts(self) -> dict[str, Summary]:
        """Sum up cold and warm requests, as planned, and each group."""
        measured = self.measured
        parts = {
            "cold": [record for record in measured if record.is_cold],
            "warm": [record for record in measured if not record.is_cold],
        }
        for group in sorted({record.group for record in measured if record.group}):
            parts[group] = [record for record in measured if record.group == group]
        return {name: self._summary(records) for name, records in parts.items() if records}

    def costs(self) -> Costs | None:
        """Share out the bill; ``None`` without a price list."""
        if self.billing is None:
            return None
        fleet = Fleet(self.billing.prices, self.billing.instance_type, self.billing.instances)
        return costs(self.measured, duration(self.measured), fleet)

    def _summary(self, records: Sequence[Record]) -> Summary:
        # Parts run beside each other, so their rates are over the time of all and add up.
        return summarize(records, duration(self.measured), self.slos, self.settings.percentiles)


def encode(result: Result) -> bytes:
    """Return a result as JSON; its sums come with it, for whoever reads no records."""
    document: dict[str, Any] = msgspec.to_builtins(result)
    del document["records"]
    document |= {
        "is_simulated": result.is_simulated,
        "summary": _summary_document(result.summary()),
        "parts": {name: _summary_document(part) for name, part in result.parts().items()},
        "costs": msgspec.to_builtins(result.costs()),
        # All fields of each, also what journals and messages between processes leave out.
        "records": [msgspec.structs.asdict(record) for record in result.records],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def decode(path: Path) -> Result:
    """Read a result that :func:`encode` wrote.

    Raises
    ------
    UsageError
        When it is something else.
    """
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: is no result of `tierline bench run --json`: {error}") from error
    if result.schema != SCHEMA:
        raise UsageError(f"{path}: has schema {result.schema!r}; this version reads {SCHEMA!r}")
    return result


def merge(results: Sequence[Result]) -> Result:
    """Return what several client hosts measured at the same time as one result, on the clock of the first to start.

    Its concurrency and its rate are those of all of them.

    Raises
    ------
    UsageError
        When they are not those of all hosts, each once, or did not ask the same, or not at the same time.
    """
    _check_shares(results)
    first = min(results, key=lambda result: result.started_s)
    records: list[Record] = []
    for result in results:
        if _asked(result) != _asked(first):
            raise UsageError(f"what {result.settings.share} asked for is not what {first.settings.share} asked for")
        offset = result.started_s - first.started_s
        if offset > duration(first.records):
            raise UsageError(
                f"{result.settings.share} began {offset:.0f} s after {first.settings.share}, when that had ended"
            )
        records += [msgspec.structs.replace(record, sent_s=record.sent_s + offset) for record in result.records]
    splits = [result.split for result in results if result.split is not None]
    return msgspec.structs.replace(
        first,
        settings=_together([result.settings for result in results]),
        notes=[*(f"{each.settings.share}: {note}" for each in results for note in each.notes), _hosts(results)],
        loads=[load for result in results for load in result.loads],
        doubts=[f"{result.settings.share}: {doubt}" for result in results for doubt in result.doubts],
        # Every host reads the same engines' counters over about the same time.
        split=max(splits, key=lambda split: split.total, default=None),
        records=sorted(records, key=lambda record: record.sent_s),
    )


def _check_shares(results: Sequence[Result]) -> None:
    given = [share for result in results for share in result.settings.share.split("+")]
    if doubled := sorted({share for share in given if given.count(share) > 1}):
        raise UsageError(f"--merge: {', '.join(doubled)}: more than one result has this share")
    hosts = {share.partition("/")[2] for share in given}
    if len(hosts) > 1:
        raise UsageError(f"--merge: {', '.join(sorted(given))}: are not of the same number of hosts")
    number = int(hosts.pop())
    if missing := [share for share in (f"{host}/{number}" for host in range(1, number + 1)) if share not in given]:
        raise UsageError(f"--merge: {', '.join(missing)}: no result has this share; a load is that of all its hosts")


def _together(hosts: Sequence[Settings]) -> Settings:
    """Return what hosts asked for together: places and rates are each host's own, the rest is the same for all."""
    first, ramps = hosts[0], [host.ramp for host in hosts if host.ramp is not None]
    return msgspec.structs.replace(
        first,
        share="+".join(sorted(host.share for host in hosts)),
        processes=sum(host.processes for host in hosts),
        max_concurrency=None if first.max_concurrency is None else sum(host.max_concurrency or 0 for host in hosts),
        request_rate=None if first.request_rate is None else sum(host.request_rate or 0.0 for host in hosts),
        ramp=None
        if first.ramp is None
        else Ramp(first.ramp.strategy, sum(ramp.start_rps for ramp in ramps), sum(ramp.end_rps for ramp in ramps)),
    )


def _hosts(results: Sequence[Result]) -> str:
    """Say which hosts there were, and for how long all of them made load."""
    told = "; ".join(f"{result.settings.share} from {result.machine}" for result in results)
    begun = [result.started_s + min((each.sent_s for each in result.records), default=0.0) for result in results]
    ended = [result.started_s + max((each.ended_s for each in result.records), default=0.0) for result in results]
    together, whole = max(0.0, min(ended) - max(begun)), max(ended) - min(begun)
    return f"Several hosts made this load, all of them at once for {together:.1f} of {whole:.1f} s: {told}."


def _asked(result: Result) -> Settings:
    return msgspec.structs.replace(result.settings, share="", metadata={}, processes=0)


def _summary_document(summary: Summary) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(summary),
        "metrics": {
            name: {
                **{key: value for key, value in msgspec.to_builtins(spread).items() if key != "percentiles"},
                **{f"p{percent:g}": value for percent, value in spread.percentiles.items()},
            }
            for name, spread in summary.metrics.items()
        },
        "requests_per_s": summary.requests_per_s,
        "output_tokens_per_s": summary.output_tokens_per_s,
        "tokens_per_s": summary.tokens_per_s,
        "own_output_tokens_per_s": summary.own_output_tokens_per_s,
        "cached_share": summary.cached_share,
    }


def vllm_file_name(result: Result) -> str:
    """Return what ``vllm bench serve`` calls its file: by backend, rate, concurrency, model and time."""
    settings = result.settings
    load = f"{_vllm_rate(settings)}qps"
    if settings.ramp is not None:
        load = f"ramp-up-{settings.ramp.strategy}-{settings.ramp.start_rps:g}qps-{settings.ramp.end_rps:g}qps"
    concurrency = "" if settings.max_concurrency is None else f"-concurrency{settings.max_concurrency}"
    model = settings.model.rpartition("/")[2]
    return f"{_vllm_backend(settings)}-{load}{concurrency}-{model}-{_vllm_date(result)}.json"


def vllm_document(result: Result, *, is_detailed: bool = False) -> dict[str, Any]:
    """Return the flat names of ``vllm bench serve --save-result``: milliseconds in sums, seconds in arrays."""
    summary, settings, measured = result.summary(), result.settings, result.measured
    document: dict[str, Any] = {
        "date": _vllm_date(result),
        "endpoint_type": _vllm_backend(settings),
        "backend": _vllm_backend(settings),
        "label": None,
        "model_id": settings.model,
        "tokenizer_id": settings.model,
        "num_prompts": len(measured),
        **settings.metadata,
        "request_rate": _vllm_rate(settings),
        "burstiness": settings.burstiness,
        "max_concurrency": settings.max_concurrency,
        **_vllm_ramp(settings),
        "duration": summary.duration_s,
        "completed": summary.completed,
        "failed": summary.failed,
        "total_input_tokens": summary.input_tokens,
        "total_output_tokens": summary.output_tokens,
        "request_throughput": summary.requests_per_s,
        "request_goodput": summary.goodput,
        "output_throughput": summary.output_tokens_per_s,
        "total_token_throughput": summary.tokens_per_s,
        "max_output_tokens_per_s": _most_output_tokens_per_s(measured),
        "max_concurrent_requests": most_in_flight(measured),
        "rtfx": 0.0,  # of sound that is transcribed
        "is_simulated": result.is_simulated,
    }
    for metric, values in {**summary.metrics, **_vllm_queues(result)}.items():
        document |= {
            f"mean_{metric}_ms": values.mean * _MS,
            f"median_{metric}_ms": values.median * _MS,
            f"std_{metric}_ms": values.std * _MS,
            **{f"p{percent:g}_{metric}_ms": value * _MS for percent, value in values.percentiles.items()},
        }
    if is_detailed:
        document |= {
            "input_lens": [record.prompt_tokens or 0 for record in measured],
            "output_lens": [record.output for record in measured],
            "ttfts": [record.ttft_s or 0.0 for record in measured],
            "itls": [list(record.gaps_s) for record in measured],
            "latencies": [record.latency_s for record in measured],
            "start_times": [record.sent_s for record in measured],
            "queue_times": [record.queued_s for record in measured],
            "generated_texts": [record.text for record in measured],
            "errors": [f"{record.error} {record.detail}".strip() for record in measured],
        }
    return document


def _vllm_date(result: Result) -> str:
    return result.started.replace("-", "").replace(":", "").replace("T", "-")[:15]


def _vllm_backend(settings: Settings) -> str:
    return "openai-chat" if settings.endpoint.endswith("/chat/completions") else "openai"


def _vllm_rate(settings: Settings) -> float | str:
    return "inf" if settings.request_rate is None else settings.request_rate


def _vllm_ramp(settings: Settings) -> dict[str, Any]:
    if settings.ramp is None:
        return {}
    return {
        "ramp_up_strategy": settings.ramp.strategy,
        "ramp_up_start_rps": settings.ramp.start_rps,
        "ramp_up_end_rps": settings.ramp.end_rps,
    }


def _vllm_queues(result: Result) -> dict[str, Spread]:
    """Return how long requests waited for a place, and they with that: where an open loop has a limit."""
    settings = result.settings
    if not settings.is_open_loop or settings.max_concurrency is None:
        return {}
    good = [record for record in result.measured if record.is_good]
    spreads = {
        "client_queue_time": spread([record.queued_s for record in good], settings.percentiles),
        "e2el_including_client_queue": spread(
            [record.queued_s + record.latency_s for record in good], settings.percentiles
        ),
    }
    return {name: values for name, values in spreads.items() if values is not None}


def _most_output_tokens_per_s(records: Sequence[Record]) -> float:
    """Return the most events with content that came in one of the seconds since the first request."""
    good = [record for record in records if record.is_good and record.ttft_s is not None]
    start = min((record.sent_s for record in good), default=0.0)
    times = (
        at_s - start
        for record in good
        for at_s in itertools.accumulate(record.gaps_s, initial=record.sent_s + (record.ttft_s or 0.0))
    )
    return float(max(Counter(map(int, times)).values(), default=0))


def aiperf_document(result: Result) -> dict[str, Any]:
    """Return the shape of aiperf's ``profile_export_aiperf.json``; its gap between tokens is a mean of each request."""
    summary, measured = result.summary(), result.measured
    good = [record for record in measured if record.is_good]
    document: dict[str, Any] = {
        "time_to_first_token": _aiperf_spread("ms", [value * _MS for value in samples(good, "ttft")]),
        "inter_chunk_latency": _aiperf_spread("ms", [value * _MS for value in samples(good, "itl")]),
        "inter_token_latency": _aiperf_spread("ms", [value * _MS for value in samples(good, "tpot")]),
        "request_latency": _aiperf_spread("ms", [value * _MS for value in samples(good, "e2el")]),
        "input_sequence_length": _aiperf_spread("tokens", [float(record.prompt_tokens or 0) for record in good]),
        "output_sequence_length": _aiperf_spread("tokens", [float(record.output) for record in good]),
        "usage_prompt_cache_read_tokens": _aiperf_spread(
            "tokens", [float(record.cached_tokens) for record in good if record.cached_tokens is not None]
        ),
        "request_throughput": {"unit": "requests/sec", "avg": summary.requests_per_s},
        "output_token_throughput": {"unit": "tokens/sec", "avg": summary.output_tokens_per_s},
        "total_token_throughput": {"unit": "tokens/sec", "avg": summary.tokens_per_s},
        "request_count": {"unit": "requests", "avg": float(summary.completed)},
        "error_request_count": {"unit": "requests", "avg": float(summary.failed)},
        "benchmark_duration": {"unit": "sec", "avg": summary.duration_s},
    }
    if summary.goodput is not None:
        document["goodput"] = {"unit": "requests/sec", "avg": summary.goodput}
    if summary.cached_share is not None:
        document["overall_usage_prompt_cache_read_pct"] = {"unit": "%", "avg": 100 * summary.cached_share}
    ended_s = max((record.ended_s for record in measured), default=0.0)
    present = {name: value for name, value in document.items() if value is not None}
    return {
        **present,
        "error_summary": [{"error_details": {"type": kind}, "count": count} for kind, count in summary.errors.items()],
        "start_time": result.started,
        "end_time": (dt.datetime.fromisoformat(result.started) + dt.timedelta(seconds=ended_s)).isoformat(),
        "was_cancelled": False,
        "is_simulated": result.is_simulated,
    }


def _aiperf_spread(unit: str, values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {
        "unit": unit,
        "avg": statistics.fmean(values),
        **{f"p{percent}": percentile(values, percent) for percent in _AIPERF_PERCENTS},
        "min": min(values),
        "max": max(values),
        "std": statistics.pstdev(values),
        "count": len(values),
        "sum": sum(values),
    }


_COLUMNS = (
    *("index", "family", "group", "is_cold", "is_measured", "is_simulated", "sent_s", "queued_s", "late_s", "ttft_s"),
    *("tpot_s", "latency_s", "prompt_tokens", "cached_tokens", "output_tokens", "endpoint", "error", "detail"),
)


def csv_text(result: Result) -> str:
    """Return a line a request."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_COLUMNS)
    for record in result.records:
        cells = [getattr(record, column) for column in _COLUMNS]
        lines.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()
