"""Which paths of the router are free for a health check of the user's choice."""

import re

_PATH = re.compile(r"/?[A-Za-z0-9_~-]+([/.][A-Za-z0-9_~-]+)*")
_TAKEN = re.compile(r"/(v1|admin|endpoints|dashboard)/|/(invocations|metrics|tokenize|detokenize|dashboard)$")
"""Paths of the router's own, as far as they are for something other than its health."""


def is_path(path: str) -> bool:
    """Whether this is a path as the router takes one in its settings: of names, slashes and dots."""
    return _PATH.fullmatch(path) is not None


def is_free(path: str) -> bool:
    """Whether a health check may be at ``path``: nothing else of the router is there."""
    return path == "/" or (path.startswith("/") and is_path(path) and not _TAKEN.match(path))
