"""What a pool of node stores holds, serves and costs: a model, held against ``tierline bench cluster``, then tables.

Run ``python benchmarks/pool_capacity.py bench-results/cluster.json [--control]``. First the model is held against that
run: what it says of reads from another node, from figures that know nothing of them, beside what was measured. Then it
prints tables of pools and networks that this machine is not. With ``--control`` it first starts pools of real, idle
nodes and measures what their knowing each other costs (a minute); without, it takes what was measured so before.
"""

# ruff: noqa: T201

import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tierline.bench.programs import Program, answers, free_ports, tierline
from tierline.pool.directory import ENTRY_BYTES
from tierline.pool.receiving import ReceivingLimits

GIB = 2**30
GOODPUT = 0.94
"""Of a link, TCP's payload in frames of 1,500 bytes: 1,448 of the 1,538 that a frame takes on the wire."""
BLOCK_TOKENS = 256
NETWORKS = (25, 100, 400)
"""Gbit/s of a node."""
SIZES = (8, 64, 512)
SHARE_GIB = 400
"""Of a node's memory: 20 % of the 2 TiB of a node with eight H100."""
FILLED = 0.92
"""Of it, from where on a store evicts."""
MODELS = (("Llama-3.1-8B in bf16", 128 * 1024), ("Llama-3.1-70B in bf16", 320 * 1024))
"""Bytes a token: layers × 8 heads × 128 × 2 (keys, values) × 2 bytes."""
ANNOUNCED_BYTES = 48
"""Of an object: slot, digest, size and checksum, as msgpack writes them."""
CONTROL_CPU_US = 414
"""Processor time a second of a node for each other node of its pool, idle: ``--control``."""
CONTROL_KIB = 20
"""Memory of a node for each other node of its pool: ``--control``."""
_POOLS = (2, 14)
_IDLE_S = 20.0


@dataclass(frozen=True)
class Machine:
    """What a run of ``tierline bench cluster`` says of a machine.

    Parameters
    ----------
    fetch_gb_s
        Large objects, one after another, from the other node into this one's segment.
    fetch_s
        What a fetch takes besides its bytes: asking the directory, asking the holder, comparing, committing.
    copy_gb_s
        Out of the segment into an engine's memory.
    fetch_cpu_s_per_gib
        Of both nodes and the reader, for bytes from another node.
    """

    fetch_gb_s: float
    fetch_s: float
    copy_gb_s: float
    fetch_cpu_s_per_gib: float

    def remote_read_s(self, size: float, line_gb_s: float = float("inf")) -> float:
        """Return how long one client waits for bytes of another node: they are fetched, and then copied."""
        return self.fetch_s + size / 1e9 * (1 / min(self.fetch_gb_s, line_gb_s) + 1 / self.copy_gb_s)


def machine_of(rows: Mapping[str, float]) -> Machine:
    """Fit fetches by their largest and their smallest size; the sizes between are left to check."""
    large, small = 32 * 2**20, 2**20
    seconds = {size: size / 1e9 / rows[f"fetch {size >> 20}MiB, one after another"] for size in (large, small)}
    per_byte = (seconds[large] - seconds[small]) / (large - small)
    return Machine(
        fetch_gb_s=1e-9 / per_byte,
        fetch_s=max(0.0, seconds[small] - per_byte * small),
        copy_gb_s=rows["local read 32MiB, 1 client, beside redis"],
        fetch_cpu_s_per_gib=rows["remote read 32MiB, 8 clients, CPU"] / 1e3,
    )


def checks(machine: Machine, rows: Mapping[str, float]) -> Iterator[tuple[str, float, float]]:
    """Yield what the model says of remote reads, in GB/s, beside what was measured; no fit has seen any of these."""
    for mib in (1, 4, 16, 32):
        size = mib * 2**20
        measured = rows[f"remote read {mib}MiB, 1 client, beside redis"]
        yield f"{mib} MiB, 1 client", size / 1e9 / machine.remote_read_s(size), measured


def line_gb_s(gbit_s: float) -> float:
    """Return what a node's link carries of objects, each way."""
    return gbit_s / 8 * GOODPUT


def serving(machine: Machine, bytes_per_token: int) -> Iterator[Sequence[object]]:
    """Yield rows of what nodes serve each other, by their network; none of it depends on how many nodes there are."""
    prefix = 8192 * bytes_per_token
    yield "an 8K prefix from another node, s", *(f"{_prefix_s(machine, prefix, gbit):.2f}" for gbit in NETWORKS)
    yield (
        "prefill below which loading it is faster, tokens/s",
        *(f"{8192 / _prefix_s(machine, prefix, gbit):,.0f}" for gbit in NETWORKS),
    )
    yield "8K prefixes a second and node, link full", *(f"{line_gb_s(gbit) * 1e9 / prefix:.1f}" for gbit in NETWORKS)
    yield (
        "cores of a node for that, sending and receiving",
        *(f"{line_gb_s(gbit) * 1e9 / GIB * machine.fetch_cpu_s_per_gib:.1f}" for gbit in NETWORKS),
    )


def _prefix_s(machine: Machine, size: float, gbit_s: float) -> float:
    """Return the time for a long prefix: its blocks come by parallel streams, each with two cores to itself."""
    speed = min(line_gb_s(gbit_s), ReceivingLimits().streams * machine.fetch_gb_s)
    return machine.fetch_s + size / 1e9 * (1 / speed + 1 / machine.copy_gb_s)


def holding(bytes_per_token: int) -> Iterator[Sequence[object]]:
    """Yield rows of what pools hold and what their holding it costs, by how many nodes they have."""
    objects = SHARE_GIB * GIB * FILLED / (BLOCK_TOKENS * bytes_per_token)
    yield "tokens held, millions", *(f"{nodes * objects * BLOCK_TOKENS / 1e6:,.0f}" for nodes in SIZES)
    yield "directory's entries at each node, MiB", *(f"{objects * ENTRY_BYTES / 2**20:.1f}" for _ in SIZES)
    yield (
        "told again when a node joins or goes, MiB in all",
        *(f"{objects * ANNOUNCED_BYTES / 2**20:.1f}" for _ in SIZES),
    )


def together(nodes: int, gbit_s: float) -> str:
    """Return what all links of a pool carry together, in GB/s."""
    return f"{nodes * line_gb_s(gbit_s):,.0f}"


# What it costs to know each other -------------------------------------------------------------------------------------


def control_cost() -> tuple[float, float]:
    """Start pools of real nodes, and return processor microseconds a second, and KiB, of a node for each other one."""
    with tempfile.TemporaryDirectory(prefix="tierline-capacity-") as folder:
        few, many = (_idle_pool(nodes, Path(folder) / str(nodes)) for nodes in _POOLS)
    more = _POOLS[1] - _POOLS[0]
    return (many[0] - few[0]) * 1e6 / more, (many[1] - few[1]) / 1024 / more


def _idle_pool(nodes: int, folder: Path) -> tuple[float, float]:
    """Return a node's processor seconds a second, and its private memory, in an idle pool."""
    folder.mkdir()
    ports = free_ports(nodes)
    with contextlib.ExitStack() as stack:
        programs = []
        for number, port in enumerate(ports):
            peers = [f"node-{n}=127.0.0.1:{other + 1}" for n, other in enumerate(ports) if n != number]
            settings = folder / f"{number}.json"
            segment = {"shared_memory_directory": str(folder), "shared_memory_name": f"segment-{number}"}
            settings.write_text(json.dumps({"node_name": f"node-{number}", "peers": peers, **segment}))
            argv = tierline(
                *("node", "--config", str(settings), "--port", str(port), "--socket", str(folder / f"{number}.sock")),
                *("--capacity", "16MiB", "--log-level", "warning", "--transfer-address", f"127.0.0.1:{port + 1}"),
            )
            ready = partial(answers, f"http://127.0.0.1:{port}/readyz")
            programs.append(stack.enter_context(Program(argv, folder / f"{number}.log", ready)))
        time.sleep(5.0)  # until all know each other
        before = sum(program.cpu_seconds() for program in programs)
        time.sleep(_IDLE_S)
        used = sum(program.cpu_seconds() for program in programs) - before
        memory = sum(program.private_bytes() for program in programs)
    return used / _IDLE_S / nodes, memory / nodes


def main(arguments: Sequence[str]) -> None:
    """Print everything."""
    cpu_us, kib = control_cost() if "--control" in arguments else (CONTROL_CPU_US, CONTROL_KIB)
    document = json.loads(Path(arguments[0]).read_text())
    rows = {row["name"]: row["value"] for row in document["rows"] if row["value"] is not None}
    machine = machine_of(rows)
    print(machine, "\n")
    _print(
        ("read from another node", "model, GB/s", "measured, GB/s", "measured ÷ model"),
        ((what, f"{said:.2f}", f"{found:.2f}", f"{found / said:.2f}") for what, said, found in checks(machine, rows)),
    )
    for name, size in MODELS:
        _print((name, *(f"{gbit} Gbit/s" for gbit in NETWORKS)), serving(machine, size))
        _print((name, *(f"{nodes} nodes" for nodes in SIZES)), holding(size))
    _print(
        ("all links, GB/s", *(f"{nodes} nodes" for nodes in SIZES)),
        ((f"{gbit} Gbit/s", *(together(nodes, gbit) for nodes in SIZES)) for gbit in NETWORKS),
    )
    _print(
        ("knowing each other, a node", *(f"{nodes} nodes" for nodes in SIZES)),
        (
            ("processor, % of a core", *(f"{(nodes - 1) * cpu_us / 1e4:.1f}" for nodes in SIZES)),
            ("memory, MiB", *(f"{(nodes - 1) * kib / 1024:.1f}" for nodes in SIZES)),
        ),
    )
    if "--control" in arguments:
        print(f"a node for each other one: {cpu_us:.0f} µs of processor a second, {kib:.0f} KiB")


def _print(header: Sequence[object], rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]) -> None:
    for number, row in enumerate(itertools.chain((header,), rows)):
        print("| " + " | ".join(map(str, row)) + " |")
        if number == 0:
            print("|---|" + "---:|" * (len(header) - 1))
    print()


if __name__ == "__main__":
    main(sys.argv[1:])
