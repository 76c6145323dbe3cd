"""``tierline node``: serves when it stands alone; its subcommands ask a node that serves."""

from tierline.cli.node.group import app

__all__ = ["app"]
