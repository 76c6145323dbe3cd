"""Ours beside NVIDIA Dynamo's mocker: the same requests at engines of the same speed, replayed by both.

The mocker is a simulator of others, with a scheduler, a cache and a router of its own, so where both agree neither made
it up. It runs in an environment of its own (``make .venv-dynamo``), in a process of its own.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from tierline.bench.rows import percentile
from tierline.bench.traces import Request, Trace
from tierline.errors import TierlineError, UsageError
from tierline.simulate.coefficients import Coefficients
from tierline.simulate.prescribed import Prescribed
from tierline.simulate.results import figures
from tierline.simulate.running import Cluster, Load, simulate

ROUTERS: Mapping[str, Sequence[str]] = {
    "round_robin": ("roundrobin",),
    "kv_router": (Prescribed.name, "kvaware"),
}
"""Of the mocker, and what stands beside it of ours: the strategy that does the same; its own choices, and a strategy
of the same kind."""
DIFFERENCES = (
    "Prompts are whole blocks of 512 tokens in both, and no two requests come at once: the mocker gets the trace "
    "rewritten so.",
    "The mocker's table of prefill times knows a chunk's length only: what a chunk attends to before it takes no time.",
    "In ours a step that computes prompts and decodes pays its least time once; the mocker adds both tables' times.",
    "The mocker preempts requests when a cache is full, and their own prefix that they find again counts as cached; "
    "ours preempts nobody.",
    "prescribed repeats the choices that kv_router made, one by one: what differs there is not routing.",
    "kv_router is Dynamo's: what running requests hold weighs as much as what is to be computed. Ties are broken by "
    "chance, so its figures are others each time. kvaware is ours.",
)
_PROGRAM = Path(__file__).with_name("mocker_replay.py")


class Side(NamedTuple):
    """What one of both says."""

    ttft_p50_ms: float
    ttft_p90_ms: float
    output_tokens_per_s: float
    hit_rate: float


class Beside(NamedTuple):
    """Both under one way of routing, or one of each."""

    router: str
    strategy: str
    mocker: Side
    ours: Side


class _Replayed(msgspec.Struct):
    """A request, as the mocker reports it."""

    worker: int
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
    load = Load(replace(trace, requests=_apart(trace.requests, Load(trace, rate=rate).time_scale)))
    replayed = _replay(python, load.trace, known, replicas)
    return [
        Beside(router, strategy, _side(replayed[router]), _ours(known, replicas, load, strategy, replayed[router]))
        for router, strategies in ROUTERS.items()
        for strategy in strategies
    ]


def _ours(known: Coefficients, replicas: int, load: Load, strategy: str, replayed: Sequence[_Replayed]) -> Side:
    if strategy == Prescribed.name:
        outcome = simulate(Cluster(known, replicas), load, Prescribed(each.worker for each in replayed))
    else:
        outcome = simulate(Cluster(known, replicas, strategy), load)
    made = figures(outcome)
    return Side(made["p50_ttft_ms"], made["p90_ttft_ms"], made["output_throughput"], made["hit_rate"])


def _apart(requests: Sequence[Request], scale: float) -> Sequence[Request]:
    """Return them at the times that they have in both, a microsecond apart at least.

    The mocker does not say which request of the trace it is of which it reports something: its time says that.
    """
    made, last_us = [], -1
    for request in requests:
        last_us = max(round(1e6 * request.at_s * scale), last_us + 1)
        made.append(request._replace(at_s=last_us / 1e6))
    return made


def _replay(python: Path, asked_for: Trace, known: Coefficients, replicas: int) -> dict[str, list[_Replayed]]:
    """Return what became of each request, by router, in the order of their coming."""
    block_tokens = asked_for.block_tokens
    with tempfile.TemporaryDirectory(prefix="tierline-mocker-") as folder:
        trace, answer = Path(folder) / "trace.jsonl", Path(folder) / "replayed.json"
        trace.write_bytes(b"".join(_line(request, block_tokens) for request in asked_for.requests))
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
        found = msgspec.json.decode(answer.read_bytes(), type=dict[str, list[_Replayed]])
    for router, replayed in found.items():
        if len(replayed) != len(asked_for.requests):
            raise TierlineError(
                f"Dynamo's mocker, {router}: expected {len(asked_for.requests)} requests, it reports {len(replayed)}"
            )
        replayed.sort(key=lambda each: each.arrival_time_ms)
    return found


def _line(request: Request, block_tokens: int) -> bytes:
    entry = {
        "timestamp": 1000 * request.at_s,
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
