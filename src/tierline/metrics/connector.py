"""The metrics that the connector adds to vLLM's page.

Names start as vLLM's do, because vLLM removes those when a process makes another engine.
"""

from tierline.metrics.definitions import VLLM_LABELS, counter, gauge

CONNECTOR = (
    counter("vllm:tierline_lookups_total", "Prefix lookups that the node store answered", *VLLM_LABELS),
    counter("vllm:tierline_lookups_late_total", "Lookups whose answer came too late for their request", *VLLM_LABELS),
    counter(
        "vllm:tierline_lookups_failed_total", "Calls to the node store for lookups and leases that failed", *VLLM_LABELS
    ),
    counter(
        "vllm:tierline_lookups_skipped_total",
        "Lookups not made because the node store failed shortly before",
        *VLLM_LABELS,
    ),
    counter("vllm:tierline_lookups_below_total", "Lookups that waited for tiers below the node store", *VLLM_LABELS),
    counter(
        "vllm:tierline_decisions_total",
        "Prefixes that the node store had, by what was decided: `load`, `recompute`, or `unknown`, which is loaded",
        *VLLM_LABELS,
        "decision",
    ),
    counter(
        "vllm:tierline_loaded_tokens_total",
        "Tokens to be loaded, from the node's memory (`node`) or from which tier below it (`redis`, "
        "`tieredstorage:node-1`)",
        *VLLM_LABELS,
        "source",
    ),
    gauge(
        "vllm:tierline_prefill_token_seconds",
        "What computing a token of a prompt takes, with nothing before it",
        *VLLM_LABELS,
    ),
    gauge(
        "vllm:tierline_prefill_growth_seconds",
        "What each token before it adds to `vllm:tierline_prefill_token_seconds`",
        *VLLM_LABELS,
    ),
    gauge(
        "vllm:tierline_load_bytes_per_second",
        "Bytes a second of loads from the node's memory; 0 where none was lately",
        *VLLM_LABELS,
    ),
    counter(
        "vllm:tierline_handovers_late_total",
        "Requests whose prompt another engine computed and that did not wait until all of it was stored",
        *VLLM_LABELS,
    ),
    counter("vllm:tierline_loaded_chunks_total", "Chunks copied into the engine and verified, all ranks", *VLLM_LABELS),
    counter("vllm:tierline_loaded_bytes_total", "Bytes copied into the engine and verified, all ranks", *VLLM_LABELS),
    counter("vllm:tierline_load_seconds_total", "Time spent on loads, all ranks", *VLLM_LABELS),
    counter(
        "vllm:tierline_loads_failed_total",
        "Requests whose load failed and that are computed instead, all ranks",
        *VLLM_LABELS,
    ),
    counter("vllm:tierline_corrupt_chunks_total", "Chunks whose bytes did not match their checksum", *VLLM_LABELS),
    counter("vllm:tierline_stored_chunks_total", "Chunks written into the node store, all ranks", *VLLM_LABELS),
    counter("vllm:tierline_stored_bytes_total", "Bytes written into the node store, all ranks", *VLLM_LABELS),
    counter("vllm:tierline_store_seconds_total", "Time spent on copying and committing, all ranks", *VLLM_LABELS),
    counter(
        "vllm:tierline_stores_dropped_total",
        "Chunks not stored: no room, no node store, or their blocks were needed first",
        *VLLM_LABELS,
    ),
)
