"""Ours beside NVIDIA Dynamo's mocker: the same requests at engines of the same speed, replayed by both.

The mocker is a simulator of others, with a scheduler, a cache and a router of its own, so where both agree neither made
it up. It runs in an environment of its own (``make .venv-dynamo``), in a process of its own.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tierline.bench.rows import percentile
from tierline.bench.traces import Request, Trace
from tierline.errors import TierlineError, UsageError
from tierline.simulate.coefficients import Coefficients
from tierline.simulate.results import figures
from tierline.simulate.running import Cluster, Load, simulate

ROUTERS: Mapping[str, str] = {"round_robin": "roundrobin", "kv_router": "kvaware"}
"""Of the mocker, and the strategy of ours that does the same or nearly."""
DIFFERENCES = (
    "Prompts are whole blocks of 512 tokens in both; the mocker gets the trace rewritten so.",
    "The mocker's table of prefill times knows a chunk's length only: what a chunk attends to before it takes no time.",
    "In ours a step that computes prompts and decodes pays its least time once; the mocker adds both tables' times.",
    "kv_router is Dynamo's, with its own weights of overlap and load; kvaware is ours.",
)
_PROGRAM = Path(__file__).with_name("mocker_replay.py")


class Side(NamedTuple):
    """What one of both says."""

    ttft_p50_ms: float
    ttft_p90_ms: float
    output_tokens_per_s: float
    hit_rate: float


class Beside(NamedTuple):
    """Both under one way of routing."""

    router: str
    strategy: str
    mocker: Side
    ours: Side


class _Replayed(msgspec.Struct):
    """A request, as the mocker reports it."""

    arrival_time_ms: float
    ttft_ms: float
    e2e_latency_ms: float
    input_length: int
    output_length: int
    reused_input_tokens: int


def compare(python: Path, trace: Trace, known: Coefficients, replicas: int, rate: float | None) -> list[Beside]:
    """Replay a trace in both.

    Parameters
    ----------
    python
        Interpreter of the environment that has Dynamo.
    rate
        Requests a second on average; ``None``: as they came.

    Raises
    ------
    UsageError
        There is no such interpreter.
    TierlineError
        The mocker fails.
    """
    if not python.is_file():
        raise UsageError(f"--dynamo: {python} is not there; make .venv-dynamo installs Dynamo's mocker (75 MB)")
    load = Load(trace, rate=rate)
    replayed = _replay(python, _scaled(trace, load.time_scale), known, replicas)
    found = []
    for router, strategy in ROUTERS.items():
        made = figures(simulate(Cluster(known, replicas, strategy), load))
        ours = Side(made["p50_ttft_ms"], made["p90_ttft_ms"], made["output_throughput"], made["hit_rate"])
        found.append(Beside(router, strategy, _side(replayed[router]), ours))
    return found


def _scaled(trace: Trace, scale: float) -> Sequence[Request]:
    return [request._replace(at_s=request.at_s * scale) for request in trace.requests]


def _replay(
    python: Path, requests: Sequence[Request], known: Coefficients, replicas: int
) -> dict[str, list[_Replayed]]:
    block_tokens = Trace("", requests).block_tokens
    with tempfile.TemporaryDirectory(prefix="tierline-mocker-") as folder:
        trace, answer = Path(folder) / "trace.jsonl", Path(folder) / "replayed.json"
        trace.write_bytes(b"".join(_line(request, block_tokens) for request in requests))
        asked = {
            "trace": str(trace),
            "workers": replicas,
            "routers": list(ROUTERS),
            "engine": {
                "num_gpu_blocks": known.kv_tokens // block_tokens,
                "block_size": block_tokens,
                "max_num_batched_tokens": known.step_tokens,
                "max_num_seqs": known.sequences,
            },
            "prefill": known.prefill.model_dump(),
            "decode": known.decode.model_dump(),
        }
        done = subprocess.run(
            [str(python), str(_PROGRAM), str(answer)],
            input=msgspec.json.encode(asked),
            capture_output=True,
            check=False,
            # Its router tells each choice otherwise. Nothing of ours may be found where Dynamo's own is meant.
            env={**os.environ, "DYN_LOG": "error", "PYTHONPATH": ""},
        )
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise TierlineError(f"Dynamo's mocker ended with status {done.returncode}: {last}")
        return msgspec.json.decode(answer.read_bytes(), type=dict[str, list[_Replayed]])


def _line(request: Request, block_tokens: int) -> bytes:
    entry = {
        "timestamp": round(1000 * request.at_s),
        "input_length": block_tokens * len(request.blocks),
        "output_length": request.output_tokens,
        "hash_ids": list(request.blocks),
    }
    return msgspec.json.encode(entry) + b"\n"


def _side(replayed: Sequence[_Replayed]) -> Side:
    ttft = [each.ttft_ms for each in replayed]
    ended_ms = max(each.arrival_time_ms + each.e2e_latency_ms for each in replayed)
    lasted_s = (ended_ms - min(each.arrival_time_ms for each in replayed)) / 1000
    return Side(
        percentile(ttft, 50),
        percentile(ttft, 90),
        sum(each.output_length for each in replayed) / lasted_s,
        sum(each.reused_input_tokens for each in replayed) / sum(each.input_length for each in replayed),
    )
