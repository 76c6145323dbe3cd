"""Tierline: a tiered KV cache and a cache-aware router for LLM inference."""

__version__ = "0.1.0"
