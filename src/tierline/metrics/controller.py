"""The metrics of a controller, which routers of ``kvaware`` ask."""

from tierline.metrics.definitions import counter, gauge

CONTROLLER = (
    gauge(
        "tierline_controller_source_state", "1 for the state that a source of events is in", "endpoint", "rank", "state"
    ),
    gauge("tierline_controller_source_blocks", "Blocks that a source holds, those of all tiers", "endpoint", "rank"),
    gauge(
        "tierline_controller_source_waiting_blocks",
        "Blocks of a source whose parent was not told yet",
        "endpoint",
        "rank",
    ),
    gauge(
        "tierline_controller_event_lag_seconds",
        "Age of a source's last batch when it was applied, by both machines' clocks",
        "endpoint",
        "rank",
    ),
    counter(
        "tierline_controller_events_total",
        "What became of events: as `tierline_router_kv_events_total`",
        "endpoint",
        "rank",
        "kind",
    ),
    gauge("tierline_controller_index_bytes", "Memory of the index"),
    gauge("tierline_controller_routers", "Connections of routers"),
    counter(
        "tierline_controller_messages_total", "What routers sent: `lookup`, `placed`, `withdrawn`, `follow`", "kind"
    ),
    counter("tierline_controller_lookups_total", "Sources asked about, by how they stood", "state"),
    counter(
        "tierline_controller_refused_total",
        "Connections refused or ended: `token`, `version`, `malformed`, `late` with the greeting, `connections`",
        "reason",
    ),
    counter("tierline_controller_failed_duties_total", "Work beside answering that failed and is tried again", "duty"),
    gauge("tierline_controller_lmcache_state", "1 for the state that an LMCache instance is in", "endpoint", "state"),
    gauge(
        "tierline_controller_lmcache_chunks",
        "Chunks that an LMCache instance holds, by each worker and location",
        "endpoint",
    ),
    counter(
        "tierline_controller_lmcache_messages_total",
        "What LMCache's workers sent: messages by their class; `gap`: numbers that did not follow on; `refused`: "
        "more instances, workers or locations than are kept; `malformed`, `unknown`",
        "kind",
    ),
)
