"""Hosts of a network, each a network namespace with an address of its own, joined by a switch; for root on Linux.

A host's link can be cut, healed, and made as slow as ``tc tbf`` can. UNIX sockets and files are those of this machine,
so that a test talks to a node in a namespace by its socket, without being in it.
"""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_SYSTEM_FOLDERS = "/usr/sbin:/sbin"
"""Where Debian has them, and a user's ``PATH`` often does not lead."""
_numbers = itertools.count()


@dataclass(frozen=True)
class Host:
    """One of them; commands of ``enter`` run in its namespace."""

    name: str
    address: str
    switch: str
    port: str

    def enter(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs another one on this host."""
        return [_program("ip"), "netns", "exec", self.name, *argv]

    def cut(self) -> None:
        """Unplug it: what is sent is lost, and nobody is told."""
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def heal(self) -> None:
        """Plug it in again."""
        _ip("-n", self.switch, "link", "set", self.port, "up")

    @contextmanager
    def slowed_to(self, rate: str) -> Iterator[None]:
        """Let it send no more than, say, ``100mbit`` a second for the length of the block."""
        command = [_program("tc"), "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "256kb"]
        subprocess.run(self.enter([*command, "latency", "100ms"]), check=True, capture_output=True)
        try:
            yield
        finally:
            command = [_program("tc"), "qdisc", "del", "dev", "eth0", "root"]
            subprocess.run(self.enter(command), check=True, capture_output=True)


def why_not() -> str:
    """Return why this machine can have no such hosts; empty: it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (_program("ip") and _program("tc")):
        return f"network namespaces need ip and tc, in PATH or {_SYSTEM_FOLDERS}: apt-get install iproute2"
    try:
        with hosts(1) as [host], host.slowed_to("1gbit"):
            pass
    except subprocess.CalledProcessError as error:
        return f"this kernel, or this container, gives no network namespaces: {error.stderr.decode().strip()}"
    return ""


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Make so many hosts on one switch, and remove them with all that is in them."""
    prefix = f"tl{os.getpid()}-{next(_numbers)}"
    switch = f"{prefix}-switch"
    made: list[str] = []
    try:
        _ip("netns", "add", switch)
        made.append(switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        found = []
        for number in range(1, count + 1):
            name, port = f"{prefix}-{number}", f"port{number}"
            host = Host(name, f"10.77.0.{number}", switch, port)
            _ip("netns", "add", name)
            made.append(name)
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", switch, "link", "set", port, "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            found.append(host)
        yield found
    finally:
        for name in made:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run([_program("ip"), *arguments], check=True, capture_output=True)


def _program(name: str) -> str:
    """Return where a program is, by its full path; empty: nowhere."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_FOLDERS) or ""
