"""The router: one OpenAI-compatible address in front of the replicas (docs/router.md)."""
