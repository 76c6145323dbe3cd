"""guidellm: flags of kinds and their settings, and one JSON file with every request (0.7 and newer).

Its time to first token ends with the first event that has a token. Of gaps between tokens it tells one mean a request,
of which no percentile of gaps can be made: records have none, and the time per output token says as much.
"""

from collections.abc import Sequence
from pathlib import Path

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
from tierline.bench.serving.results import Settings
from tierline.bench.serving.running import TRACE
from tierline.errors import TierlineError

_FILE = "guidellm.json"
_MILLISECONDS = 1e-3


class _Times(msgspec.Struct):
    targeted_start: float | None = None


class _Information(msgspec.Struct):
    error: str | None = None
    conversation_id: str | None = None
    turn_index: int = 0
    timings: _Times = msgspec.field(default_factory=_Times)


class _Request(msgspec.Struct):
    request_start_time: float | None = None
    request_end_time: float | None = None
    time_to_first_token_ms: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    info: _Information = msgspec.field(default_factory=_Information)


class _Requests(msgspec.Struct):
    successful: Sequence[_Request] = ()
    errored: Sequence[_Request] = ()


class _Benchmark(msgspec.Struct):
    requests: _Requests


class _Report(msgspec.Struct):
    benchmarks: Sequence[_Benchmark]


def _arguments(asked: Asked, folder: Path) -> list[str]:
    settings, target = asked.settings, asked.target
    is_trace = settings.workload == TRACE
    refuse(
        asked,
        [
            (is_trace and settings.request_rate is not None, "--request-rate with a trace"),
            (settings.workload == CHATS and settings.is_open_loop, "--request-rate with chats"),
            (is_trace and settings.max_concurrency is not None, "--max-concurrency with a trace"),
            (settings.ramp is not None, "--ramp-up-strategy"),
            (settings.ramp_s > 0, "--ramp-up-seconds"),
            (settings.warmups > 0, "--num-warmups"),
            (not target.ignore_eos, "--no-ignore-eos"),
            (settings.burstiness not in (None, 1.0), "--burstiness other than 1 and inf"),
            (settings.request_rate is None and settings.is_open_loop and not is_trace, "--request-rate inf"),
        ],
    )
    backend: dict[str, object] = {"kind": "openai_http", "target": target.base_url, "model": target.model}
    backend["request_format"] = target.endpoint
    backend["timeout"] = target.timeout_s
    extras: dict[str, object] = {}
    if target.headers:
        extras["headers"] = dict(target.headers)
    if target.extra_body:
        extras["body"] = dict(target.extra_body)
    if extras:
        backend["extras"] = extras
    arguments = ["run", "--backend", _json(backend)]
    arguments += ["--profile", _json(_profile(settings))]
    arguments += ["--constraint", f"kind=max_requests,count={settings.requests}"]
    if settings.duration_s is not None:
        arguments += ["--constraint", f"kind=max_duration,seconds={settings.duration_s}"]
    arguments += [
        "--data",
        _json(_data(asked, folder)),
        "--tokenizer",
        f"kind=huggingface_auto,model={asked.tokenizer}",
    ]
    arguments += ["--seed", f"kind=static,value={settings.seed}", "--disable-console"]
    return [*arguments, "--output", f"kind=json,path={folder / _FILE}"]


def _profile(settings: Settings) -> dict[str, object]:
    if settings.workload == TRACE:
        return {"kind": "replay"}
    if settings.request_rate is None:
        return {"kind": "concurrent", "streams": settings.max_concurrency or 1}
    kind = "constant" if settings.burstiness is None else "poisson"
    limit = {} if settings.max_concurrency is None else {"max_concurrency": settings.max_concurrency}
    return {"kind": kind, "rate": settings.request_rate, **limit}


def _data(asked: Asked, folder: Path) -> dict[str, object]:
    settings = asked.settings
    if asked.trace:
        source = {"kind": "json_file", "path": str(folder / TRACE_FILE)}
        # It counts seconds where Mooncake's traces count milliseconds.
        return {"kind": "mooncake", "source": source, "hash_id_block_size": asked.block_tokens, "time_scale": 0.001}
    made: dict[str, object] = {"kind": "synthetic_text", "output_tokens": settings.output_len}
    if settings.workload == CHATS:
        return {**made, "prompt_tokens": asked.message_tokens, "turns": settings.turns}
    if asked.prefix_tokens:
        prefixes = {"prefix_tokens": asked.prefix_tokens, "prefix_count": settings.prefixes}
        return {**made, "prompt_tokens": QUESTION_TOKENS, **prefixes}
    return {**made, "prompt_tokens": settings.input_len}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def records_of(content: bytes) -> list[Record]:
    """Read a report in JSON; requests that were cut off by its end are left out.

    Raises
    ------
    TierlineError
        When it is none.
    """
    try:
        benchmarks = msgspec.json.decode(content, type=_Report).benchmarks
    except msgspec.DecodeError as error:
        raise TierlineError(f"guidellm: what it wrote is no report: {error}") from error
    if len(benchmarks) != 1:
        raise TierlineError(f"guidellm: what it wrote has {len(benchmarks)} benchmarks; one was asked for")
    requests = benchmarks[0].requests
    all_of_them = [*((each, True) for each in requests.successful), *((each, False) for each in requests.errored)]
    began = min((each.request_start_time or 0.0 for each, _ in all_of_them), default=0.0)
    return [_record(index, each, began, is_good=is_good) for index, (each, is_good) in enumerate(all_of_them)]


def _record(index: int, told: _Request, began: float, *, is_good: bool) -> Record:
    start, end, ttft = told.request_start_time or began, told.request_end_time, told.time_to_first_token_ms
    is_good = is_good and ttft is not None
    due = told.info.timings.targeted_start
    return Record(
        index=index,
        family=told.info.conversation_id or f"prompt {index}",
        is_cold=told.info.turn_index == 0,
        late_s=None if due is None else seconds(start - due),
        sent_s=seconds(start - began),
        latency_s=seconds((end or start) - start),
        ttft_s=seconds(ttft * _MILLISECONDS) if is_good and ttft is not None else None,
        prompt_tokens=told.prompt_tokens,
        output_tokens=told.output_tokens,
        cached_tokens=told.cached_tokens,
        error="" if is_good else "failed",
        detail=(told.info.error or "")[:200],
    )


def _read(folder: Path) -> list[Record]:
    try:
        return records_of((folder / _FILE).read_bytes())
    except OSError as error:
        raise TierlineError(f"guidellm: it left no result: {error}") from error


GUIDELLM = Driver(
    "guidellm", "guidellm", "pip install guidellm", (INDEPENDENT, TEMPLATES, CHATS, TRACE), _arguments, _read
)
