"""The metrics of a router, with those of its workers and of other routers that it listens to."""

from tierline.metrics.definitions import counter, gauge, histogram

ROUTER = (
    counter(
        "tierline_router_requests_total",
        "Requests; status 0: the client left before its answer began; route `refused`: malformed, too large, or "
        "for nothing that is here",
        "route",
        "status",
    ),
    counter(
        "tierline_router_decisions_total",
        "Choices of an endpoint, by the strategy and its reason",
        "strategy",
        "reason",
    ),
    counter(
        "tierline_router_prompt_blocks_total",
        "Blocks of prompts: `total`; `best`: held by the endpoint with the most; `matched`: held by the one "
        "chosen; `actual`: cached, as the answer told. `told`: whether it did (`yes`, `no`). Of what could be "
        'had, `actual` over `best` with `told="yes"` was had',
        "kind",
        "told",
    ),
    counter(
        "tierline_router_retries_total",
        "Further attempts: `connect`, `reset`, `malformed`, `hedge`, or a status",
        "reason",
    ),
    counter(
        "tierline_router_hedges_total",
        "Requests sent to a second endpoint while the first was silent: `won`: the second answered; `lost`: the "
        "first did; `unanswered`",
        "outcome",
    ),
    counter(
        "tierline_router_pairings_total",
        "Requests at endpoints that only decode, by whether another computed the prompt: `paired`, `short`, "
        "`unsuited`, `fallback`",
        "outcome",
    ),
    counter(
        "tierline_router_prefill_fallbacks_total",
        "Prompts that no prefill endpoint computed though one should have: `no_endpoint`, `weights`, `connect`, "
        "`reset`, `malformed`, `timeout`, `overloaded`, or a status",
        "reason",
    ),
    histogram("tierline_router_prefill_seconds", "Spent on having a prompt computed elsewhere"),
    counter("tierline_router_aborts_total", "Answers not ended: the `client` left, or the `upstream` broke", "side"),
    counter(
        "tierline_router_answers_total",
        "Answers of an endpoint: `good`: came to their end; `failed`: a reset before the answer, nonsense, 502, "
        "503 or 504",
        "endpoint",
        "outcome",
    ),
    counter("tierline_router_ejections_total", "Times an endpoint was passed over for a while", "endpoint"),
    counter(
        "tierline_router_arm_requests_total",
        "Requests of an arm; `model` is empty but for models with a rule of their own",
        "model",
        "arm",
        "strategy",
        "status",
    ),
    counter("tierline_router_arm_retries_total", "Further attempts of an arm's requests", "model", "arm", "strategy"),
    counter(
        "tierline_router_arm_tokens_total",
        "Tokens of an arm's prompts whose answers tell what was cached: `prompt`, all of them; `predicted`, "
        "`cached`. Counted where there are several models with rules, or a trial",
        "model",
        "arm",
        "strategy",
        "kind",
    ),
    histogram(
        "tierline_router_arm_ttft_seconds",
        "Of an arm's requests: as `tierline_router_ttft_seconds`",
        "model",
        "arm",
        "strategy",
    ),
    histogram(
        "tierline_router_arm_queue_seconds",
        "Of an arm's requests: as `tierline_router_queue_seconds`",
        "model",
        "arm",
        "strategy",
    ),
    gauge("tierline_router_affinity", "1, or 0 where affinity is turned off; without `model`: for all", "model"),
    counter("tierline_router_bypasses_total", "Requests that went without `affinity` or `cache`", "kind"),
    counter(
        "tierline_router_limits_reached_total",
        "Requests turned away: `queue_full`, `queue_timeout`, `rate_limit_exceeded`",
        "reason",
    ),
    counter("tierline_router_connections_refused_total", "Connections above `connections`"),
    histogram("tierline_router_queue_seconds", "Spent waiting, by requests that had to wait for a place"),
    gauge("tierline_router_queued_requests", "Requests that wait for a place"),
    histogram("tierline_router_ttft_seconds", "From a request to the first byte of its event stream's body"),
    histogram("tierline_router_duration_seconds", "From a request to the end of its answer"),
    histogram(
        "tierline_router_overhead_seconds",
        "From a whole request to its being sent on for the first time, without connecting and waiting for a "
        "place: what the router costs",
    ),
    gauge("tierline_router_inflight", "Requests in flight", "endpoint"),
    gauge("tierline_router_queued_tokens", "Estimated tokens of prompts whose answer has not begun", "endpoint"),
    gauge(
        "tierline_router_prefill_tokens_per_second",
        "How fast an endpoint computes prompts, as streams showed it; 0: not yet",
        "endpoint",
    ),
    histogram(
        "tierline_router_tokens_seconds",
        "Of `tierline_router_overhead_seconds`, waiting for the tokens of a prompt and for a controller, by "
        "requests that had to",
    ),
    histogram(
        "tierline_router_choosing_seconds",
        "Of `tierline_router_overhead_seconds`, choosing an endpoint, hashing the prompt included",
    ),
    histogram(
        "tierline_router_itl_seconds", "From one event to the next, the mean of each event stream that came to its end"
    ),
    counter(
        "tierline_router_cached_tokens_total",
        "Tokens of prompts whose answers tell what was cached (`usage.prompt_tokens_details.cached_tokens`; "
        "vLLM: `--enable-prompt-tokens-details`, and for streams what the client asks for with `include_usage`): "
        "`predicted` by the strategy, from bytes, and `actual`, as the answers tell",
        "endpoint",
        "kind",
    ),
    gauge("tierline_router_endpoint_draining", "Whether an endpoint gets no new requests", "endpoint"),
    counter("tierline_router_endpoints_file_failures_total", "Contents of the endpoints file that could not be used"),
    counter(
        "tierline_router_kubernetes_failures_total",
        "Requests to a Kubernetes API that failed, and its objects that could not be used",
    ),
    gauge(
        "tierline_router_kubernetes_sources_behind",
        "Sources in Kubernetes whose latest state is not known at the moment",
    ),
    gauge("tierline_router_endpoint_up", "Whether an endpoint's last health check passed", "endpoint"),
    gauge("tierline_router_index_bytes", "Memory of the prefix index"),
    gauge("tierline_router_index_placements", "Pairs of a block and an endpoint in the prefix index"),
    gauge("tierline_router_held_body_bytes", "Request bodies in memory"),
    counter(
        "tierline_router_failed_duties_total",
        "Work beside serving that failed in an unforeseen way and is tried again: `deadlines`, `connections`, "
        "`endpoints`, `queue`, `files`, `health`, `discovery`; the log has it once a minute",
        "duty",
    ),
    gauge("tierline_router_client_connections", "Clients' connections"),
    gauge(
        "tierline_router_workers",
        "Workers that serve; as those that follow, only with `workers` above 1 or other routers",
    ),
    counter("tierline_router_worker_restarts_total", "Workers that ended and were started again"),
    gauge("tierline_router_peers", "Other routers that are listened to"),
    counter(
        "tierline_router_gossip_refused_total",
        "Connections and messages of other routers that were not as they have to be: without the secret, "
        "malformed, contradictory",
    ),
    counter(
        "tierline_router_gossip_untold_total",
        "Messages that another router was not told, for want of room or bandwidth",
    ),
    counter(
        "tierline_router_unshared_total",
        "Placements, spills and spending that a worker was not told of, for want of room",
    ),
    gauge("tierline_router_idle_upstream_connections", "Idle connections to endpoints"),
    gauge("tierline_router_kv_controller_up", "Whether the router's connection to the controller stands"),
    counter(
        "tierline_router_kv_controller_lookups_total",
        "What became of questions: `answered`; `late`; `lost` with the connection; `unavailable`; `busy`: "
        "earlier questions have no answer; `rested`: it was late eight times in a row, and is left in peace for "
        "0.25 to 2 s; `unknown`: engines cut prompts in another way twice",
        "outcome",
    ),
    counter("tierline_router_kv_controller_failures_total", "Connections to the controller that failed or broke"),
    gauge(
        "tierline_router_kv_source_state", "1 for the state that a source of events is in", "endpoint", "rank", "state"
    ),
    gauge("tierline_router_kv_source_blocks", "Blocks that a source holds, those of all tiers", "endpoint", "rank"),
    gauge(
        "tierline_router_kv_source_waiting_blocks",
        "Blocks of a source whose parent was not told yet",
        "endpoint",
        "rank",
    ),
    gauge(
        "tierline_router_kv_event_lag_seconds",
        "Age of a source's last batch when it was applied, by both machines' clocks",
        "endpoint",
        "rank",
    ),
    counter(
        "tierline_router_kv_events_total",
        "What became of events: `batch`: applied; `gap`, `restart`; `malformed`: messages that are none; "
        "`unknown`, `ignored`: events; `orphan`: blocks that waited in vain",
        "endpoint",
        "rank",
        "kind",
    ),
    counter(
        "tierline_router_kv_predicted_tokens_total",
        "Tokens to be read from caches for prompts that were sent, by the tier, where it was told",
        "tier",
    ),
    gauge("tierline_router_kv_store_state", "1 for the state that a node store is in", "store", "state"),
    gauge("tierline_router_kv_store_objects", "Objects of blocks that a node store holds", "store"),
    gauge("tierline_router_kv_store_engines", "Engines that are connected to a node store", "store"),
    gauge(
        "tierline_router_kv_store_pool",
        "1 for the pool that a node store is in; an empty name where it is in none",
        "store",
        "pool",
    ),
    counter(
        "tierline_router_kv_store_events_total",
        "What became of a node store's messages: `batch`: applied; `gap`, `restart`; `malformed`: messages that "
        "are none",
        "store",
        "kind",
    ),
    gauge("tierline_router_kv_store_index_bytes", "Memory of what node stores told, at most"),
    gauge("tierline_router_kv_index_bytes", "Memory of the exact index"),
    counter(
        "tierline_router_kv_lookups_total", "Endpoints weighed: `exact`, `bound` (degraded), `approximate`", "known"
    ),
    counter("tierline_router_kv_prompts_total", "Prompts by where their tokens came from", "rung"),
    counter(
        "tierline_router_kv_local_tokens_total",
        "Tokens of chats that the router tokenized: `known` from earlier turns, `new`",
        "kind",
    ),
    counter("tierline_router_kv_given_up_total", "Prompts without tokens", "reason"),
    counter(
        "tierline_router_spans_total",
        "Spans: `exported`: a collector took them; `failed`: none did, after the exporter's retries; `dropped`: "
        "the queue was full",
        "outcome",
    ),
)
