"""The proxy beside a model in its pod: bounds what runs, measures and records invocations, and changes nothing else."""
