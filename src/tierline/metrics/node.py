"""The metrics of a node store; with several segments, those of each have a label ``segment`` too."""

from tierline.metrics.definitions import counter, gauge, histogram

_PROCESS = (
    gauge("process_virtual_memory_bytes", "Address space of the process, the segment included"),
    gauge(
        "process_resident_memory_bytes",
        "Memory of the process that is in RAM, the segment's pages that it has touched included",
    ),
    gauge("process_start_time_seconds", "When the process began, in seconds since 1970"),
    counter("process_cpu_seconds_total", "Processor time of the process"),
    gauge("process_open_fds", "Open file descriptors"),
    gauge("process_max_fds", "File descriptors that the process may have"),
    counter("python_gc_collections_total", "Collections of Python's garbage collector", "generation"),
    counter("python_gc_objects_collected_total", "Objects that they freed", "generation"),
    counter("python_gc_objects_uncollectable_total", "Objects that they could not free", "generation"),
)
"""What prometheus-client says of any process, in words of its own."""

NODE = (
    gauge("tierline_node_capacity_bytes", "Pages that can hold objects"),
    gauge(
        "tierline_node_bytes",
        "Pages by state (`free`, `used`, `reserved`, `orphaned`, `retired`); they add up to the capacity",
        "state",
    ),
    gauge(
        "tierline_node_held_bytes",
        "Used pages that cannot be evicted now: `leased`, or `resting` after a lease",
        "reason",
    ),
    gauge(
        "tierline_node_quarantined_bytes",
        "Pages of leases that ran out or whose connection ended, until nobody can be reading them; a part of "
        "`resting` and `retired`",
    ),
    gauge("tierline_node_pinned_bytes", "Used pages of pinned objects: they go last"),
    gauge("tierline_node_largest_free_bytes", "Longest contiguous free run"),
    gauge("tierline_node_objects", "Committed objects"),
    gauge("tierline_node_fragments", "Extents of committed objects"),
    gauge(
        "tierline_node_unverified_objects", "Adopted objects whose bytes nobody has compared with their checksum yet"
    ),
    gauge("tierline_node_slots", "Open slots"),
    gauge("tierline_node_leases", "Live leases"),
    gauge("tierline_node_adopted_objects", "Objects taken over at the start"),
    gauge("tierline_node_dropped_objects", "Journal records not taken over at the start"),
    counter("tierline_node_hits_total", "Objects found by those who asked for a lease"),
    counter(
        "tierline_node_misses_total",
        "Objects not found by those who asked for a lease: `never_stored`, `being_written`, `evicted`, `quota` "
        "(evicted for its tenant's quota, or refused for it), `no_space`, `expired`, `deleted`, `flushed`, "
        "`corrupt`, `transit`, `lost_at_restart`, `other_tenant` and `other_layout` (the same tokens are there "
        "under another salt, or in another form), `quarantine_full`; of a prefix only the first that is missing "
        "is looked into, the others are `behind_a_miss`",
        "reason",
    ),
    counter("tierline_node_hit_bytes_total", "Bytes of the objects found: what was read, whichever way"),
    counter("tierline_node_commits_total", "Slots published"),
    counter("tierline_node_commit_bytes_total", "Bytes of the objects published: what was written, whichever way"),
    counter("tierline_node_aborts_total", "Slots given back"),
    counter(
        "tierline_node_refusals_total",
        "Slots not given or not published for lack of pages, or of room for their records",
    ),
    counter("tierline_node_leases_given_total", "Leases given"),
    counter(
        "tierline_node_leases_refused_total",
        "Leases not given, for their client, or all together, have as many as they may",
    ),
    counter("tierline_node_leases_expired_total", "Leases that ran out; a client that dies or forgets"),
    counter("tierline_node_leases_abandoned_total", "Leases whose connection ended"),
    counter(
        "tierline_node_evictions_total",
        "Objects gone: for `space`, for `quota`, `deleted`, `expired`, `flushed`, `corrupt`, `transit` (without L1)",
        "reason",
    ),
    counter("tierline_node_reclaims_total", "Times that room was made ahead of need, between the watermarks"),
    gauge(
        "tierline_node_bucket_bytes",
        "Pages of a bucket's objects; 20 buckets have series of their own for good, the rest is `@others`",
        "bucket",
    ),
    gauge("tierline_node_bucket_objects", "Objects of a bucket", "bucket"),
    counter("tierline_node_bucket_hits_total", "Objects of a bucket found", "bucket"),
    counter("tierline_node_bucket_misses_total", "Objects of a bucket not found", "bucket"),
    counter("tierline_node_bucket_evictions_total", "Objects of a bucket gone", "bucket"),
    counter(
        "tierline_node_bucket_refusals_total", "Slots of a bucket refused for its quota, or its tenants'", "bucket"
    ),
    gauge("tierline_node_remembered_objects", "Objects that are gone and whose fate is remembered, for `explain`"),
    counter(
        "tierline_node_verifications_total",
        "Objects compared with their checksum (`match`, `mismatch`), and why: adopted from a former process and "
        "asked for (`adoption`), reported by a reader (`suspect`), asked for by an operator (`request`), in turn "
        "(`scrub`); a mismatch drops the object",
        "occasion",
        "result",
    ),
    counter(
        "tierline_node_scrubbed_bytes_total",
        'Bytes of the objects verified in turn; over `bytes{state="used"}`: passes through the store',
    ),
    counter(
        "tierline_node_waits_total",
        "Waits for a key being written that are over: a `reader` for its commit, a `writer` in line; `settled`, "
        "or `timeout`",
        "kind",
        "outcome",
    ),
    gauge(
        "tierline_node_waiting",
        "Requests that wait for a key being written: a `reader` for its commit, a `writer` in line",
        "kind",
    ),
    counter(
        "tierline_node_kv_events_total",
        "Blocks told of: `stored`, `removed`; `dropped`: changes that were not told for there were too many at "
        "once; only with `kv_events`",
        "kind",
    ),
    counter(
        "tierline_node_kv_replays_total",
        "Questions for events, answered from those `kept` or by a `listing`, or `given_up` since their asker "
        "took nothing",
        "answer",
    ),
    counter(
        "tierline_node_tier_hits_total",
        "Objects that a tier brought, by who answered: a node's name with `tieredstorage`, else empty",
        "tier",
        "source",
    ),
    counter("tierline_node_tier_misses_total", "Objects asked for that a tier did not have", "tier"),
    histogram("tierline_node_tier_fetch_seconds", "Fetches, from their turn to the last object", "tier"),
    counter("tierline_node_tier_fetch_bytes_total", "Bytes that a tier brought", "tier"),
    counter(
        "tierline_node_tier_failures_total",
        "What went wrong with a tier: `unanswered` (a look-up was cut off), `not_brought` (what it had said it "
        "has), `stalled`, `claim` (it said what cannot be), `no_room` (here); and the reasons of the engine "
        "itself",
        "tier",
        "reason",
    ),
    counter(
        "tierline_node_tier_decisions_total",
        "Runs that a tier had: `load`, `recompute` (to load them would take longer), `unknown` (and loaded, to "
        "find out)",
        "tier",
        "decision",
    ),
    gauge(
        "tierline_node_tier_load_seconds",
        "What loading the last run would take, by what was observed: an input of its decision",
        "tier",
    ),
    gauge(
        "tierline_node_tier_prefill_seconds",
        "What computing the last run would take, as its engine said: the other input of the decision",
        "tier",
    ),
    gauge("tierline_node_tier_bytes_per_second", "How fast a tier's bytes came lately", "tier"),
    counter(
        "tierline_node_tier_stores_total",
        "Objects handed to a tier: `stored`; `refused` by it; `dropped`, for too many waited; `gone` before their turn",
        "tier",
        "result",
    ),
    counter("tierline_node_tier_store_bytes_total", "Bytes that a tier took", "tier"),
    gauge(
        "tierline_node_pool_members",
        "Nodes of the pool: `self`, `alive`, and what `tierline node cluster` says of the others",
        "state",
    ),
    gauge(
        "tierline_node_pool_source_behind",
        "1: who says where the nodes are cannot be asked, and what was said last stays in force",
    ),
    counter(
        "tierline_node_pool_source_failures_total",
        "Times that whoever says where the nodes are could not be asked, or said what cannot be used",
    ),
    gauge(
        "tierline_node_directory_entries",
        "Entries of the pool's directory that are at home here; an object with two holders is two",
    ),
    counter("tierline_node_segment_relinks_total", "The segment's name had been removed and was put back"),
    counter(
        "tierline_node_failed_reloads_total",
        "Changed files (`tokens`, `certificate`) that could not be used, so that the former stay in force",
        "file",
    ),
    counter(
        "tierline_node_failed_duties_total",
        "Work beside serving that ended with an error and is tried again: `deadlines`, `segment`, `orphans`, "
        "`tokens`, `certificate`, `clock`, `room`, `scrub`, `watch`, `events`, `tiers`, `pool`, `keep` (what "
        "peers ask to hold); the log has it once a minute",
        "duty",
    ),
    gauge(
        "tierline_node_certificate_expiry_seconds",
        "Until when the certificate is valid, in seconds since 1970; only with one",
    ),
    counter(
        "tierline_node_spans_total",
        "Spans, with `opentelemetry` or `traces_file`: `exported`: a collector took them, or the file has them; "
        "`failed`: neither; `dropped`: the queue was full",
        "outcome",
    ),
    counter("tierline_node_tls_failed_handshakes_total", "TLS handshakes that came to nothing"),
    counter("tierline_node_limits_reached_total", "Requests and connections that a limit ended, by its key", "limit"),
    gauge("tierline_node_segment_named", "1 while the segment can be opened by its names, 0 while they are lost"),
    gauge("tierline_node_event_loop_lag_seconds", "Lateness of the loop's timer, worst of the last second"),
    gauge("tierline_node_connections", "Open connections: `http`, `socket`", "protocol"),
    counter(
        "tierline_node_http_requests_total",
        "HTTP requests answered; `route` is the struct in `tierline.wire.routes`",
        "route",
        "status",
    ),
    histogram("tierline_node_http_request_seconds", "HTTP requests: from the whole head to the whole reply", "route"),
    counter("tierline_node_http_received_bytes_total", "Bytes of the bodies of HTTP requests"),
    counter("tierline_node_http_sent_bytes_total", "Bytes of the bodies of HTTP replies"),
    counter(
        "tierline_node_socket_requests_total",
        "Requests of the UNIX socket answered; `outcome` is `ok` or an error's name; `Hello` counts greetings",
        "verb",
        "outcome",
    ),
    histogram(
        "tierline_node_socket_request_seconds", "Requests of the UNIX socket: from the receipt to the reply", "verb"
    ),
    *_PROCESS,
)
