"""What publishing KV events costs a node store: PUTs over HTTP, commits and leases, beside a node that publishes none.

    PYTHONPATH=. python benchmarks/node_events.py [--objects 2000] [--rounds 9]

Two nodes, each in a process of its own, one with ``--kv-events`` and a subscriber that reads; rounds alternate between
them, and of each node the median of its processor time per operation is printed, and the ratio of the two. Objects are
blocks by name, 64 KiB each; a lease is of 16.
"""
# ruff: noqa: T201

import argparse
import contextlib
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import zmq
from tests.integration.node.processes import HttpClient, NodeProcess, store

from tierline.client import NodeClient

BLOCK = 64 * 1024
LEASED = 16
SUFFIX = "bfloat16.vllm032-HND-b16-0123456789ab.c256.tp0-1.pp0-1.g0"


def name(number: int) -> str:
    """Return a block's name as our vLLM connector makes them."""
    return f"{number:064x}@{SUFFIX}"


def cpu_seconds(node: NodeProcess) -> float:
    """Return what a node's process has used of processors."""
    tasks = Path(f"/proc/{node.process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def commit(client: NodeClient, _: HttpClient, number: int) -> None:
    """Store one object over the UNIX socket."""
    store(client, name(number), b"x")


def lease(client: NodeClient, _: HttpClient, number: int) -> None:
    """Lease a run of objects and give it back."""
    found = client.prefix_lease("b", [name(number + place) for place in range(LEASED)], 10)
    client.let_go(found.lease)


def put(_: NodeClient, http: HttpClient, number: int) -> None:
    """Store one object over HTTP."""
    status = http.request("PUT", f"/v1/kv/b/{name(number)}", b"x" * BLOCK)[0]
    assert status < 300, status


@contextlib.contextmanager
def subscriber(address: str) -> Iterator[list[int]]:
    """Read events as a router would; the list counts messages."""
    read, ends, context = [0], threading.Event(), zmq.Context()

    def run() -> None:
        socket = context.socket(zmq.SUB)
        socket.subscribe(b"")
        socket.connect(address)
        while not ends.is_set():
            if socket.poll(100):
                socket.recv_multipart()
                read[0] += 1
        socket.close(0)

    reading = threading.Thread(target=run)
    reading.start()
    yield read
    ends.set()
    reading.join()
    context.term()


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    objects = arguments.objects
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        address = f"ipc://{folder}/events"
        options = {"capacity": f"{objects * 4 * BLOCK // 2**20}MiB", "max_object": "1MiB"}
        without = stack.enter_context(contextlib.closing(NodeProcess(Path(folder), **options)))
        with_events = stack.enter_context(contextlib.closing(NodeProcess(Path(folder), kv_events=address, **options)))
        read = stack.enter_context(subscriber(address))
        nodes = {"without": without, "with": with_events}
        clients = {kind: stack.enter_context(node.connect(writer=True)) for kind, node in nodes.items()}
        http = {kind: stack.enter_context(node.http()) for kind, node in nodes.items()}
        for what, operation in (("commit", commit), ("PUT of 64 KiB", put), ("lease of 16", lease)):
            taken: dict[str, list[float]] = {kind: [] for kind in nodes}
            for _, (kind, node) in itertools.product(range(arguments.rounds), nodes.items()):
                if operation is not lease:
                    assert http[kind].request("DELETE", "/v1/kv/b?flush")[0] == 200
                    time.sleep(0.3)  # until that is told, too
                before = cpu_seconds(node)
                for number in range(objects):
                    operation(clients[kind], http[kind], number)
                time.sleep(0.1)
                taken[kind].append((cpu_seconds(node) - before) / objects * 1e6)
            one, other = (statistics.median(taken[kind]) for kind in ("without", "with"))
            print(f"{what:15} {one:8.1f} µs of processor time, with events {other:8.1f}: {other / one:.2f}")
        print(f"messages read   {read[0]:8,}")


if __name__ == "__main__":
    main()
