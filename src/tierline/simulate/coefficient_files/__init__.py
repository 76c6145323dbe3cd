"""Coefficient files that come along; docs/simulate.md describes what is in them."""
