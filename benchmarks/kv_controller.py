"""What asking a controller costs: round trips over its UNIX socket, and processor time of router and controller.

    python benchmarks/kv_controller.py [--blocks 1000000] [--endpoints 64] [--lookups 500]

The controller is a process of its own with a full index; every endpoint holds its share of the blocks, and of each
prompt that is asked about four endpoints hold prefixes of different lengths. Questions are asked one at a time, then 32
at once. Processor times are of all lookups of a row by their number; the router's include hashing the prompt's blocks.
"""
# ruff: noqa: T201

import argparse
import asyncio
import contextlib
import gc
import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop

from tierline import logs
from tierline.bench.router_index import BLOCK_TOKENS, fill, new_tokens, stored
from tierline.router.controller.config import ControllerConfig
from tierline.router.controller.server import running
from tierline.router.endpoints import Endpoint
from tierline.router.events.addresses import ControllerAddress
from tierline.router.events.decoding import decode_batch
from tierline.router.events.keys import TOKEN_BYTES, PromptTokens, token_bytes
from tierline.router.events.remote import RemoteIndex
from tierline.router.events.source import EventSource, SourceState
from tierline.router.strategies import RoutingRequest

PROMPTS = {"2K": 128, "8K": 512, "32K": 2048, "100K": 6250}
AT_ONCE = 32


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--endpoints", type=int, default=64)
    parser.add_argument("--lookups", type=int, default=500)
    arguments = parser.parse_args()
    logs.configure("error")
    with tempfile.TemporaryDirectory() as folder, controller(Path(folder) / "c", arguments) as spent:
        uvloop.run(measure(Path(folder) / "c", arguments, spent))


@contextlib.contextmanager
def controller(path: Path, arguments: argparse.Namespace) -> Iterator[Any]:
    """A controller with a full index; what is yielded says the processor time that it has used."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=serve, args=(path, arguments, theirs), daemon=True)
    child.start()
    ours.recv()
    try:
        yield ours
    finally:
        child.terminate()
        child.join()


def serve(path: Path, arguments: argparse.Namespace, pipe: Any) -> None:
    """The controller's process."""

    async def run() -> None:
        async with running(ControllerConfig(listen=(f"unix:{path}",), http="", kv_index_bytes=8 * 1024**3)) as server:
            holdings = server.holdings
            for endpoint in fleet(arguments.endpoints):
                source = EventSource(holdings.index.open(), has_replay=False, clock=time.time)
                source.state = SourceState.EXACT
                holdings.sources[endpoint.url] = [source]
            sources = list(holdings.index.sources)
            fill(sources, arguments.blocks, random.Random(1))
            for number, tokens in enumerate(prompts().values(), start=1):
                blocks = len(tokens) // BLOCK_TOKENS
                for place, source in enumerate(sources[:4], start=1):
                    source.apply(decode_batch(stored(number << 40, tokens[: blocks * place // 4 * BLOCK_TOKENS])))
            gc.collect()
            gc.freeze()
            pipe.send("ready")
            while True:
                await asyncio.to_thread(pipe.recv)
                used = resource.getrusage(resource.RUSAGE_SELF)
                pipe.send(used.ru_utime + used.ru_stime)

    uvloop.run(run())


def prompts() -> dict[str, list[int]]:
    """The same ones in both processes."""
    dice = random.Random(2)
    return {label: new_tokens(dice, blocks) for label, blocks in PROMPTS.items()}


def fleet(endpoints: int) -> list[Endpoint]:
    """The engines."""
    return [Endpoint(f"http://engine-{number}:8000", number) for number in range(endpoints)]


async def measure(path: Path, arguments: argparse.Namespace, controller: Any) -> None:
    """Ask, and print."""
    endpoints = fleet(arguments.endpoints)
    remote = RemoteIndex(ControllerAddress(path=str(path)), "benchmark", budget_s=5.0)
    remote.start()
    while not remote.is_connected:  # noqa: ASYNC110  (happens once)
        await asyncio.sleep(0.01)
    print(f"{arguments.blocks:,} blocks of {arguments.endpoints} endpoints")
    print("prompt   one by one: P50, P99 ms   router, controller ms of processor   32 at once: lookups/s")
    for label, tokens in prompts().items():
        raw = token_bytes([*tokens, 0])
        await ask(remote, raw, endpoints)
        own, theirs = time.process_time(), used(controller)
        trips = [await ask(remote, raw, endpoints) for _ in range(arguments.lookups)]
        own, theirs = time.process_time() - own, used(controller) - theirs
        answered, began = remote.outcomes["answered"], time.perf_counter()
        await asyncio.gather(*(several(remote, raw, endpoints, arguments.lookups // AT_ONCE) for _ in range(AT_ONCE)))
        rate = (remote.outcomes["answered"] - answered) / (time.perf_counter() - began)
        p50, p99 = statistics.median(trips), statistics.quantiles(trips, n=100)[98]
        share = 1000 / arguments.lookups
        print(f"{label:>6} {p50:16.3f} {p99:8.3f} {own * share:16.3f} {theirs * share:8.3f} {rate:28,.0f}")
    await remote.close()


def used(controller: Any) -> float:
    """Seconds of processor time."""
    controller.send("used")
    return float(controller.recv())


async def several(remote: RemoteIndex, raw: bytes, endpoints: Sequence[Endpoint], times: int) -> None:
    """Ask again and again."""
    for _ in range(times):
        await ask(remote, raw, endpoints)


async def ask(remote: RemoteIndex, raw: bytes, endpoints: Sequence[Endpoint]) -> float:
    """Return the milliseconds of one lookup."""
    routing = RoutingRequest()
    routing.tokens = PromptTokens(raw)
    began = time.perf_counter()
    await remote.look_up(routing, endpoints)
    spent = 1000 * (time.perf_counter() - began)
    found = routing.told and routing.told.found(endpoints[3])  # nothing where the machine is too busy to answer
    assert found is None or found[1] == len(raw) // TOKEN_BYTES - 1
    return spent


if __name__ == "__main__":
    main()
