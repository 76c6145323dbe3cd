"""Where Tierline keeps things on a user's machine, by the XDG base directory specification."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of what can be made again: ``$XDG_CACHE_HOME/tierline``."""
    return _base("XDG_CACHE_HOME", ".cache") / "tierline"


def state_folder() -> Path:
    """Return the folder of logs and of what describes running programs: ``$XDG_STATE_HOME/tierline``."""
    return _base("XDG_STATE_HOME", ".local/state") / "tierline"


def runtime_folder() -> Path:
    """Return the folder of UNIX sockets: ``$XDG_RUNTIME_DIR``, or /tmp where no session has made one."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(given) if given.startswith("/") else Path("/tmp")  # noqa: S108  (sockets are bound with mode 0600)


def _base(variable: str, default: str) -> Path:
    # The specification says that relative paths are to be ignored.
    given = os.environ.get(variable, "")
    return Path(given) if given.startswith("/") else Path.home() / default
