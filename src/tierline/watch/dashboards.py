"""The dashboards: an endpoint as a whole, the tiers of its cache, the router, the pool of nodes, the operator."""

from tierline.watch.panels import (
    CLUSTER,
    ENGINE,
    GPU,
    LOGS,
    Dashboard,
    Panel,
    Query,
    Row,
    quantile,
    quantiles,
    rate,
    ratio,
    total,
)

_INVOCATIONS = "model_invocations_total"
_HITS, _MISSES = rate("tierline_node_hits_total"), rate("tierline_node_misses_total")
_ANSWERS = rate("tierline_router_answers_total", "endpoint")

ENDPOINT = Dashboard(
    "tierline-endpoint",
    "Tierline: endpoint",
    "tierline_router_duration_seconds_count",
    (
        Row(
            "As clients see it",
            (
                Panel("Time to first token", "s", quantiles("tierline_router_ttft_seconds")),
                Panel("Time to the end of an answer", "s", quantiles("tierline_router_duration_seconds")),
                Panel("Between tokens", "s", quantiles("tierline_router_itl_seconds")),
                Panel(
                    "Requests",
                    "reqps",
                    (Query(rate("tierline_router_requests_total", "route", "status"), "{{route}} {{status}}"),),
                ),
                Panel(
                    "Requests in flight",
                    "short",
                    (Query(total("tierline_router_inflight", "endpoint"), "{{endpoint}}"),),
                ),
                Panel(
                    "Prompts answered from caches",
                    "percentunit",
                    (
                        Query(
                            ratio(
                                rate("tierline_router_prompt_blocks_total", only='kind="actual", told="yes"'),
                                rate("tierline_router_prompt_blocks_total", only='kind="total", told="yes"'),
                            ),
                            "of prompts' blocks",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Invocations at the models, as HyperPod counts them",
            (
                Panel("Invocations", "reqps", (Query(rate(_INVOCATIONS, "model_name", "pod_name"), "{{pod_name}}"),)),
                Panel(
                    "Errors", "reqps", (Query(rate("model_errors_total", "model_name", "pod_name"), "{{pod_name}}"),)
                ),
                Panel(
                    "Invocations at once",
                    "short",
                    (Query(total("model_concurrent_requests", "pod_name"), "{{pod_name}}"),),
                ),
                Panel("Latency", "ms", quantiles("model_latency_milliseconds")),
                Panel("Time to first byte", "ms", quantiles("model_ttfb_milliseconds")),
            ),
        ),
        Row(
            "Engines",
            (
                Panel(
                    "Tokens",
                    "short",
                    (
                        Query("sum(rate(vllm:prompt_tokens_total{}[$__rate_interval]))", "of prompts, a second"),
                        Query("sum(rate(vllm:generation_tokens_total{}[$__rate_interval]))", "generated, a second"),
                    ),
                ),
                Panel(
                    "Requests in engines",
                    "short",
                    (
                        Query("sum(vllm:num_requests_running{})", "running"),
                        Query("sum(vllm:num_requests_waiting{})", "waiting"),
                    ),
                ),
                Panel("Time to first token at the engines", "s", quantiles("vllm:time_to_first_token_seconds")),
                Panel("Between tokens at the engines", "s", quantiles("vllm:inter_token_latency_seconds")),
                Panel(
                    "KV cache of engines in use", "percentunit", (Query("vllm:kv_cache_usage_perc{}", "{{instance}}"),)
                ),
            ),
        ),
        Row(
            "GPUs",
            (
                Panel("Use", "percent", (Query("DCGM_FI_DEV_GPU_UTIL{}", "{{Hostname}} {{gpu}}"),), GPU),
                Panel(
                    "Memory in use",
                    "percentunit",
                    (
                        Query(
                            "DCGM_FI_DEV_FB_USED{} / (DCGM_FI_DEV_FB_USED{} + DCGM_FI_DEV_FB_FREE{})",
                            "{{Hostname}} {{gpu}}",
                        ),
                    ),
                    GPU,
                ),
                Panel("Power", "watt", (Query("DCGM_FI_DEV_POWER_USAGE{}", "{{Hostname}} {{gpu}}"),), GPU),
            ),
        ),
    ),
)

TIERS = Dashboard(
    "tierline-tiers",
    "Tierline: tiers of the KV cache",
    "tierline_node_capacity_bytes",
    (
        Row(
            "L1: the nodes' memory",
            (
                Panel(
                    "Objects found",
                    "percentunit",
                    (
                        Query(
                            ratio(_HITS, f"({_HITS} + {_MISSES})"),
                            "of those asked for",
                        ),
                    ),
                ),
                Panel("Bytes by state", "bytes", (Query(total("tierline_node_bytes", "state"), "{{state}}"),)),
                Panel(
                    "Bytes a second",
                    "Bps",
                    (
                        Query(rate("tierline_node_hit_bytes_total"), "read"),
                        Query(rate("tierline_node_commit_bytes_total"), "written"),
                    ),
                ),
                Panel(
                    "Misses by reason", "short", (Query(rate("tierline_node_misses_total", "reason"), "{{reason}}"),)
                ),
                Panel(
                    "Evictions by reason",
                    "short",
                    (Query(rate("tierline_node_evictions_total", "reason"), "{{reason}}"),),
                ),
                Panel(
                    "Bytes by bucket", "bytes", (Query(total("tierline_node_bucket_bytes", "bucket"), "{{bucket}}"),)
                ),
                Panel(
                    "Latency over HTTP, P90",
                    "s",
                    (Query(quantile(0.9, "tierline_node_http_request_seconds", "route"), "{{route}}"),),
                ),
                Panel(
                    "Latency over the socket, P90",
                    "s",
                    (Query(quantile(0.9, "tierline_node_socket_request_seconds", "verb"), "{{verb}}"),),
                    ENGINE,
                ),
                Panel(
                    "Leases",
                    "short",
                    (
                        Query(total("tierline_node_leases"), "live"),
                        Query(rate("tierline_node_leases_expired_total"), "expired, a second"),
                    ),
                ),
            ),
        ),
        Row(
            "Below: other nodes, Redis, folders, S3",
            (
                Panel(
                    "Objects brought",
                    "short",
                    (Query(rate("tierline_node_tier_hits_total", "tier", "source"), "{{tier}} {{source}}"),),
                ),
                Panel(
                    "Objects it did not have",
                    "short",
                    (Query(rate("tierline_node_tier_misses_total", "tier"), "{{tier}}"),),
                ),
                Panel(
                    "Latency of fetches, P90",
                    "s",
                    (Query(quantile(0.9, "tierline_node_tier_fetch_seconds", "tier"), "{{tier}}"),),
                ),
                Panel(
                    "Bytes a second",
                    "Bps",
                    (
                        Query(rate("tierline_node_tier_fetch_bytes_total", "tier"), "{{tier}}, fetched"),
                        Query(rate("tierline_node_tier_store_bytes_total", "tier"), "{{tier}}, stored"),
                    ),
                ),
                Panel(
                    "Load or recompute",
                    "short",
                    (Query(rate("tierline_node_tier_decisions_total", "tier", "decision"), "{{tier}} {{decision}}"),),
                ),
                Panel(
                    "Failures",
                    "short",
                    (Query(rate("tierline_node_tier_failures_total", "tier", "reason"), "{{tier}} {{reason}}"),),
                    "a tier that fails",
                ),
            ),
        ),
        Row(
            "Engines",
            (
                Panel(
                    "Prompt tokens by where they came from",
                    "short",
                    (
                        Query(
                            "sum by (source) (rate(vllm:prompt_tokens_by_source_total{}[$__rate_interval]))",
                            "{{source}}",
                        ),
                    ),
                ),
                Panel(
                    "Tokens loaded by source",
                    "short",
                    (
                        Query(
                            "sum by (source) (rate(vllm:tierline_loaded_tokens_total{}[$__rate_interval]))",
                            "{{source}}",
                        ),
                    ),
                    ENGINE,
                ),
                Panel(
                    "Bytes moved",
                    "Bps",
                    (
                        Query("sum(rate(vllm:tierline_loaded_bytes_total{}[$__rate_interval]))", "loaded"),
                        Query("sum(rate(vllm:tierline_stored_bytes_total{}[$__rate_interval]))", "stored"),
                    ),
                    ENGINE,
                ),
            ),
        ),
    ),
)

ROUTER = Dashboard(
    "tierline-router",
    "Tierline: router",
    "tierline_router_duration_seconds_count",
    (
        Row(
            "Decisions",
            (
                Panel(
                    "Decisions and reasons",
                    "reqps",
                    (Query(rate("tierline_router_decisions_total", "strategy", "reason"), "{{strategy}}: {{reason}}"),),
                ),
                Panel(
                    "Cached tokens, predicted and actual",
                    "short",
                    (Query(rate("tierline_router_cached_tokens_total", "kind"), "{{kind}}, a second"),),
                ),
                Panel(
                    "Predicted tokens by tier",
                    "short",
                    (Query(rate("tierline_router_kv_predicted_tokens_total", "tier"), "{{tier}}"),),
                ),
                Panel(
                    "Blocks that were to be had, and were",
                    "percentunit",
                    (
                        Query(
                            ratio(
                                rate("tierline_router_prompt_blocks_total", only='kind="matched"'),
                                rate("tierline_router_prompt_blocks_total", only='kind="best"'),
                            ),
                            "at the chosen endpoint, of the best",
                        ),
                    ),
                ),
                Panel(
                    "What was known of endpoints",
                    "short",
                    (Query(rate("tierline_router_kv_lookups_total", "known"), "{{known}}"),),
                ),
                Panel(
                    "Where prompts' tokens came from",
                    "short",
                    (Query(rate("tierline_router_kv_prompts_total", "rung"), "{{rung}}"),),
                ),
            ),
        ),
        Row(
            "Balance",
            (
                Panel(
                    "Waiting prompt tokens",
                    "short",
                    (Query(total("tierline_router_queued_tokens", "endpoint"), "{{endpoint}}"),),
                ),
                Panel(
                    "Imbalance of answers: most over mean",
                    "short",
                    (
                        Query(
                            ratio(f"max({_ANSWERS})", f"avg({_ANSWERS})"),
                            "largest over mean",
                        ),
                    ),
                ),
                Panel(
                    "Prefill speed",
                    "short",
                    (Query(total("tierline_router_prefill_tokens_per_second", "endpoint"), "{{endpoint}}, tokens/s"),),
                ),
                Panel(
                    "Endpoints that are up",
                    "short",
                    (Query(total("tierline_router_endpoint_up", "endpoint"), "{{endpoint}}"),),
                ),
                Panel(
                    "Answers",
                    "reqps",
                    (Query(rate("tierline_router_answers_total", "endpoint", "outcome"), "{{endpoint}} {{outcome}}"),),
                ),
                Panel(
                    "Ejections", "short", (Query(rate("tierline_router_ejections_total", "endpoint"), "{{endpoint}}"),)
                ),
            ),
        ),
        Row(
            "What it costs, and what goes wrong",
            (
                Panel("Overhead", "s", quantiles("tierline_router_overhead_seconds")),
                Panel("Choosing", "s", quantiles("tierline_router_choosing_seconds")),
                Panel(
                    "Retries and hedges",
                    "reqps",
                    (
                        Query(rate("tierline_router_retries_total", "reason"), "again: {{reason}}"),
                        Query(rate("tierline_router_hedges_total", "outcome"), "hedge: {{outcome}}"),
                    ),
                    "an endpoint that fails or is slow",
                ),
                Panel(
                    "Turned away",
                    "reqps",
                    (Query(rate("tierline_router_limits_reached_total", "reason"), "{{reason}}"),),
                    "limits, and more requests than they allow",
                ),
                Panel("Waiting requests", "short", (Query(total("tierline_router_queued_requests"), "waiting"),)),
                Panel(
                    "Memory",
                    "bytes",
                    (
                        Query(total("tierline_router_index_bytes"), "prefix index"),
                        Query(total("tierline_router_kv_index_bytes"), "exact index"),
                        Query(total("tierline_router_held_body_bytes"), "request bodies"),
                    ),
                ),
            ),
        ),
        Row(
            "Logs",
            (
                Panel(
                    "All programs' lines of one request, by its x-request-id",
                    "short",
                    (Query('{k8s_namespace_name=~".+"} | request_id=~"$request_id"', ""),),
                    LOGS,
                    "loki",
                ),
            ),
        ),
    ),
)


POOL = Dashboard(
    "tierline-pool",
    "Tierline: pool of nodes",
    "tierline_node_pool_members",
    (
        Row(
            "Members",
            (
                Panel(
                    "Nodes by state, as each sees them",
                    "short",
                    (Query(total("tierline_node_pool_members", "instance", "state"), "{{instance}}: {{state}}"),),
                ),
                Panel(
                    "Entries of the directory",
                    "short",
                    (Query(total("tierline_node_directory_entries", "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Source of members is behind",
                    "short",
                    (Query(total("tierline_node_pool_source_behind", "instance"), "{{instance}}"),),
                ),
            ),
        ),
        Row(
            "Traffic",
            (
                Panel(
                    "Bytes between nodes",
                    "Bps",
                    (
                        Query(
                            rate("tierline_node_tier_fetch_bytes_total", "instance", only='tier="tieredstorage"'),
                            "{{instance}} fetched",
                        ),
                    ),
                ),
                Panel(
                    "Who answered",
                    "short",
                    (
                        Query(
                            rate("tierline_node_tier_hits_total", "source", only='tier="tieredstorage"'), "{{source}}"
                        ),
                    ),
                ),
                Panel(
                    "Speed of the pool's bytes",
                    "Bps",
                    (
                        Query(
                            total("tierline_node_tier_bytes_per_second", "instance", only='tier="tieredstorage"'),
                            "{{instance}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Nodes",
            (
                Panel(
                    "Bytes used",
                    "bytes",
                    (Query(total("tierline_node_bytes", "instance", only='state="used"'), "{{instance}}"),),
                ),
                Panel(
                    "Processor time",
                    "percentunit",
                    (Query(rate("process_cpu_seconds_total", "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Lateness of the event loop",
                    "s",
                    (Query(total("tierline_node_event_loop_lag_seconds", "instance"), "{{instance}}"),),
                ),
            ),
        ),
    ),
)

OPERATOR = Dashboard(
    "tierline-operator",
    "Tierline: operator",
    "tierline_operator_leads",
    (
        Row(
            "Resources",
            (
                Panel(
                    "By state", "short", (Query(total("tierline_operator_resources", "state"), "{{state}}"),), CLUSTER
                ),
                Panel(
                    "Objects made and followed",
                    "short",
                    (Query(total("tierline_operator_children"), "objects"),),
                    CLUSTER,
                ),
                Panel(
                    "Who leads",
                    "short",
                    (Query(total("tierline_operator_leads", "instance"), "{{instance}}"),),
                    CLUSTER,
                ),
            ),
        ),
        Row(
            "Work",
            (
                Panel(
                    "Looks",
                    "short",
                    (Query(rate("tierline_operator_looks_total", "kind", "result"), "{{kind}} {{result}}"),),
                    CLUSTER,
                ),
                Panel("How long looks take", "s", quantiles("tierline_operator_look_seconds"), CLUSTER),
                Panel(
                    "Waiting and at work",
                    "short",
                    (
                        Query(total("tierline_operator_queue_resources"), "waiting"),
                        Query(total("tierline_operator_working_resources"), "at work"),
                    ),
                    CLUSTER,
                ),
                Panel(
                    "Objects written",
                    "short",
                    (Query(rate("tierline_operator_child_writes_total", "verb", "kind"), "{{verb}} {{kind}}"),),
                    CLUSTER,
                ),
                Panel(
                    "What is tried again",
                    "short",
                    (
                        Query(rate("tierline_operator_retries_total"), "looks"),
                        Query(rate("tierline_operator_watch_failures_total"), "watches"),
                        Query(rate("tierline_operator_lease_failures_total"), "the Lease"),
                        Query(rate("tierline_operator_failed_duties_total", "duty"), "{{duty}}"),
                    ),
                    CLUSTER,
                ),
            ),
        ),
    ),
)

DASHBOARDS = (ENDPOINT, TIERS, ROUTER, POOL, OPERATOR)
