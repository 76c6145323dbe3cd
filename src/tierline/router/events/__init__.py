"""What engines say of their caches: vLLM's KV events, read, kept in order, and turned into an exact index."""
