"""What lies below a node's own memory: its peers' stores, and other engines behind the same interface."""
