"""What a pool of node stores holds, serves and costs, by a model whose figures come from ``tierline bench cluster``.

Run as ``python benchmarks/capacity.py bench-results/cluster.json``. First the model is held against the same run: what
it says of reads from another node, from figures that have nothing to do with them, beside what was measured. Then it
prints tables for pools and networks that this machine is not. Every assumption is a field of :class:`Pool`.
"""

# ruff: noqa: T201

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
GOODPUT = 0.94
"""Of a link: what is left to TCP's payload in frames of 1,500 bytes; jumbo frames leave 0.99."""
BLOCK_TOKENS = 256
NETWORKS = (25, 100, 400)
"""Gbit/s of a node."""
SIZES = (8, 64, 512)


@dataclass(frozen=True)
class Measured:
    """Of one machine: ``tierline bench cluster``.

    Parameters
    ----------
    fetch_gb_s
        One object after another from the other node, into this node's segment.
    copy_gb_s
        From the segment into an engine's memory.
    fetch_cpu_ms_per_gib
        Processor time of both nodes and the reader together, for a read from another node.
    round_trip_s
        What a fetch costs besides its bytes.
    """

    fetch_gb_s: float
    copy_gb_s: float
    fetch_cpu_ms_per_gib: float
    round_trip_s: float


@dataclass(frozen=True)
class Model:
    """A model on its GPUs; prefill in tokens a second of one replica, from public measurements, for comparison only."""

    name: str
    bytes_per_token: int
    prefill_tokens_per_s: float


@dataclass(frozen=True)
class Pool:
    """A cluster.

    Parameters
    ----------
    nodes
        Node stores.
    share_gib
        Memory that each lends.
    gbit_s
        Of each node's network.
    filled
        Part of the memory that holds objects: the store evicts from 92 % on.
    directory_bytes
        Memory of one entry of the directory, at its home.
    """

    nodes: int
    gbit_s: float
    share_gib: float = 400
    filled: float = 0.9
    directory_bytes: float = 400

    def tokens_held(self, model: Model) -> float:
        """Return how many tokens' KV the pool has room for, each once."""
        return self.nodes * self.share_gib * GIB * self.filled / model.bytes_per_token

    def directory_gib_per_node(self, model: Model) -> float:
        """Return the memory of a node's part of the directory."""
        return self.tokens_held(model) / BLOCK_TOKENS / self.nodes * self.directory_bytes / GIB

    def line_gb_s(self) -> float:
        """Return what a node's link carries of objects, each way."""
        return self.gbit_s / 8 * GOODPUT

    def moved_gib_when_one_joins(self, model: Model) -> float:
        """Return how much of the directory is announced again: no object moves."""
        entries = self.tokens_held(model) / BLOCK_TOKENS
        return entries / self.nodes * 150 / GIB  # a name of some 100 bytes, size, checksum, holder


def read_gb_s(fetch_gb_s: float, copy_gb_s: float) -> float:
    """Return the speed of a read whose bytes are first fetched, and then copied."""
    return 1 / (1 / fetch_gb_s + 1 / copy_gb_s)


def check(rows: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, float, float]]:
    """Yield what the model says of reads of one client from another node, beside what was measured."""
    for name, row in rows.items():
        size = name.removeprefix("fetch ").removesuffix(", one after another")
        if name == size:
            continue
        local = rows[f"local read {size}, 1 client, beside redis"]["value"]
        remote = rows[f"remote read {size}, 1 client, beside redis"]["value"]
        yield size, read_gb_s(row["value"], local), remote


def table(measured: Measured, model: Model) -> Iterator[str]:
    """Yield the lines of a table of pools."""
    yield f"| {model.name} | " + " | ".join(f"{gbit} Gbit/s" for gbit in NETWORKS) + " |"
    yield "| --- |" + " ---: |" * len(NETWORKS)
    for tokens in (8192, 65536):
        size = tokens * model.bytes_per_token
        cells = []
        for gbit in NETWORKS:
            pool = Pool(8, gbit)
            speed = read_gb_s(pool.line_gb_s(), measured.copy_gb_s)
            seconds = size / speed / 1e9 + measured.round_trip_s
            cells.append(f"{seconds:.2f} s ({tokens / model.prefill_tokens_per_s / seconds:.1f} ×)")
        yield f"| {tokens // 1024}K tokens from another node (against computing) | " + " | ".join(cells) + " |"
    cells = [f"{Pool(8, gbit).line_gb_s() * 1e9 / (8192 * model.bytes_per_token):.1f}" for gbit in NETWORKS]
    yield "| prefixes of 8K tokens a second and node, its link full | " + " | ".join(cells) + " |"
    cells = [f"{Pool(8, gbit).line_gb_s() * 1e9 / GIB * measured.fetch_cpu_ms_per_gib / 1e3:.1f}" for gbit in NETWORKS]
    yield "| cores for that, both ends together | " + " | ".join(cells) + " |"
    yield ""
    yield f"| {model.name}: nodes of {Pool(8, 100).share_gib:.0f} GiB | " + " | ".join(map(str, SIZES)) + " |"
    yield "| --- |" + " ---: |" * len(SIZES)
    pools = [Pool(nodes, 100) for nodes in SIZES]
    yield "| tokens held, millions | " + " | ".join(f"{pool.tokens_held(model) / 1e6:,.0f}" for pool in pools) + " |"
    yield (
        "| directory, GiB a node | " + " | ".join(f"{pool.directory_gib_per_node(model):.3f}" for pool in pools) + " |"
    )
    yield (
        "| announced when a node joins, MiB in all | "
        + " | ".join(f"{pool.moved_gib_when_one_joins(model) * 1024:.0f}" for pool in pools)
        + " |"
    )
    yield ("| all links full, GB/s | " + " | ".join(f"{pool.nodes * pool.line_gb_s():,.0f}" for pool in pools) + " |")


def main(path: Path) -> None:
    """Print everything."""
    document = json.loads(path.read_text())
    rows = {row["name"]: row for row in document["rows"]}
    print("| read from another node, one client | model, GB/s | measured, GB/s | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for size, said, found in check(rows):
        print(f"| {size} | {said:.2f} | {found:.2f} | {found / said:.2f} |")
    print()
    fetch_gb_s = rows["fetch 32MiB, one after another"]["value"]
    measured = Measured(
        fetch_gb_s=fetch_gb_s,
        copy_gb_s=rows["local read 32MiB, 1 client, beside redis"]["value"],
        fetch_cpu_ms_per_gib=rows["remote read 32MiB, 1 client, CPU"]["value"],
        round_trip_s=2**20 / 1e9 * (1 / rows["fetch 1MiB, one after another"]["value"] - 1 / fetch_gb_s),
    )
    print(measured)
    for model in (
        Model("Llama-3.1-8B, bf16, one H100", 128 * 1024, 25_000),
        Model("Llama-3.1-70B, bf16, eight H100 (TP8)", 320 * 1024, 12_000),
    ):
        print()
        print("\n".join(table(measured, model)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
