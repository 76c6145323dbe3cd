"""The operator: from ``InferenceEndpointConfig`` and ``JumpStartModel`` to workers, router, cache and all else."""
