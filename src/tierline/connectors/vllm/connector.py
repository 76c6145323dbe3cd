"""The class that vLLM loads: it hands each of vLLM's calls to the half that lives in this process, and decides nothing.

vLLM makes one object in the scheduler's process and one in each worker's. How to start it: docs/connector.md; why it
is a connector of our own: docs/decisions/joining-vllm.md.
"""

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from tierline.breaker import Breaker, Warnings
from tierline.client import AsyncNodeClient, NodeClient
from tierline.connectors.vllm.config import read_config
from tierline.connectors.vllm.copy import copier_for, page_words
from tierline.connectors.vllm.engine import kv_shard, model_identity, read_shape
from tierline.connectors.vllm.introduction import Introduction
from tierline.connectors.vllm.lookup import LookupThread
from tierline.connectors.vllm.metrics import ConnectorMetrics, ConnectorStats, Counters
from tierline.connectors.vllm.plan import StepPlan, StepReport, WorkerShard
from tierline.connectors.vllm.scheduler import SchedulerHalf
from tierline.connectors.vllm.worker import WorkerHalf
from tierline.connectors.vllm.writer import NodeWriter
from tierline.errors import EngineError
from tierline.prefix import Shard
from tierline.tracing.tracer import open_tracer

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats, PromMetric, PromMetricT
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

# Under vLLM's logger, so that messages appear where and how vLLM's do.
_LOGGER = logging.getLogger("vllm.tierline")
SERVICE_NAME = "tierline-connector"
_SHORTEST_LOOKUP_TIMEOUT_S = 0.5
_WRITER_TIMEOUT_S = 5.0


class TierlineConnector(KVConnectorBase_V1):  # type: ignore[misc]  # vLLM is not typed for us
    """Joins a vLLM engine to the node store on its machine.

    Raises
    ------
    ConfigurationError, EngineError
        The engine is set up in a way that could fail requests or serve wrong tokens; vLLM does not start.
    """

    _cache_hit_source = CacheHitSource.HOST

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._config = read_config(self._kv_transfer_config.kv_connector_extra_config)
        self._shape = read_shape(vllm_config, kv_cache_config)
        self._counters = Counters()
        self._warnings = Warnings(_LOGGER, time.monotonic)
        self._breaker = Breaker(time.monotonic)
        file = self._config.traces_file
        self._tracer = open_tracer(SERVICE_NAME, Path(file) if file else None, to_collector=self._config.opentelemetry)
        self._scheduler: SchedulerHalf | None = None
        self._worker: WorkerHalf | None = None
        self._shard: Shard | None = None
        self._model = model_identity(vllm_config) if role == KVConnectorRole.SCHEDULER else ""

    # In the workers ---------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Take over the engine's KV tensors, by layer."""
        num_blocks = self._kv_cache_config.num_blocks
        tensors = [kv_caches[name] for name in self._shape.layer_names]
        layers = [page_words(kv_caches[name], num_blocks, name) for name in self._shape.layer_names]
        copier = copier_for(layers, self._shape.blocks_per_chunk)
        self._shard = kv_shard(self._vllm_config, self._kv_cache_config, self._shape, tensors)
        writer = NodeWriter(
            self._connect_writer,
            copier,
            self._shard,
            self._config.bucket,
            layers[0].device if layers[0].device.type == "cuda" else None,
            self._breaker,
            self._warnings,
            self._counters,
            self._tracer,
        )
        rank = self._shard.pipeline_rank * self._shape.tensor_size + self._shard.tensor_rank
        self._worker = WorkerHalf(
            copier,
            rank,
            self._shape.loads_between_steps,
            writer,
            self._warnings,
            self._counters,
            self._tracer,
        )

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata:
        """Tell the scheduler's process how this worker's KV is laid out."""
        assert self._shard is not None
        return WorkerShard(self._shard)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Called before the step writes anything."""
        self._workers_half.before_overwrites(_plan(kv_connector_metadata))

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:  # noqa: ARG002
        """Start the step's loads."""
        self._workers_half.load(_plan(self._get_connector_metadata()))

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: loads inside a step are over before its forward pass."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: "AttentionMetadata", **kwargs: Any
    ) -> None:
        """Do nothing: chunks are stored once the step is over, all layers at once."""

    def wait_for_save(self) -> None:
        """Hand the chunks that the step completed to the writer."""
        self._workers_half.store(_plan(self._get_connector_metadata()))

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:  # noqa: ARG002
        """Return the loads between steps that ended."""
        ended, failed = self._workers_half.take_ended_loads()
        return KVConnectorTransferResults(finished_recving=ended, failed_recving=failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks that loads inside this step did not fill."""
        return self._workers_half.take_invalid_blocks()

    def build_connector_worker_meta(self) -> StepReport | None:
        """Return the report of the loads inside this step."""
        return self._workers_half.take_report()

    # In the scheduler's process ---------------------------------------------------------------------------------

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache delivers nothing: with ``True`` vLLM would throw tokens away at preemption."""
        return False

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Learn the workers' shards, by pipeline and tensor rank, and begin to work."""
        ranks = self._shape.pipeline_size * self._shape.tensor_size
        shards = [worker.shard for _, worker in sorted(metadata.items()) if isinstance(worker, WorkerShard)]
        if len(shards) != ranks:
            raise EngineError(f"{len(shards)} of {ranks} workers said how their KV is laid out")
        budget_s = self._config.lookup_budget_ms / 1000
        models = [self._vllm_config.model_config.served_model_name]
        introduction = Introduction(self._config.bucket, models, self._model, shards)
        lookups = LookupThread(
            self._connect_reader,
            shards,
            self._config.bucket,
            self._config.lease_ttl_s,
            budget_s,
            self._config.l2_wait_ms / 1000,
            introduction,
            self._breaker,
            self._warnings,
            self._counters,
            self._tracer,
            self._config.load_factor,
        )
        hash_tokens = self._kv_cache_config.hash_block_size or self._shape.block_tokens
        self._scheduler = SchedulerHalf(
            self._shape,
            self._model,
            hash_tokens,
            lookups,
            introduction,
            budget_s,
            self._config.load_factor,
            self._counters,
            self._evict,
        )
        _LOGGER.info(
            "Tierline: joined to %s; loads run %s; keys end in %s",
            self._config.socket,
            "between steps" if self._shape.loads_between_steps else "inside steps",
            shards[0].suffix(),
        )

    def on_new_request(self, request: "Request") -> None:
        """Start the request's lookup."""
        self._schedulers_half.begin(request)

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        """Return how many tokens can be loaded, and whether between steps; ``None``: not known yet."""
        tokens = self._schedulers_half.match(request, num_computed_tokens)
        return tokens, bool(tokens) and self._shape.loads_between_steps

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        """Plan the load that vLLM has made room for."""
        self._schedulers_half.admit(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        """Return the workers' orders for this step."""
        return self._schedulers_half.plan_step(scheduler_output)

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        """Take note of loads that ended."""
        self._schedulers_half.end_step(connector_output)

    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:  # noqa: ARG002
        """Let go of the request. Its blocks may be freed at once: the writer gives them up when they are reused."""
        return False, self._schedulers_half.finish(request)

    def reset_cache(self) -> bool:
        """Let nothing stored so far be found again by this engine."""
        self._schedulers_half.reset()
        return True

    # In both ----------------------------------------------------------------------------------------------------

    def get_kv_connector_stats(self) -> "KVConnectorStats | None":
        """Return what was counted since the last call."""
        return self._counters.take()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> "KVConnectorStats | None":
        """Return counts that came from another process."""
        return ConnectorStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: "VllmConfig",
        metric_types: "dict[type[PromMetric], type[PromMetricT]]",
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> ConnectorMetrics:
        """Return the connector's part of vLLM's ``/metrics``."""
        return ConnectorMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        """End the threads and the connections."""
        if self._scheduler is not None:
            self._scheduler.close()
        if self._worker is not None:
            self._worker.close()
        if self._tracer is not None:
            self._tracer.close_blocking()

    @property
    def _schedulers_half(self) -> SchedulerHalf:
        assert self._scheduler is not None
        return self._scheduler

    @property
    def _workers_half(self) -> WorkerHalf:
        assert self._worker is not None
        return self._worker

    def _connect_writer(self) -> NodeClient:
        return NodeClient(writer=True, timeout_s=_WRITER_TIMEOUT_S, **self._connection("worker"))

    async def _connect_reader(self) -> AsyncNodeClient:
        timeout_s = max(2 * self._config.lookup_budget_ms / 1000, _SHORTEST_LOOKUP_TIMEOUT_S)
        return await AsyncNodeClient.connect(writer=False, timeout_s=timeout_s, **self._connection("scheduler"))

    def _connection(self, half: str) -> dict[str, str]:
        config = self._config
        return {
            "socket_path": config.socket,
            # The process id makes the name one process's own, as the node store asks of writers.
            "client": f"vllm-{half}-{self._kv_transfer_config.engine_id}-{os.getpid()}",
            "token": config.token(),
            "segment": config.segment,
            "bucket": config.bucket,
        }

    def _evict(self, block_ids: set[int]) -> None:
        if self._kv_cache_manager is not None:
            self._kv_cache_manager.evict_blocks(block_ids)


def _plan(metadata: KVConnectorMetadata) -> StepPlan:
    assert isinstance(metadata, StepPlan)
    return metadata
