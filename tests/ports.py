"""Ports for the programs that tests start, below those that the kernel gives to outgoing connections."""

from collections import deque

from tierline.bench import programs

_given: deque[int] = deque(maxlen=500)
"""The latest: who has asked for one has not bound it yet when he asks for the next."""


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return TCP ports of an address of this machine that nobody uses, and none that was returned lately."""
    found: list[int] = []
    while len(found) < count:
        found += [port for port in programs.free_ports(count - len(found), host) if port not in _given]
        _given.extend(found)
    return found


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody uses, and that no outgoing connection takes."""
    return free_ports(1)[0]
