"""``tierline bench compare-features``: one load on a stack with each feature on and off."""
