"""``tierline endpoint``: endpoints in a Kubernetes cluster, as their users have them in hand."""

from tierline.cli.endpoint.group import app

__all__ = ["app"]
