"""``tierline router``: serves when it stands alone; its subcommands ask a router that serves."""

from tierline.cli.router.group import app

__all__ = ["app"]
