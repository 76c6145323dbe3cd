"""The metrics of the proxy beside a model: HyperPod's five of invocations, by its names and units, and our own."""

from tierline.metrics.definitions import HYPERPOD_LABELS, counter, gauge, histogram

PROXY = (
    counter(
        "model_invocations_total", "Invocations that are over, those that were turned away among them", *HYPERPOD_LABELS
    ),
    counter(
        "model_errors_total", "Invocations answered with a status from 400 on, or not to the end", *HYPERPOD_LABELS
    ),
    gauge("model_concurrent_requests", "Invocations at the model at this moment", *HYPERPOD_LABELS),
    histogram(
        "model_latency_milliseconds",
        "From an invocation's being sent to the model to the end of its answer; waiting is apart",
        *HYPERPOD_LABELS,
    ),
    histogram(
        "model_ttfb_milliseconds",
        "From an invocation's being sent to the model to the first byte of the answer's body, which is a "
        "stream's first event",
        *HYPERPOD_LABELS,
    ),
    counter(
        "tierline_proxy_requests_total",
        "Requests: an `invocation`, `other`, `refused`; status 0: the client left before its answer began",
        "kind",
        "status",
    ),
    counter(
        "tierline_proxy_aborts_total",
        "Answers that did not come to their end, by who left: `client`, `upstream`",
        "side",
    ),
    counter("tierline_proxy_limits_reached_total", "Invocations turned away: `queue_full`, `queue_timeout`", "reason"),
    histogram("tierline_proxy_queue_seconds", "Spent waiting, by invocations that had to"),
    gauge("tierline_proxy_queued_requests", "Invocations that wait for a place"),
    gauge("tierline_proxy_client_connections", "Clients' connections"),
    counter(
        "tierline_proxy_connections_refused_total",
        "Connections above `connections`, and at `metrics_port` those that made room",
    ),
    gauge("tierline_proxy_held_body_bytes", "Request bodies in memory"),
    counter("tierline_proxy_capture_records_total", "Records of invocations: `written`, `dropped`", "outcome"),
    counter("tierline_proxy_capture_failures_total", "Files of records that could not be written, at each attempt"),
    gauge("tierline_proxy_capture_held_bytes", "Memory of records that are not written yet"),
    counter("tierline_proxy_failed_duties_total", "Work beside serving that failed and is tried again", "duty"),
)
