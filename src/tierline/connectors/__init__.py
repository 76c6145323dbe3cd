"""Connectors: what lives inside an inference engine and joins it to the node store; one package an engine."""
