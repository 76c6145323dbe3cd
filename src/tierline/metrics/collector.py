"""The metrics of the collector itself; what else its page has is its targets' own."""

from tierline.metrics.definitions import HYPERPOD_LABELS, counter, gauge

COLLECTOR = (
    gauge("tierline_collector_target_up", "1 where the last reading of a target succeeded", *HYPERPOD_LABELS),
    gauge("tierline_collector_target_seconds", "What the last reading of a target took", *HYPERPOD_LABELS),
    gauge("tierline_collector_target_samples", "Samples of the last reading of a target", *HYPERPOD_LABELS),
    counter("tierline_collector_target_failures_total", "Readings of a target that failed", *HYPERPOD_LABELS),
    counter("tierline_collector_exports_total", "Readings sent on by OTLP: `sent`, `failed`", "outcome"),
    counter("tierline_collector_failed_duties_total", "Work that failed and goes on", "duty"),
)
