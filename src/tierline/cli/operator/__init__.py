"""``tierline operator``: endpoints on Kubernetes, from the resources of HyperPod's operator."""

from tierline.cli.operator.group import app

__all__ = ["app"]
