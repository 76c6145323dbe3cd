"""One vLLM replica on this machine's processors, as ``tierline up`` starts it, for as long as something measures it."""

import contextlib
import json
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tierline.bench.programs import Program, answers, free_ports
from tierline.bench.report import Machine
from tierline.errors import EngineError
from tierline.router.capacity import cache_capacity
from tierline.simulate.calibrating import Described
from tierline.stack.engines import fastest_dtype, require_vllm, vllm_cpu_command
from tierline.stack.machine import require_memory, usable_cpus
from tierline.stack.model import Say, local_model, prepare_default_model

STEP_TOKENS = 2048
SEQUENCES = 256
_ENGINE_CACHE_BYTES = 2**30
_MEMORY_BYTES = 3 * 2**30
_READY_WITHIN_S = 600.0
_REPLY_WITHIN_S = 30.0
_BYTES = {"float32": 4, "float": 4}
_FLOAT16_BYTES = 2


@contextlib.contextmanager
def own_replica(model: str | None, threads: int | None, say: Say) -> Iterator[tuple[str, Described]]:
    """Yield the URL of a replica that ends with the block, and what nobody can measure of it.

    Parameters
    ----------
    model
        A local Hugging Face folder; ``None``: the default model, fetched once.
    threads
        It computes with; ``None``: one for each processor.

    Raises
    ------
    UsageError
        vLLM is not installed, or the machine is too small.
    EngineError
        It does not start.
    """
    require_vllm()
    require_memory(_MEMORY_BYTES, "a vLLM replica")
    folder = prepare_default_model(say) if model is None else local_model(model)
    dtype = fastest_dtype()
    threads = threads or usable_cpus()
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = vllm_cpu_command(
        model=folder,
        served_name=folder.name,
        port=port,
        threads=threads,
        kv_cache_bytes=_ENGINE_CACHE_BYTES,
        kv_transfer=None,
        kv_events=None,
        dtype=dtype,
        dev_mode=False,
        arguments=[f"--max-num-batched-tokens={STEP_TOKENS}", f"--max-num-seqs={SEQUENCES}"],
    )
    argv = ["env", *(f"{name}={value}" for name, value in command.environment.items()), *command.argv]
    say(f"starting vLLM with {folder.name} on {threads} threads")
    with tempfile.TemporaryDirectory(prefix="tierline-simulate-") as scratch:
        log = Path(scratch) / "vllm.log"
        with Program(argv, log, lambda: answers(f"{url}/health"), ready_within_s=_READY_WITHIN_S):
            blocks, block_tokens = cache_of(url)
            yield (
                url,
                Described(
                    model=folder.name,
                    hardware=f"{Machine.here().processor}, {threads} threads",
                    engine=f"vLLM on a CPU, {dtype}",
                    kv_bytes_per_token=kv_bytes_per_token(folder, dtype),
                    kv_tokens=blocks * block_tokens,
                    step_tokens=STEP_TOKENS,
                    sequences=SEQUENCES,
                ),
            )


def cache_of(url: str) -> tuple[int, int]:
    """Return how many blocks an engine's cache has, and the tokens of one, as its metrics say.

    Raises
    ------
    EngineError
        They cannot be read, or do not say.
    """
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/metrics", timeout=_REPLY_WITHIN_S) as response:  # noqa: S310
            capacity = cache_capacity(response.read())
    except (OSError, ValueError) as error:
        raise EngineError(f"{url}/metrics: {error}") from error
    if capacity is None:
        raise EngineError(f"{url}/metrics has no vllm:cache_config_info: give --kv-tokens and --block-tokens")
    return capacity.blocks, capacity.block_tokens


def kv_bytes_per_token(folder: Path, dtype: str) -> int:
    """Return what a token takes in the cache, by the model's ``config.json``."""
    config = json.loads((folder / "config.json").read_bytes())
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * heads * head_size * _BYTES.get(dtype, _FLOAT16_BYTES))
