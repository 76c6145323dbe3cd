"""vLLM 0.32's names and labels for what the simulation has; what it does not model is not exported."""

from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tierline.stack.simulated_engine.cache import BLOCK_TOKENS
from tierline.stack.simulated_engine.scheduler import Request, Scheduler

Metric = TypeVar("Metric", Counter, Gauge)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)


class EngineMetrics:
    """Metrics of one engine in a registry of their own."""

    def __init__(self, model: str, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"model_name": model, "engine": "0"}
        running = self._family(Gauge, "vllm:num_requests_running", "Requests in execution batches.").labels(
            **self._labels
        )
        running.set_function(lambda: len(scheduler.running))
        waiting = self._family(Gauge, "vllm:num_requests_waiting", "Requests waiting to be processed.").labels(
            **self._labels
        )
        waiting.set_function(lambda: len(scheduler.waiting))
        usage = self._family(Gauge, "vllm:kv_cache_usage_perc", "KV-cache usage; 1 means 100 percent.").labels(
            **self._labels
        )
        usage.set_function(lambda: scheduler.cache.held_blocks / scheduler.cache.total_blocks)
        self._queries = self._family(
            Counter, "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        ).labels(**self._labels)
        self._hits = self._family(Counter, "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.").labels(
            **self._labels
        )
        self._external_queries = self._family(
            Counter, "vllm:external_prefix_cache_queries", "Prompt tokens looked up in the caches of others."
        ).labels(**self._labels)
        self._external_hits = self._family(
            Counter, "vllm:external_prefix_cache_hits", "Prompt tokens found in the caches of others."
        ).labels(**self._labels)
        self._prompt_tokens = self._family(Counter, "vllm:prompt_tokens", "Prompt tokens processed.").labels(
            **self._labels
        )
        by_source = self._family(Counter, "vllm:prompt_tokens_by_source", "Prompt tokens by source.", "source")
        self._computed = by_source.labels(**self._labels, source="local_compute")
        self._local_hits = by_source.labels(**self._labels, source="local_cache_hit")
        self._transferred = by_source.labels(**self._labels, source="external_kv_transfer")
        self._cached = self._family(
            Counter, "vllm:prompt_tokens_cached", "Cached prompt tokens (local and external)."
        ).labels(**self._labels)
        self._generated = self._family(Counter, "vllm:generation_tokens", "Generation tokens processed.").labels(
            **self._labels
        )
        self._success = self._family(Counter, "vllm:request_success", "Requests processed.", "finished_reason")
        self._ttft = self._seconds("vllm:time_to_first_token_seconds", "Time to first token in seconds.")
        self._itl = self._seconds("vllm:inter_token_latency_seconds", "Inter-token latency in seconds.")
        self._queue_time = self._seconds("vllm:request_queue_time_seconds", "Time spent in the queue.")
        self._e2e = self._seconds("vllm:e2e_request_latency_seconds", "End-to-end request latency in seconds.")
        info = {"block_size": str(BLOCK_TOKENS), "num_gpu_blocks": str(scheduler.cache.total_blocks), "engine": "0"}
        Gauge(
            "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", [*info], registry=self.registry
        ).labels(**info).set(1)

    def _family(self, kind: type[Metric], name: str, documentation: str, *more_labels: str) -> Metric:
        return kind(name, documentation, [*self._labels, *more_labels], registry=self.registry)

    def _seconds(self, name: str, documentation: str) -> Histogram:
        return Histogram(name, documentation, [*self._labels], registry=self.registry, buckets=_SECONDS).labels(
            **self._labels
        )

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def admitted(self, request: Request, queued_s: float) -> None:
        """Count a request that left the queue."""
        self._queue_time.observe(queued_s)
        self._queries.inc(len(request.prompt))
        local = request.cached - request.external
        self._hits.inc(local)
        self._external_queries.inc(len(request.prompt) - local)
        self._external_hits.inc(request.external)

    def first_token(self, request: Request, ttft_s: float) -> None:
        """Count a prompt that was processed and its first token."""
        self._prompt_tokens.inc(len(request.prompt))
        self._computed.inc(len(request.prompt) - request.cached)
        self._local_hits.inc(request.cached - request.external)
        self._transferred.inc(request.external)
        self._cached.inc(request.cached)
        self._generated.inc()
        self._ttft.observe(ttft_s)

    def next_token(self, gap_s: float) -> None:
        """Count a later token."""
        self._generated.inc()
        self._itl.observe(gap_s)

    def finished(self, reason: str, latency_s: float) -> None:
        """Count a request that got its whole answer, or was aborted."""
        self._success.labels(**self._labels, finished_reason=reason).inc()
        self._e2e.observe(latency_s)
