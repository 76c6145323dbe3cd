"""The metrics of the operator."""

from tierline.metrics.definitions import counter, gauge, histogram

OPERATOR = (
    gauge("tierline_operator_leads", "1 while it holds the Lease"),
    counter("tierline_operator_lease_failures_total", "Requests for the Lease that failed"),
    gauge("tierline_operator_resources", "Resources of endpoints", "state"),
    gauge("tierline_operator_children", "Objects that were made and are followed"),
    gauge("tierline_operator_queue_resources", "Resources that wait for a look"),
    gauge("tierline_operator_working_resources", "Resources that are being looked at"),
    counter(
        "tierline_operator_looks_total",
        "Looks at resources, by how they ended; `kind` is empty for what endpoints share",
        "kind",
        "result",
    ),
    histogram("tierline_operator_look_seconds", "How long looks took"),
    counter("tierline_operator_retries_total", "Looks that failed and were put back"),
    counter("tierline_operator_child_writes_total", "Children written", "verb", "kind"),
    counter("tierline_operator_reasserted_total", "Children that somebody else had changed"),
    counter("tierline_operator_status_writes_total", "Statuses written"),
    counter("tierline_operator_secret_writes_total", "Secrets written"),
    counter("tierline_operator_events_total", "Events written"),
    counter("tierline_operator_failed_events_total", "Events that could not be written"),
    gauge("tierline_operator_watch_behind", "1 while something cannot be followed"),
    counter(
        "tierline_operator_watch_failures_total", "Requests of watches that failed, and objects that could not be read"
    ),
    counter("tierline_operator_failed_duties_total", "Work that failed and is tried again", "duty"),
)
