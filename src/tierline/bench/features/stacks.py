"""The stacks that cells are measured on: engines, node stores and routers, each started no oftener than cells need it.

Engines take longest to start, so they stay while what is below them is exchanged: each cell has node stores that were
started for it and have nothing, and engines join them as they would after a node store's restart. Every cell has a
router of its own. What is left of earlier cells in engines' own caches is under other salts, and is the first to go.
"""

import asyncio
import contextlib
import json
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

import aiohttp

from tierline.bench.chat import Chat
from tierline.bench.features.cells import Below, Cell, Engines
from tierline.bench.limits import redis_server
from tierline.bench.programs import Program, answers, free_ports, tierline
from tierline.bench.registry import Say
from tierline.configuration import load
from tierline.errors import EngineError, TierlineError, UsageError
from tierline.node.config import NodeConfig
from tierline.prefix import CHUNK_TOKENS
from tierline.stack import engines
from tierline.stack.config import UpConfig
from tierline.stack.leftovers import remove_leftovers, write_pool_token
from tierline.stack.nodes import POOL_TOKEN
from tierline.stack.plan import PlannedChild, StackPlan, make_plan
from tierline.stack.running import RunningStack, find_stack

REPLICAS = 2
_ENGINE_BLOCK_TOKENS = {"vllm": 128, "simulated": 16}
_NODE_BYTES = 768 * 1024**2
_ENGINES_READY_WITHIN_S = 900.0
_OTHERS_READY_WITHIN_S = 60.0
_JOINED_WITHIN_S = 180.0
_STORED_WITHIN_S = 5.0
_BEHIND_OTHERS = ("sh", "-c", '{ echo 19 > /proc/self/autogroup; } 2> /dev/null; exec nice -n 5 "$@"', "sh")
"""Engines take all processors there are. Client, router and node stores go first, or the client would be measured.

Linux weighs sessions, and each engine is one, against each other by a nice value that they have themselves
(``autogroup`` in sched(7)), and by the usual one what is within a session. Kernels without the former know only that.
"""


@dataclass(frozen=True)
class Served:
    """Where a cell's requests go.

    Parameters
    ----------
    url
        The router, or the server itself.
    engines
        Whose counters say where the prompts' tokens were found.
    shares_nothing
        Requests must see to it themselves that no cache has anything for them.
    """

    url: str
    engines: Sequence[str] = ()
    shares_nothing: bool = False


@dataclass(frozen=True)
class Setup:
    """What all cells of a comparison have in common.

    Parameters
    ----------
    engine
        What a replica is.
    dtype
        Of vLLM's weights, activations and KV.
    engine_cache_tokens
        How many tokens the cache of each engine itself holds.
    context_tokens
        The longest request, its answer included.
    """

    engine: Literal["vllm", "simulated"]
    dtype: str
    engine_cache_tokens: int
    context_tokens: int


class Stacks(Protocol):
    """Serves cells, one after the other."""

    def __enter__(self) -> "Stacks":
        """Start nothing yet."""

    def __exit__(self, *_: object) -> None:
        """End what runs."""

    def serve(self, cell: Cell) -> contextlib.AbstractContextManager[Served]:
        """Serve a cell until the block ends; raises :class:`TierlineError` where this cell cannot be had."""


class OwnStacks:
    """Stacks that are started here and end with the ``with`` block.

    Parameters
    ----------
    setup
        What all of them have in common.
    folder
        Takes the programs' logs.
    say
        Told what is started.
    """

    def __init__(self, setup: Setup, folder: Path, say: Say) -> None:
        self._setup = setup
        self._folder = folder
        self._say = say
        self._running = ExitStack()
        self._stores = ExitStack()
        self._plan: StackPlan | None = None
        self._of: Engines | None = None
        self._stores_for: Below | None = None
        """What the node stores have below them that no cell has used yet."""

    def __enter__(self) -> "OwnStacks":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @contextlib.contextmanager
    def serve(self, cell: Cell) -> Iterator[Served]:
        """Serve a cell, on engines that run already where they are the right ones.

        Raises
        ------
        TierlineError
            When something that it needs is missing, or does not start.
        """
        if cell.strategy == "kvaware":
            engines.require_pyzmq()
        plan = self._engines_of(cell)
        if cell.engines is Engines.JOINED:
            self._join(plan, cell.below)
            self._stores_for = None
        router = _router(plan, cell.strategy)
        log = self._folder / f"router-{cell.name}.log"
        with _program(router, log, _OTHERS_READY_WITHIN_S):
            yield Served(router.url, [replica.url for replica in plan.replicas])

    def _engines_of(self, cell: Cell) -> StackPlan:
        if self._plan is not None and self._of is cell.engines:
            return self._plan
        self._end()
        plan = self._planned(cell.engines)
        self._running.callback(remove_leftovers, plan)
        self._running.callback(self._stores.close)  # engines end before what they are joined to
        try:
            if cell.engines is Engines.JOINED:
                self._start_stores(plan, cell.below)
            self._say(f"starting {len(plan.replicas)} engines: {cell.engines.value}")
            began = time.monotonic()
            replicas = [self._replica(plan, number, cell.engines) for number in range(len(plan.replicas))]
            _start_together(self._running, replicas, self._folder, _ENGINES_READY_WITHIN_S)
            self._plan, self._of = plan, cell.engines
            asyncio.run(self._warm_up(plan, self._setup.context_tokens // 2))
            self._say(f"they took {time.monotonic() - began:.0f} s")
        except BaseException:
            self._end()
            raise
        return plan

    def _planned(self, kind: Engines) -> StackPlan:
        setup, is_joined = self._setup, kind is Engines.JOINED
        port, node_port = free_ports(2)
        blocks = -(-setup.engine_cache_tokens // _ENGINE_BLOCK_TOKENS["vllm"])
        arguments = [
            f"--dtype={setup.dtype}",
            f"--num-gpu-blocks-override={blocks}",
            f"--max-model-len={setup.context_tokens}",
            *(["--no-enable-prefix-caching"] if kind is Engines.UNCACHED else []),
        ]
        hears_events = kind is Engines.PLAIN and _has_pyzmq()
        given = {
            "port": port,
            "node_port": node_port,
            "engine": setup.engine,
            "replicas": REPLICAS,
            "nodes": REPLICAS if is_joined else 1,
            "cache": is_joined,
            "cache_size": _NODE_BYTES,
            "strategy": "kvaware" if hears_events else "roundrobin",
            "engine_arguments": arguments if setup.engine == "vllm" else [],
        }
        return make_plan(load(UpConfig, None, given, {}), self._say)

    def _replica(self, plan: StackPlan, number: int, kind: Engines) -> PlannedChild:
        """Return a replica as it is started here: behind others, and the simulated one with what vLLM is told."""
        planned = plan.replicas[number]
        argv = [*_BEHIND_OTHERS, *planned.argv]
        if self._setup.engine == "simulated":
            blocks = -(-self._setup.engine_cache_tokens // _ENGINE_BLOCK_TOKENS["simulated"])
            argv += ["--cache-blocks", str(blocks)]
            if kind is Engines.UNCACHED:
                argv.append("--no-enable-prefix-caching")
        return replace(planned, argv=argv)

    def _start_stores(self, plan: StackPlan, below: Below) -> None:
        self._stores.close()
        self._stores_for = None
        remove_leftovers(plan)
        settings: dict[str, str] = {}
        plan.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if below is Below.TIEREDSTORAGE:
            write_pool_token(plan)
        elif below is Below.REDIS:
            try:
                program, port = redis_server(self._folder)
            except FileNotFoundError as error:
                raise TierlineError(str(error)) from error
            self._stores.enter_context(program)
            settings = {"tiers": f"redis://127.0.0.1:{port}", "lookup_cap_ms": str(engines.CPU_LOOKUP_BUDGET_MS)}
        told = {NodeConfig.environment_variable(key): value for key, value in settings.items()}
        pool = {node.name: node.environment(plan.nodes, plan.folder / POOL_TOKEN) for node in plan.nodes}
        stores = [
            replace(store, environment=pool[store.name] if below is Below.TIEREDSTORAGE else told)
            for store in plan.stores
        ]
        _start_together(self._stores, stores, self._folder, _OTHERS_READY_WITHIN_S)
        self._stores_for = below

    def _join(self, plan: StackPlan, below: Below) -> None:
        """Have the engines at new node stores with this below; return once each has stored something there."""
        if self._stores_for is not below:
            self._say(f"exchanging the node stores: {below.value or 'nothing'} below them")
            self._start_stores(plan, below)
        deadline = time.monotonic() + _JOINED_WITHIN_S
        while not self._has_joined(plan):
            if time.monotonic() > deadline:
                raise EngineError(f"no engine stores anything at its node store after {_JOINED_WITHIN_S:.0f} s")
            asyncio.run(self._warm_up(plan, 2 * CHUNK_TOKENS))
            until = time.monotonic() + _STORED_WITHIN_S
            while not self._has_joined(plan) and time.monotonic() < until:
                time.sleep(0.2)

    def _has_joined(self, plan: StackPlan) -> bool:
        return all(_commits(node.url) for node in plan.nodes)

    async def _warm_up(self, plan: StackPlan, tokens: int) -> None:
        """Ask every engine something new: it allocates what first requests need, and stores what it computes."""
        async with aiohttp.ClientSession() as http:
            chat = Chat(http, str(plan.model_name), 2)
            prompt = " ".join([f"Warming up {uuid.uuid4().hex}.", *(["again"] * tokens)])[: 4 * tokens]
            await asyncio.gather(*(chat.ask(replica.url, prompt) for replica in plan.replicas))

    def _end(self) -> None:
        self._plan = self._of = self._stores_for = None
        self._running.close()


class RunningServer:
    """A server that runs already: what cannot be switched from outside is left out.

    That nothing is found is had by giving each request a ``cache_salt`` of its own, and another strategy by a router
    beside the one that runs, where that is of a stack of this machine.

    Parameters
    ----------
    base_url
        The server.
    folder, say
        As of :class:`OwnStacks`.
    """

    def __init__(self, base_url: str, folder: Path, say: Say) -> None:
        self._url = base_url.rstrip("/")
        self._folder = folder
        self._say = say
        local = urlsplit(self._url)
        self._stack: RunningStack | None = None
        if local.hostname in ("127.0.0.1", "localhost", "::1") and local.port is not None:
            self._stack = find_stack(local.port)

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @contextlib.contextmanager
    def serve(self, cell: Cell) -> Iterator[Served]:
        """Serve a cell as far as the server can be it.

        Raises
        ------
        TierlineError
            When it cannot.
        """
        replicas = [replica.url for replica in self._stack.replicas] if self._stack is not None else []
        if cell.engines is Engines.UNCACHED:
            yield Served(self._url, replicas, shares_nothing=True)
            return
        if cell.name == AS_IT_IS.name:
            yield Served(self._url, replicas)
            return
        if self._stack is None or not replicas:
            raise UsageError("only a stack of `tierline up` on this machine can be given another router")
        if cell.strategy == "kvaware":
            raise UsageError("a running stack tells its KV events to its own router only")
        (port,) = free_ports(1)
        planned = _router_before(replicas, port, cell.strategy)
        with _program(planned, self._folder / f"router-{cell.name}.log", _OTHERS_READY_WITHIN_S):
            yield Served(planned.url, replicas)


AS_IT_IS = Cell("as-it-is", "as it is", Engines.PLAIN)


def cells_of_a_running_server(cells: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Return those that can be had of a server that runs, itself as it is among them, and those that cannot."""
    kept = [cell for cell in cells if cell.engines is not Engines.JOINED and cell.strategy != "kvaware"]
    routed = [replace(cell, title=f"as it is, routing: {cell.strategy}") for cell in kept if _is_routed(cell)]
    off = [replace(cell, title="each request with a cache_salt of its own") for cell in kept if not _is_routed(cell)]
    return [*off, AS_IT_IS, *routed], [cell for cell in cells if cell not in kept]


def _is_routed(cell: Cell) -> bool:
    return cell.engines is Engines.PLAIN


def _has_pyzmq() -> bool:
    with contextlib.suppress(UsageError):
        engines.require_pyzmq()
        return True
    return False


def _router(plan: StackPlan, strategy: str) -> PlannedChild:
    if strategy == plan.config.strategy:
        return plan.router
    return _router_before([replica.url for replica in plan.replicas], plan.config.port, strategy)


def _router_before(replicas: Sequence[str], port: int, strategy: str) -> PlannedChild:
    endpoints = [part for url in replicas for part in ("--endpoint", url)]
    argv = tierline("router", "--port", str(port), "--strategy", strategy, *endpoints)
    environment: Mapping[str, str] = {"TIERLINE_ROUTER_SHUTDOWN_TIMEOUT_S": "2"}
    return PlannedChild("router", argv, environment, f"http://127.0.0.1:{port}", "/health")


def _program(planned: PlannedChild, log: Path, within_s: float, given_up: threading.Event | None = None) -> Program:
    url = planned.url + planned.ready_path

    def is_ready() -> bool:
        if given_up is not None and given_up.is_set():
            raise TierlineError(f"{planned.name}: nobody waits for it any more")
        return answers(url)

    return Program(planned.argv, log, is_ready, within_s, planned.environment)


def _start_together(stack: ExitStack, children: Sequence[PlannedChild], folder: Path, within_s: float) -> None:
    """Start programs side by side; all that did start end with ``stack``, also when one did not, or at Ctrl-C."""
    given_up = threading.Event()
    begun: list[Future[Program]] = []
    try:
        with ThreadPoolExecutor(len(children)) as starting:
            begun += [
                starting.submit(_program, each, folder / f"{each.name}.log", within_s, given_up) for each in children
            ]
            try:
                wait(begun)
            except BaseException:
                given_up.set()
                raise
    finally:
        for each in begun:
            if each.exception() is None:
                stack.enter_context(each.result())
    for each in begun:
        each.result()


def _commits(url: str) -> int:
    with urllib.request.urlopen(f"{url}/v1/stats", timeout=10) as response:  # noqa: S310  (our own http:// URL)
        return int(json.load(response)["store"]["commits"])
