"""``tierline simulate``: clusters that are not here."""

from tierline.cli.simulate.group import app

__all__ = ["app"]
