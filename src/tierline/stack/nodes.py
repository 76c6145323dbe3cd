"""The node stores of a stack: one, or several that are one pool, each with its own segment, ports and replicas.

Several stand for as many machines: nothing goes from one to another but by the pool's own port, on loopback here.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tierline.node.config import NodeConfig, default_socket_path
from tierline.stack import machine
from tierline.stack.config import UpConfig
from tierline.stack.engines import CPU_LOOKUP_BUDGET_MS, ENGINE_HOST, EventAddresses
from tierline.stack.folders import runtime_folder

FIRST_TRANSFER_PORT = 9240
POOL_TOKEN = "pool.token"  # noqa: S105  (the name of its file)


@dataclass(frozen=True)
class PlannedNode:
    """A node store to start.

    Parameters
    ----------
    name
        What the user reads, and what its pool calls it.
    port, transfer_port
        Where it listens for HTTP, and for other nodes; the latter is ``None`` without others.
    segment, size_bytes
        Name and size of its segment in /dev/shm.
    events
        Where it publishes what it holds; ``None``: nowhere.
    """

    name: str
    port: int
    transfer_port: int | None
    segment: str
    size_bytes: int
    events: EventAddresses | None

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://{ENGINE_HOST}:{self.port}"

    @property
    def socket(self) -> Path:
        """Where engines join it."""
        return default_socket_path(self.port)

    @property
    def argv(self) -> list[str]:
        """Its command line, up to what all programs of the stack have."""
        return [
            *(sys.executable, "-m", "tierline", "node", "--host", ENGINE_HOST, "--port", str(self.port)),
            *("--socket", str(self.socket), "--shared-memory-name", self.segment, "--capacity", str(self.size_bytes)),
            *(("--kv-events", self.events.events) if self.events is not None else ()),
        ]

    def environment(self, nodes: Sequence["PlannedNode"], token_file: Path) -> Mapping[str, str]:
        """Return the settings that make it a member of a pool; none without others.

        Parameters
        ----------
        nodes
            All nodes of the stack, itself among them.
        token_file
            What the nodes know each other by.
        """
        if self.transfer_port is None:
            return {}
        settings = {
            "node_name": self.name,
            "transfer_address": f"{ENGINE_HOST}:{self.transfer_port}",
            "peers": ",".join(f"{peer.name}={ENGINE_HOST}:{peer.transfer_port}" for peer in nodes if peer is not self),
            "pool_token_file": str(token_file),
            "lookup_cap_ms": str(CPU_LOOKUP_BUDGET_MS),  # the nodes share the processors with the engines
        }
        return {NodeConfig.environment_variable(key): value for key, value in settings.items()}


def plan_nodes(config: UpConfig, *, has_events: bool) -> list[PlannedNode]:
    """Choose names, ports and segments.

    Parameters
    ----------
    config
        What the user asked for.
    has_events
        Whether the router wants to hear what the nodes hold.
    """
    if not config.cache:
        return []
    segment = first_segment(config)
    if config.nodes == 1:
        events = _events(config, "node") if has_events else None
        return [PlannedNode("node", config.node_port, None, segment, config.cache_size, events)]
    further = machine.free_ports_after(ENGINE_HOST, config.node_port, config.nodes - 1, reserved={config.port})
    ports = [config.node_port, *further]
    transfer_ports = machine.free_ports_after(
        ENGINE_HOST, FIRST_TRANSFER_PORT - 1, config.nodes, reserved={config.port, *ports}
    )
    nodes = []
    for number, (port, transfer_port) in enumerate(zip(ports, transfer_ports, strict=True), start=1):
        name = f"node-{number}"
        events = _events(config, name) if has_events else None
        nodes.append(PlannedNode(name, port, transfer_port, f"{segment}.{name}", config.cache_size, events))
    return nodes


def ports_of(nodes: Collection[PlannedNode]) -> set[int]:
    """Return what the nodes listen on."""
    return {port for node in nodes for port in (node.port, node.transfer_port) if port is not None}


def first_segment(config: UpConfig) -> str:
    """Return what the names of all that a stack has in /dev/shm begin with."""
    return f"tierline-up-{config.port}"


def _events(config: UpConfig, name: str) -> EventAddresses:
    """Return where a node publishes what it holds; the node puts the second behind the first."""
    path = f"ipc://{runtime_folder()}/tierline-up-{config.port}-{name}.events"
    return EventAddresses(path, f"{path}.replay")
