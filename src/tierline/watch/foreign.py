"""Metrics of others that dashboards show beside ours, by who exports them."""

from types import MappingProxyType

FOREIGN = MappingProxyType(
    {
        "vllm:num_requests_running": "vLLM",
        "vllm:num_requests_waiting": "vLLM",
        "vllm:kv_cache_usage_perc": "vLLM",
        "vllm:prompt_tokens_total": "vLLM",
        "vllm:prompt_tokens_by_source_total": "vLLM",
        "vllm:generation_tokens_total": "vLLM",
        "vllm:time_to_first_token_seconds_bucket": "vLLM",
        "vllm:inter_token_latency_seconds_bucket": "vLLM",
        "DCGM_FI_DEV_GPU_UTIL": "NVIDIA's dcgm-exporter",
        "DCGM_FI_DEV_FB_USED": "NVIDIA's dcgm-exporter",
        "DCGM_FI_DEV_FB_FREE": "NVIDIA's dcgm-exporter",
        "DCGM_FI_DEV_POWER_USAGE": "NVIDIA's dcgm-exporter",
    }
)
"""Names of samples."""
