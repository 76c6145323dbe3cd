"""An endpoint as its user has it in hand: prepare, deploy, watch it come, ask it, empty its caches, remove it."""
