"""The node store: one machine's KV cache in shared memory, served over HTTP and a UNIX socket (``tierline node``)."""
