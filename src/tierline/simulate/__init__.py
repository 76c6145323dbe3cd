"""Clusters that are not here: the router's strategies, the store's policies, the rule for loading, modelled engines."""
