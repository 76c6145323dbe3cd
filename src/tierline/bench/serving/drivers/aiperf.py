"""NVIDIA's aiperf: a line a request in ``profile_export.jsonl``; its first token has content or reasoning."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tierline.bench.serving.drivers.driver import (
    CHATS,
    INDEPENDENT,
    QUESTION_TOKENS,
    TEMPLATES,
    TRACE_FILE,
    Asked,
    Driver,
    refuse,
    seconds,
)
from tierline.bench.serving.records import Record
from tierline.bench.serving.running import TRACE
from tierline.errors import TierlineError

_FILE = "profile_export.jsonl"
_CONVERSATION = "session_"
_NANOSECONDS = 1e-9
_MILLISECONDS = 1e-3


class _Metadata(msgspec.Struct):
    request_start_ns: int
    request_end_ns: int
    benchmark_phase: str = "profiling"
    was_cancelled: bool = False
    conversation_id: str = ""
    turn_index: int = 0


class _Metric(msgspec.Struct):
    value: Any = None


class _Failure(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: int | None = None


class _Line(msgspec.Struct):
    metadata: _Metadata
    metrics: Mapping[str, _Metric] = {}
    error: _Failure | None = None

    def number(self, *names: str) -> float | None:
        """Return the first of these metrics that the line has."""
        for name in names:
            value = self.metrics[name].value if name in self.metrics else None
            if isinstance(value, int | float) and math.isfinite(value):
                return float(value)
        return None

    def count(self, *names: str) -> int | None:
        value = self.number(*names)
        return None if value is None else max(0, round(value))


def _arguments(asked: Asked, folder: Path) -> list[str]:
    settings, target = asked.settings, asked.target
    is_trace = settings.workload == TRACE
    refuse(
        asked,
        [
            (settings.ramp is not None, "--ramp-up-strategy"),
            (is_trace and settings.request_rate is not None, "--request-rate with a trace"),
            (is_trace and settings.ramp_s > 0, "--ramp-up-seconds with a trace"),
            (settings.workload == CHATS and settings.is_open_loop, "--request-rate with chats"),
            (settings.workload in (CHATS, TRACE) and settings.warmups > 0, f"--num-warmups with {settings.workload}"),
            (settings.request_rate is None and settings.is_open_loop and not is_trace, "--request-rate inf"),
            (is_trace and settings.max_concurrency is not None, "--max-concurrency with a trace"),
            (is_trace and settings.duration_s is not None, "--duration with a trace"),
        ],
    )
    is_chat = target.endpoint.endswith("/chat/completions")
    arguments = ["profile", "-m", target.model, "--url", target.base_url, "--endpoint", target.endpoint]
    arguments += ["--endpoint-type", "chat" if is_chat else "completions", "--streaming", "--use-server-token-count"]
    arguments += ["--tokenizer", asked.tokenizer, "--random-seed", str(settings.seed), *_prompts(asked, folder)]
    if settings.max_concurrency is not None:
        arguments += ["--concurrency", str(settings.max_concurrency)]
    if settings.request_rate is not None:
        arguments += ["--request-rate", str(settings.request_rate), *_arrivals(settings.burstiness)]
    if settings.warmups:
        arguments += ["--warmup-request-count", str(settings.warmups)]
    if settings.duration_s is not None:
        arguments += ["--benchmark-duration", str(settings.duration_s)]
    if settings.ramp_s:
        arguments += ["--concurrency-ramp-duration", str(settings.ramp_s)]
    if target.ignore_eos:
        arguments += ["--extra-inputs", "ignore_eos:true"]
    for name, value in target.extra_body.items():
        arguments += ["--extra-inputs", f"{name}:{value if isinstance(value, str) else _json(value)}"]
    for name, value in target.headers.items():
        arguments += ["--header", f"{name}:{value}"]
    arguments += ["--request-timeout-seconds", str(target.timeout_s)]
    return [*arguments, "--artifact-dir", str(folder), "--ui", "none"]


def _prompts(asked: Asked, folder: Path) -> list[str]:
    settings = asked.settings
    if asked.trace:
        replay = ["--input-file", str(folder / TRACE_FILE), "--custom-dataset-type", "mooncake_trace"]
        return [*replay, "--isl-block-size", str(asked.block_tokens), "--fixed-schedule"]
    lengths = ["--osl", str(settings.output_len), "--isl"]
    if settings.workload == CHATS:
        turns = ["--conversation-turn-mean", str(settings.turns), "--conversation-turn-stddev", "0"]
        return [*lengths, str(asked.message_tokens), "--conversation-num", str(asked.chats), *turns]
    count = ["--request-count", str(settings.requests)]
    if asked.prefix_tokens:
        prefixes = ["--prefix-prompt-length", str(asked.prefix_tokens), "--num-prefix-prompts", str(settings.prefixes)]
        return [*count, *lengths, str(QUESTION_TOKENS), *prefixes]
    return [*count, *lengths, str(settings.input_len)]


def _arrivals(burstiness: float | None) -> list[str]:
    if burstiness is None:
        return ["--arrival-pattern", "constant"]
    if burstiness == 1.0:
        return ["--arrival-pattern", "poisson"]
    return ["--arrival-pattern", "gamma", "--arrival-smoothness", str(burstiness)]


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def records_of(content: bytes) -> list[Record]:
    """Read ``profile_export.jsonl``; what was sent to warm up is left out, and what the end of the run cut off.

    Raises
    ------
    TierlineError
        When it is none.
    """
    try:
        told = [msgspec.json.decode(line, type=_Line) for line in content.splitlines() if line.strip()]
    except msgspec.DecodeError as error:
        raise TierlineError(f"aiperf: what it wrote is no {_FILE}: {error}") from error
    counted = [
        line for line in told if line.metadata.benchmark_phase == "profiling" and not line.metadata.was_cancelled
    ]
    began = min((line.metadata.request_start_ns for line in counted), default=0)
    return [_record(index, line, began) for index, line in enumerate(counted)]


def _row(record: Record) -> int | None:
    """Return which row of a trace a request is: aiperf numbers conversations in the order of its file."""
    _, _, number = record.family.partition(_CONVERSATION)
    return int(number) if number.isdecimal() else None


def _record(index: int, line: _Line, began: int) -> Record:
    start, end = line.metadata.request_start_ns, line.metadata.request_end_ns
    ttft = line.number("time_to_first_token")  # that to the first *output* token leaves reasoning out
    error = "" if line.error is None and ttft is not None else "failed"
    latency = line.number("request_latency")
    gaps = line.metrics["inter_chunk_latency"].value if "inter_chunk_latency" in line.metrics else []
    given = (
        [seconds(gap * _MILLISECONDS) for gap in gaps if isinstance(gap, int | float)] if isinstance(gaps, list) else []
    )
    return Record(
        index=index,
        family=line.metadata.conversation_id or f"prompt {index}",
        is_cold=line.metadata.turn_index == 0,
        late_s=None,
        sent_s=seconds((start - began) * _NANOSECONDS),
        latency_s=seconds((end - start) * _NANOSECONDS if latency is None else latency * _MILLISECONDS),
        ttft_s=None if error or ttft is None else seconds(ttft * _MILLISECONDS),
        gaps_s=() if error else given,
        prompt_tokens=line.count("usage_prompt_tokens", "input_sequence_length"),
        output_tokens=line.count("usage_completion_tokens", "output_sequence_length"),
        cached_tokens=line.count("usage_prompt_cache_read_tokens"),
        error=error,
        detail="" if line.error is None else f"{line.error.code or ''} {line.error.message}".strip()[:200],
    )


def _read(folder: Path) -> list[Record]:
    try:
        return records_of((folder / _FILE).read_bytes())
    except OSError as error:
        raise TierlineError(f"aiperf: it left no result: {error}") from error


AIPERF = Driver(
    "aiperf", "aiperf", "pip install aiperf", (INDEPENDENT, TEMPLATES, CHATS, TRACE), _arguments, _read, row=_row
)
