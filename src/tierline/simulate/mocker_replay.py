"""Runs Dynamo's mocker replay; a program for an environment of Dynamo's own, which knows nothing of ours.

Takes a JSON document on standard input (``trace``, ``workers``, ``routers``, ``engine``, ``prefill`` and ``decode``
coefficients), writes one to the file that its argument names: of each router, what became of each request. The speeds
go through the only door that the mocker has for somebody else's: a table of times, which it interpolates.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from dynamo import _core  # type: ignore[import-not-found]  # in another environment

_MOST_PROMPT_TOKENS = 131_072
_CONTEXTS = 48
_KEPT = ("arrival_time_ms", "ttft_ms", "e2e_latency_ms", "input_length", "output_length", "reused_input_tokens")


def main() -> None:
    """Replay, and write what came of it."""
    asked = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        speeds = Path(folder) / "speeds.npz"
        _write_speeds(speeds, asked)
        timing = {"type": "external", "provider": "dynamo_profile", "config": {"path": str(speeds)}}
        engine = _core._normalize_mocker_config(
            {"engine": {**asked["engine"], "timing_model": timing}, "num_gpu_blocks_is_explicit": True}
        )
        found = {router: _replay(asked, engine, router) for router in asked["routers"]}
    Path(sys.argv[1]).write_text(json.dumps(found))


def _replay(asked: dict[str, Any], engine: dict[str, Any], router: str) -> list[dict[str, float]]:
    replayed = _core.run_mocker_trace_replay(
        [asked["trace"]],
        extra_engine_args=engine,
        num_workers=asked["workers"],
        router_mode=router,
        trace_block_size=asked["engine"]["block_size"],
        capture_per_request=True,
    )
    return [
        {"worker": each["decode_worker_idx"]} | {name: each[name] for name in _KEPT} for each in replayed.per_request
    ]


def _write_speeds(path: Path, asked: dict[str, Any]) -> None:
    """Write ours at so many points that what it interpolates between them is ours too."""
    prefill, decode = asked["prefill"], asked["decode"]
    room = asked["engine"]["num_gpu_blocks"] * asked["engine"]["block_size"]
    prompts = np.unique(np.concatenate([[1.0], np.linspace(512, _MOST_PROMPT_TOKENS, 256)]))
    held = np.linspace(1.0, room, _CONTEXTS)
    contexts = np.geomspace(64.0, _MOST_PROMPT_TOKENS, _CONTEXTS)
    sequences = held[:, None] / contexts[None, :]
    np.savez(
        path,
        prefill_isl=prompts,
        prefill_ttft_ms=1000
        * (prefill["first_s"] + prefill["token_s"] * prompts + prefill["attention_s"] * prompts * prompts / 2),
        decode_active_kv_tokens=held,
        decode_context_length=contexts,
        decode_itl=1000 * (decode["step_s"] + decode["context_s"] * held[:, None] + decode["sequence_s"] * sequences),
    )


if __name__ == "__main__":
    main()
