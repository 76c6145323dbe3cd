"""Benchmarks of real programs beside their limits, measured in the same run."""
