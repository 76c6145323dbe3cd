"""``tierline bench``: what is measured here, each by its name, and ``run`` against any endpoint."""

from tierline.cli.bench.group import app

__all__ = ["app"]
