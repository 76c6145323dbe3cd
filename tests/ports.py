"""Ports for the programs that tests start, below those that the kernel gives to outgoing connections."""

from tierline.bench.programs import free_ports

__all__ = ["free_port", "free_ports"]


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody uses, and that no outgoing connection takes."""
    return free_ports(1)[0]
