"""The connector with a recorder beside it: reads the engine's KV tensors itself and writes down what is in them.

vLLM loads it by module path, like the real one. For every chunk it stores and loads it appends a line of JSON to the
file that ``TIERLINE_TEST_RECORD`` names: what happened, the chunk's key, and a digest of the engine's own blocks.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tierline.connectors.vllm.connector import TierlineConnector
from tierline.connectors.vllm.plan import StepPlan


class RecordingConnector(TierlineConnector):
    """Records on its way to the real one."""

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Keep the tensors."""
        self._tensors = [kv_caches[name] for name in sorted(kv_caches)]
        self._loads: dict[str, list[tuple[bytes, Sequence[int]]]] = {}
        self._record_file = Path(os.environ["TIERLINE_TEST_RECORD"])
        super().register_kv_caches(kv_caches)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Load, and note which blocks are to hold what."""
        plan = self._get_connector_metadata()
        assert isinstance(plan, StepPlan)
        super().start_load_kv(forward_context, **kwargs)
        for load in plan.loads:
            self._loads[load.request_id] = [(chunk.chain, chunk.block_ids) for chunk in load.chunks]
        if not self._shape.loads_between_steps:
            self._record_loads([load.request_id for load in plan.loads])

    def wait_for_save(self) -> None:
        """Record what is about to be stored."""
        plan = self._get_connector_metadata()
        assert isinstance(plan, StepPlan)
        for store in plan.stores:
            self._record("stored", store.chain, store.block_ids)
        super().wait_for_save()

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        """Record loads between steps that have ended."""
        results = super().get_transfer_results(finished_req_ids)
        self._record_loads(results.finished_recving - results.failed_recving)
        return results

    def _record_loads(self, request_ids: Any) -> None:
        for request_id in request_ids:
            for chain, block_ids in self._loads.pop(request_id):
                self._record("loaded", chain, block_ids)

    def _record(self, event: str, chain: bytes, block_ids: Sequence[int]) -> None:
        digest = hashlib.blake2b()
        for tensor in self._tensors:
            digest.update(tensor[list(block_ids)].contiguous().view(torch.uint8).numpy())
        line = json.dumps({"event": event, "chain": chain.hex(), "blocks": len(block_ids), "kv": digest.hexdigest()})
        with self._record_file.open("a") as file:
            file.write(line + "\n")
