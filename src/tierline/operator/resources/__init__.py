"""The resources of HyperPod's inference operator as typed models: the only place that knows their fields.

A name here is the JSON key in snake case; ``deploy/crds`` is generated from these models.
"""
