"""What a node leaves behind for the next one, and how it is removed where there will be no next one."""

import contextlib
import socket
import stat
from pathlib import Path

from tierline.errors import EnvironmentTooSmall, UsageError
from tierline.node.config import NodeConfig
from tierline.store import remove_segment


def remove_leftovers(config: NodeConfig) -> list[Path]:
    """Remove the segments of a node that is gone, and its socket; return what was removed.

    Raises
    ------
    SegmentError
        A node uses one of the segments, or it is none.
    UsageError
        Something else is where the socket would be.
    """
    removed = [
        path
        for segment in config.all_segments()
        for path in remove_segment(config.shared_memory_directory, segment.name)
    ]
    with contextlib.suppress(EnvironmentTooSmall):  # another node's, which has other segments
        if remove_stale_socket(path := config.socket_path()):
            removed.append(path)
    return removed


def remove_stale_socket(path: Path) -> bool:
    """Remove the socket of a node that is gone; return whether there was one. Raises as :func:`is_stale_socket`."""
    if is_stale := is_stale_socket(path):
        path.unlink(missing_ok=True)
    return is_stale


def is_stale_socket(path: Path) -> bool:
    """Return whether the socket of a node that is gone is there; False: nothing is.

    One that does not listen yet is taken for such a one.

    Raises
    ------
    EnvironmentTooSmall
        A node listens there.
    UsageError
        The file is no socket, or cannot be used.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"--socket: {path} is there and is no socket; choose another path")
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except FileNotFoundError:  # its node has removed it meanwhile
            return False
        except BlockingIOError:  # more clients wait than are let wait, for a node that lives
            pass
        except OSError as error:
            raise UsageError(f"--socket: {path} is there and cannot be used: {error}; choose another path") from error
    raise EnvironmentTooSmall(f"--socket: another node listens on {path}; stop it or choose another path")
