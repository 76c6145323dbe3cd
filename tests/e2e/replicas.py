"""Real vLLM engines, one in a group of processes of its own, as the end-to-end tests start them."""

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from prometheus_client import REGISTRY
from tests.e2e.node_stores import LOADS_ALWAYS
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs

from tierline.connectors.vllm import kv_transfer_config

LOOKUP_BUDGET_MS = 5000.0


@dataclass(frozen=True)
class Answer:
    """What a replica generated for one prompt."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    cached_tokens: int


class Replica:
    """One vLLM engine in processes of its own, with the recording connector.

    Parameters
    ----------
    is_async
        Force asynchronous scheduling, which the CPU back end switches off.
    hash_seed
        ``PYTHONHASHSEED`` of the engine; ``None`` leaves it unset.
    """

    def __init__(
        self,
        model: Path,
        node_socket: Path,
        record: Path,
        *,
        is_async: bool,
        hash_seed: str | None,
    ) -> None:
        transfer = kv_transfer_config(node_socket) | {
            "kv_connector": "RecordingConnector",
            "kv_connector_module_path": "tests.e2e.recording_connector",
            # A machine that runs tests may be too busy for the usual times.
            "kv_connector_extra_config": {
                "tierline.socket": str(node_socket),
                "tierline.lookup_budget_ms": LOOKUP_BUDGET_MS,
                "tierline.l2_wait_ms": 20_000,
                "tierline.load_factor": LOADS_ALWAYS,
            },
        }
        environment = {
            "TIERLINE_TEST_RECORD": str(record),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "WARNING",
            # Two threads that wait for each other take sixteen times as long where a third program runs.
            "OMP_NUM_THREADS": "1",
            # The first logprobs otherwise compile an operator for 13 to 31 s.
            "TORCHDYNAMO_DISABLE": "1",
        }
        if hash_seed is not None:
            environment["PYTHONHASHSEED"] = hash_seed
        self.is_async = is_async
        self._labels = {"model_name": str(model), "engine": "0"}
        with patch.dict(os.environ, environment), _forced_scheduling(is_async):
            self._llm = LLM(
                str(model),
                dtype="float32",
                enforce_eager=True,
                max_model_len=1024,
                max_num_batched_tokens=1024,
                disable_log_stats=False,
                kv_transfer_config=transfer,
            )

    def answer(self, prompts: Sequence[Sequence[int]], tokens: int = 64, cache_salt: str | None = None) -> list[Answer]:
        """Generate greedily, all prompts in one batch."""
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0)
        inputs: list[dict[str, Any]] = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        for salted in inputs if cache_salt is not None else ():
            salted["cache_salt"] = cache_salt
        return [
            Answer(
                tuple(output.outputs[0].token_ids),
                tuple(next(iter(position.values())).logprob for position in output.outputs[0].logprobs),
                output.num_cached_tokens,
            )
            for output in self._llm.generate(inputs, sampling, use_tqdm=False)
        ]

    def forget(self) -> None:
        """Empty the engine's own prefix cache."""
        assert self._llm.reset_prefix_cache()

    def counter(self, name: str) -> float:
        """Return one of the connector's counters as vLLM exports it."""
        return REGISTRY.get_sample_value(f"vllm:tierline_{name}_total", self._labels) or 0.0

    def loaded_tokens(self, source: str) -> float:
        """Return the connector's count of tokens that came from the node's memory or from a tier below it."""
        labels = self._labels | {"source": source}
        return REGISTRY.get_sample_value("vllm:tierline_loaded_tokens_total", labels) or 0.0

    def cached_tokens(self, source: str) -> float:
        """Return vLLM's count of prompt tokens that came from a source: ``device`` or ``host``."""
        labels = self._labels | {"source": source}
        return REGISTRY.get_sample_value("vllm:prompt_tokens_cached_by_source_total", labels) or 0.0

    def close(self) -> None:
        """Stop the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()


@contextlib.contextmanager
def _forced_scheduling(is_async: bool) -> Iterator[None]:
    """Set asynchronous scheduling after the CPU platform has switched it off; vLLM itself stays as it is."""
    create = EngineArgs.create_engine_config

    def create_forced(arguments: EngineArgs, *args: Any, **options: Any) -> Any:
        config = create(arguments, *args, **options)
        config.scheduler_config.async_scheduling = is_async
        return config

    with patch.object(EngineArgs, "create_engine_config", create_forced):
        yield
