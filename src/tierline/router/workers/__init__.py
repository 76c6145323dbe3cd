"""Several processes that are one router: ``supervisor`` starts them, ``worker`` is one, the rest is what they share."""
