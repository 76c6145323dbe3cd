"""A child process that ends with its parent, however that ends."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def end_with_parent(parent: int) -> None:
    """Have the process that calls this be told to end (SIGTERM) when its parent has ended.

    For ``preexec_fn``: after the fork, before the child is another program.

    Parameters
    ----------
    parent
        The parent's id, which it wrote down before the fork.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # its parent's handler would take the signal, and lose it
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it had ended before that, and nobody will tell
        os._exit(128 + signal.SIGTERM)
