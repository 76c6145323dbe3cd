"""``tierline controller``: the exact index as a process of its own, which several routers ask."""
