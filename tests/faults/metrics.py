"""What a node says about itself, for tests that hold a fault against its metric."""

from tests.integration.node.processes import NodeProcess


def metric(node: NodeProcess, name: str) -> float:
    """Return one sample of ``/metrics``, its labels in the order in which they are exposed; 0 where it is not there."""
    for line in node.get("/metrics")[1].decode().splitlines():
        sample, _, value = line.rpartition(" ")
        if sample == name:
            return float(value)
    return 0.0
