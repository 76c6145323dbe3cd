"""``tierline up``: starts node store, replicas and router in this order, watches them, and stops all when one ends.

The supervisor's own state is in ``<state folder>/up-<port>/``: a log file per child, and ``stack.json`` while all are
ready (:mod:`tierline.stack.running`). A UNIX socket, open to this user only, takes restarts of replicas.
"""

import asyncio
import json
import os
import shlex
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from aiohttp import web
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tierline import logs
from tierline.configuration import format_byte_size
from tierline.errors import EngineError
from tierline.router.admin.access import is_loopback
from tierline.stack.config import UpConfig
from tierline.stack.leftovers import remove_leftovers, write_pool_token
from tierline.stack.plan import PlannedChild, StackPlan, make_plan
from tierline.stack.processes import Child
from tierline.stack.running import DESCRIPTION, RunningChild, RunningNode, RunningReplica, RunningStack, encode

_WATCH_EVERY_S = 0.2


def run(config: UpConfig) -> None:
    """Run the stack until SIGINT, SIGTERM or the end of a child.

    Raises
    ------
    UsageError
        When something must be changed before the stack can start; nothing was started.
    EngineError
        When a child did not become ready or ended by itself; all were stopped.
    """
    logs.configure(config.log_level, json=config.log_format == "json")
    console = Console(highlight=False, soft_wrap=True)
    plan = make_plan(config, say=lambda line: console.print(line, style="dim"))
    asyncio.run(_supervise(plan, console))


class Stack:
    """The children of one plan. A child that ends by itself ends the stack, unless it is being restarted."""

    def __init__(self, plan: StackPlan, http: aiohttp.ClientSession) -> None:
        self.plan = plan
        self._http = http
        planned = [*plan.stores, *plan.caches, *plan.replicas, plan.router]
        self._children = {
            child.name: Child(
                child.name,
                child.argv,
                child.environment,
                ready_url=child.url + child.ready_path,
                log=plan.folder / f"{child.name}.log",
            )
            for child in planned
        }
        self._restarting: set[str] = set()

    async def start(self, console: Console) -> None:
        """Start all, in order, and return once the last is ready.

        Raises
        ------
        EngineError
            When a child ends or is not ready in time.
        """
        self.plan.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_leftovers(self.plan)  # of a supervisor that was killed; the ports are free, so its children are gone too
        if len(self.plan.nodes) > 1:
            write_pool_token(self.plan)
        for child in self._children.values():
            child.log.unlink(missing_ok=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            for stage in (self.plan.stores, self.plan.caches, self.plan.replicas, [self.plan.router]):
                await _run_tasks(  # replicas load side by side
                    asyncio.FIRST_EXCEPTION, *(self._start_child(planned, progress) for planned in stage)
                )

    async def watch(self) -> None:
        """Raise :class:`EngineError` when a child ends by itself; never return."""
        while True:
            for name, child in self._children.items():
                if child.has_ended and name not in self._restarting:
                    raise EngineError(child.obituary())
            await asyncio.sleep(_WATCH_EVERY_S)

    async def restart(self, index: int) -> RunningReplica:
        """Stop a replica and its LMCache server, start them again and return it once it is ready.

        Raises
        ------
        EngineError
            When it is being restarted already, or does not become ready. If it ended, so does the stack.
        """
        planned = self.plan.replicas[index]
        if planned.name in self._restarting:
            raise EngineError(f"{planned.name} is being restarted already")
        child = self._children[planned.name]
        caches = [self._children[cache.name] for cache in self.plan.caches[index : index + 1]]
        restarting = {child.name, *(cache.name for cache in caches)}
        self._restarting |= restarting
        try:
            await child.stop()
            for cache in caches:
                await cache.stop()
            for each in (*caches, child):
                await each.start()
                await each.wait_until_ready(self._http)
        finally:
            self._restarting -= restarting
        self.write_description()
        return self._running_replica(index)

    async def stop(self) -> None:
        """Stop the children, those that depend on others first, and remove what only running children need."""
        for stage in ([self.plan.router], self.plan.replicas, self.plan.caches, self.plan.stores):
            await asyncio.gather(*(self._children[planned.name].stop() for planned in stage))
        remove_leftovers(self.plan)

    def describe(self) -> RunningStack:
        """Return what runs."""
        plan, config = self.plan, self.plan.config
        return RunningStack(
            pid=os.getpid(),
            control=plan.control,
            model=plan.model_name,
            model_folder=plan.model_folder,
            engine="external" if config.endpoints else config.engine,
            strategy=config.strategy,
            connector=config.connector,
            has_dev_mode=config.engine_dev_mode or config.engine == "simulated",
            cache_bytes=config.cache_size if plan.nodes else 0,
            router=self._running(plan.router),
            nodes=[
                RunningNode(
                    node.name, node.url, self._children[node.name].pid, self._children[node.name].log, node.socket
                )
                for node in plan.nodes
            ],
            caches=[self._running(cache) for cache in plan.caches],
            replicas=[self._running_replica(index) for index in range(len(plan.replicas))],
        )

    def write_description(self) -> None:
        """Tell other programs what runs; until :meth:`stop`."""
        scratch = self.plan.folder / f".{DESCRIPTION}"
        scratch.write_bytes(msgspec.json.format(encode(self.describe())))
        scratch.rename(self.plan.folder / DESCRIPTION)

    async def _start_child(self, planned: PlannedChild, progress: Progress) -> None:
        child = self._children[planned.name]
        task = progress.add_task(f"{planned.name} starts on {planned.url}", total=None)
        await child.start()
        took_s = await child.wait_until_ready(self._http)
        progress.remove_task(task)
        progress.console.print(f"{planned.name} ready on {planned.url} after {took_s:.1f} s")

    def _running(self, planned: PlannedChild) -> RunningChild:
        child = self._children[planned.name]
        return RunningChild(name=planned.name, url=planned.url, pid=child.pid, log=child.log)

    def _running_replica(self, index: int) -> RunningReplica:
        planned, nodes = self.plan.replicas[index], self.plan.nodes
        child = self._children[planned.name]
        node = nodes[index % len(nodes)].name if nodes else ""
        return RunningReplica(planned.name, planned.url, child.pid, child.log, node)


async def _supervise(plan: StackPlan, console: Console) -> None:
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    async with aiohttp.ClientSession() as http:
        stack = Stack(plan, http)
        if plan.config.endpoints and plan.kv_transfer:  # first of all: servers may wait for it
            console.print(_how_to_join(plan), markup=False)
        try:
            await _run_tasks(asyncio.FIRST_COMPLETED, stack.start(console), stack.watch(), interrupted.wait())
            if interrupted.is_set():
                return
            async with _control(stack):
                stack.write_description()
                console.print(_welcome(plan), markup=False)
                await _run_tasks(asyncio.FIRST_COMPLETED, stack.watch(), interrupted.wait())
        finally:
            console.print("stopping", style="dim")
            await stack.stop()


async def _run_tasks(until: str, *work: Coroutine[None, None, object]) -> None:
    """Run ``work`` side by side until asyncio's condition ``until``, cancel the rest, raise the first error itself.

    An ``asyncio.TaskGroup`` would wrap the error in a group.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        if tasks:
            await asyncio.wait(tasks, return_when=until)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


@asynccontextmanager
async def _control(stack: Stack) -> AsyncIterator[None]:
    """Serve ``POST /replicas/{index}/restart`` on the stack's control socket."""

    async def restart(request: web.Request) -> web.Response:
        index = int(request.match_info["index"])
        if index >= len(stack.plan.replicas):
            return web.Response(status=404, text=f"there are {len(stack.plan.replicas)} replicas, counted from 0")
        try:
            return web.Response(body=encode(await stack.restart(index)), content_type="application/json")
        except EngineError as error:
            return web.Response(status=500, text=str(error))

    app = web.Application()
    app.router.add_post(r"/replicas/{index:\d+}/restart", restart)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stack.plan.control.unlink(missing_ok=True)  # of a supervisor that was killed: the port is free, so it is gone
    previous = os.umask(0o177)
    try:
        await web.UnixSite(runner, str(stack.plan.control)).start()
    finally:
        os.umask(previous)
    try:
        yield
    finally:
        await runner.cleanup()
        stack.plan.control.unlink(missing_ok=True)


def _welcome(plan: StackPlan) -> str:
    config = plan.config
    url = f"{plan.router.url}/v1"
    prompt = {"model": plan.model_name or "MODEL", "messages": [{"role": "user", "content": "Say hello."}]}
    request = shlex.quote(json.dumps(prompt))
    lines = [
        "",
        f"{url} serves {plan.model_name or 'what its endpoints serve'} ({config.strategy})",
        "",
        f"  curl {url}/chat/completions -H 'content-type: application/json' -d {request}",
        "",
    ]
    size = format_byte_size(config.cache_size)
    if len(plan.nodes) == 1:
        lines.append(f"  cache  {size} in {plan.nodes[0].url}, joined by {plan.nodes[0].socket}")
    else:
        for index, node in enumerate(plan.nodes):
            joined = [replica.name for replica in plan.replicas[index :: len(plan.nodes)]]
            lines.append(f"  {node.name}  {size} in {node.url}, joined by {', '.join(joined) or 'no replica'}")
    size = format_byte_size(config.lmcache_size)
    lines.extend(f"  {cache.name}  {size} of its own, {cache.url}/metrics" for cache in plan.caches)
    if config.dashboard:
        asks = "" if is_loopback(config.host) else "  (for who has the token in TIERLINE_ROUTER_ADMIN_TOKEN_FILE)"
        lines.append(f"  watch  {plan.router.url}/dashboard{asks}")
    lines.append(f"  logs   {plan.folder}")
    lines.append("  stop   Ctrl-C")
    return "\n".join(lines)


def _how_to_join(plan: StackPlan) -> str:
    flag = shlex.quote(json.dumps(plan.kv_transfer))
    return (
        "Start each vLLM server with tierline in its environment and this flag:\n\n"
        f"  --kv-transfer-config {flag}\n\n"
        f"The router is ready when one of {', '.join(plan.config.endpoints)} is."
    )
